"""The door to the CUDA kernels: as ``_native``, for tensors on a GPU.

A kernel runs on PyTorch's current stream of the tensors' device. Nothing here allocates, waits, or reads device memory,
so every function can be captured in a CUDA graph; where a step's number and the seed matter they are device tensors,
which a replay reads anew.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from devinterp_fast import _cpu
from devinterp_fast._native import UPDATE_NOISE, describe
from devinterp_fast.errors import CudaError, DeviceError, DTypeError, ShapeError

_cuda: ModuleType | None
try:
    _cuda = importlib.import_module("devinterp_fast._cuda")
except ModuleNotFoundError:  # built without nvcc
    _cuda = None


_raw_stream = getattr(torch._C, "_cuda_getCurrentRawStream", None)


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
    # every call comes through here some times, and each look at a tensor takes a tenth of a microsecond
    fits = tensor.dtype is dtype and tensor.shape == shape and tensor.device == device
    if fits and (tensor.is_contiguous() or _dense(tensor)):
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
        numbers = g.numel()
        size = numbers // chains if chains else 0
        if g.dtype is not torch.float32 or g.device != device:
            _expect("g", g, torch.float32, tuple(g.shape), device)
        if not g.is_contiguous() or numbers != chains * size:
            raise ShapeError(f"g: expected contiguous float32 ({chains}, ...) on {device}, got {describe(g)}")
        pieces.append((first, size, g.data_ptr(), size))
        first += size
    if chains > 0 and first != dim:
        raise ShapeError(f"g: expected float32 {(chains, dim)} in all, got {first} columns")
    return pieces


def _rows_of(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, int], device: torch.device) -> int:
    """Checks rows that are written to; returns the row stride."""
    _expect(name, tensor, dtype, shape, device)
    if shape[0] > 1 and tensor.stride(0) < shape[1]:
        raise ShapeError(f"{name}: expected rows apart in memory, got row stride {tensor.stride(0)}")
    return tensor.stride(0)


def stream_of(device: torch.device) -> int:
    """The address of PyTorch's current stream there."""
    if device.type != "cuda":
        raise DeviceError(f"device: expected cuda, got {device}")
    if _raw_stream is not None:  # what PyTorch's own compiler calls: no object is made
        return int(_raw_stream(device.index or 0))
    return torch.cuda.current_stream(device).cuda_stream


def launch(name: str, device: torch.device, **arguments: object) -> None:
    """Starts a kernel of the compiled module on the current stream of a device.

    Raises:
        CudaError: it could not be started.
    """
    error = getattr(module(), name)(device=device.index or 0, stream=stream_of(device), **arguments)
    if error is not None:
        raise CudaError(f"cuda: {error}")


BLOCK = 8192
"""Coordinates that are summed together (csrc/core/blocks.hpp)."""

SAMPLERS = {"sgld": (0, 4, 1), "langevin": (1, 6, 2), "preconditioned": (2, 9, 3)}
"""Number, coefficients, and vectors that move (w first) of each sampler, as in csrc/core/update.hpp."""


def coefficients(
    sampler: str, lr: Tensor, localization: Tensor, nbeta: Tensor, *, friction: Tensor | float = 0.0,
    beta1: float = 0.0, beta2: float = 0.99, epsilon: float = 1e-8,
) -> Tensor:  # fmt: skip
    """What a sampler multiplies with, float32 (chains, n), made once for many steps.

    Args:
        sampler: "sgld", "langevin" (momentum; of step h = sqrt(lr)) or "preconditioned" (RMSprop, Adam).
        lr: step size of each chain.
        localization: of each chain.
        nbeta: inverse temperature times sample count, of each chain.
        friction: share of the momentum that a step takes; a thermostat changes it.
        beta1: of the running mean of gradients.
        beta2: of the running mean of their squares; 1 holds the metric still.
        epsilon: of the metric.

    Shape:
        lr, localization, nbeta: float64 (chains); friction a number, or alike.
    """
    if sampler == "sgld":
        columns = [nbeta, localization, -0.5 * lr, lr.sqrt()]
    elif sampler == "langevin":
        h = lr.sqrt()
        share = torch.as_tensor(friction, dtype=torch.float64, device=lr.device).expand_as(lr)
        x = 0.5 * share
        columns = [nbeta, localization, -h, 0.5 * h, (1 - x) / (1 + x), (2.0 * share).sqrt() / (1 + x)]
    elif sampler == "preconditioned":
        one = torch.ones_like(lr)
        rest = [beta1 * one, (1.0 - beta1) * one, beta2 * one, (1.0 - beta2) * one, epsilon * one]
        columns = [nbeta, localization, -0.5 * lr, lr, *rest]
    else:
        raise ValueError(f"sampler: expected one of {sorted(SAMPLERS)}, got {sampler!r}")
    return torch.stack(columns, dim=1).float()


