"""The one door to native code: every tensor is checked here before its address is taken.

The compiled module knows addresses and lengths and believes them. So an address comes from a named variable that
outlives the call, after dtype, device, shape and strides were checked.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from devinterp_fast import _cpu
from devinterp_fast.errors import DeviceError, DTypeError, ShapeError

UPDATE_NOISE, BATCH_INDICES, MOMENTA, PROBES, LABELS = range(5)
"""Streams: the fourth word of a noise address. No two purposes share one."""

SHARED = 0xFFFFFFFF
"""The chain number under which all chains draw a shared batch."""


def describe(tensor: Tensor) -> str:
    """Returns dtype, shape and device, as error messages quote them."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)} on {tensor.device}"


def check_rows(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Raises unless the tensor is on the CPU, of this dtype and shape, with its last dimension dense.

    Args:
        name: what the message calls the argument.
        tensor: what was passed.
        dtype: expected element type.
        shape: expected shape.

    Raises:
        DTypeError, DeviceError, ShapeError: as named; one sentence with argument, expected, got.
    """
    wanted = f"{name}: expected {str(dtype).removeprefix('torch.')} {shape} on cpu"
    if tensor.dtype != dtype:
        raise DTypeError(f"{wanted}, got {describe(tensor)}")
    if tensor.device.type != "cpu":
        raise DeviceError(f"{wanted}, got {describe(tensor)}")
    if tuple(tensor.shape) != shape:
        raise ShapeError(f"{wanted}, got {describe(tensor)}")
    if tensor.numel() > 0 and tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        raise ShapeError(f"{wanted} with stride 1 in its last dimension, got stride {tensor.stride(-1)}")


def _row_stride(tensor: Tensor) -> int:
    """Floats from one chain's row to the next; 0 where all chains share the one row."""
    return tensor.stride(0) if tensor.dim() == 2 and tensor.shape[0] > 1 else 0


def _check_shared_rows(name: str, tensor: Tensor, dtype: torch.dtype, chains: int, dim: int) -> None:
    check_rows(name, tensor, dtype, (dim,) if tensor.dim() == 1 else (chains, dim))


def _check_apart(name: str, tensor: Tensor) -> None:
    if tensor.shape[0] > 1 and tensor.stride(0) < tensor.shape[1]:
        raise ShapeError(
            f"{name}: expected rows apart in memory, got row stride {tensor.stride(0)} below {tensor.shape[1]} columns"
        )


def normals_(
    out: Tensor, *, seed: int, step: int, first_chain: int = 0, stream: int = UPDATE_NOISE, threads: int = 1
) -> Tensor:
    """Fills ``out`` with standard normals: row c, column i has its own address.

    The address is (seed; coordinate i, chain first_chain + c, step, stream): the number is a pure function of it.

    Shape:
        out: float32 (chains, dim), last dimension dense.
    """
    if out.dim() != 2:
        raise ShapeError(f"out: expected float32 (chains, dim) on cpu, got {describe(out)}")
    chains, dim = out.shape
    check_rows("out", out, torch.float32, (chains, dim))
    _check_apart("out", out)
    _cpu.normals_f32(out.data_ptr(), chains, dim, out.stride(0), seed & (2**64 - 1), first_chain, step, stream, threads)
    return out


def words(chains: int, size: int, *, seed: int, step: int, first_chain: int = 0, stream: int = 0) -> Tensor:
    """Returns int64 (chains, size) holding the 32-bit Philox words of these addresses."""
    out = torch.empty(chains, size, dtype=torch.int32)
    _cpu.words_u32(out.data_ptr(), chains, size, size, seed & (2**64 - 1), first_chain, step, stream, 1)
    return out.long() & 0xFFFFFFFF


class Batches:
    """Which samples some chains see at each step; csrc/cpu/batches.hpp says which they are.

    Keeps each chain's permutation in mode "epoch", so that following steps are cheap; any step may be asked for.
    """

    MODES = ("independent", "shared", "epoch", "full")

    def __init__(self, mode: str, chains: int, size: int, n: int, *, seed: int, first_chain: int = 0):
        self.shape = (chains, size)
        self.native = _cpu.Batches(self.MODES.index(mode), seed & (2**64 - 1), first_chain, chains, n, size)

    def at(self, step: int) -> Tensor:
        """Returns int64 (chains, size): indices into [0, n)."""
        out = torch.empty(self.shape, dtype=torch.int64)
        self.native.fill(step, out.data_ptr())
        return out


def sgld_step_(
    w: Tensor,
    gradients: Sequence[Tensor],
    center: Tensor,
    lr: Tensor,
    localization: Tensor,
    nbeta: Tensor,
    *,
    seed: int,
    step: int,
    first_chain: int = 0,
    mask: Tensor | None = None,
    energy: Tensor | None = None,
    square: Tensor | None = None,
    noise: bool = True,
    threads: int = 1,
) -> Tensor:
    """One SGLD step of every chain, in place, in one pass over memory.

    d = nbeta g + localization (w - center);  w <- w - (lr / 2) d + sqrt(lr) xi;  energy = sum d . (nbeta g).

    Args:
        w: the chains.
        gradients: of the mean loss, in the order of the coordinates; any number of tensors.
        center: what the chains are localized at; one row for all, or one for each.
        lr: step size of each chain.
        localization: of each chain.
        nbeta: inverse temperature times sample count, of each chain.
        seed: the key of the noise.
        step: names the noise; the same step draws the same noise.
        first_chain: the number of row 0 in the noise's address.
        mask: False keeps a coordinate as it is, bit for bit.
        energy: receives sum d . (nbeta g) over the moved coordinates.
        square: receives sum d . d over them.
        noise: without it the step is plain gradient descent at lr / 2.
        threads: of this call; the result does not depend on it.

    Shape:
        w: float32 (chains, dim); gradients: float32, contiguous, (chains, size_i) in total dim columns;
        center: float32 (dim) or (chains, dim); lr, localization, nbeta, energy, square: float64 (chains);
        mask: bool (dim) or (chains, dim).

    Raises:
        ShapeError, DTypeError, DeviceError: an argument is not as above.

    Source:
        Welling, Teh (2011); Lau et al. (2023). The plain form is ``_reference.sgld_step``.
    """
    if w.dim() != 2:
        raise ShapeError(f"w: expected float32 (chains, dim) on cpu, got {describe(w)}")
    chains, dim = w.shape
    check_rows("w", w, torch.float32, (chains, dim))
    _check_apart("w", w)
    _check_shared_rows("center", center, torch.float32, chains, dim)
    for name, value in (
        ("lr", lr),
        ("localization", localization),
        ("nbeta", nbeta),
        ("energy", energy),
        ("square", square),
    ):
        if value is not None:
            check_rows(name, value, torch.float64, (chains,))
    if mask is not None:
        _check_shared_rows("mask", mask, torch.bool, chains, dim)
    pieces, first = [], 0
    for g in gradients:
        size = g.numel() // max(chains, 1)
        if g.dtype != torch.float32 or g.device.type != "cpu":
            check_rows("g", g, torch.float32, tuple(g.shape))
        if not g.is_contiguous() or g.numel() != chains * size:
            raise ShapeError(f"g: expected contiguous float32 ({chains}, ...) on cpu, got {describe(g)}")
        pieces.append((first, size, g.data_ptr(), size))
        first += size
    if chains > 0 and first != dim:
        raise ShapeError(f"g: expected float32 {(chains, dim)} in all, got {first} columns")
    _cpu.sgld_step_f32(
        w.data_ptr(), w.stride(0), center.data_ptr(), _row_stride(center),
        0 if mask is None else mask.data_ptr(), 0 if mask is None else _row_stride(mask),
        chains, pieces, lr.data_ptr(), localization.data_ptr(), nbeta.data_ptr(),
        seed & (2**64 - 1), step, first_chain, noise, 0 if energy is None else energy.data_ptr(),
        0 if square is None else square.data_ptr(), threads,
    )  # fmt: skip
    return w


def gram_schmidt_(
    u: Tensor, basis: Tensor, count: int, gram: Tensor, *, known: int | None = None, threads: int = 1
) -> tuple[Tensor, Tensor]:
    """Makes each chain's vector orthogonal to the first ``count`` vectors of its basis, and of length one, in place.

    u <- u - Q^T c, then u <- u / |u|, with the coefficients c = (2 I - G) Q u of two passes of classical Gram-Schmidt;
    G = Q Q^T is kept by the caller, who calls once for each new vector, so that the basis is read twice, not four
    times (four times for float64 vectors). All sums are float64, in an order that depends on the length alone.

    Args:
        u: the new vectors. May be the basis's own vector number ``count``.
        basis: nearly orthonormal vectors of each chain.
        count: how many of them are in use.
        gram: G; its rows and columns ``known`` ... ``count - 1`` are written.
        known: vectors whose part of G is already right; all but the newest by default.
        threads: of this call.

    Returns:
        coefficients and norms. In Lanczos's recurrence coefficient ``count - 1`` is alpha, the norm is beta; where the
        norm is 0, u is 0.

    Shape:
        u: float32 or float64 (chains, dim); basis: (chains, m, dim), last dimension dense;
        gram: float64 (chains, m, m); coefficients: float64 (chains, count); norms: float64 (chains,).

    Units:
        none

    Raises:
        ShapeError, DTypeError, DeviceError: an argument is not as above.
        ValueError: count above m, or known outside 0 ... count.

    Source:
        Giraud, Langou, Rozloznik (2005), The loss of orthogonality in the Gram-Schmidt orthogonalization process.
    """
    if u.dtype not in (torch.float32, torch.float64):
        raise DTypeError(f"u: expected float32 or float64, got {describe(u)}")
    if u.dim() != 2 or basis.dim() != 3:
        raise ShapeError(f"u, basis: expected (chains, dim) and (chains, m, dim), got {describe(u)}, {describe(basis)}")
    (chains, dim), m = u.shape, basis.shape[1]
    known = max(count - 1, 0) if known is None else known
    if not 0 <= known <= count <= m:
        raise ValueError(f"count, known: expected 0 <= known <= count <= {m}, got {count}, {known}")
    check_rows("u", u, u.dtype, (chains, dim))
    check_rows("basis", basis, u.dtype, (chains, m, dim))
    check_rows("gram", gram, torch.float64, (chains, m, m))
    _check_apart("u", u)
    coefficients, norms = torch.empty(chains, count, dtype=torch.float64), torch.empty(chains, dtype=torch.float64)
    run = _cpu.gram_schmidt_f32 if u.dtype == torch.float32 else _cpu.gram_schmidt_f64
    run(
        u.data_ptr(), u.stride(0), basis.data_ptr(), basis.stride(0), basis.stride(1), chains, dim, count, known,
        gram.data_ptr(), gram.stride(0), gram.stride(1), coefficients.data_ptr(), count, norms.data_ptr(), threads,
    )  # fmt: skip
    return coefficients, norms


def rademacher_(out: Tensor, *, seed: int, step: int = 0, first_probe: int = 0, threads: int = 1) -> Tensor:
    """Fills ``out`` with random signs: row p, coordinate i has its own address.

    Bit i % 32 of word i // 32 at (seed; probe first_probe + p, step, stream 3); a set bit is -1.

    Shape:
        out: float32 or float64 (probes, dim), last dimension dense.
    """
    _check_probes("out", out)
    run = _cpu.rademacher_f32 if out.dtype == torch.float32 else _cpu.rademacher_f64
    run(out.data_ptr(), *out.shape, out.stride(0), seed & (2**64 - 1), first_probe, step, threads)
    return out


def rademacher_dot(x: Tensor, *, seed: int, step: int = 0, first_probe: int = 0, threads: int = 1) -> Tensor:
    """Returns float64 (probes,): each row of ``x`` times its signs of `rademacher_`, which are not stored.

    Shape:
        x: float32 or float64 (probes, dim), last dimension dense.
    """
    _check_probes("x", x)
    out = torch.empty(x.shape[0], dtype=torch.float64)
    run = _cpu.rademacher_dot_f32 if x.dtype == torch.float32 else _cpu.rademacher_dot_f64
    run(x.data_ptr(), *x.shape, x.stride(0), seed & (2**64 - 1), first_probe, step, out.data_ptr(), threads)
    return out


def _check_probes(name: str, x: Tensor) -> None:
    if x.dim() != 2 or x.dtype not in (torch.float32, torch.float64):
        raise ShapeError(f"{name}: expected float32 or float64 (probes, dim) on cpu, got {describe(x)}")
    check_rows(name, x, x.dtype, (x.shape[0], x.shape[1]))
    _check_apart(name, x)
