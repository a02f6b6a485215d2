r"""What stands between recorded values and a test that wants white noise of variance one.

    given   w = (s / se)^2, y / s, with s the first standard error: only ratios enter the sums
    unit    the noise has standard deviation one already
    mad     sigma = median |y_i - y_{i-1}| / (0.6745 sqrt 2) over a burn-in
    ar1     phi and sigma from a burn-in, its line removed; then, d the gap to the channel's last observation,
            z = (y_i - phi^d y_{i-1}) / s,  u = (1 - phi^d) / s,  v = (x_i - phi^d x_{i-1}) / s,
            s = sigma sqrt(1 - phi^{2 d})

On unequal gaps the regressors are whitened too: z on (u, v) is z / u on (1, v / u) with weight u^2. On the burn-in's
own gap u is a constant and v a shifted x, so nothing but z changes, and all channels keep sharing their moments.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Noise", "Whitened", "ar1", "robust_scale"]

_Floats = npt.NDArray[np.float64]
KINDS = ("auto", "given", "unit", "mad", "ar1")


class Whitened:
    """Values with weights and coordinates: what the detector's core takes.

    Shape:
        x: (steps,); y: float32 (steps, channels); weight: None, (steps,) or (steps, channels);
        own_x: None or (steps, channels).
    """

    def __init__(self, x: _Floats, y: npt.NDArray[np.float32], weight: _Floats | None, own_x: _Floats | None = None):
        self.x, self.y, self.weight, self.own_x = x, y, weight, own_x


def robust_scale(y: npt.ArrayLike) -> _Floats:
    """Standard deviation of the noise of each column: median absolute difference of neighbors / (0.6745 sqrt 2).

    Args:
        y: values; NaN is missing.

    Shape:
        y: (n, channels); returns (channels,), NaN where there are no two neighbors.
    """
    difference = np.abs(np.diff(np.asarray(y, dtype=np.float64), axis=0))
    known = np.isfinite(difference)
    out = np.full(difference.shape[1], np.nan)
    for c in np.flatnonzero(known.any(axis=0)):
        out[c] = np.median(difference[known[:, c], c]) / (0.6744897501960817 * np.sqrt(2))
    return out


def ar1(x: _Floats, y: _Floats) -> tuple[_Floats, _Floats]:
    r"""Autocorrelation of neighbors and standard deviation of each column around its own line.

    phi is the lag-one coefficient of the residuals plus (2 + 4 phi) / n, the bias that removing a line leaves
    (Marriott, Pope 1954), kept inside [0, 0.99].

    Shape:
        x: (n,); y: (n, channels), NaN is missing; returns phi, sigma: (channels,).
    """
    seen = np.isfinite(y)
    n = np.maximum(seen.sum(axis=0), 1)
    t = np.where(seen, x[:, None], 0.0)
    z = np.where(seen, y, 0.0)
    t = np.where(seen, t - t.sum(axis=0) / n, 0.0)
    z = np.where(seen, z - z.sum(axis=0) / n, 0.0)
    spread = (t * t).sum(axis=0)
    z -= t * ((t * z).sum(axis=0) / np.where(spread > 0, spread, 1.0))
    power = (z * z).sum(axis=0)
    pairs = seen[1:] & seen[:-1]
    lag = (z[1:] * z[:-1] * pairs).sum(axis=0) * n / np.maximum(pairs.sum(axis=0), 1)
    phi = np.where(power > 0, lag / np.where(power > 0, power, 1.0), 0.0)
    phi = np.clip(phi + (2 + 4 * phi) / n, 0.0, 0.99)
    variance = power / np.maximum(n - 2, 1)
    # the marginal variance of a correlated series around its own line reads low by its long-run share
    variance *= 1 + 2 * (1 + phi) / (1 - phi) / n
    return phi, np.sqrt(variance)


class Noise:
    """Turns (step, x, y, se) into whitened values; keeps what it needs between calls.

    Args:
        kind: ``"given"``, ``"unit"``, ``"mad"``, ``"ar1"``; ``"auto"``: given if the first update has an se, else mad.
        channels: how many.
        burn_in: observations that ``"mad"`` and ``"ar1"`` estimate from; they are handed on when it is over.
        clip: Huber's bound in standard deviations around the median of the last five values; None: no clipping.
    """

    def __init__(self, kind: str, channels: int, burn_in: int, clip: float | None = None) -> None:
        self.kind, self.channels, self.burn_in, self.clip = kind, channels, burn_in, clip
        self.offset: _Floats | None = None  # (channels,), first values: float64 is brought near zero before float32
        self.scale: _Floats | None = None  # (channels,)
        self.phi: _Floats | None = None
        self.gap = 0.0
        self.waiting: list[tuple[_Floats, _Floats, _Floats]] = []
        self.last_y = np.full(channels, np.nan)
        self.last_step = np.full(channels, np.nan)
        self.last_x = np.full(channels, np.nan)
        self.recent = np.full((5, channels), np.nan)

    @property
    def variance(self) -> float:
        """Relative variance of the estimated noise variance, as `thresholds.inflated` takes it.

        mad: 4 x 1.70 / n (differences of neighbors are correlated; simulated). ar1: 2 / n
        for the variance of innovations and (1 + phi) / (1 - phi) / n for phi, at the channels' median phi: a quarter of
        phi's part of the long-run variance, because short windows feel it less. Simulated at
        phi = 0.5; at 0 and at 0.8 false alarms are rarer than asked, by a factor of 1.4 and of 2.
        """
        if self.kind == "mad":
            return 6.8 / self.burn_in
        if self.kind == "ar1" and self.phi is not None:
            phi = float(np.median(self.phi))
            return (2 + (1 + phi) / (1 - phi)) / self.burn_in
        return 0.0

    def whiten(self, step: _Floats, x: _Floats, y: npt.NDArray[Any], se: _Floats | None) -> Whitened | None:
        """Takes a block of steps; None while the burn-in lasts."""
        if self.kind == "auto":
            self.kind = "mad" if se is None else "given"
        if self.kind == "unit":
            return Whitened(x, self._clipped(self._float32(y)), None)
        if self.kind == "given":
            return self._given(x, y, se)
        values = np.asarray(y, dtype=np.float64)
        if self.scale is None:
            self.waiting.append((step.copy(), x.copy(), values.copy()))
            if sum(s.size for s, _, _ in self.waiting) < self.burn_in:
                return None
            step, x, values = (np.concatenate(parts) for parts in zip(*self.waiting, strict=True))
            self.waiting = []
            first = slice(self.burn_in)  # however the steps come in blocks
            self._estimate(step[first], x[first], values[first])
        return self._scaled(x, values) if self.kind == "mad" else self._uncorrelated(step, x, values)

    def _float32(self, y: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        if y.dtype == np.float32:
            return y
        return (y - self._offset(y)).astype(np.float32)

    def _offset(self, y: npt.NDArray[Any]) -> _Floats:
        if self.offset is None:
            self.offset = np.where(np.isfinite(y[0]), y[0], 0.0).astype(np.float64)
        return self.offset

    def _given(self, x: _Floats, y: npt.NDArray[Any], se: _Floats | None) -> Whitened:
        if se is None:
            raise ValueError("se: expected standard errors at every update, got None")
        if self.scale is None:
            first = se[0]
            self.scale = np.broadcast_to(
                np.where(np.isfinite(first) & (first > 0), first, 1.0), (self.channels,)
            ).copy()
        with np.errstate(divide="ignore", over="ignore"):
            weight = np.ascontiguousarray((self.scale[: se.shape[1]] / se) ** 2)
        scaled = ((y - self._offset(y)) / self.scale).astype(np.float32)
        return Whitened(x, self._clipped(scaled), weight[:, 0].copy() if se.shape[1] == 1 else weight)

    def _estimate(self, step: _Floats, x: _Floats, y: _Floats) -> None:
        if self.kind == "mad":
            scale = robust_scale(y)
        else:
            gaps = np.diff(step)
            self.gap = float(np.median(gaps))
            self.phi, scale = ar1(x, y)
        self.scale = np.where(scale > 0, scale, np.nan)  # a constant curve has no noise: it is never judged

    def _scaled(self, x: _Floats, y: _Floats) -> Whitened:
        assert self.scale is not None
        return Whitened(x, self._clipped(((y - self._offset(y)) / self.scale).astype(np.float32)), None)

    def _uncorrelated(self, step: _Floats, x: _Floats, y: _Floats) -> Whitened:
        assert self.phi is not None
        assert self.scale is not None
        phi, sigma = self.phi, self.scale
        usual = np.sqrt((1 - phi) / (1 + phi))  # u sigma on the burn-in's gap
        shift = np.zeros(self.channels)
        z = np.full(y.shape, np.nan)
        weight = np.ones(y.shape)
        own_x = np.empty(y.shape)
        unequal = False
        for i in range(step.size):
            d = (step[i] - self.last_step) / self.gap
            r = phi**d
            s = np.sqrt(1 - r * r)
            u = (1 - r) / s
            z[i] = (y[i] - r * self.last_y) / (s * sigma)
            usual_gap = np.abs(d - 1) < 1e-9
            # on the usual gap v / u is x + phi gap / (1 - phi), with the gap in x: the others are put on that footing
            shift = np.where(usual_gap, phi / (1 - phi) * (x[i] - self.last_x), shift)
            own_x[i] = np.where(usual_gap, x[i], (x[i] - r * self.last_x) / (1 - r) - shift)
            unequal = unequal or not bool(np.all(usual_gap | ~np.isfinite(z[i])))
            weight[i] = np.where(usual_gap, 1.0, (u / usual) ** 2)
            z[i] = np.where(usual_gap, z[i], z[i] * usual / u)
            seen = np.isfinite(y[i])
            self.last_y = np.where(seen, y[i], self.last_y)
            self.last_step = np.where(seen, step[i], self.last_step)
            self.last_x = np.where(seen, x[i], self.last_x)
        clean = self._clipped(z.astype(np.float32))
        return (
            Whitened(x, clean, weight, np.where(np.isfinite(own_x), own_x, 0.0))
            if unequal
            else Whitened(x, clean, None)
        )

    def _clipped(self, z: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if self.clip is None:
            return z
        out = z.copy()
        for i in range(len(out)):
            full = np.isfinite(self.recent).all(axis=0)
            middle = np.median(np.where(full, self.recent, 0.0), axis=0)
            bounded = np.clip(out[i], middle - self.clip, middle + self.clip)
            seen = np.isfinite(z[i])
            self.recent = np.where(seen, np.roll(self.recent, -1, axis=0), self.recent)
            self.recent[-1] = np.where(seen, z[i], self.recent[-1])
            out[i] = np.where(full, bounded, out[i])
        return out

    def state_dict(self) -> dict[str, Any]:
        """All that is kept between calls."""
        return {name: getattr(self, name) for name in _STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up a state."""
        for name in _STATE:
            setattr(self, name, state[name])


_STATE = ("kind", "offset", "scale", "phi", "gap", "waiting", "last_y", "last_step", "last_x", "recent")
