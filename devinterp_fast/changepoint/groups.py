r"""Statistics of groups of channels at each common candidate time.

At one candidate the channels' statistics z^2 are chi-square with one degree of freedom if nothing changed. Over the m
channels of a group:

    max        p = 1 - F_1(max z^2)^m          one channel changed
    sum        p = 1 - F_m(sum z^2)            all changed a little
    mixture    p = 1 / prod(1 - p0 + p0 sqrt(1 - g) exp(g z^2 / 2)),  p0 = (m + 1)^{-1/2}, g = 0.9    a few changed

The product has mean one, so by Markov's inequality the third p is an upper bound. Each p is expressed as the chi-square
value of one channel with that p, hence one table of thresholds serves all.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import special

from devinterp_fast.errors import ShapeError

__all__ = ["Groups"]

_Floats = npt.NDArray[np.float64]
_SHARE = 0.9


class Groups:
    """A partition of the channels.

    Args:
        index: group of each channel, 0 ... groups - 1, none empty.
        channels: how many.
        model: of the detector; one with one degree of freedom.

    Raises:
        ShapeError: ``index`` has another length.
        ValueError: a group is empty or negative, or the model has more degrees of freedom.
    """

    def __init__(self, index: npt.ArrayLike, channels: int, model: str) -> None:
        group = np.asarray(index)
        if group.shape != (channels,):
            raise ShapeError(f"groups: expected shape ({channels},), got {group.shape}")
        if model not in ("mean", "kink"):
            raise ValueError(f"groups: expected model mean or kink, got {model}")
        self.count = int(group.max()) + 1
        sizes = np.bincount(group[group >= 0], minlength=self.count)
        if group.dtype.kind not in "iu" or group.min() < 0 or not sizes.all():
            raise ValueError(f"groups: expected integers from 0 to {self.count - 1}, each in use, got others")
        self.sizes = sizes
        self._order = np.argsort(group, kind="stable")
        self._starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])

    @property
    def tests(self) -> int:
        """Statistics that are watched together: three for each group."""
        return 3 * self.count

    def members(self, group: int) -> npt.NDArray[np.int64]:
        """Channels of a group."""
        start = self._starts[group]
        return self._order[start : start + self.sizes[group]]

    def statistics(self, squares: npt.ArrayLike) -> _Floats:
        """Max, sum and mixture of each group, each as one channel's chi-square value of the same p.

        Shape:
            squares: (candidates, channels); returns (candidates, groups, 3).
        """
        z = np.asarray(squares, dtype=np.float64)[:, self._order]
        m = self.sizes
        top = np.maximum.reduceat(z, self._starts, axis=1)
        total = np.add.reduceat(z, self._starts, axis=1)
        p0 = np.repeat(1 / np.sqrt(m + 1), m)
        gain = np.logaddexp(np.log1p(-p0), np.log(p0) + 0.5 * math.log1p(-_SHARE) + 0.5 * _SHARE * z)
        mixture = np.add.reduceat(gain, self._starts, axis=1)
        by_max = -np.expm1(m * np.log1p(-np.minimum(special.chdtrc(1, top), 1 - 1e-16)))
        p = np.stack([by_max, special.chdtrc(m, total), np.exp(-np.maximum(mixture, 0))], axis=2)
        return np.asarray(special.chdtri(1, np.clip(p, 1e-300, 1.0)))
