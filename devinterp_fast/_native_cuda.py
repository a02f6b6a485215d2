"""The door to the CUDA kernels: as ``_native``, for tensors on a GPU.

A kernel runs on PyTorch's current stream of the tensors' device. Nothing here allocates, waits, or reads device memory,
so every function can be captured in a CUDA graph; where a step's number and the seed matter they are device tensors,
which a replay reads anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from devinterp_fast._native import describe
from devinterp_fast.errors import CudaError, DeviceError, DTypeError, ShapeError

_cuda: ModuleType | None
try:
    from devinterp_fast import _cuda
except ImportError:  # built without nvcc
    _cuda = None


def unavailable() -> str:
    """Returns why no kernel can run here, or an empty text."""
    if _cuda is None:
        return "this build has no CUDA module: nvcc was not found when it was made"
    count, reason = _cuda.device_count()
    if count == 0:
        return str(reason)
    if not torch.cuda.is_available():
        return "this build of PyTorch has no CUDA"
    return ""


def summary() -> str:
    """Returns one line: on or off, why, and what the module was compiled for."""
    built = "" if _cuda is None else f"; built by nvcc {_cuda.version} for {_cuda.architectures}"
    reason = unavailable()
    return (f"off: {reason}" if reason else f"on: {torch.cuda.device_count()} devices") + built


def module() -> ModuleType:
    """Returns the compiled module.

    Raises:
        CudaError: this build has none.
    """
    if _cuda is None:
        raise CudaError(f"cuda: expected a build with nvcc, got none: {unavailable()}")
    return _cuda


def _expect(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device) -> None:
    """Raises unless the tensor is of this dtype, shape and device, with its last dimension dense."""
    if tensor.dtype == dtype and tensor.device == device and tensor.shape == shape and _dense(tensor):
        return
    wanted = f"{name}: expected {str(dtype).removeprefix('torch.')} {shape} on {device}"
    if tensor.dtype != dtype:
        raise DTypeError(f"{wanted}, got {describe(tensor)}")
    if tensor.device != device:
        raise DeviceError(f"{wanted}, got {describe(tensor)}")
    if tensor.shape != shape:
        raise ShapeError(f"{wanted}, got {describe(tensor)}")
    raise ShapeError(f"{wanted} with stride 1 in its last dimension, got stride {tensor.stride(-1)}")


def _dense(tensor: Tensor) -> bool:
    return tensor.numel() == 0 or tensor.shape[-1] <= 1 or tensor.stride(-1) == 1


def _rows(name: str, tensor: Tensor, dtype: torch.dtype, chains: int, dim: int, device: torch.device) -> int:
    """Checks a row for all chains or one for each; returns the row stride, 0 where they share it."""
    if tensor.dim() == 1:
        _expect(name, tensor, dtype, (dim,), device)
        return 0
    _expect(name, tensor, dtype, (chains, dim), device)
    return tensor.stride(0) if chains > 1 else 0


def _block(name: str, tensor: Tensor) -> tuple[int, int, torch.device]:
    """Checks a block that is written to: returns chains, dim and device."""
    if tensor.dim() != 2 or tensor.dtype != torch.float32 or not _dense(tensor):
        raise ShapeError(f"{name}: expected dense rows of float32 (chains, dim), got {describe(tensor)}")
    chains, dim = tensor.shape
    if chains > 1 and tensor.stride(0) < dim:
        raise ShapeError(
            f"{name}: expected rows apart in memory, got row stride {tensor.stride(0)} below {dim} columns"
        )
    return chains, dim, tensor.device


def _pieces(
    gradients: Sequence[Tensor], chains: int, dim: int, device: torch.device
) -> list[tuple[int, int, int, int]]:
    """The gradients as (first, size, address, row stride)."""
    pieces, first = [], 0
    for g in gradients:
        size = g.numel() // max(chains, 1)
        if g.dtype != torch.float32 or g.device != device:
            _expect("g", g, torch.float32, tuple(g.shape), device)
        if not g.is_contiguous() or g.numel() != chains * size:
            raise ShapeError(f"g: expected contiguous float32 ({chains}, ...) on {device}, got {describe(g)}")
        pieces.append((first, size, g.data_ptr(), size))
        first += size
    if chains > 0 and first != dim:
        raise ShapeError(f"g: expected float32 {(chains, dim)} in all, got {first} columns")
    return pieces


def stream_of(device: torch.device) -> int:
    """The address of PyTorch's current stream there."""
    if device.type != "cuda":
        raise DeviceError(f"device: expected cuda, got {device}")
    return torch.cuda.current_stream(device).cuda_stream


