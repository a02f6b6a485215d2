r"""Stages of training curves: one row for each transition, found while it happens.

**Why acceleration.** Under gradient flow dL/dt = -g'g and L'' = 2 g'Hg, with g the gradient and H the
Hessian. So a loss bends *down* in linear time only while the gradient lies in directions of negative
curvature: while a saddle is being left. On a convex loss g'Hg >= 0, the curve is convex for ever, and so are
its block means at any spacing: least squares and logistic regression never fall below the line through their
own past. The same holds for log(L + c), c >= 0, of any mixture of decaying exponentials, power laws included,
because completely monotone functions are log-convex. (Against *log* step exp(-t) looks like plateau, drop,
plateau; a test there fires on every relaxation.)

**Limits.** The theorem is about gradient flow. Momentum and Adam accelerate on any loss at their start, which
is what ``skip`` hides, and a momentum that oscillates bends any loss down; a learning rate that rises does
too, so use the sum of learning rates as the step then; Adam's own preconditioning and weight decay have no
theorem, though the test works there. A fall that is fastest at the first observation has no plateau before it
and gets no row. Noise of a fifth of a drop's height makes the alarm late or absent, more so where drops follow
each other closely: give ``se``, or average more. Of deep linear networks with 5 % of noise a sixth of the drops
is missed, and of neighbors that are less than a factor 1.8 apart in time some share a row. Noise with a memory of
ten observations, AR(1) .9, gives one false row in six curves of 250 points. The scores are in docs/changes.md.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from devinterp_fast import _cpu
from devinterp_fast.errors import ShapeError

__all__ = ["Alarm", "JointStage", "Stage", "Stages", "join"]


@dataclass(frozen=True)
class Alarm:
    """The moment at which a curve is known to accelerate.

    Attributes:
        step: the step of the observation that fired.
        onset: the last step of the plateau before it.
        direction: -1 if the curve falls, +1 if it rises.
        excess: how far it left the line through its past, in units of what was needed; at least 1.
        block: number of newest observations whose mean fired.
    """

    step: float
    onset: float
    direction: int
    excess: float
    block: int

    def __str__(self) -> str:
        way = "rise" if self.direction > 0 else "fall"
        return f"{way} at {self.step:g}   onset {self.onset:g}   excess {self.excess:.2f} (block {self.block})"


@dataclass(frozen=True)
class Stage:
    """One transition of one curve.

    Attributes:
        onset: step at which 10 % of the change is done.
        midpoint: the same at 50 %.
        end: the same at 90 %.
        alarm: step of the observation at which it became known.
        closed: step of the last observation that belongs to it, tail included.
        before: level of the curve before the onset.
        after: level at its end, tail included.
        gain: change of the signal (nats of a loss, the metric itself), positive in the stage's direction.
        direction: -1 for a fall, +1 for a rise.
        provisional: whether it is still going on; all numbers but ``alarm`` may yet move.
    """

    onset: float
    midpoint: float
    end: float
    alarm: float
    closed: float
    before: float
    after: float
    gain: float
    direction: int
    provisional: bool

    @property
    def size(self) -> float:
        """Absolute change of the curve."""
        return abs(self.after - self.before)

    def __str__(self) -> str:
        mark = "   provisional" if self.provisional else ""
        return (
            f"{self.onset:.4g} - {self.midpoint:.4g} - {self.end:.4g}   "
            f"{self.before:.4g} -> {self.after:.4g}   alarm {self.alarm:g}{mark}"
        )


@dataclass(frozen=True)
class JointStage:
    """One transition as several curves saw it.

    Attributes:
        onset: median over the curves' onsets.
        midpoint: median over the curves' midpoints.
        end: median over the curves' ends.
        alarm: the earliest alarm.
        channels: the row of each curve that took part.
        provisional: whether any of the rows is.
    """

    onset: float
    midpoint: float
    end: float
    alarm: float
    channels: Mapping[str, Stage]
    provisional: bool

    def __str__(self) -> str:
        mark = "   provisional" if self.provisional else ""
        names = ", ".join(sorted(self.channels))
        return f"{self.onset:.4g} - {self.midpoint:.4g} - {self.end:.4g}   {names}   alarm {self.alarm:g}{mark}"


class Stages:
    r"""Finds the stages of one training curve, online.

    The signal is g = log(max(y, 0) + eps max|y|) of a loss and g = y of a metric. In a quiet spell the mean
    m0 of the newest w observations is compared with the line through the two blocks of u in {w, 2w, 4w}
    before them, for w = 1, 2, 3, 4, 6, ..., 128. With T the blocks' mean steps and s = +1 for a fall, -1 for
    a rise,

        excess = s m1 + min(s slope, 0) (T0 - T1) - s m0,    slope = (m1 - m2) / (T1 - T2),

    is never positive on a convex curve. It alarms when excess >= max(floor, z se(excess)); the floor is
    ``delta``, times the range of a metric. The stage lasts until its speed has surely, by two standard errors,
    fallen to ``kappa`` times its peak; its end then moves on with the tail, until .3 of the peak speed or the onset
    of the next stage is reached; a bend in a tail needs a quarter of ``delta``, since its row still needs all of
    it. Two rows that follow each other in one direction stay two only if the speed between their midpoints fell to
    ``kappa`` times the lower of the two peaks, or if most of the whole gain lies between them; otherwise the curve
    has wavered on its way and they are one, with the first one's onset and alarm. That speed is read over the
    shortest blocks whose standard error is a twentieth of the peak, so that a fall by 1 - ``kappa`` is six of them,
    or, where none is, over blocks of a third of the observations from midpoint to midpoint. A row's onset, midpoint
    and end are the 10, 50 and 90 % crossings of the raw curve between its levels before the alarm's plateau and at
    this end. What this can and cannot see is said at the top of this module.

    A value that is not finite is skipped. Standard errors are used if the first observation has one; a later one
    without repeats the last. Without them the noise is estimated from second differences of block means at scales
    up to a quarter of the block. An autocorrelated noise is larger than that; the quartiles of the excess that a
    scale has itself shown in quiet are the second estimate (the smaller of the upper one and half their distance,
    so that neither a curve that slows down nor one that speeds up passes for noise), times the growth of the noise
    since by third differences. It raises what is asked from 12 values on (up to twice), and from 36 on z falls to
    4.5, or with the length n of the curve to sqrt(4.5^2 + 2 log(n / 256)). A noise that has more than doubled
    since, by third differences, counts at once: the logarithm of a falling loss is noisier.

    Args:
        kind: ``"loss"`` looks for falls of a positive loss, ``"metric"`` for falls and rises.
        delta: least excess: nats of a loss, share of the range of a metric.
        z: least excess in standard errors; None takes 8 of those estimated from second differences, 4.5 where the
            curve has shown its own excess, and 5 of those that are given.
        kappa: a stage ends, and neighbors part, at this share of the peak speed; lower merges neighbors.
        size: rows of a smaller share of a loss's range are not listed; those of a metric need ``delta``.
        skip: steps at the start that are not looked at, about 1 / (1 - momentum).
        eps: floor of the logarithm as a share of the largest loss.
        scale: the range of a metric where it is known (accuracy: 1); None takes the range so far, which is
            small at first, so that a smooth metric may alarm early.

    Raises:
        ValueError: ``kind`` is unknown, or a number is out of its range.

    Units:
        step: any clock that grows, linear in training time: steps, tokens, summed learning rates.
        skip: in the units of step.

    Source:
        Completely monotone functions are log-convex: Hölder's inequality on their Laplace transform.

    Example:
        >>> import numpy as np
        >>> t = np.arange(0.0, 1000.0, 5)
        >>> a = 1 / (1 + 1e4 * np.exp(-0.02 * t))  # a mode grows by a logistic law
        >>> stages = Stages("loss")
        >>> alarms = stages.extend(t, (1 - a) ** 2)
        >>> [round(row.midpoint, -1) for row in stages.rows()]  # (1 - a)^2 = 1/2 at 416
        [420.0]
    """

    def __init__(
        self,
        kind: Literal["loss", "metric"] = "loss",
        *,
        delta: float = 0.05,
        z: float | None = None,
        kappa: float = 0.7,
        size: float = 0.01,
        skip: float = 10.0,
        eps: float = 0.01,
        scale: float | None = None,
    ) -> None:
        if kind not in ("loss", "metric"):
            raise ValueError(f"kind: expected 'loss' or 'metric', got {kind!r}")
        for name, number in (("delta", delta), ("eps", eps), ("scale", 1.0 if scale is None else scale)):
            if not 0 < number < math.inf:
                raise ValueError(f"{name}: expected a positive number, got {number}")
        for name, number in (("z", 8.0 if z is None else z), ("size", size), ("skip", skip)):
            if not 0 <= number < math.inf:
                raise ValueError(f"{name}: expected a number >= 0, got {number}")
        if not 0 < kappa < 1:
            raise ValueError(f"kappa: expected a number between 0 and 1, got {kappa}")
        if scale is not None and kind == "loss":
            raise ValueError(f"scale: expected None for a loss, got {scale}")
        self.kind = kind
        self._settings = {
            "delta": float(delta),
            "z": 8.0 if z is None else float(z),
            "z_own": 4.5 if z is None else float(z),
            "z_given": 5.0 if z is None else float(z),
            "kappa": float(kappa),
            "size": float(size),
            "skip": float(skip),
            "eps": float(eps),
            "scale": 0.0 if scale is None else float(scale),
        }
        self._detector = _cpu.StageDetector(loss=kind == "loss", **self._settings)

    def update(self, step: float, value: float, se: float | None = None) -> Alarm | None:
        """Takes one observation; returns the alarm at the moment a stage is detected.

        Args:
            step: larger than every step before.
            value: the curve there; NaN or infinite is skipped.
            se: its standard error, 0 if it is exact.

        Raises:
            ValueError: ``step`` is negative, not finite or not above the last one, or ``se`` is negative.
        """
        alarm = self._detector.update(float(step), float(value), math.nan if se is None else float(se))
        return None if alarm is None else _alarm(alarm)

    def extend(self, steps: npt.ArrayLike, values: npt.ArrayLike, se: npt.ArrayLike | None = None) -> list[Alarm]:
        """Takes many observations in one native call; the same as `update` one by one.

        Args:
            steps: rising.
            values: the curve.
            se: standard errors, one for each value or one for all.

        Shape:
            steps, values: (n,), computed in float64; se: (n,) or scalar.

        Raises:
            ShapeError: the shapes differ.
            ValueError: as `update`; the observations before the bad one are taken.
        """
        t = np.ascontiguousarray(steps, dtype=np.float64)
        y = np.ascontiguousarray(values, dtype=np.float64)
        if t.ndim != 1 or y.shape != t.shape:
            raise ShapeError(f"values: expected shape of steps {t.shape} with one dimension, got {y.shape}")
        error = np.empty(0)
        if se is not None:
            error = np.asarray(se, dtype=np.float64)
            if error.shape not in ((), t.shape):
                raise ShapeError(f"se: expected shape {t.shape} or a number, got shape {error.shape}")
            error = np.ascontiguousarray(np.broadcast_to(error, t.shape))
        return [_alarm(alarm) for alarm in self._detector.extend(t, y, error)]

    @property
    def open_alarm(self) -> float | None:
        """Step of the alarm whose stage, or its tail, still goes on, listed or not; None when all is quiet."""
        step = self._detector.open_alarm
        return None if math.isnan(step) else step

    def rows(self) -> list[Stage]:
        """All stages known now, in order; one that is still going on comes last and is provisional.

        One that goes on after a short rest is one with the row before it until its speed has parted them; a row that
        has ended may so become provisional again.

        A row that is too small for the range of the curve so far is not listed, so one may leave the list
        later.
        """
        return [Stage(*row) for row in self._detector.rows()]

    def state_dict(self) -> dict[str, Any]:
        """Kind, settings and the observations, of which all else is a function, as str, float and arrays."""
        step, value, se = self._detector.observations()
        return {"kind": self.kind, **self._settings, "step": step, "value": value, "se": se}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues a state of `state_dict` bit for bit, by going through its observations once more.

        Raises:
            ValueError: the state is not of this class, or was made with other settings.
        """
        expected = {"kind": self.kind, **self._settings}
        if set(state) != {*expected, "step", "value", "se"}:
            raise ValueError(f"state: expected one of Stages.state_dict(), got keys {', '.join(sorted(state))}")
        for name, setting in expected.items():
            if state[name] != setting:
                raise ValueError(f"state: expected {name} {setting!r} as in this object, got {state[name]!r}")
        detector = _cpu.StageDetector(loss=self.kind == "loss", **self._settings)
        detector.extend(state["step"], state["value"], state["se"])
        self._detector = detector


