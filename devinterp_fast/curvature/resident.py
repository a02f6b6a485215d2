"""Hessian-vector products of small Programs that live in a GPU's shared memory."""

from __future__ import annotations

import torch
from torch import Tensor

from devinterp_fast._native_cuda import module
from devinterp_fast.errors import ShapeError
from devinterp_fast.sampling.native import Program

__all__ = ["ResidentCurvature"]


class ResidentCurvature:
    """The Hessian of a small Program's mean loss at a stack of checkpoints, on a GPU; ``hvp`` multiplies with it.

    H v = R{grad L}(w), R{f}(w) = d/de f(w + e v) at e = 0. One kernel: a block of threads holds weights, directions,
    values, gradients and their tangents. Up to ``tile`` samples the numbers are those of ``Program.curvature`` on the
    CPU, bit for bit; beyond, the blocks of samples end elsewhere and the two agree to rounding.

    Args:
        program: a captured Program; narrow, of linear maps, relu, tanh, sigmoid, sums and scales.
        w: one checkpoint, or K of them; chains are as good.
        device: a GPU.

    Attributes:
        tile: samples that a block of threads holds at a time.
        group: probes that share a pass over the samples.
        shared_bytes: of shared memory that a block takes.

    Shape:
        w: float32 (dim,) or (K, dim).

    Raises:
        ValueError: the Program does not fit; one sentence says why.
        ShapeError: ``w`` is not as above.

    Source:
        Pearlmutter (1994), Fast exact multiplication by the Hessian.
    """

    def __init__(self, program: Program, w: Tensor, *, device: str = "cuda") -> None:
        d, where = program.description, torch.device(device)
        if w.dim() not in (1, 2) or w.shape[-1] != d.dim:
            raise ShapeError(f"w: expected ({d.dim},) or (checkpoints, {d.dim}), got {tuple(w.shape)}")
        plan = module().ResidentProducts(*d.plain())
        self.tile: int = plan.tile
        self.group: int = plan.group
        self.shared_bytes: int = plan.shared_bytes
        self.dim, self.stacked = d.dim, w.dim() == 2
        self._plan = torch.frombuffer(bytearray(plan.packed()), dtype=torch.uint8)
        self._segments: int = plan.segments(program.n)
        self._w = w.detach().reshape(-1, d.dim).to(where, torch.float32).contiguous()
        self._frozen = d.frozen.to(where, torch.float32).contiguous()
        _, (x, y, _, classes) = program.data(torch.float32)
        self._data = x.to(where), y.to(where), classes.to(where)

    def hvp(self, v: Tensor) -> Tensor:
        """The Hessian times each row of ``v``.

        Args:
            v: directions, on the GPU.

        Returns:
            The products, as ``v``.

        Shape:
            v: float32 (k, dim) at one checkpoint, (K, k, dim) at a stack.

        Raises:
            ShapeError, DTypeError, DeviceError: ``v`` is not as above.
            CudaError: a kernel could not be started.
        """
        rows = v.detach() if self.stacked else v.detach()[None]
        out = torch.empty_like(rows)
        partial = rows.new_empty(self._segments, *rows.shape) if self._segments > 1 else None
        torch.ops.devinterp_fast.resident_hvp_(out, rows, self._w, *self._data, self._frozen, self._plan, partial)
        return out if self.stacked else out[0]
