"""Programs before they are laid out in memory: operations, values, loss, and where the data come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from devinterp_fast import _cpu

# The kinds of csrc/core/program.hpp, in its order.
KINDS = (
    "input",
    "linear",
    "activation",
    "add",
    "scale",
    "embedding",
    "position",
    "layer_norm",
    "rms_norm",
    "attention",
    "gather",
    "mean_rows",
    "max_rows",
    "join",
)
ACTIVATIONS = ("none", "relu", "tanh", "sigmoid", "gelu", "gelu_tanh", "silu")
LOSSES = ("squared", "cross_entropy", "binary")


class Unsupported(Exception):  # noqa: N818 - a finding, not a mistake
    """The model cannot run natively; the message is the reason, in one sentence."""


@dataclass(frozen=True)
class Op:
    """One operation; the fields are those of ``ProgramOp`` in csrc/core/program.hpp."""

    kind: str
    out: int
    a: int = -1
    b: int = -1
    c: int = -1
    weight: int = -1
    bias: int = -1
    first: int = 0
    activation: str = "none"
    transposed: bool = False
    heads: int = 0
    causal: bool = False
    size: int = 0
    factor: float = 0.0

    def native(self) -> tuple[list[int], float]:
        """The operation as integers in the order of ``ProgramOp``, and its factor."""
        kind, activation = KINDS.index(self.kind), ACTIVATIONS.index(self.activation)
        head = [kind, activation, self.out, self.a, self.b, self.c, self.weight, self.bias, self.first]
        return [*head, int(self.transposed), self.heads, int(self.causal), self.size], self.factor


@dataclass(frozen=True)
class Value:
    """A matrix (rows, cols) of each sample, or columns of value ``base``."""

    rows: int
    cols: int
    base: int = -1
    column: int = 0


@dataclass(frozen=True)
class Loss:
    """``factor`` times the sum over a sample's predictions of a squared error, a cross-entropy or a binary one."""

    kind: str
    prediction: int
    factor: float
    importance: int = -1


@dataclass(frozen=True)
class Source:
    """Elements taken from each sample of ``x`` or ``y``."""

    name: str
    elements: Tensor
    ignore_index: int = -100

    def rows(self, x: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
        """The chosen elements of every sample: (n, elements), contiguous."""
        data = (x if self.name == "x" else y).detach()
        flat = data.reshape(data.shape[0], -1)
        whole = torch.equal(self.elements, torch.arange(flat.shape[1]))
        return (flat if whole else flat[:, self.elements]).to(dtype).contiguous()


@dataclass(frozen=True)
class Description:
    """A Program before it is laid out in memory."""

    values: tuple[Value, ...]
    ops: tuple[Op, ...]
    maps: tuple[int, ...]
    loss: Loss
    dim: int
    names: tuple[str, ...]
    frozen: Tensor  # float64 (total - dim)
    inputs: Source | None
    tokens: Source | None
    target: Source

    @property
    def multiply_adds(self) -> int:
        """Of one sample's loss and gradient, about: matrix products only, three for each linear map."""
        total = 0
        for op in self.ops:
            v = self.values[op.out]
            if op.kind == "linear":
                total += 3 * v.rows * v.cols * self.values[op.a].cols
            elif op.kind == "attention":
                total += 6 * v.rows * v.rows * v.cols
        return total

    def plain(self) -> tuple[list[Any], list[Any], tuple[Any, ...], int, int]:
        """Values, operations, loss, parameters and all numbers, as the compiled modules take them."""
        loss = (LOSSES.index(self.loss.kind), self.loss.prediction, self.loss.factor, self.loss.importance)
        values = [(v.rows, v.cols, v.base, v.column) for v in self.values]
        return values, [op.native() for op in self.ops], loss, self.dim, self.dim + self.frozen.numel()

    def native(self) -> Any:
        """The laid-out Program."""
        values, ops, loss, dim, total = self.plain()
        return _cpu.Program(values, ops, list(self.maps), loss, dim, total)

    def __str__(self) -> str:
        """One line an operation."""
        lines = []
        for op in self.ops:
            reads = ", ".join(f"v{v}" for v in (op.a, op.b, op.c) if v >= 0)
            shape = f"({self.values[op.out].rows}, {self.values[op.out].cols})"
            extra = "" if op.activation == "none" else f" -> {op.activation}"
            lines.append(f"v{op.out} {shape} = {op.kind}({reads}){extra}")
        return "\n".join([*lines, f"loss = {self.loss.kind}(v{self.loss.prediction})"])


def _readers(ops: Sequence[Op], values: Sequence[Value], loss: Loss) -> dict[int, int]:
    """How often each value is read; reading columns reads the base."""
    count: dict[int, int] = {}
    for v in [v for op in ops for v in (op.a, op.b, op.c) if v >= 0] + [loss.prediction]:
        count[v] = count.get(v, 0) + 1
        if values[v].base >= 0:
            count[values[v].base] = count.get(values[v].base, 0) + 1
    return count


def simplify(ops: list[Op], values: list[Value], loss: Loss) -> list[Op]:
    """Drops what the loss does not need; joins biases and activation functions to their linear maps."""
    needed, kept = {loss.prediction, values[loss.prediction].base}, []
    for op in reversed(ops):
        if op.out in needed:
            kept.append(op)
            needed |= {v for a in (op.a, op.b, op.c) if a >= 0 for v in (a, values[a].base)}
    ops = kept[::-1]
    count = _readers(ops, values, loss)
    result: list[Op] = []
    for op in ops:
        at = next((i for i, before in enumerate(result) if before.out == op.a and before.kind == "linear"), -1)
        before = result[at] if at >= 0 and count[op.a] == 1 and result[at].activation == "none" else None
        if before and op.kind == "position" and op.size == 1 and before.bias < 0:
            result[at] = replace(before, out=op.out, bias=op.weight)
        elif before and op.kind == "activation":
            result[at] = replace(before, out=op.out, activation=op.activation)
        else:
            result.append(op)
    return result


def number(ops: list[Op], values: list[Value], loss: Loss) -> tuple[list[Op], list[Value], Loss]:
    """Values in use, numbered anew; a base comes before its columns."""
    used = {v for op in ops for v in (op.out, op.a, op.b, op.c) if v >= 0} | {loss.prediction}
    used |= {values[v].base for v in used if values[v].base >= 0}
    new = {v: i for i, v in enumerate(sorted(used))} | {-1: -1}
    chosen = [replace(values[v], base=new[values[v].base]) for v in sorted(used)]
    moved = [replace(op, out=new[op.out], a=new[op.a], b=new[op.b], c=new[op.c]) for op in ops]
    return moved, chosen, replace(loss, prediction=new[loss.prediction])