def _alarm(fields: tuple[float, float, float, int, int]) -> Alarm:
    step, onset, excess, block, direction = fields
    return Alarm(step, onset, direction, excess, block)


def join(channels: Mapping[str, Iterable[Stage]]) -> list[JointStage]:
    """Joins the rows of many curves: one transition is one row, however many curves saw it.

    Rows are taken in order of midpoint. A row joins the newest group that has none of its curve yet, if its
    midpoint lies between the group's earliest onset and the larger of the latest end and 1.1 x the group's
    midpoint, and its onset before 1.1 x the group's midpoint; otherwise it opens a group. A curve enters a
    group once, so one with a long window cannot swallow two stages of another.

    Args:
        channels: for each name, the rows of `Stages.rows`.

    Returns:
        The transitions in order of their first midpoint; onset, midpoint and end are medians, alarm the
        earliest.
    """
    rows = sorted(
        ((row.midpoint, name, row) for name, stages in channels.items() for row in stages),
        key=lambda r: r[:2],
    )
    groups: list[dict[str, Stage]] = []
    for midpoint, name, row in rows:
        for group in reversed(groups):
            center = 1.1 * statistics.median(r.midpoint for r in group.values())
            first = min(r.onset for r in group.values())
            last = max(center, *(r.end for r in group.values()))
            if name not in group and first <= midpoint <= last and row.onset <= center:
                group[name] = row
                break
        else:
            groups.append({name: row})
    return [_joined(group) for group in groups]


def _joined(group: dict[str, Stage]) -> JointStage:
    rows = group.values()
    return JointStage(
        onset=statistics.median(row.onset for row in rows),
        midpoint=statistics.median(row.midpoint for row in rows),
        end=statistics.median(row.end for row in rows),
        alarm=min(row.alarm for row in rows),
        channels=group,
        provisional=any(row.provisional for row in rows),
    )