def sums_length(gradients: Sequence[Tensor], chains: int) -> int:
    """How many doubles the ``sums`` of a step must hold: two a chain, and two a chain and block of coordinates."""
    first, blocks = 0, 0
    for g in gradients:
        size = g.numel() // max(chains, 1)
        blocks += (first + size - 1) // BLOCK - first // BLOCK + 1 if size else 0
        first += size
    return 2 * chains * (1 + blocks)


def sampler_step_(
    sampler: str,
    w: Tensor,
    gradients: Sequence[Tensor],
    center: Tensor,
    settings: Tensor,
    clock: Tensor,
    first: Tensor | None = None,
    second: Tensor | None = None,
    mask: Tensor | None = None,
    sums: Tensor | None = None,
    first_chain: int = 0,
    noise: bool = True,
) -> None:
    """One step of every chain on a GPU, in place, in one pass over memory; the same bits as on the CPU.

    Args:
        sampler: "sgld", "langevin" or "preconditioned".
        w: the chains.
        gradients: of the mean loss, in the order of the coordinates; any number of tensors.
        center: what the chains are localized at; one row for all, or one for each.
        settings: as ``coefficients`` makes them.
        clock: the seed, which keys the noise, and the step, which names it; advance the step
            (``clock[1:].add_(1)``) for fresh noise, also inside a graph.
        first: momenta, or running means of g.
        second: running means of g^2.
        mask: False keeps a coordinate as it is, bit for bit.
        sums: receives in its first 2 chains numbers sum weight d . (nbeta g) over each chain's moved coordinates, and
            sum weight d . d, of langevin sum p . p; ``sums_length(gradients, chains)`` numbers, the rest is room.
        first_chain: the number of row 0 in the noise's address.
        noise: without it the same step draws none.

    Shape:
        w, first, second: float32 (chains, dim), the states with one row stride;
        gradients: float32, contiguous, (chains, size_i) in total dim columns; center: float32 (dim) or (chains, dim);
        settings: float32 (chains, n); clock: int64 (2); mask: bool (dim) or (chains, dim); sums: float64.
        All on one GPU, or all on the CPU.

    Raises:
        ShapeError, DTypeError, DeviceError: an argument is not as above.
        CudaError: the kernel could not be started.

    Source:
        csrc/core/update.hpp names that of each sampler.
    """
    number, columns, states = SAMPLERS[sampler]
    chains, dim, device = _block("w", w)
    center_ld = _rows("center", center, torch.float32, chains, dim, device)
    mask_ld = 0 if mask is None else _rows("mask", mask, torch.bool, chains, dim, device)
    _expect("settings", settings, torch.float32, (chains, columns), device)
    if chains > 1 and settings.stride(0) != columns:
        raise ShapeError(f"settings: expected rows without gaps, got row stride {settings.stride(0)}")
    _expect("clock", clock, torch.int64, (2,), device)
    pieces = _pieces(gradients, chains, dim, device)
    state_ld = 0
    for name, state in (("first", first), ("second", second))[: states - 1]:
        if state is None:
            raise ShapeError(f"{name}: expected float32 {(chains, dim)} on {device} for {sampler}, got none")
        _expect(name, state, torch.float32, (chains, dim), device)
        if state_ld not in (0, state.stride(0)):
            raise ShapeError(f"{name}: expected the row stride of first, {state_ld}, got {state.stride(0)}")
        state_ld = state.stride(0)
    work = gauge = partial = 0
    if sums is not None:
        needed = sums_length(gradients, chains)
        if sums.numel() < needed:
            raise ShapeError(f"sums: expected float64 ({needed},) on {device}, got {describe(sums)}")
        _expect("sums", sums, torch.float64, (sums.numel(),), device)
        work = sums.data_ptr()
        gauge, partial = work + 8 * chains, work + 16 * chains
    where = (
        number, w.data_ptr(), w.stride(0), center.data_ptr(), center_ld, 0 if mask is None else mask.data_ptr(),
        mask_ld, 0 if first is None else first.data_ptr(), 0 if second is None else second.data_ptr(), state_ld,
        chains, pieces, settings.data_ptr(),
    )  # fmt: skip
    if device.type == "cpu":
        seed, step = clock.tolist()
        threads = torch.get_num_threads()
        _cpu.sampler_step_f32(*where, seed & (2**64 - 1), step, first_chain, noise, work, gauge, threads)
        return
    at = clock.data_ptr()
    error = module().sampler_step_f32(
        device.index or 0, stream_of(device), *where, at, at + 8, first_chain, noise, partial, work, gauge
    )
    if error is not None:
        raise CudaError(f"cuda: {error}")


