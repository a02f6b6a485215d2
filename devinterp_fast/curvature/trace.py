"""Trace and diagonal from random probes, with standard errors that hold.

XTrace and XDiag use every probe twice: in the sketch that takes out the large eigenvalues, and in the estimate of what
is left, each time with a sketch that leaves it out. The m estimates t_i are unbiased but share their sketches, so the
usual std(t) / sqrt(m) is too small, by about a quarter. Their covariance can be known: let t_ij be t_i with probe j
left out of the sketch too, and d_ij = t_i - t_ij. Given all probes but j, t_i and t_ij have the same mean over probe
i; so of t_i t_j = (t_ij + d_ij)(t_ji + d_ji) only the last product survives the mean,

    Cov(t_i, t_j) = E[d_ij d_ji],
    Var(mean t) = E[(sum_i (t_i - mean)^2 + sum_{i != j} d_ij d_ji)] / (m (m - 1)),

an unbiased estimate. Where that sum comes out below its first part, the first part alone is kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from scipy import stats
from torch import Tensor

from devinterp_fast.curvature.krylov import BASIS_BYTES, rademacher
from devinterp_fast.curvature.operators import Matrix, Operator, as_operator

METHODS = ("auto", "hutchinson", "hutch++", "xtrace")
DIAGONALS = ("auto", "hutchinson", "xdiag")

_LEAST = {"hutchinson": 2, "hutch++": 6, "xtrace": 6, "xdiag": 6}
_TILE_ELEMENTS = 1 << 22


@dataclass(frozen=True)
class Trace:
    """A trace, with its standard error.

    Attributes:
        value: the estimate, float64.
        se: its standard error; 0 where the trace is exact.
        probes: independent vectors behind the error: Student's t has one degree of freedom less.
        matvecs: products taken for each checkpoint.
        method: which estimator ran.
        engine: which engine computed the products.

    Shape:
        value, se: (), or (K,) for a stack of checkpoints.

    Units:
        those of the matrix
    """

    value: Tensor
    se: Tensor
    probes: int
    matvecs: int
    method: str
    engine: str

    def __str__(self) -> str:
        pairs = zip(self.value.reshape(-1).tolist(), self.se.reshape(-1).tolist(), strict=True)
        values = "  ".join(f"{v:.5g} ± {e:.2g}" for v, e in pairs)
        return f"trace {values}   {self.method}, {self.matvecs} products   {self.engine}"

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """The confidence interval of Student's t. Shape: as ``value``."""
        reach = float(stats.t.ppf(0.5 + level / 2, max(self.probes - 1, 1))) * self.se
        return self.value - reach, self.value + reach


@dataclass(frozen=True)
class Diagonal:
    """A diagonal, with the standard error of each entry.

    Attributes:
        value: the estimate, float64.
        se: its standard errors; 0 where the diagonal is exact.
        probes: independent vectors behind the errors.
        matvecs: products taken for each checkpoint.
        method: which estimator ran.
        engine: which engine computed the products.

    Shape:
        value, se: (m,), or (K, m) for a stack of checkpoints.

    Units:
        those of the matrix
    """

    value: Tensor = field(repr=False)
    se: Tensor = field(repr=False)
    probes: int
    matvecs: int
    method: str
    engine: str


