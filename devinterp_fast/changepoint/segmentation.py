r"""Exact segmentation of whole series: optimal partitioning into constants, lines, or lines that join.

Minimizes  sum over segments of the weighted residual squares / variance  +  penalty x (segments - 1)  over all
boundaries. Constants and lines: F(t) = min_s F(s) + cost(s, t) + penalty, with costs from prefix moments. Lines that
join: F_t(v), the least cost of a fit that passes through v at x_t, is the lower envelope of quadratics, and a segment
from (x_s, u) to (x_t, v) costs a quadratic in u and v, so each envelope extends to the next in closed form.
O(n^2) in time for all three.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from devinterp_fast.errors import DataError, ShapeError

__all__ = ["Boundary", "Segmentation", "segment"]

_Floats = npt.NDArray[np.float64]
_DROP = 7.0  # of the cost inside a boundary's interval: covers 97 % and more, by simulation
_SHORTEST = {"mean": 2, "line": 4, "kink": 1}
MODELS = ("mean", "line", "kink")


@dataclass(frozen=True)
class Boundary:
    """One boundary between two segments.

    Attributes:
        index: first index of the new segment; of a kink, the index at which the lines meet.
        x: its coordinate.
        interval: coordinates between which the boundary lies, the other boundaries held (95 % or more).
        gain: by how much the cost, in units of the noise variance, rises without this boundary.
    """

    index: int
    x: float
    interval: tuple[float, float]
    gain: float

    def __str__(self) -> str:
        return f"{self.x:g} [{self.interval[0]:g}, {self.interval[1]:g}]   gain {self.gain:.1f}"


@dataclass(frozen=True)
class Segmentation:
    """A fit of one series.

    Attributes:
        model: ``"mean"``, ``"line"`` or ``"kink"``.
        boundaries: in order of x.
        fitted: the fit at each value of the series.
        slopes: slope of each segment; zeros for constants.
        slope_errors: their standard errors.
        edges: coordinates of first value, boundaries, last value.
        cost: minimized sum, penalties included.
        noise: standard deviation used (long-run, of one value; 1 where standard errors were given).

    Shape:
        fitted: (n,); slopes, slope_errors: (segments,); edges: (segments + 1,).
    """

    model: str
    boundaries: tuple[Boundary, ...]
    fitted: _Floats
    slopes: _Floats
    slope_errors: _Floats
    edges: _Floats
    cost: float
    noise: float

    def plateaus(self, z: float = 2.0) -> list[tuple[float, float]]:
        """Segments whose slope is zero within z standard errors: (first x, last x)."""
        flat = np.abs(self.slopes) <= z * self.slope_errors
        return [(float(self.edges[i]), float(self.edges[i + 1])) for i in np.flatnonzero(flat)]

    def critical_points(self) -> list[float]:
        """Coordinates of boundaries where the slope changes its sign: where the first derivative vanishes."""
        turns = np.flatnonzero(self.slopes[1:] * self.slopes[:-1] < 0)
        return [self.boundaries[i].x for i in turns]

    def __str__(self) -> str:
        where = ", ".join(f"{b.x:g}" for b in self.boundaries) or "none"
        return f"{len(self.slopes)} segments ({self.model})   boundaries {where}   noise {self.noise:.3g}"


def segment(
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    se: npt.ArrayLike | None = None,
    *,
    model: Literal["auto", "mean", "line", "kink"] = "auto",
    penalty: float | None = None,
) -> Any:
    r"""Splits a series into constants, lines, or lines that join, at the exact optimum.

    Args:
        x: coordinates, rising; this and the others are numpy or torch, on the CPU.
        y: values; NaN is missing.
        se: standard errors. Without them the noise is a robust scale of second differences, made long-run,
            (1 + phi) / (1 - phi), where neighbors correlate.
        model: ``"mean"``, ``"line"``, ``"kink"`` (lines that join); ``"auto"`` takes the one of least cost, each
            parameter and boundary counted as log n.
        penalty: cost of a boundary; None is 3 log n, to which ``"mean"`` adds the log of each segment's share of n.

    Returns:
        A Segmentation; of a table ``y`` a list of them, one for each column.

    Shape:
        x: (n,); y: (n,) or (n, channels); se: scalar, (n,) or as y.

    Raises:
        ShapeError: a shape is not as above.
        DataError: ``x`` does not rise, or fewer than three values are finite.
        ValueError: ``model`` is unknown or ``penalty`` negative.

    Source:
        Jackson et al. (2005), IEEE Signal Processing Letters 12(2); Zhang, Siegmund (2007), Biometrics 63(1);
        Fearnhead, Maidstone, Letchford (2019), J. Comput. Graph. Stat. 28(2), for lines that join.

    Example:
        >>> fit = segment(range(8), [0, 0, 0, 0, 5, 5, 5, 5], se=1.0, model="mean")
        >>> [b.index for b in fit.boundaries]
        [4]
    """
    if model not in ("auto", *MODELS):
        raise ValueError(f"model: expected one of auto, mean, line, kink, got {model}")
    if penalty is not None and not penalty >= 0:
        raise ValueError(f"penalty: expected a number >= 0 or None, got {penalty}")
    at, values = _array(x), _array(y)
    if at.ndim != 1:
        raise ShapeError(f"x: expected one dimension, got shape {at.shape}")
    if values.ndim not in (1, 2) or values.shape[:1] != at.shape:
        raise ShapeError(f"y: expected shape ({at.size},) or ({at.size}, channels), got {values.shape}")
    if not (np.isfinite(at).all() and (np.diff(at) > 0).all()):
        raise DataError("x: expected finite numbers that rise, got others")
    errors = None
    if se is not None:
        errors = _array(se)
        if errors.shape not in ((), at.shape, values.shape):
            raise ShapeError(f"se: expected shape {values.shape}, ({at.size},) or a number, got {errors.shape}")
        if values.ndim == 2 and errors.ndim == 1:
            errors = errors[:, None]
        errors = np.broadcast_to(errors, values.shape)
    if values.ndim == 1:
        return _one(at, values, errors, model, penalty)
    return [
        _one(at, values[:, c], None if errors is None else errors[:, c], model, penalty) for c in range(values.shape[1])
    ]


def _array(values: Any) -> _Floats:
    return np.asarray(values.detach() if isinstance(values, torch.Tensor) else values, dtype=np.float64)


def _one(x: _Floats, y: _Floats, se: _Floats | None, model: str, penalty: float | None) -> Segmentation:
    seen = np.isfinite(y) if se is None else np.isfinite(y) & (se > 0) & np.isfinite(se)
    index = np.flatnonzero(seen)
    n = index.size
    if n < 3:
        raise DataError(f"y: expected at least 3 finite values, got {n}")
    noise = _long_run_noise(y[index]) if se is None else 1.0
    length, scale = x[index[-1]] - x[index[0]], _spread(y[index])
    offset, scale = (float(np.mean(y[index])), scale) if scale > 0 else (float(y[index[0]]), 1.0)
    w = (scale / (np.full(n, noise) if se is None else se[index])) ** 2
    series = _Series((x[index] - x[index[0]]) / length, (y[index] - offset) / scale, w)
    cost_of = 3 * math.log(n) if penalty is None else penalty
    fits = {m: _partition(series, m, cost_of, penalty is None) for m in (MODELS if model == "auto" else (model,))}
    chosen = min(fits, key=lambda m: series.squares(m, fits[m]) + _parameters(m, len(fits[m])) * math.log(n))
    knots = fits[chosen]
    fit, slopes, errors = series.fit(chosen, knots)
    rest = series.squares(chosen, knots)
    boundaries = []
    for k, knot in enumerate(knots):
        others = knots[:k] + knots[k + 1 :]
        low, high = _interval(series, chosen, knots, k, rest)
        boundaries.append(
            Boundary(
                int(index[knot]), float(x[index[knot]]), (float(x[index[low]]), float(x[index[high]])),
                float(series.squares(chosen, others) - rest),
            )
        )  # fmt: skip
    fitted = np.interp(x, x[index], fit) * scale + offset
    edges = np.array([x[index[0]], *(b.x for b in boundaries), x[index[-1]]])
    return Segmentation(
        chosen, tuple(boundaries), fitted, slopes * scale / length, errors * scale / length, edges,
        rest + cost_of * len(knots), noise,
    )  # fmt: skip


def _parameters(model: str, boundaries: int) -> int:
    segments = boundaries + 1
    return boundaries + {"mean": segments, "line": 2 * segments, "kink": segments + 1}[model]


def _spread(y: _Floats) -> float:
    """Standard deviation; 0 for a constant, whose mean is rounded; the range where squares are too small to be seen."""
    extent = float(np.ptp(y))
    return (float(np.std(y)) or extent) if extent > 0 else 0.0


def _long_run_noise(y: _Floats) -> float:
    """Robust standard deviation from second differences, times sqrt((1 + phi) / (1 - phi)) if neighbors correlate.

    phi = 1 + 2 r with r the correlation of neighboring first differences, taken as 0 below 2 / sqrt(n).
    """
    second = y[2:] - 2 * y[1:-1] + y[:-2]
    sigma = float(np.median(np.abs(second))) / (0.6744897501960817 * math.sqrt(6))
    if sigma == 0:
        return 1e-9 * _spread(y) or 1.0
    first = np.diff(y)
    bound = 3 * float(np.median(np.abs(first - np.median(first)))) / 0.6744897501960817
    first = np.clip(first - np.median(first), -bound, bound)
    power = float(np.mean(first * first))
    phi = 1 + 2 * float(np.mean(first[1:] * first[:-1])) / power if power > 0 else 0.0
    if phi < 2 / math.sqrt(y.size):
        return sigma
    phi = min(phi, 0.9)
    # second differences of AR(1) have variance sigma^2 (6 - 8 phi + 2 phi^2)
    marginal = sigma * math.sqrt(6 / (6 - 8 * phi + 2 * phi * phi))
    return marginal * math.sqrt((1 + phi) / (1 - phi))


class _Series:
    """One series with the prefix moments of its weights, x and values."""

    def __init__(self, x: _Floats, y: _Floats, w: _Floats) -> None:
        self.x, self.y, self.w, self.n = x, y, w, x.size
        terms = np.stack([w, w * x, w * x * x, w * y, w * x * y, w * y * y])
        self.prefix = np.concatenate([np.zeros((6, 1)), np.cumsum(terms, axis=1)], axis=1)

    def cost(self, model: str, start: Any, stop: int) -> _Floats:
        """Residual squares of observations start ... stop - 1, for many starts."""
        w, sx, sxx, sy, sxy, syy = self.prefix[:, stop, None] - self.prefix[:, start]
        centered = syy - sy * sy / w
        if model == "mean":
            return np.asarray(np.maximum(centered, 0.0))
        xx, xy = sxx - sx * sx / w, sxy - sx * sy / w
        return np.asarray(np.maximum(centered - xy * xy / np.where(xx > 0, xx, np.inf), 0.0))

    def design(self, model: str, knots: list[int]) -> _Floats:
        """Columns of the fit: one or two for each segment, or one for each corner of a joined line."""
        edges = [0, *knots, self.n]
        if model == "kink":
            hinges = [np.clip(self.x - self.x[k], 0, None) for k in knots]
            return np.column_stack([np.ones(self.n), self.x, *hinges])
        inside = [(np.arange(self.n) >= a) & (np.arange(self.n) < b) for a, b in itertools.pairwise(edges)]
        columns = [part.astype(float) for part in inside]
        if model == "line":
            columns += [part * self.x for part in inside]
        return np.column_stack(columns)

    def fit(self, model: str, knots: list[int]) -> tuple[_Floats, _Floats, _Floats]:
        """Fitted values, slopes of the segments and their standard errors."""
        root = np.sqrt(self.w)
        A = self.design(model, knots)
        b = np.linalg.lstsq(A * root[:, None], self.y * root, rcond=None)[0]
        segments = len(knots) + 1
        if model == "mean":
            return A @ b, np.zeros(segments), np.zeros(segments)
        covariance = np.linalg.pinv((A * self.w[:, None]).T @ A)
        pick = np.eye(len(b))[segments:]
        if model == "kink":
            pick = np.concatenate([np.zeros((segments, 1)), np.tril(np.ones((segments, segments)))], axis=1)
        return A @ b, pick @ b, np.sqrt(np.einsum("ij,jk,ik->i", pick, covariance, pick))

    def squares(self, model: str, knots: list[int]) -> float:
        """Weighted residual squares of the best fit with these boundaries."""
        if model == "kink":
            root = np.sqrt(self.w)
            A = self.design(model, knots) * root[:, None]
            return float(np.sum((self.y * root - A @ np.linalg.lstsq(A, self.y * root, rcond=None)[0]) ** 2))
        edges = [0, *knots, self.n]
        return float(sum(self.cost(model, np.array([a]), b)[0] for a, b in itertools.pairwise(edges)))


def _partition(series: _Series, model: str, penalty: float, shares: bool) -> list[int]:
    if model == "kink":
        return _joined_lines(series, penalty)
    shortest, n = _SHORTEST[model], series.n
    best, last = np.full(n + 1, np.inf), np.zeros(n + 1, dtype=int)
    best[0] = -penalty
    for t in range(shortest, n + 1):
        starts = np.arange(0, t - shortest + 1)
        total = best[starts] + series.cost(model, starts, t) + penalty
        if model == "mean" and shares:
            total = total + np.log((t - starts) / n)
        k = int(total.argmin())
        best[t], last[t] = total[k], k
    knots: list[int] = []
    t = n
    while t > 0:
        t = int(last[t])
        knots.append(t)
    return knots[-2::-1]


def _joined_lines(series: _Series, penalty: float) -> list[int]:
    """Knots of the best continuous piecewise line; knots are observations."""
    x, n = series.x, series.n
    w0, y0 = series.w[0], series.y[0]
    # one row for each kept quadratic a v^2 + b v + c: knot it ends at, row it came from
    a, b, c = np.array([w0]), np.array([-2 * w0 * y0]), np.array([w0 * y0 * y0 - penalty])
    at, parent = np.array([0]), np.array([-1])
    rows = np.array([0])  # those that may still be part of the best
    final = -1
    for t in range(1, n):
        s = at[rows]
        w, sx, sxx, sy, sxy, syy = series.prefix[:, t + 1, None] - series.prefix[:, s + 1]
        span = x[t] - x[s]
        u, uu = (sx - x[s] * w) / span, (sxx - 2 * x[s] * sx + x[s] ** 2 * w) / span**2
        uy = (sxy - x[s] * sy) / span
        A, B, C, D, E = uu, u - uu, w - 2 * u + uu, uy, sy - uy
        q, r = C + a[rows], b[rows] - 2 * E
        a1, b1, c1 = A - B * B / q, -2 * D - B * r / q, syy + c[rows] - r * r / (4 * q) + penalty
        least = c1 - b1 * b1 / (4 * a1)
        if t == n - 1:
            final = int(rows[least.argmin()])
            break
        kept = _envelope(a1, b1, c1)
        parents = rows[kept]
        # two knots lead from the best fit so far onto any line: what costs more than they do never wins
        rows = np.append(rows[least <= least.min() + 2 * penalty], len(a) + np.arange(len(kept)))
        a, b, c = np.append(a, a1[kept]), np.append(b, b1[kept]), np.append(c, c1[kept])
        at, parent = np.append(at, np.full(len(kept), t)), np.append(parent, parents)
    knots = []
    while final >= 0 and at[final] > 0:
        knots.append(int(at[final]))
        final = int(parent[final])
    return knots[::-1]


def _envelope(a: _Floats, b: _Floats, c: _Floats) -> list[int]:
    """Quadratics a v^2 + b v + c that are lowest for some v, found from v = -infinity upward."""
    now = int(np.lexsort((c, -b, a))[0])
    kept, v = [now], -np.inf
    while True:
        da, db, dc = a - a[now], b - b[now], c - c[now]
        with np.errstate(divide="ignore", invalid="ignore"):
            root = np.sqrt(db * db - 4 * da * dc)
            first, second = (-db - root) / (2 * da), (-db + root) / (2 * da)
            low, high = np.fmin(first, second), np.fmax(first, second)
            line = np.where(db != 0, -dc / db, np.inf)
        # a quadratic goes below ours at the lower root if it is the wider one there, else at the upper
        cross = np.where(da > 0, low, np.where(da < 0, np.where(low > v, low, high), np.where(db < 0, line, np.inf)))
        cross = np.where(da < 0, high, cross)
        cross[~np.isfinite(cross) | (cross <= v)] = np.inf
        nearest = int(cross.argmin())
        if not np.isfinite(cross[nearest]):
            return kept
        v, now = cross[nearest], nearest
        if now not in kept:
            kept.append(now)


def _interval(series: _Series, model: str, knots: list[int], k: int, rest: float) -> tuple[int, int]:
    edges = [0, *knots, series.n]
    low, high = edges[k] + 1, edges[k + 2] - 1

    # every place as likely as that, not only those next to it: the cost of a jump's place is a random walk
    inside = [
        i for i in range(low, high + 1) if series.squares(model, [*knots[:k], i, *knots[k + 1 :]]) <= rest + _DROP
    ]
    return min(inside, default=knots[k]), max(inside, default=knots[k])
