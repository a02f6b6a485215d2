"""One to a million channels watched for change, online, at a stated rate of false alarms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from devinterp_fast import _cpu
from devinterp_fast.changepoint import groups as _groups
from devinterp_fast.changepoint import thresholds
from devinterp_fast.changepoint.noise import KINDS, Noise, Whitened
from devinterp_fast.errors import DTypeError, ShapeError

__all__ = ["ChannelAlarm", "Detector"]

_DROP = 3.5  # of the statistic inside the interval: covers 95 to 98 % of onsets, by simulation


@dataclass(frozen=True)
class ChannelAlarm:
    """One change of one channel, or of a group, at the moment it became known.

    Attributes:
        step: step of the update that fired.
        channel: number of the channel; None for a group's alarm.
        group: number of the group; None for a channel's alarm.
        statistic: the largest likelihood-ratio statistic (of a group: in units of one channel's).
        onset: step of the last observation before the change.
        interval: steps between which the change lies (95 % or more); of a group, its onset alone.
        index: number of observations before the change, hence the first index of the new segment.
        direction: +1 if level or slope rose, -1 if it fell, 0 for a group.
        level: of a group, the partition it belongs to, counted from the first; None for a channel's alarm.
    """

    step: float
    channel: int | None
    group: int | None
    statistic: float
    onset: float
    interval: tuple[float, float]
    index: int
    direction: int
    level: int | None = None

    def __str__(self) -> str:
        who = f"channel {self.channel}" if self.group is None else f"group {self.group} of level {self.level}"
        way = {1: "rise", -1: "fall", 0: "change"}[self.direction]
        low, high = self.interval
        return f"{who}   {way} after {self.onset:g} [{low:g}, {high:g}]   alarm {self.step:g}   {self.statistic:.1f}"


class Detector:
    r"""Likelihood-ratio test for one change in each of many channels, after every update.

    statistic = max over tau of the fall in weighted residual squares when the change after observation tau joins the
    baseline: ``"mean"`` a jump over an unknown level; ``"kink"`` a change of slope over an unknown line, so a trend
    is no change; ``"jump+kink"`` both over a line; ``"meanvar"`` new mean and variance. tau runs over a grid that all
    channels share, four candidates an octave of age.

    An alarm fires at the level that ``channels`` quiet channels reach once in ``arl`` updates on average, and its
    channel starts anew from the estimated change: one change is one alarm. NaN is a missing observation. Channels that
    miss single values, have their own standard errors or have restarted cost six to ten times as much, sixteen at a
    time.

    Args:
        channels: how many.
        model: ``"mean"``, ``"kink"``, ``"jump+kink"`` or ``"meanvar"``.
        arl: mean number of updates to a false alarm, over all channels; None never alarms.
        x: coordinate of slopes: ``"step"`` or ``"log"``, log(1 + step).
        noise: ``"given"`` (se at each update), ``"unit"`` (standard deviation one), ``"mad"`` (scale from differences
            of neighbors), ``"ar1"`` (autocorrelation and scale, from a burn-in), ``"auto"``: given if the first update
            has se, else mad.
        groups: number of each channel's group, or a row of them for each level of a tree (head, layer, model); then
            groups alarm (`changepoint.groups`), not channels, and of nested ones the most certain.
        side: ``"both"``, ``"rise"`` or ``"fall"`` (mean and kink).
        per_octave: candidates an octave; other than 4 needs ``threshold``.
        threshold: overrides ``arl``.
        burn_in: observations that the noise is estimated from; alarms wait for them.
        clip: Huber's bound in standard deviations; None: none.
        threads: of an update; no result depends on it.

    Raises:
        ValueError: an argument is not as above.

    Source:
        Siegmund, Venkatraman (1995), Annals of Statistics 23(1); the grid follows Lai (1995), JRSS B 57(4).

    Example:
        >>> det = Detector(1, model="mean", noise="unit", arl=1e4)
        >>> alarms = det.update(range(30), [[0.0]] * 20 + [[3.0]] * 10)
        >>> [(a.index, a.direction) for a in alarms]
        [(20, 1)]
    """

    def __init__(
        self,
        channels: int,
        *,
        model: Literal["mean", "kink", "jump+kink", "meanvar"] = "kink",
        arl: float | None = 1e5,
        x: Literal["step", "log"] = "step",
        noise: str = "auto",
        groups: npt.ArrayLike | None = None,
        side: Literal["both", "rise", "fall"] = "both",
        per_octave: int = thresholds.PER_OCTAVE,
        threshold: float | None = None,
        burn_in: int = 400,
        clip: float | None = None,
        threads: int = 1,
    ) -> None:
        _one_of("model", model, thresholds.MODELS)
        _one_of("x", x, ("step", "log"))
        _one_of("noise", noise, KINDS)
        _one_of("side", side, ("both", "rise", "fall"))
        for name, number, least in (
            ("channels", channels, 1),
            ("per_octave", per_octave, 1),
            ("burn_in", burn_in, 8),
            ("threads", threads, 1),
        ):
            if number < least:
                raise ValueError(f"{name}: expected an integer of at least {least}, got {number}")
        if side != "both" and model not in ("mean", "kink"):
            raise ValueError(f"side: expected both for {model}, got {side}")
        if per_octave != thresholds.PER_OCTAVE and threshold is None and arl is not None:
            raise ValueError(f"per_octave: expected {thresholds.PER_OCTAVE} without a threshold, got {per_octave}")
        if threshold is not None and not threshold > 0:
            raise ValueError(f"threshold: expected a positive number or None, got {threshold}")
        if clip is not None and not clip > 0:
            raise ValueError(f"clip: expected a positive number or None, got {clip}")
        self.channels, self.model, self.arl, self.x, self.side = channels, model, arl, x, side
        self._given_threshold, self._threads = threshold, threads
        self._groups = None if groups is None else _groups.Groups(groups, channels, model)
        self._noise = Noise(noise, channels, burn_in, clip)
        self._per_octave = per_octave
        self._test: Any = None
        self._steps: list[float] = []  # of the burn-in
        self._last_step = -math.inf
        self._threshold = math.inf

    @property
    def threshold(self) -> float:
        """Level in use; infinity until the noise is known."""
        return self._threshold

    @property
    def nbytes(self) -> int:
        """Bytes of the channels' sums."""
        return 0 if self._test is None else int(self._test.bytes)

    def statistic(self) -> npt.NDArray[np.float32]:
        """Each channel's largest statistic after the last update, (channels,); zeros during a burn-in."""
        if self._test is None:
            return np.zeros(self.channels, dtype=np.float32)
        out: npt.NDArray[np.float32] = self._test.statistic
        return out

    def profile(self, channel: int) -> npt.NDArray[np.float64]:
        """All candidates of a channel, youngest first: columns index, x, statistic, direction."""
        if self._test is None:
            return np.empty((0, 4))
        out: npt.NDArray[np.float64] = self._test.profile(channel)
        return out

    def update(self, step: Any, y: Any, se: Any = None) -> list[ChannelAlarm]:
        """Takes one step, or a block of steps, which costs less a step; same alarms either way.

        Args:
            step: finite, above the step before.
            y: values; NaN is missing. float32 with a dense last dimension is read in place.
            se: standard errors, of noise "given".

        Shape:
            step: scalar or (steps,); y: (channels,) or (steps, channels), numpy or torch on the CPU;
            se: scalar or (steps,) for all channels, or as y.

        Returns:
            The alarms in order of step and channel.

        Raises:
            ShapeError, DTypeError: ``y`` or ``se`` is not as above.
            ValueError: ``step`` is not finite or not above the last.
        """
        steps = np.atleast_1d(np.asarray(step, dtype=np.float64))
        values = _values("y", y, steps.size, self.channels)
        errors = None if se is None else _errors(se, steps.size, self.channels, single=np.ndim(step) == 0)
        if steps.size == 0:
            return []
        if not (np.isfinite(steps).all() and (np.diff(np.append(self._last_step, steps)) > 0).all()):
            raise ValueError(
                f"step: expected finite numbers rising above {self._last_step:g}, got {steps[0]:g} to {steps[-1]:g}"
            )
        if self.x == "log" and not steps[0] >= 0:
            raise ValueError(f"step: expected numbers >= 0 for a logarithm, got {steps[0]:g}")
        if se is not None and self._noise.kind not in ("auto", "given"):
            raise ValueError(f"se: expected None with noise {self._noise.kind}, got values")
        ready = self._noise.whiten(steps, np.log1p(steps) if self.x == "log" else steps, values, errors)
        self._last_step = float(steps[-1])
        if self._test is None or ready is None:
            self._steps.extend(steps.tolist())
        if ready is None:
            return []
        if self._test is None:
            steps, self._steps = np.array(self._steps), []
            self._threshold = self._level()
            self._test = self._make(math.inf if self._groups else self._threshold)
        return self._by_group(steps, ready) if self._groups else self._by_channel(steps, ready)

    def _make(self, level: float) -> _cpu.GlrDetector:
        model, side = thresholds.MODELS.index(self.model), {"both": 0, "rise": 1, "fall": -1}[self.side]
        return _cpu.GlrDetector(self.channels, model, self._per_octave, side, level, _DROP, True)

    def _level(self) -> float:
        if self._given_threshold is not None:
            return self._given_threshold
        if self.arl is None:
            return math.inf
        independent, model = self.channels, str(self.model)
        if self._groups is not None:
            independent = self._groups.tests
            model = self._groups.scale if model == "meanvar" else model
        level = thresholds.threshold(self.arl, channels=independent, model=model, side=self.side)
        return thresholds.inflated(level, self._noise.variance)

    def _step_of(self, x: float) -> float:
        return math.expm1(x) if self.x == "log" else x

    def _by_channel(self, steps: npt.NDArray[np.float64], ready: Whitened) -> list[ChannelAlarm]:
        seen = self._test.count
        table = self._test.update(ready.x, ready.y, ready.weight, ready.own_x, self._threads)
        return [
            ChannelAlarm(
                step=float(steps[int(n) - seen - 1]),
                channel=int(channel),
                group=None,
                statistic=float(statistic),
                onset=self._step_of(x),
                interval=(self._step_of(low), self._step_of(high)),
                index=int(tau),
                direction=int(direction),
            )
            for n, channel, statistic, tau, _, _, x, low, high, direction in table.tolist()
        ]

    def _by_group(self, steps: npt.NDArray[np.float64], ready: Whitened) -> list[ChannelAlarm]:
        assert self._groups is not None
        alarms = []
        for i in range(steps.size):
            weight = None if ready.weight is None else ready.weight[i : i + 1]
            own_x = None if ready.own_x is None else ready.own_x[i : i + 1]
            self._test.update(ready.x[i : i + 1], ready.y[i : i + 1], weight, own_x, self._threads)
            squares = self._test.squares()
            if not len(squares):
                continue
            candidates = self._test.profile(0)[: len(squares), :2]
            found = self._groups.statistics(squares, self._test.count, candidates[:, 0])
            fired = [
                (float(levels[:, g].max()), level, int(g))
                for level, levels in enumerate(found)
                for g in np.flatnonzero(levels.max(axis=0) >= self._threshold)
            ]
            restarted: set[int] = set()
            # of groups that share a channel the most certain alarms; it restarts, and the others judge what is left
            for value, level, g in sorted(fired, key=lambda f: (-f[0], f[1:])):
                members = self._groups.levels[level].members(g)
                if not restarted.isdisjoint(members.tolist()):
                    continue
                restarted.update(members.tolist())
                tau, x = candidates[int(found[level][:, g].argmax())].tolist()
                for channel in members:
                    self._test.restart(int(channel), int(tau))
                onset = self._step_of(x)
                alarms.append(ChannelAlarm(float(steps[i]), None, g, value, onset, (onset, onset), int(tau), 0, level))
        return alarms

    def state_dict(self) -> dict[str, Any]:
        """Everything that is remembered; a detector with the same arguments continues bit for bit."""
        return {
            "test": None if self._test is None else dict(self._test.state()),
            "noise": self._noise.state_dict(),
            "steps": list(self._steps),
            "last_step": self._last_step,
            "threshold": self._threshold,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up a state of `state_dict`.

        Raises:
            ValueError: the state is not of this class, or of another number of channels or model.
        """
        if set(state) != {"test", "noise", "steps", "last_step", "threshold"}:
            got = ", ".join(sorted(state)) or "none"
            raise ValueError(f"state: expected keys last_step, noise, steps, test, threshold, got {got}")
        test = None
        if state["test"] is not None:
            test = self._make(math.inf if self._groups else state["threshold"])
            test.load(state["test"])
        self._noise.load_state_dict(state["noise"])
        self._test, self._steps = test, list(state["steps"])
        self._last_step, self._threshold = state["last_step"], state["threshold"]


def _one_of(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value}")


def _values(name: str, y: Any, steps: int, channels: int) -> npt.NDArray[Any]:
    values = y.detach().numpy() if isinstance(y, torch.Tensor) else np.asarray(y)
    if values.dtype.kind not in "fiu":
        raise DTypeError(f"{name}: expected real numbers, got {values.dtype}")
    if values.dtype != np.float32:
        values = values.astype(np.float64, copy=False)
    if values.ndim == 1 and steps == 1:
        values = values[None, :]
    if values.shape != (steps, channels):
        raise ShapeError(f"{name}: expected shape ({steps}, {channels}), got {values.shape}")
    dense = channels == 1 or values.strides[1] == values.itemsize
    return values if dense else np.ascontiguousarray(values)


def _errors(se: Any, steps: int, channels: int, *, single: bool) -> npt.NDArray[np.float64]:
    errors = np.asarray(se.detach().numpy() if isinstance(se, torch.Tensor) else se, dtype=np.float64)
    if errors.ndim == 0:
        errors = np.full(steps, errors)
    if errors.shape == (steps,) and not (single and channels > 1 and errors.shape == (channels,)):
        return errors[:, None]
    return np.asarray(_values("se", errors, steps, channels), dtype=np.float64)