def trace(H: Operator | Tensor, *, matvecs: int = 100, method: str = "auto", seed: int = 0) -> Trace:
    """The trace, from products with random signs.

    hutchinson: mean of v^T H v. hutch++: tr(Q^T H Q) for a sketch Q = orth(H S), plus Hutchinson on the rest. xtrace:
    the mean over probes of the same with each probe left out of its own sketch. Sketches pay where few eigenvalues
    carry the spectrum. With as many products as the dimension the trace is exact.

    Args:
        H: an operator, or a symmetric tensor.
        matvecs: products to spend on each checkpoint.
        method: "hutchinson", "hutch++", "xtrace"; "auto" is xtrace where its sketch fits into 2.5 GiB.
        seed: of the probes; the same for every checkpoint.

    Returns:
        A ``Trace``; its standard error is calibrated: see the module's text for xtrace.

    Shape:
        value: (), or (K,).

    Units:
        those of the matrix

    Raises:
        ValueError: the method is unknown, or there are too few products for it.
        NumericalError: a product is not finite.

    Source:
        Hutchinson (1989); Meyer, Musco, Musco, Woodruff (2021), arXiv 2010.09649; Epperly, Tropp, Webber (2024),
        arXiv 2301.07825. The standard error of XTrace is derived in ``curvature/trace.py``.
    """
    op = as_operator(H)
    if method == "auto":
        method = "xtrace" if _sketch_fits(op, matvecs // 2) else "hutchinson"
    _check(METHODS, method, matvecs)
    whole = slice(None) if op.stacked else 0
    if matvecs >= op.dim:
        value = _exact_diagonal(op).sum(-1)
        return Trace(value[whole], torch.zeros_like(value)[whole], op.dim, op.dim, "exact", op.engine)
    run = {"hutchinson": _hutchinson, "hutch++": _hutch_plus_plus, "xtrace": _xtrace}[method]
    value, se, probes, used = run(op, matvecs, seed)
    return Trace(value[whole], se[whole], probes, used, method, op.engine)


def diagonal(H: Operator | Tensor, *, matvecs: int = 100, method: str = "auto", seed: int = 0) -> Diagonal:
    """The diagonal, from products with random signs.

    hutchinson: mean of v * (H v). xdiag: diag(Q Q^T H) for a sketch Q = orth(H S), plus v * (I - Q Q^T) H v, each
    probe left out of its own sketch. With as many products as the dimension the diagonal is exact.

    Args:
        H: an operator, or a symmetric tensor.
        matvecs: products to spend on each checkpoint.
        method: "hutchinson" or "xdiag"; "auto" is xdiag where its sketch fits into 2.5 GiB.
        seed: of the probes; the same for every checkpoint.

    Returns:
        A ``Diagonal``, with a calibrated standard error for each entry.

    Shape:
        value: (m,), or (K, m).

    Units:
        those of the matrix

    Raises:
        ValueError: the method is unknown, or there are too few products for it.
        NumericalError: a product is not finite.

    Source:
        Bekas, Kokiopoulou, Saad (2007); Epperly, Tropp, Webber (2024), arXiv 2301.07825.
    """
    op = as_operator(H)
    if method == "auto":
        method = "xdiag" if _sketch_fits(op, matvecs // 2) else "hutchinson"
    _check(DIAGONALS, method, matvecs)
    whole = slice(None) if op.stacked else 0
    if matvecs >= op.dim:
        value = _exact_diagonal(op)
        return Diagonal(value[whole], torch.zeros_like(value)[whole], op.dim, op.dim, "exact", op.engine)
    if method == "xdiag":
        m = matvecs // 2
        value, se = (torch.stack(x) for x in zip(*(_xdiag(*parts) for parts in _sketches(op, m, seed)), strict=True))
        return Diagonal(value[whole], se[whole], m, 2 * m, method, op.engine)
    total = torch.zeros(op.count, op.dim, dtype=torch.float64)
    square = torch.zeros_like(total)
    for low in range(0, matvecs, _group(op)):
        signs = rademacher(min(_group(op), matvecs - low), op.dim, seed=seed, dtype=op.dtype, first=low)
        for v, image in zip(signs, op.products(signs.expand(op.count, -1, -1)).unbind(1), strict=True):
            entry = (v * image).double()
            total += entry
            square += entry.square()
    value = total / matvecs
    variance = (square - matvecs * value.square()).clamp_min(0) / (matvecs - 1)
    return Diagonal(value[whole], (variance / matvecs).sqrt()[whole], matvecs, matvecs, method, op.engine)


def _check(known: tuple[str, ...], method: str, matvecs: int) -> None:
    if method not in known:
        raise ValueError(f"method: expected one of {known}, got {method!r}")
    if isinstance(matvecs, bool) or not isinstance(matvecs, int) or matvecs < _LEAST[method]:
        raise ValueError(f"matvecs: expected an integer of at least {_LEAST[method]} for {method}, got {matvecs!r}")


def _sketch_fits(op: Operator | Matrix, probes: int) -> bool:
    return 4 * 8 * probes * op.dim <= BASIS_BYTES  # probes, images, sketch and its images, in float64


def _group(op: Operator | Matrix) -> int:
    """Vectors whose products are asked for at once: a function of the dimension alone."""
    return max(1, min(32, _TILE_ELEMENTS // op.dim))


def _products(op: Operator | Matrix, rows: Tensor) -> Tensor:
    """Products with many vectors, the same or others for each checkpoint, a group at a time. Shape: (K, k, dim)."""
    rows = rows.expand(op.count, -1, -1)
    size = _group(op)
    return torch.cat([op.products(rows[:, low : low + size].contiguous()) for low in range(0, rows.shape[1], size)], 1)


def _exact_diagonal(op: Operator | Matrix) -> Tensor:
    """All unit vectors, a group at a time. Shape: float64 (K, dim)."""
    parts = []
    for low in range(0, op.dim, _group(op)):
        high = min(low + _group(op), op.dim)
        units = torch.zeros(high - low, op.dim, dtype=op.dtype)
        units[torch.arange(high - low), torch.arange(low, high)] = 1.0
        images = op.products(units.expand(op.count, -1, -1).contiguous())
        parts.append(images[:, torch.arange(high - low), torch.arange(low, high)].double())
    return torch.cat(parts, 1)


def _hutchinson(op: Operator | Matrix, matvecs: int, seed: int) -> tuple[Tensor, Tensor, int, int]:
    values = []
    for low in range(0, matvecs, _group(op)):
        signs = rademacher(min(_group(op), matvecs - low), op.dim, seed=seed, dtype=op.dtype, first=low)
        images = op.products(signs.expand(op.count, -1, -1).contiguous())
        values.append((signs.double() * images.double()).sum(-1))
    samples = torch.cat(values, 1)
    return samples.mean(1), samples.std(1) / math.sqrt(matvecs), matvecs, matvecs


def _hutch_plus_plus(op: Operator | Matrix, matvecs: int, seed: int) -> tuple[Tensor, Tensor, int, int]:
    m = matvecs // 3
    signs = rademacher(2 * m, op.dim, seed=seed, dtype=op.dtype)
    Q = torch.linalg.qr(_products(op, signs[:m]).double().mT)[0]  # (K, dim, m)
    images = _products(op, Q.mT.to(op.dtype)).double()
    sketched = (images * Q.mT).sum((1, 2))
    rest = signs[m:].double()
    rest = rest - (rest @ Q) @ Q.mT  # (K, m, dim)
    samples = (rest * _products(op, rest.to(op.dtype)).double()).sum(-1)
    return sketched + samples.mean(1), samples.std(1) / math.sqrt(m), m, 3 * m


@dataclass(frozen=True)
class _Sketch:
    """One matrix A seen through m probes: W (dim, m), Y = A W = Q R, Z = A Q; S, the directions to leave out."""

    W: Tensor
    Y: Tensor
    Q: Tensor
    Z: Tensor
    S: Tensor


def _sketches(op: Operator | Matrix, m: int, seed: int) -> list[tuple[_Sketch]]:
    signs = rademacher(m, op.dim, seed=seed, dtype=op.dtype)
    Y = _products(op, signs).double().mT
    Q, R = torch.linalg.qr(Y)
    Z = _products(op, Q.mT.to(op.dtype)).double().mT
    out = []
    for c in range(op.count):
        r = R[c].clone()
        # A matrix of rank below m leaves zeros on the diagonal; any direction in their place is as good.
        size = r.diagonal().abs()
        tiny = torch.finfo(torch.float64).eps * float(size.max()) or 1.0
        r.diagonal()[size < tiny] = tiny
        S = torch.linalg.solve_triangular(r, torch.eye(m, dtype=torch.float64), upper=True).mT
        out.append((_Sketch(signs.double().mT, Y[c], Q[c], Z[c], S / S.norm(dim=0)),))
    return out


def _pair_projectors(S: Tensor) -> tuple[Tensor, Tensor]:
    """The projector on span(s_i, s_j) as sum_ab c_ab s_a s_b^T: (c_ii, c_ij) = (1, -s_i.s_j) / (1 - (s_i.s_j)^2).

    Shape:
        S: (m, m), unit columns; returns two (m, m), their diagonals without meaning.
    """
    dots = S.mT @ S
    left = (1 - dots.square()).clamp_min(1e-12)
    left.fill_diagonal_(1.0)
    return 1 / left, -dots / left


def _xtrace(op: Operator | Matrix, matvecs: int, seed: int) -> tuple[Tensor, Tensor, int, int]:
    m = matvecs // 2
    pairs = [_xtrace_one(sketch) for (sketch,) in _sketches(op, m, seed)]
    value, se = (torch.stack(x) for x in zip(*pairs, strict=True))
    return value, se, m, 2 * m


def _xtrace_one(k: _Sketch) -> tuple[Tensor, Tensor]:
    """Value and standard error.

    With P a projector on directions left out, Q_P = Q (I - P): t = tr((I - P) H) + (w - Q_P Q_P^T w)^T A (same),
    H = Q^T A Q. For probe i, x = (I - P) Q^T w: t = tr H - tr(P H) + w.Y_i - 2 x.T_i + x.H x, T = Q^T A W.
    """
    S, m = k.S, k.S.shape[1]
    H = k.Q.mT @ k.Z
    H = (H + H.mT) / 2
    B, T = k.Q.mT @ k.W, k.Z.mT @ k.W
    direct = (k.W * k.Y).sum(0)
    G, SB, ST = S.mT @ H @ S, S.mT @ B, S.mT @ T  # s_a.H s_b, s_a.b_i, s_a.T_i
    SH = S.mT @ H @ B  # s_a.H b_i
    base = H.trace() + direct - 2 * (B * T).sum(0) + (B * (H @ B)).sum(0)  # nothing left out
    d = torch.diagonal
    # one direction out: x = b - s (s.b)
    own = d(SB)
    t = base - d(G) + 2 * own * d(ST) - 2 * own * d(SH) + own.square() * d(G)
    # two out: x = b_i - s_i u - s_j v with (u, v) the coefficients of the projection of b_i
    c, e = _pair_projectors(S)
    i, j = SB.diagonal()[:, None].expand(m, m), SB.mT  # s_i.b_i, s_j.b_i at [i, j]
    u, v = c * i + e * j, e * i + c * j
    trace_out = c * (d(G)[:, None] + d(G)[None, :]) + 2 * e * G
    linear = u * d(ST)[:, None] + v * ST.mT
    bend = u * d(SH)[:, None] + v * SH.mT
    square = u.square() * d(G)[:, None] + v.square() * d(G)[None, :] + 2 * u * v * G
    both = base[:, None] - trace_out + 2 * linear - 2 * bend + square
    effect = t[:, None] - both
    effect.fill_diagonal_(0.0)
    spread = (t - t.mean()).square().sum()
    shared = (effect * effect.mT).sum().clamp_min(0)
    return t.mean(), ((spread + shared) / (m * (m - 1))).sqrt()


def _xdiag(k: _Sketch) -> tuple[Tensor, Tensor]:
    """Values and standard errors, coordinates a tile at a time.

    For probe i with P left out: diag(Q (I - P) Z^T) + w * (Y_i - Q (I - P) Q^T Y_i).
    """
    S, m = k.S, k.S.shape[1]
    c, e = _pair_projectors(S)
    R = k.Q.mT @ k.Y
    coefficients = S.mT @ R  # s_a . Q^T Y_i
    own, other = torch.diagonal(coefficients)[:, None].expand(m, m), coefficients.mT
    u, v = c * own + e * other, e * own + c * other
    off = ~torch.eye(m, dtype=torch.bool)
    values, errors = [], []
    tile = max(1, _TILE_ELEMENTS // (m * m))
    for low in range(0, len(k.Q), tile):
        Q, Z, W, Y = (x[low : low + tile] for x in (k.Q, k.Z, k.W, k.Y))
        qs, zs = Q @ S, Z @ S
        base = (Q * Z).sum(1, keepdim=True) + W * (Y - Q @ R)  # nothing left out; Q R is Y up to rounding
        t = base - qs * zs + W * qs * torch.diagonal(coefficients)
        out = qs * zs
        cross = qs[:, :, None] * zs[:, None, :]
        gone = c * (out[:, :, None] + out[:, None, :]) + e * (cross + cross.mT)
        back = W[:, :, None] * (u * qs[:, :, None] + v * qs[:, None, :])
        effect = (t[:, :, None] - (base[:, :, None] - gone + back)) * off
        mean = t.mean(1, keepdim=True)
        spread = (t - mean).square().sum(1)
        shared = (effect * effect.mT).sum((1, 2)).clamp_min(0)
        values.append(mean[:, 0])
        errors.append(((spread + shared) / (m * (m - 1))).sqrt())
    return torch.cat(values), torch.cat(errors)
