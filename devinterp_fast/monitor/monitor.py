"""Watches a training loop: one call a step, transitions as they happen."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from devinterp_fast._random import kept_random_state
from devinterp_fast.changepoint.channel import Channel
from devinterp_fast.changepoint.stages import Alarm, JointStage, Stage, Stages, join
from devinterp_fast.errors import RunFolderError
from devinterp_fast.monitor.checkpoints import Checkpoints
from devinterp_fast.monitor.observables import Observable, numbers, resolve
from devinterp_fast.monitor.schedule import Schedule
from devinterp_fast.sampling.objective import LossFn
from devinterp_fast.store import RunFolder

_STATE = "observations.safetensors"


@dataclass(frozen=True)
class Change:
    """What the monitor says at the moment of an alarm whose stage is listed.

    An alarm whose stage is as yet too small to be listed is said when it has grown enough, and never if it does not.

    Attributes:
        step: of the observation at which it is said.
        alarms: of each channel of which it is said.
        new: whether a new transition opens, or another channel joins one that is open.
        checkpoint: the model's state at the transition's alarm, relative to the run folder; None without a folder.
    """

    step: int
    alarms: Mapping[str, Alarm]
    new: bool
    checkpoint: str | None

    def __str__(self) -> str:
        what = "a transition begins" if self.new else "a transition goes on"
        return f"step {self.step}: {what} ({', '.join(self.alarms)})"


@dataclass(frozen=True)
class Transition:
    """One transition, however many observables saw it.

    Attributes:
        onset, midpoint, end: steps at which 10, 50 and 90 % of the change is done, medians over the observables.
        interval: the earliest onset and the latest end among them.
        alarm: the step at which it became known.
        observables: the row of each curve that saw it.
        checkpoints: {"before", "alarm", "after"}: files relative to the run folder, those that exist.
        provisional: it is still going on, and its numbers may move.
    """

    onset: float
    midpoint: float
    end: float
    interval: tuple[float, float]
    alarm: int
    observables: Mapping[str, Stage]
    checkpoints: Mapping[str, str]
    provisional: bool

    def __str__(self) -> str:
        mark = "   still going on" if self.provisional else ""
        return (
            f"{self.onset:.0f} - {self.midpoint:.0f} - {self.end:.0f}   alarm {self.alarm}   "
            f"{', '.join(sorted(self.observables))}{mark}"
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "observables": {name: asdict(row) for name, row in self.observables.items()}}


class Monitor:
    """Watches a model while it trains.

    Call ``update(step)`` once a step, after the weights of that step are in place. On due steps the observables are
    measured, with the model in eval mode (its own mode and the global random states are put back), and each curve is
    given to its own stage detector (an acceleration in linear step: see ``changepoint/stages.py``); rows of several
    curves that belong together are one transition. With a run folder every observation is on disk before ``update``
    returns: a killed run that is started again on the same folder reads back what was seen and goes on to the same
    numbers.

    Args:
        model: the model in training. It is only read.
        loss_fn: a criterion, or ``f(model, batch)``: see ``estimate_llc``.
        probe: fixed samples that the loss and the LLC are measured on.
        observables: of "loss", "llc", "kappa", "hessian_top", "hessian_spectrum" (see ``monitor/curvature.py``),
            functions of the model, and ``Observable`` objects.
        out: run folder, or None to keep everything in memory.
        schedule: when observables are measured.
        llc: settings of ``estimate_llc``.
        llc_schedule: when the LLC is measured.
        skip: steps at the start that the detectors do not look at, about 1 / (1 - momentum).
        seed: of the LLC's noise.
        keep: checkpoints kept of each doubling of age; those around transitions always are.
        run: what else makes this run this run (JSON-ready); a folder made with another value is refused.

    Raises:
        ValueError, TypeError: an observable is unknown, or a setting is out of range.
        RunFolderError: the folder cannot serve.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFn,
        probe: object,
        *,
        observables: Sequence[str | Observable | Callable[[nn.Module], Any]] = ("loss", "llc"),
        out: str | os.PathLike[str] | None = None,
        schedule: Schedule | None = None,
        llc: Mapping[str, Any] | None = None,
        llc_schedule: Schedule | None = None,
        skip: float = 10.0,
        seed: int = 0,
        keep: int = 2,
        run: Mapping[str, Any] | None = None,
    ):
        for name, value, least in (("seed", seed, 0), ("keep", keep, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name}: expected an integer of at least {least}, got {value!r}")
        self.model = model
        self.schedule = schedule or Schedule()
        self.llc_schedule = llc_schedule or Schedule(per_decade=20, every=0)
        self.observables = resolve(
            observables,
            loss_fn,
            probe,
            schedule=self.schedule,
            llc=llc or {},
            llc_schedule=self.llc_schedule,
            seed=seed,
            model=model,
        )
        self.channels: dict[str, Channel] = {k: v for o in self.observables for k, v in o.channels.items()}
        self.detectors = {
            name: Stages(channel.kind, skip=skip, scale=channel.scale, size=channel.size)
            for name, channel in self.channels.items()
            if channel.kind != "marker"
        }
        settings = {
            "channels": {name: asdict(channel) for name, channel in self.channels.items()},
            "schedule": asdict(self.schedule), "llc": dict(llc or {}), "llc_schedule": asdict(self.llc_schedule),
            "skip": skip, "seed": seed, "keep": keep, "run": dict(run or {}),
        }  # fmt: skip
        self.folder = None if out is None else RunFolder(out, settings)
        self.checkpoints = Checkpoints(self.folder, keep)
        self.steps: list[int] = []
        self.values: dict[str, list[float]] = {name: [] for name in self.channels}
        self.errors: dict[str, list[float]] = {name: [] for name in self.channels}
        self._changes: dict[int, Change] = {}
        # Stages by channel and alarm: those that wait to be large enough for the list, and those that were announced.
        self._waiting: dict[tuple[str, float], Alarm] = {}
        self._said: set[tuple[str, float]] = set()
        # For each stage, named by its channel and alarm: the state before it, and the one at its close.
        self._around: dict[tuple[str, int], dict[str, int]] = {}
        self._read_back()

    def update(self, step: int) -> Change | None:
        """Looks at the model if the step is due.

        Returns:
            None, or a ``Change`` at the moment of an alarm. A step that the run folder already holds is not measured
            again: what was said then is said again.

        Raises:
            ValueError: the step is negative, or an observable gives other channels than it names.
            TypeError: an observable gives something that is not a number.
        """
        if step < 0:
            raise ValueError(f"step: expected at least 0, got {step}")
        if self.steps and step <= self.steps[-1]:
            return self._changes.get(step)
        due = [observable for observable in self.observables if observable.schedule.due(step)]
        if not due:
            return None
        found: dict[str, tuple[float, float]] = {}
        for observable in due:
            with _as_evaluated(self.model), kept_random_state():
                found |= numbers(observable.measure(self.model, step), observable.channels)
            if observable.draws and self.folder is not None:
                self.folder.write_tensors(f"{observable.folder}/step-{step:08d}.safetensors", observable.draws)
        # The state first, then the record that says it is there: a kill in between costs nothing.
        self.checkpoints.write(self.model, step)
        change = self._take(step, found)
        if self.folder is not None:
            self.folder.write_tensors(_STATE, self._state())
            for observable in due:
                self._keep_last(observable, step)
        return change

    def observed(self, step: int) -> bool:
        """Whether a step has been looked at."""
        return step in self.steps

    @property
    def transitions(self) -> list[Transition]:
        """All transitions known now, in order; one that is open is provisional."""
        return [self._transition(row) for row in self._joined()]

    @property
    def trace(self) -> xr.Dataset:
        """All curves over ``step``, one variable each; ``NAME_se`` is a curve's standard error. NaN: not measured."""
        curves = {name: ("step", np.array(self.values[name], dtype=np.float64)) for name in self.channels}
        errors = {
            f"{name}_se": ("step", np.array(error, dtype=np.float64))
            for name, error in self.errors.items()
            if not all(math.isnan(e) for e in error)
        }
        return xr.Dataset({**curves, **errors}, coords={"step": np.array(self.steps, dtype=np.int64)})

    def _joined(self) -> list[JointStage]:
        return join({name: detector.rows() for name, detector in self.detectors.items()})

    def _take(self, step: int, found: Mapping[str, tuple[float, float]]) -> Change | None:
        """Records one observation and asks the detectors; also the way a folder is read back."""
        self.steps.append(step)
        for name in self.channels:
            value, error = found.get(name, (math.nan, math.nan))
            self.values[name].append(value)
            self.errors[name].append(error)
        number = len(self.steps) - 1
        alarms = {}
        for name, detector in self.detectors.items():
            value, error = found.get(name, (math.nan, math.nan))
            hidden = found.get(f"{name}_escaped", (0.0, 0.0))[0]
            given = self.channels[name].noise == "given" and not math.isnan(error)
            alarm = detector.update(step, math.nan if hidden else value, error if given else None)
            if alarm is not None:
                alarms[name] = alarm
        self.checkpoints.observed(number, step)
        for name, alarm in alarms.items():
            before = self.checkpoints.before(alarm.onset)
            self._around[name, step] = {"alarm": step, **({} if before is None else {"before": before})}
            self._waiting[name, alarm.step] = alarm
        rows = self._joined()
        self.checkpoints.pin(self._needed(rows, step))
        return self._announce(step, rows)

    def _announce(self, step: int, rows: list[JointStage]) -> Change | None:
        """Says the alarms whose stages are listed, and forgets those whose stages ended without."""
        alarms: dict[str, Alarm] = {}
        new, first = False, step
        for row in rows:
            stages = {(name, stage.alarm) for name, stage in row.channels.items()}
            now = stages & set(self._waiting)
            if now:
                new |= not stages & self._said
                alarms |= {stage[0]: self._waiting.pop(stage) for stage in sorted(now)}
                first = min(first, int(row.alarm))
                self._said |= now
        for name, at in list(self._waiting):
            if self.detectors[name].open_alarm != at:
                del self._waiting[name, at]
        if not alarms:
            return None
        where = self.checkpoints.name(first) if self.folder is not None else None
        change = Change(step, alarms, new, where)
        self._changes[step] = change
        return change

    def _needed(self, rows: list[JointStage], step: int) -> set[int]:
        """The steps whose states transitions need: around each stage that is listed, and around each open alarm.

        Stage by stage, since which stages make one transition may still change as more of them close.
        """
        needed: set[int] = set()
        for name, detector in self.detectors.items():
            if detector.open_alarm is not None:
                needed |= set(self._around[name, int(detector.open_alarm)].values())
        for row in rows:
            for name, stage in row.channels.items():
                around = self._around[name, int(stage.alarm)]
                if not stage.provisional and around.get("after", -1) < stage.closed:  # it may go on after a rest
                    around["after"] = step
                needed |= set(around.values())
        return needed

    def _files(self, row: JointStage) -> dict[str, int]:
        """The steps before, at the alarm and after a transition: of its stages together."""
        around = [self._around[name, int(stage.alarm)] for name, stage in row.channels.items()]
        files = {"alarm": int(row.alarm)}
        if any("before" in a for a in around):
            files["before"] = min(a["before"] for a in around if "before" in a)
        if all("after" in a for a in around):
            files["after"] = max(a["after"] for a in around)
        return files

    def _transition(self, row: JointStage) -> Transition:
        stages = row.channels
        kept = {} if self.folder is None else self._files(row)
        return Transition(
            onset=row.onset, midpoint=row.midpoint, end=row.end,
            interval=(min(s.onset for s in stages.values()), max(s.end for s in stages.values())),
            alarm=int(row.alarm), observables=dict(stages), provisional=row.provisional,
            checkpoints={
                name: self.checkpoints.name(step) for name, step in kept.items() if self.checkpoints.has(step)
            },
        )  # fmt: skip

    def _state(self) -> dict[str, Tensor]:
        out = {"step": torch.tensor(self.steps, dtype=torch.int64)}
        for name in self.channels:
            out[f"value/{name}"] = torch.tensor(self.values[name], dtype=torch.float64)
            out[f"se/{name}"] = torch.tensor(self.errors[name], dtype=torch.float64)
        return out

    def _read_back(self) -> None:
        """Goes through the observations of an interrupted run once more: all else follows from them."""
        state = None if self.folder is None else self.folder.read_tensors(_STATE)
        if self.folder is None or state is None:
            return
        names = {"step"} | {f"{kind}/{name}" for kind in ("value", "se") for name in self.channels}
        if set(state) != names or len({curve.shape for curve in state.values()}) != 1:
            raise RunFolderError(
                f"{self.folder.path / _STATE}: expected curves of {sorted(self.channels)}, got {sorted(state)}"
            )
        for i, step in enumerate(state["step"].tolist()):
            found = {}
            for name in self.channels:
                value, error = float(state[f"value/{name}"][i]), float(state[f"se/{name}"][i])
                if not (math.isnan(value) and math.isnan(error)):
                    found[name] = (value, error)
            self._take(step, found)
        for observable in self.observables:
            due = [step for step in self.steps if observable.schedule.due(step)]
            if observable.keeps_last and due:
                kept = self.folder.read_tensors(f"{observable.folder}/step-{due[-1]:08d}.safetensors")
                observable.draws.update(kept or {})
                self._keep_last(observable, due[-1])

    def _keep_last(self, observable: Observable, step: int) -> None:
        """Removes the arrays of other observations where only the newest ones are kept."""
        if observable.keeps_last and self.folder is not None:
            for file in (self.folder.path / observable.folder).glob("step-*.safetensors"):
                if file.name != f"step-{step:08d}.safetensors":
                    file.unlink(missing_ok=True)


@contextmanager
def _as_evaluated(model: nn.Module) -> Iterator[None]:
    """Puts a model in training into eval mode, and each of its modules back into its own."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
