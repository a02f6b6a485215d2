"""The native engine of a curvature matrix: products of a captured model in C++."""

from __future__ import annotations

import torch
from torch import Tensor

from devinterp_fast import _cpu
from devinterp_fast._program.curvature import CACHE, Curvature
from devinterp_fast.curvature.problem import Problem
from devinterp_fast.sampling.native import Program

PRODUCTS = {"hessian": Curvature.hvp, "ggn": Curvature.ggn, "fisher": Curvature.fisher}
"""The matrices it knows."""


class NativeProducts:
    """Products of a captured model, all checkpoints in one call.

    Args:
        kind: a key of ``PRODUCTS``.
        problem: what the matrix is taken of.
        program: the captured model.

    Raises:
        Unsupported: an operation of the model has no second derivative in the engine.
    """

    def __init__(self, kind: str, problem: Problem, program: Program):
        self._product, self._problem, self._program = PRODUCTS[kind], problem, program
        self._stack = Curvature(program, problem.weights)
        self._alone: dict[int, Curvature] = {}

    @property
    def name(self) -> str:
        """The engine, as results quote it."""
        return f"native/{_cpu.isa()}"

    def gradient(self) -> Tensor:
        """The gradient of the mean loss at each checkpoint. Shape: (K, dim)."""
        self._stack.threads = torch.get_num_threads()
        return self._stack.gradient()

    def apply(self, V: Tensor, first: int) -> Tensor:
        """The matrices of C checkpoints from ``first`` on, times their vectors; a checkpoint with zeros is passed over.

        Shape:
            (C, k, dim) -> (C, k, dim)
        """
        wanted = [c for c, rows in enumerate(V) if rows.any()]
        if len(wanted) == len(self._problem.weights):
            self._stack.threads = torch.get_num_threads()
            return self._product(self._stack, V)
        out = torch.zeros_like(V)
        for c in wanted:
            out[c] = self._product(self._single(first + c), V[c])
        return out

    def gram(self) -> Tensor:
        """The other product of a Fisher matrix's factors, over samples. Shape: (K, N, N)."""
        self._stack.threads = torch.get_num_threads()
        return self._stack.gram()

    def _single(self, c: int) -> Curvature:
        """One checkpoint of the stack: the same bits, without the work of the others."""
        if c not in self._alone:
            share = CACHE // len(self._problem.weights)
            self._alone[c] = Curvature(self._program, self._problem.weights[c], cache=share)
        self._alone[c].threads = torch.get_num_threads()
        return self._alone[c]