def thermostat_(
    settings: Tensor, zeta: Tensor, gauge: Tensor, friction: Tensor, *, inertia: float, moving: int
) -> Tensor:
    """Turns the friction of "langevin" towards temperature one, between two steps.

    zeta <- zeta + (gauge / moving - 1) / inertia; the settings' keep and noise follow. The CPU engine's bits.

    Args:
        settings: as ``coefficients`` makes them, changed in place.
        zeta: the friction of each chain, changed in place; begins as ``friction``.
        gauge: sum p . p of the last step.
        friction: share of a step, that the noise balances.
        inertia: of the thermostat, in steps.
        moving: coordinates that the mask moves.

    Shape:
        settings: float32 (chains, 6); zeta, gauge, friction: float64 (chains). All on one GPU.

    Raises:
        ShapeError, DTypeError, DeviceError: an argument is not as above.
        CudaError: the kernel could not be started.
    """
    device, chains = settings.device, len(settings)
    _expect("settings", settings, torch.float32, (chains, 6), device)
    for name, each in (("zeta", zeta), ("gauge", gauge), ("friction", friction)):
        _expect(name, each, torch.float64, (chains,), device)
    launch(
        "thermostat_f64", device, gauge=gauge.data_ptr(), moving=moving, friction=friction.data_ptr(),
        inertia=inertia, zeta=zeta.data_ptr(), coefficients=settings.data_ptr(), chains=chains,
    )  # fmt: skip
    return settings


NOISE = {"normals": 0, "signs": 1, "words": 2}


def fill_noise_(kind: str, out: Tensor, clock: Tensor, *, first_chain: int = 0, stream: int = UPDATE_NOISE) -> Tensor:
    """Fills ``out`` with numbers whose address is (seed; coordinate i, chain first_chain + c, step, stream).

    Args:
        kind: "normals", "signs" (1 or -1) or "words" (32 bits, in place of floats).
        out: where to.
        clock: seed and step.
        first_chain: the number of row 0.
        stream: of the address: ``UPDATE_NOISE``, ``MOMENTA``, ``PROBES``.

    Shape:
        out: float32 (chains, dim), int32 for words; clock: int64 (2). All on one GPU.

    Raises:
        ShapeError, DTypeError, DeviceError: an argument is not as above.
        CudaError: the kernel could not be started.
    """
    dtype = torch.int32 if kind == "words" else torch.float32
    if out.dtype != dtype:
        raise DTypeError(f"out: expected {dtype} for {kind}, got {describe(out)}")
    chains, dim, device = _block("out", out.view(torch.float32))
    _expect("clock", clock, torch.int64, (2,), device)
    at = clock.data_ptr()
    launch(
        "fill_noise_f32", device, kind=NOISE[kind], out=out.data_ptr(), chains=chains, size=dim, ld=out.stride(0),
        stream_number=stream, seed=at, step=at + 8, first_chain=first_chain,
    )  # fmt: skip
    return out