def _raise_if(error: str | None) -> None:
    if error is not None:
        raise CudaError(f"cuda: {error}")


def partial_sums(gradients: Sequence[Tensor], chains: int) -> int:
    """How many doubles the ``partial`` of a step with an energy must hold: one a chain and block of coordinates."""
    first, tensors = 0, []
    for g in gradients:
        size = g.numel() // max(chains, 1)
        tensors.append((first, size))
        first += size
    return int(module().partial_sums(tensors, chains))


def sgld_step_(
    w: Tensor,
    gradients: Sequence[Tensor],
    center: Tensor,
    lr: Tensor,
    localization: Tensor,
    nbeta: Tensor,
    seed: Tensor,
    step: Tensor,
    *,
    first_chain: int = 0,
    mask: Tensor | None = None,
    energy: Tensor | None = None,
    partial: Tensor | None = None,
    noise: bool = True,
) -> Tensor:
    """One SGLD step of every chain on a GPU, in place: ``_native.sgld_step_``, bit for bit.

    Args:
        w: the chains.
        gradients: of the mean loss, in the order of the coordinates; any number of tensors.
        center: what the chains are localized at; one row for all, or one for each.
        lr: step size of each chain.
        localization: of each chain.
        nbeta: inverse temperature times sample count, of each chain.
        seed: the key of the noise.
        step: names the noise; advance it (``step.add_(1)``) for fresh noise, also inside a graph.
        first_chain: the number of row 0 in the noise's address.
        mask: False keeps a coordinate as it is, bit for bit.
        energy: receives sum d . (nbeta g) over the moved coordinates; needs ``partial``.
        partial: room for the sums of blocks, ``partial_sums(gradients, chains)`` numbers.
        noise: without it the step is plain gradient descent at lr / 2.

    Shape:
        as ``_native.sgld_step_``; seed, step: int64 (1). All on one GPU.

    Raises:
        ShapeError, DTypeError, DeviceError: an argument is not as above.
        CudaError: the kernel could not be started.
    """
    native = module()
    chains, dim, device = _block("w", w)
    center_ld = _rows("center", center, torch.float32, chains, dim, device)
    mask_ld = 0 if mask is None else _rows("mask", mask, torch.bool, chains, dim, device)
    each, one = (chains,), (1,)
    _expect("lr", lr, torch.float64, each, device)
    _expect("localization", localization, torch.float64, each, device)
    _expect("nbeta", nbeta, torch.float64, each, device)
    _expect("seed", seed, torch.int64, one, device)
    _expect("step", step, torch.int64, one, device)
    pieces = _pieces(gradients, chains, dim, device)
    if energy is not None:
        _expect("energy", energy, torch.float64, each, device)
        needed = partial_sums(gradients, chains)
        if partial is None or partial.numel() < needed:
            got = "none" if partial is None else describe(partial)
            raise ShapeError(f"partial: expected float64 ({needed},) on {device} beside energy, got {got}")
        _expect("partial", partial, torch.float64, (partial.numel(),), device)
    stream = stream_of(device)
    _raise_if(
        native.sgld_step_f32(
            device.index, stream, w.data_ptr(), w.stride(0), center.data_ptr(), center_ld,
            0 if mask is None else mask.data_ptr(), mask_ld, chains, pieces,
            lr.data_ptr(), localization.data_ptr(), nbeta.data_ptr(), seed.data_ptr(), step.data_ptr(),
            first_chain, noise, 0 if partial is None else partial.data_ptr(),
            0 if energy is None else energy.data_ptr(),
        )
    )  # fmt: skip
    return w
