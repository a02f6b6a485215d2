r"""Statistics of groups of channels, and of a tree of groups, at each common candidate time.

At one candidate the channels' statistics q are chi-square if nothing changed, with k degrees of freedom: one for mean
and kink, two for jump+kink and for mean+variance. Over the m channels of a group:

    max        p = 1 - F_k(max q)^m            one channel changed
    sum        p = 1 - F_km(sum q)             all changed a little
    mixture    p = 1 / prod(1 - p0 + p0 (1 - g)^{k/2} exp(g q / 2)),  p0 = (m + 1)^{-1/2}, g = 0.9    a few changed

The product has mean one, so by Markov's inequality the third p is an upper bound. Each p is expressed as the chi-square
value of one channel with that p, hence one table of thresholds serves all.

The likelihood ratio of mean+variance is far from chi-square at short segments. It is divided by half its exact mean
first (Bartlett's correction), with psi the digamma function:

    E q = n e(n) - n1 e(n1) - n2 e(n2),    e(j) = log(2 / j) + psi((j - 1) / 2).

A tree (weight, head, layer, model) is several partitions of the same channels, watched together: every node is a group
with statistics of its own over all channels below it.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import special

from devinterp_fast.errors import ShapeError

__all__ = ["Groups", "Partition"]

_Floats = npt.NDArray[np.float64]
_SHARE = 0.9
_SHORTEST = 5  # of a segment with a variance of its own
_FREEDOM = {"mean": 1, "kink": 1, "jump+kink": 2, "meanvar": 2}


class Partition:
    """One partition of the channels.

    Args:
        index: group of each channel, 0 ... groups - 1, none empty.
        freedom: degrees of freedom of a channel's statistic.

    Raises:
        ValueError: a group is empty or negative.
    """

    def __init__(self, index: npt.NDArray[np.int64], freedom: int) -> None:
        self.count = int(index.max()) + 1
        sizes = np.bincount(index[index >= 0], minlength=self.count)
        if index.min() < 0 or not sizes.all():
            raise ValueError(f"groups: expected integers from 0 to {self.count - 1}, each in use, got others")
        self.sizes, self.freedom = sizes, freedom
        self._order = np.argsort(index, kind="stable")
        self._starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])

    def members(self, group: int) -> npt.NDArray[np.int64]:
        """Channels of a group."""
        start = self._starts[group]
        return self._order[start : start + self.sizes[group]]

    def statistics(self, q: npt.ArrayLike) -> _Floats:
        """Max, sum and mixture of each group, each as one channel's chi-square value of the same p.

        Shape:
            q: (candidates, channels), chi-square; returns (candidates, groups, 3).
        """
        z = np.asarray(q, dtype=np.float64)[:, self._order]
        m, k = self.sizes, self.freedom
        top = np.maximum.reduceat(z, self._starts, axis=1)
        total = np.add.reduceat(z, self._starts, axis=1)
        p0 = np.repeat(1 / np.sqrt(m + 1), m)
        gain = np.logaddexp(np.log1p(-p0), np.log(p0) + 0.5 * k * math.log1p(-_SHARE) + 0.5 * _SHARE * z)
        mixture = np.add.reduceat(gain, self._starts, axis=1)
        by_max = -np.expm1(m * np.log1p(-np.minimum(special.chdtrc(k, top), 1 - 1e-16)))
        p = np.stack([by_max, special.chdtrc(k * m, total), np.exp(-np.maximum(mixture, 0))], axis=2)
        return np.asarray(special.chdtri(k, np.clip(p, 1e-300, 1.0)))


class Groups:
    """One partition of the channels or several, finest first.

    Args:
        index: group of each channel in each partition.
        channels: how many.
        model: of the detector.

    Shape:
        index: (channels,) or (levels, channels).

    Raises:
        ShapeError: ``index`` has another length.
        ValueError: a group is empty or negative.
    """

    def __init__(self, index: npt.ArrayLike, channels: int, model: str) -> None:
        group = np.asarray(index)
        if group.shape[-1:] != (channels,) or group.ndim > 2 or group.shape[0] == 0:
            raise ShapeError(f"groups: expected shape ({channels},) or (levels, {channels}), got {group.shape}")
        if group.dtype.kind not in "iu":
            raise ValueError(f"groups: expected integers, got {group.dtype}")
        rows = np.atleast_2d(group).astype(np.int64)
        self.levels = [Partition(row, _FREEDOM[model]) for row in rows]
        self._corrected = model == "meanvar"

    @property
    def tests(self) -> int:
        """Statistics that are watched together: three for each group."""
        return 3 * sum(level.count for level in self.levels)

    @property
    def scale(self) -> str:
        """Model in whose table of thresholds the groups' values are looked up."""
        return {1: "kink", 2: "jump+kink"}[self.levels[0].freedom]

    def statistics(self, squares: npt.ArrayLike, n: int, tau: npt.ArrayLike) -> list[_Floats]:
        """The largest of a group's three statistics, for each level.

        Args:
            squares: statistics of the channels at each candidate.
            n: number of observations.
            tau: those before each candidate.

        Shape:
            squares: (candidates, channels); tau: (candidates,); returns (candidates, groups) for each level.
        """
        q = np.asarray(squares, dtype=np.float64)
        if self._corrected:
            q = q * (2 / expected_ratio(n, np.asarray(tau, dtype=np.float64)))[:, None]
        return [level.statistics(q).max(axis=2) for level in self.levels]


def expected_ratio(n: int, before: _Floats) -> _Floats:
    """Mean of the likelihood ratio of new mean and variance, of white noise, at each number of values before.

    Shape:
        before: (candidates,); returns the same.

    Source:
        Bartlett (1937), Proc. R. Soc. A 160; Hawkins, Zamba (2005), Technometrics 47(2).
    """

    def part(j: _Floats) -> _Floats:
        size = np.maximum(j, _SHORTEST)  # shorter ones are not tested
        value: _Floats = size * (np.log(2 / size) + special.digamma((size - 1) / 2))
        return value

    return part(np.array(float(n))) - part(before) - part(n - before)
