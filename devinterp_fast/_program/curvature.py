"""Products with the Hessian, the Gauss-Newton and the empirical Fisher matrix of a captured model's mean loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from devinterp_fast import _cpu
from devinterp_fast._native import check_rows, describe
from devinterp_fast._program.description import Unsupported
from devinterp_fast.errors import DTypeError, NumericalError, ShapeError

if TYPE_CHECKING:
    from typing import Protocol

    from devinterp_fast._program.description import Description

    class Captured(Protocol):
        """What is asked of a captured model."""

        @property
        def description(self) -> Description: ...
        @property
        def native(self) -> Any: ...
        @property
        def n(self) -> int: ...
        @property
        def dim(self) -> int: ...

        def data(self, dtype: torch.dtype) -> tuple[Any, list[Tensor]]: ...


CACHE = 2**30
"""Bytes of values and gradients that are kept between products, unless told otherwise."""

HESSIAN, GGN, FISHER = range(3)


class Curvature:
    """The mean loss of a captured model at one checkpoint or a stack of them: gradient and curvature products.

    H v by forward-over-reverse differentiation (the R-operator): the values and gradients of each block of samples
    are made once for a checkpoint and kept, directions are stacked below each other in the matrix products. Exact up to
    rounding. The bits of a row depend on the model, the data and that row alone: not on threads, on the other rows or
    checkpoints, on the cache or on the instruction set.

    Args:
        program: a captured model with its data.
        w: one checkpoint, or K of them; float32 or float64 decides the precision of all that follows.
        index: the samples, all by default; a sample named twice counts twice.
        cache: bytes to keep between products; blocks of samples beyond are made again for each product.
        threads: of all calls.

    Attributes:
        losses: per-sample losses, float64.

    Shape:
        w: (dim,) or (K, dim); index: (samples,); losses: (samples,) or (K, samples).

    Units:
        none

    Raises:
        DTypeError, DeviceError, ShapeError: an argument is not as above.
        ValueError: no samples, or a sample that does not exist.
        Unsupported: an operation has no second derivative here.
        NumericalError: the loss is not finite at a checkpoint.

    Source:
        Pearlmutter (1994), Fast exact multiplication by the Hessian; Schraudolph (2002), Fast curvature
        matrix-vector products.
    """

    def __init__(
        self,
        program: Captured,
        w: Tensor,
        index: Tensor | None = None,
        *,
        cache: int = CACHE,
        threads: int = 1,
    ) -> None:
        if w.dtype not in (torch.float32, torch.float64):
            raise DTypeError(f"w: expected float32 or float64, got {describe(w)}")
        if w.dim() not in (1, 2) or (w.dim() == 2 and w.shape[0] == 0):
            raise ShapeError(f"w: expected ({program.dim},) or (checkpoints, {program.dim}), got {describe(w)}")
        check_rows("w", w, w.dtype, (*w.shape[:-1], program.dim))
        if not _cpu.has_second(program.native):
            raise Unsupported("an operation of the model has no second derivative in the native engine")
        chosen = torch.arange(program.n) if index is None else index.detach().reshape(-1)
        if len(chosen) == 0 or int(chosen.min()) < 0 or int(chosen.max()) >= program.n:
            raise ValueError(f"index: expected samples 0 ... {program.n - 1}, got {tuple(chosen.shape)} of them")
        self.dim, self.dtype, self.threads = program.dim, w.dtype, threads
        self.stacked, self.checkpoints = w.dim() == 2, w.shape[0] if w.dim() == 2 else 1
        rows, frozen = w.detach().view(-1, self.dim), program.description.frozen.to(w.dtype)
        whole = torch.cat([rows, frozen.expand(len(rows), -1)], 1).contiguous()
        samples = chosen.to(torch.int32).contiguous()
        data, self._alive = program.data(w.dtype)
        self._total = whole.shape[1]
        kind = _cpu.Curvature32 if w.dtype == torch.float32 else _cpu.Curvature64
        self._native = kind(
            program.native, data, samples.data_ptr(), len(samples), whole.data_ptr(), len(rows), cache, threads
        )
        losses = torch.empty(len(rows), len(samples), dtype=torch.float64)
        self._native.losses(losses.data_ptr())
        bad = (~losses.isfinite().all(1)).nonzero()
        if len(bad):
            raise NumericalError(f"w: expected a finite loss, got none at checkpoint {int(bad[0])}")
        self.losses = losses if self.stacked else losses[0]

    def gradient(self) -> Tensor:
        """The gradient of the mean loss: (dim,) or (K, dim)."""
        out = torch.empty(self.checkpoints, self._total, dtype=self.dtype)
        self._native.gradient(out.data_ptr(), out.numel())
        rows = out[:, : self.dim].contiguous()
        return rows if self.stacked else rows[0]

    def hvp(self, v: Tensor) -> Tensor:
        """The Hessian of the mean loss times each row of ``v``: (k, dim), or (K, k, dim) for a stack."""
        return self._product(HESSIAN, v)

    def ggn(self, v: Tensor) -> Tensor:
        """J^T H_loss J times each row of ``v``, J = Jacobian of the outputs: (k, dim) or (K, k, dim)."""
        return self._product(GGN, v)

    def fisher(self, v: Tensor) -> Tensor:
        """G^T G / n times each row of ``v``, G = the gradients of n samples, never formed: (k, dim) or (K, k, dim)."""
        return self._product(FISHER, v)

    def gram(self) -> Tensor:
        """G G^T / n, G = the gradients of the n samples: (n, n) or (K, n, n).

        Its nonzero eigenvalues are those of the empirical Fisher matrix. Weights that meet a sample at one position
        enter as elementwise products of two Gram matrices of layer inputs and deltas; the others a slice at a time.
        """
        n = self.losses.shape[-1]
        out = torch.empty(self.checkpoints, n, n, dtype=self.dtype)
        self._native.gram(out.data_ptr(), self.threads)
        return out if self.stacked else out[0]

    def _product(self, kind: int, v: Tensor) -> Tensor:
        if v.dim() != 2 + self.stacked:
            shape = f"({self.checkpoints}, k, {self.dim})" if self.stacked else f"(k, {self.dim})"
            raise ShapeError(f"v: expected {str(self.dtype).removeprefix('torch.')} {shape} on cpu, got {describe(v)}")
        probes = v.shape[-2]
        stack = (self.checkpoints,) if self.stacked else ()
        check_rows("v", v, self.dtype, (*stack, probes, self.dim))
        rows = v.detach().contiguous()
        out = torch.empty_like(rows)
        self._native.product(kind, rows.data_ptr(), probes, out.data_ptr(), self.threads)
        return out
