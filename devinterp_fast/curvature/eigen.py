"""The eigenvalues that stand out, with their vectors and error bounds: thick-restart Lanczos."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from devinterp_fast.curvature.krylov import BASIS_BYTES, START, Krylov, gaussian
from devinterp_fast.curvature.operators import Matrix, Operator, as_operator
from devinterp_fast.errors import ShapeError

WHICH = ("LM", "LA", "SA")

_ROOM = 40  # vectors of a basis before it restarts, for small k
_ADMIXED = 0.1  # of a warm start is random: a direction that was not among the earlier vectors must be able to grow
_CACHED = 2**23  # bytes of bases that one core's caches hold beside what an engine keeps
_ROUNDING = 32.0  # roundings of the largest eigenvalue: below that a product says nothing


@dataclass(frozen=True)
class Eigen:
    """Eigenvalues by falling magnitude (for "LA" falling, for "SA" rising), with their vectors.

    Attributes:
        values: the Ritz values, float64.
        vectors: unit columns, signed so that the largest component is positive, in the operator's dtype.
        residuals: ``|H x - value x|``: within it of each value lies an eigenvalue.
        bounds: the error of each value, min(r, r^2 / gap) plus rounding; the gap is that between Ritz values.
        matvecs: products taken for each checkpoint.
        warnings: what casts doubt, one sentence each.
        engine: which engine computed the products.

    Shape:
        values, residuals, bounds: (k,); vectors: (m, k); with a leading K for a stack of checkpoints.

    Units:
        values, residuals, bounds: those of the matrix.
    """

    values: Tensor
    vectors: Tensor = field(repr=False)
    residuals: Tensor
    bounds: Tensor
    matvecs: tuple[int, ...]
    warnings: tuple[str, ...]
    engine: str

    def __str__(self) -> str:
        lines = []
        for values, bounds in zip(self.values.reshape(-1, self.values.shape[-1]), self._rows(), strict=True):
            lines.append("  ".join(f"{v:.4g} ± {b:.1g}" for v, b in zip(values.tolist(), bounds.tolist(), strict=True)))
        return "\n  ! ".join(["\n".join(lines) + f"   {max(self.matvecs)} products   {self.engine}", *self.warnings])

    def _rows(self) -> Tensor:
        return self.bounds.reshape(-1, self.bounds.shape[-1])

    @property
    def outliers(self) -> Tensor:
        """How many of the values stand before the largest ratio of two neighbors. Shape: int64 (), or (K,)."""
        return before_largest_ratio(self.values.abs())


def before_largest_ratio(values: Tensor) -> Tensor:
    """How many of falling positive numbers come before the largest ratio of neighbors. Shape: (..., k) -> (...)."""
    tiny = torch.finfo(values.dtype).tiny
    ratio = values[..., :-1].clamp_min(tiny) / values[..., 1:].clamp_min(tiny)
    return ratio.argmax(-1) + 1


@dataclass(frozen=True)
class _Pairs:
    """The wanted Ritz pairs of one basis; ``s`` are their vectors in it, ``rows`` in full once they are final."""

    values: Tensor
    s: Tensor
    residuals: Tensor
    bounds: Tensor
    matvecs: int
    converged: bool
    rows: Tensor | None = None


def eigsh(
    H: Operator | Tensor,
    k: int = 10,
    *,
    which: str = "LM",
    tol: float = 1e-3,
    seed: int = 0,
    start: Eigen | Tensor | None = None,
    room: int | None = None,
    matvecs: int | None = None,
) -> Eigen:
    """The k eigenvalues of largest magnitude (or at one end of the spectrum), their vectors, and error bounds.

    Lanczos with full reorthogonalization and thick restarts. It stops when each eigenvalue is known to ``tol`` of
    itself, by its residual r and the gap to the next Ritz value: the error is at most min(r, r^2 / gap). Checkpoints
    of a stack go in lock-step, large ones one after another, and each gets the numbers it would get alone. Of an
    eigenvalue's several copies, those may be missing that the start vector did not separate, as with every
    single-vector method.

    Args:
        H: an operator, or a symmetric tensor.
        k: how many.
        which: "LM" largest magnitude, "LA" largest, "SA" smallest.
        tol: relative error of each eigenvalue at which to stop.
        seed: of the start vector.
        start: an ``Eigen`` of a nearby checkpoint, or its vectors: the warm start.
        room: vectors that a basis holds before it restarts; None is 40, or 3 k if that is more.
        matvecs: products of each checkpoint at which to give up; None is 300, or 20 k if that is more.

    Returns:
        An ``Eigen``; a value that has not converged is returned with its bound and a warning.

    Shape:
        start: (m, j) or (K, m, j).

    Units:
        those of the matrix

    Raises:
        ValueError: ``k`` exceeds the dimension, or another setting is out of range.
        ShapeError: ``start`` does not fit.
        NumericalError: a product is not finite.

    Source:
        Wu, Simon (2000), Thick-restart Lanczos; Parlett (1998), The symmetric eigenvalue problem, for the bounds.
    """
    op = as_operator(H)
    k, room, limit = _settings(op, k, which, tol, room, matvecs)
    first = _first(op, start, seed)
    bytes_each = (room + 1) * op.dim * torch.finfo(op.dtype).bits // 8
    together = max(1, _room_for_bases(op) // bytes_each)
    found: list[_Pairs] = []
    for low in range(0, op.count, together):
        found += _lockstep(op, first[low : low + together], low, k, which, tol, seed, room, limit)
    warnings = tuple(
        f"{f'checkpoint {c}: ' if op.stacked else ''}"
        f"{int((p.bounds > tol * p.values.abs()).sum())} of {k} eigenvalues "
        f"have not reached tol={tol:g} after {p.matvecs} products"
        for c, p in enumerate(found)
        if not p.converged
    )
    values, residuals, bounds = (torch.stack([getattr(p, x) for p in found]) for x in ("values", "residuals", "bounds"))
    rows = torch.stack([p.rows for p in found if p.rows is not None])
    whole = slice(None) if op.stacked else 0
    return Eigen(
        values[whole], rows.movedim(-1, -2)[whole], residuals[whole], bounds[whole],
        tuple(p.matvecs for p in found), warnings, op.engine,
    )  # fmt: skip


def _room_for_bases(op: Operator | Matrix) -> int:
    """Bytes of the bases that go in lock-step; it changes the time and no number.

    A step reads a checkpoint's basis and what the engine keeps of it. One thread reads those of a large stack from
    memory, those of one checkpoint from its cache; more threads share a stack better than one checkpoint's samples.
    The torch engine goes through its batches once for a whole stack.
    """
    alone = op.engine.startswith("native") and torch.get_num_threads() == 1
    return _CACHED if alone else BASIS_BYTES


def _settings(
    op: Operator | Matrix, k: int, which: str, tol: float, room: int | None, matvecs: int | None
) -> tuple[int, int, int]:
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= op.dim:
        raise ValueError(f"k: expected an integer from 1 to the dimension {op.dim}, got {k!r}")
    if which not in WHICH:
        raise ValueError(f"which: expected one of {WHICH}, got {which!r}")
    if not 0 < tol < 1:
        raise ValueError(f"tol: expected a number between 0 and 1, got {tol!r}")
    least = min(op.dim, k + 2)
    room = min(op.dim, max(_ROOM, 3 * k)) if room is None else min(room, op.dim)
    if room < least:
        raise ValueError(f"room: expected at least k + 2 = {k + 2} vectors, got {room}")
    limit = max(300, 20 * k) if matvecs is None else matvecs
    if limit < k:
        raise ValueError(f"matvecs: expected at least k = {k}, got {limit}")
    return k, room, limit


def _first(op: Operator | Matrix, start: Eigen | Tensor | None, seed: int) -> Tensor:
    """The first vector of each basis: random, or the sum of earlier vectors with a little that is random."""
    z = gaussian(0, op.dim, seed=seed, step=START, dtype=op.dtype).expand(op.count, -1)
    if start is None:
        return z
    vectors = start.vectors if isinstance(start, Eigen) else start
    if vectors.dim() < 2 or vectors.dim() > 3 or vectors.shape[-2] != op.dim or vectors.shape[-1] == 0:
        raise ShapeError(f"start: expected ({op.dim}, j) vectors, got {tuple(vectors.shape)}")
    if vectors.dim() == 3 and vectors.shape[0] != op.count:
        raise ShapeError(f"start: expected vectors of {op.count} checkpoints, got {vectors.shape[0]}")
    j = vectors.shape[-1]
    warm: Tensor = vectors.to(op.dtype).sum(-1) / math.sqrt(j)
    return warm + _ADMIXED * z


def _lockstep(
    op: Operator | Matrix, first: Tensor, low: int, k: int, which: str, tol: float, seed: int, room: int, limit: int
) -> list[_Pairs]:
    krylov = Krylov(first, room, seed)
    done: dict[int, _Pairs] = {}
    keep = min(k + max(3, (room - k) // 3), room - 2)
    steps = 0
    while len(done) < len(first):
        active = [c for c in range(len(first)) if c not in done]
        rows = krylov.last[:, None]
        if done:
            rows = rows.clone()
            rows[list(done)] = 0  # the engines pass over zeros
        krylov.extend(op.products(rows, low)[:, 0], active)
        steps += 1
        if krylov.size < k:
            continue
        whole = krylov.size == op.dim
        for c in active:
            pairs = _pairs(krylov, c, k, which, tol, steps)
            if pairs.converged or whole or steps >= limit:
                done[c] = replace(pairs, rows=_signed(krylov.combine(c, pairs.s)))
        if krylov.size == krylov.room and len(done) < len(first):
            for c in range(len(first)):
                if c not in done:
                    theta, s = krylov.ritz(c)
                    order = _order(theta, which)[:keep]
                    krylov.restart(c, theta[order], s[:, order])
            krylov.resize(keep)
    return [done[c] for c in range(len(first))]


def _order(theta: Tensor, which: str) -> Tensor:
    key = {"LM": -theta.abs(), "LA": -theta, "SA": theta}[which]
    return torch.argsort(key, stable=True)


def _pairs(krylov: Krylov, c: int, k: int, which: str, tol: float, steps: int) -> _Pairs:
    theta, s = krylov.ritz(c)
    order = _order(theta, which)[:k]
    residuals = krylov.beta[c] * s[-1].abs()
    apart = (theta[:, None] - theta[None, :]).abs() + torch.diag(torch.full_like(theta, torch.inf))
    gap = apart.min(1).values if len(theta) > 1 else residuals
    sharp = torch.where(gap > residuals, residuals.square() / gap.clamp_min(torch.finfo(gap.dtype).tiny), residuals)
    noise = _ROUNDING * torch.finfo(krylov.basis.dtype).eps * theta.abs().max()
    bounds = torch.minimum(residuals, sharp)[order]
    values = theta[order]
    converged = bool((bounds <= torch.maximum(tol * values.abs(), noise)).all())
    return _Pairs(values, s[:, order], residuals[order], bounds + noise / _ROUNDING, steps, converged)


def _signed(rows: Tensor) -> Tensor:
    """Rows of norm 1 whose largest component is positive. Shape: (k, dim)."""
    rows = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows * torch.gather(rows, 1, rows.abs().argmax(1, keepdim=True)).sign()
