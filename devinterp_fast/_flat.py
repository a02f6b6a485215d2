"""Model <-> (chains, dim): the sampled parameters as coordinates of one vector.

Coordinates are the trainable parameters in the order of ``model.named_parameters()``, each row-major. A tensor of
a chain is a view into its row, so the fused step moves the model with no copy.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from devinterp_fast.errors import DeviceError, DTypeError, ModelError, ShapeError

PAD = 32
"""Rows start at multiples of this many floats, so each is aligned for 128-byte accesses."""


@dataclass(frozen=True)
class Layout:
    """Which parameter lies where in a chain's vector.

    Attributes:
        names: of the parameters.
        shapes: theirs.
        offsets: first coordinate of each.
        dim: number of coordinates.
        dtype: of all of them.
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    offsets: tuple[int, ...]
    dim: int
    dtype: torch.dtype

    def views(self, rows: Tensor) -> list[Tensor]:
        """Cuts rows into parameters, sharing memory. Shape: (..., dim) -> [(..., *shape), ...]."""
        return [
            rows[..., at : at + shape.numel()].unflatten(-1, shape) if shape else rows[..., at]
            for at, shape in zip(self.offsets, self.shapes, strict=True)
        ]

    def block(self, chains: int) -> Tensor:
        """Returns zeros (chains, dim) whose rows are aligned."""
        ld = -(-max(self.dim, 1) // PAD) * PAD
        return torch.zeros(chains, ld, dtype=self.dtype)[:, : self.dim]


def layout(model: nn.Module) -> Layout:
    """Lays out the parameters of a model that require gradients.

    Raises:
        ModelError: none does, or one is not finite.
        DTypeError: they differ in dtype, or are not real floats of 32 or 64 bits.
        DeviceError: one is not on the CPU.
    """
    parameters = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not parameters:
        raise ModelError("model: expected at least one parameter that requires a gradient, got none")
    first, dtype = parameters[0][0], parameters[0][1].dtype
    if dtype not in (torch.float32, torch.float64):
        raise DTypeError(f"model: expected float32 or float64 parameters, got {dtype} in {first!r}")
    offsets, at = [], 0
    for name, p in parameters:
        if p.device.type != "cpu":
            raise DeviceError(f"model: expected parameters on cpu, got {name!r} on {p.device}")
        if p.dtype != dtype:
            raise DTypeError(f"model: expected parameters of one dtype, got {dtype} and {p.dtype} ({name!r})")
        if not torch.isfinite(p).all():
            raise ModelError(f"model: expected finite parameters, got NaN or infinity in {name!r}")
        offsets.append(at)
        at += p.numel()
    names, shapes = (tuple(x) for x in zip(*((n, p.shape) for n, p in parameters), strict=True))
    return Layout(names, shapes, tuple(offsets), at, dtype)


def flatten(model: nn.Module, where: Layout) -> Tensor:
    """Copies the parameters into one vector. Shape: (dim,)."""
    of = dict(model.named_parameters())
    return torch.cat([of[name].detach().reshape(-1) for name in where.names])


def flat_mask(mask: Tensor | dict[str, Tensor], where: Layout) -> Tensor:
    """One bool for each coordinate from a bool vector, or from {parameter name: bool tensor of its shape}.

    Parameters that a dict leaves out do not move.

    Raises:
        ShapeError, DTypeError: a tensor does not fit its parameter.
        KeyError: a name is not a trainable parameter.
        ValueError: nothing would move.
    """
    if isinstance(mask, Tensor):
        if mask.dtype != torch.bool:
            raise DTypeError(f"mask: expected bool ({where.dim},), got {mask.dtype}")
        if tuple(mask.shape) != (where.dim,):
            raise ShapeError(f"mask: expected bool ({where.dim},), got {tuple(mask.shape)}")
        flat = mask.contiguous()
    else:
        flat = torch.zeros(where.dim, dtype=torch.bool)
        at = dict(zip(where.names, zip(where.offsets, where.shapes, strict=True), strict=True))
        for name, part in mask.items():
            if name not in at:
                raise KeyError(f"mask: expected names of trainable parameters, got {name!r}")
            offset, shape = at[name]
            if part.dtype != torch.bool:
                raise DTypeError(f"mask[{name!r}]: expected bool {tuple(shape)}, got {part.dtype}")
            if part.shape != shape:
                raise ShapeError(f"mask[{name!r}]: expected {tuple(shape)}, got {tuple(part.shape)}")
            flat[offset : offset + shape.numel()] = part.reshape(-1)
    if not flat.any():
        raise ValueError("mask: expected at least one True, got none: nothing would be sampled")
    return flat
