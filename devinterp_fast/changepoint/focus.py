"""One change of a mean, found as soon as the data allow: the exact likelihood-ratio test, online."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from devinterp_fast import _cpu
from devinterp_fast.errors import ShapeError

__all__ = ["Focus", "FocusRun"]

_Floats = npt.NDArray[np.float64]
_SMALLEST_SE = 1e-150
FAMILIES = ("gaussian", "bernoulli", "poisson", "exponential")


@dataclass(frozen=True)
class FocusRun:
    """What `Focus.run` saw, one entry a value.

    Attributes:
        statistic: the likelihood-ratio statistic after each value.
        changepoint: the first index of the new segment that this statistic belongs to; -1 if there is none.
        direction: +1 if the mean rose there, -1 if it fell, 0 if there is no candidate.
        alarms: indices at which the statistic reached the threshold.

    Shape:
        statistic, changepoint, direction: (n,); alarms: (number of alarms,).
    """

    statistic: _Floats
    changepoint: npt.NDArray[np.int64]
    direction: npt.NDArray[np.int8]
    alarms: npt.NDArray[np.int64]

    def __str__(self) -> str:
        top = f"{self.statistic.max():.4g}" if self.statistic.size else "none"
        return f"FOCuS   {self.statistic.size} values   largest statistic {top}   {self.alarms.size} alarms"


class Focus:
    r"""Exact online likelihood-ratio test for a change of a mean; both means unknown (FOCuS).

    With weights w = 1 / se^2, sums W_j = sum_{i<j} w_i and S_j = sum_{i<j} w_i y_i, and W, S over all values,

        statistic = max_j  D_j^2 W / (W_j (W - W_j)),    D_j = S_j - (W_j / W) S.

    At a fixed j and with true standard errors it is chi-square with one degree of freedom if nothing changed;
    the maximum over j is larger and grows slowly with n. Without ``se`` all weights are 1, so divide a series
    by its noise's standard deviation first. The maximum is exact: it lies on the convex hull of the points
    (W_j, S_j), of which about 2 log n vertices are kept.

    Of another family, with m1, m2, m the means of the j values before, the n - j after, and all,

        statistic = max_j 2 (j d(m1, m) + (n - j) d(m2, m)),

    where d(p, q) is p log(p / q) + (1 - p) log((1 - p) / (1 - q)) for bernoulli, p log(p / q) - p + q for poisson, and
    p / q - 1 - log(p / q) for exponential values (times k: gamma of known shape k).

    NaN and infinite values are missing: they count as an index and change nothing else.

    Args:
        threshold: at or above it `alarm` is true, and the test starts anew with the next value (of the values
            before it nothing is kept). None never alarms.
        family: ``"gaussian"``; ``"bernoulli"``, values from 0 to 1; ``"poisson"``, values >= 0; ``"exponential"``,
            values > 0.

    Raises:
        ValueError: ``threshold`` is not positive, or ``family`` is unknown.

    Source:
        Romano, Eckley, Fearnhead, Rigaill (2023), Fast online changepoint detection via functional pruning
        CUSUM statistics, JMLR 24(81); Ward, Romano, Eckley, Fearnhead (2024), A constant-per-iteration likelihood
        ratio test for online changepoint detection for exponential family models, Statistics and Computing 34.

    Example:
        >>> test = Focus(threshold=20.0)
        >>> [round(test.update(y), 6) for y in (0.0, 0.0, 0.0, 4.0, 4.0)]
        [0.0, 0.0, 0.0, 12.0, 19.2]
        >>> test.changepoint, test.direction, test.alarm
        (3, 1, False)
    """

    def __init__(
        self,
        threshold: float | None = None,
        family: Literal["gaussian", "bernoulli", "poisson", "exponential"] = "gaussian",
    ) -> None:
        if family not in FAMILIES:
            raise ValueError(f"family: expected one of {', '.join(FAMILIES)}, got {family}")
        if threshold is not None and not threshold > 0:
            raise ValueError(f"threshold: expected a positive number or None, got {threshold}")
        self.threshold = threshold
        self.family = family
        self._test = _cpu.Focus(FAMILIES.index(family))
        self._alarm = False

    @property
    def statistic(self) -> float:
        """The statistic after the last value."""
        return float(self._test.statistic)

    @property
    def changepoint(self) -> int | None:
        """First index of the new segment that maximizes the statistic; None if there is no candidate."""
        index = int(self._test.changepoint)
        return None if index < 0 else index

    @property
    def direction(self) -> int:
        """+1 if the mean rose there, -1 if it fell, 0 if there is no candidate."""
        return int(self._test.direction)

    @property
    def alarm(self) -> bool:
        """Whether the last value brought the statistic to the threshold."""
        return self._alarm

    def update(self, y: float, se: float | None = None) -> float:
        """Takes one value and returns the statistic.

        Args:
            y: the value; NaN is a missing one.
            se: its standard error; None is a weight of 1, NaN makes the value a missing one.

        Raises:
            ValueError: ``se`` is below 1e-150, whose weight would overflow; or ``y`` is not a value of the family, or
                ``se`` is given with another than the Gaussian one.
        """
        if self.family != "gaussian":
            self._check(np.array([y], dtype=np.float64), se)
        if se is not None and se < _SMALLEST_SE:
            raise ValueError(f"se: expected a number of at least {_SMALLEST_SE}, got {se}")
        if self._alarm:
            self._test.restart()
        statistic = float(self._test.update(float(y), 1.0 if se is None else 1.0 / (float(se) * float(se))))
        self._alarm = self.threshold is not None and statistic >= self.threshold
        return statistic

    def run(self, values: npt.ArrayLike, se: npt.ArrayLike | None = None) -> FocusRun:
        """Takes a whole series in one native call; same numbers as `update` one by one.

        Args:
            values: the series.
            se: standard errors, one for each value or one for all.

        Shape:
            values: (n,), computed in float64; se: (n,) or scalar.

        Raises:
            ShapeError: ``values`` has not one dimension, or ``se`` has another length.
            ValueError: as `update`.
        """
        y = np.ascontiguousarray(values, dtype=np.float64)
        if y.ndim != 1:
            raise ShapeError(f"values: expected one dimension, got shape {y.shape}")
        weight = np.empty(0)
        if self.family != "gaussian":
            self._check(y, se)
        if se is not None:
            error = np.asarray(se, dtype=np.float64)
            if error.shape not in ((), y.shape):
                raise ShapeError(f"se: expected shape {y.shape} or a number, got shape {error.shape}")
            if np.any(error < _SMALLEST_SE):
                raise ValueError(f"se: expected numbers of at least {_SMALLEST_SE}, got {np.nanmin(error)}")
            weight = np.ascontiguousarray(np.broadcast_to(1.0 / (error * error), y.shape))
        limit = np.inf if self.threshold is None else self.threshold
        statistic, changepoint, direction, alarms = self._test.run(y, weight, limit, self._alarm)
        if y.size:
            self._alarm = bool(alarms) and alarms[-1] == self._test.count - 1
        return FocusRun(statistic, changepoint, direction, np.asarray(alarms, dtype=np.int64))

    def _check(self, y: _Floats, se: object) -> None:
        """Refuses what is not a value of the family."""
        if se is not None:
            raise ValueError(f"se: expected None with family {self.family}, got values")
        seen = y[np.isfinite(y)]
        low, high = (seen.min(), seen.max()) if seen.size else (0.5, 0.5)
        fits = {"bernoulli": low >= 0 and high <= 1, "poisson": low >= 0, "exponential": low > 0}
        if not fits[self.family]:
            wanted = {"bernoulli": "values from 0 to 1", "poisson": "values >= 0", "exponential": "values > 0"}
            raise ValueError(f"y: expected {wanted[self.family]}, got {low:g} to {high:g}")

    def state_dict(self) -> dict[str, Any]:
        """Everything the test remembers, as numbers and numpy arrays; continues bit for bit."""
        lower, upper, scalars = self._test.state()
        return {"lower": np.stack(lower), "upper": np.stack(upper), "scalars": scalars, "alarm": self._alarm}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up a state of `state_dict`; threshold and family stay this object's own.

        Raises:
            ValueError: the state is not of this class.
        """
        if set(state) != {"lower", "upper", "scalars", "alarm"}:
            raise ValueError(
                f"state: expected keys alarm, lower, scalars, upper, got {', '.join(sorted(state)) or 'none'}"
            )
        self._test.load(tuple(state["lower"]), tuple(state["upper"]), state["scalars"])
        self._alarm = bool(state["alarm"])
