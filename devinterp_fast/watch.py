"""Runs a system of the library under the monitor, from its first step to the report; resumes where it was killed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from devinterp_fast.monitor.monitor import Monitor
from devinterp_fast.monitor.observables import Observable
from devinterp_fast.monitor.schedule import Schedule
from devinterp_fast.report import write_report
from devinterp_fast.store import RunFolder, environment, read_json
from devinterp_fast.transitions import systems
from devinterp_fast.transitions.score import score
from devinterp_fast.transitions.system import System

LLC_TIMES = 48
"""How often the LLC is estimated in a run."""

_STATE = "training.safetensors"


@dataclass(frozen=True)
class Watched:
    """A finished run.

    Attributes:
        folder: where it lies.
        title: what was trained.
        rows: its transitions, JSON-ready, each with the ``marker`` it hits or None.
        truth: the known transitions.
        verdict: one sentence on how the two compare.
    """

    folder: Path
    title: str
    rows: Sequence[Mapping[str, Any]]
    truth: Sequence[Mapping[str, Any]]
    verdict: str

    def table(self) -> Table:
        """The transitions as a table for the terminal."""
        table = Table(title=self.title, title_justify="left", caption=self.verdict, caption_justify="left")
        for name in ("#", "onset", "midpoint", "end", "known at"):
            table.add_column(name, justify="right")
        for name in ("seen in", "ground truth", "checkpoint"):
            table.add_column(name, overflow="fold")
        for i, row in enumerate(self.rows, 1):
            numbers = [f"{row[key]:.0f}" for key in ("onset", "midpoint", "end", "alarm")]
            seen = ", ".join(sorted(row["observables"]))
            table.add_row(str(i), *numbers, seen, row["marker"] or "-", row["checkpoints"].get("alarm", "-"))
        return table


def watch(
    name: str,
    *,
    seed: int = 0,
    steps: int | None = None,
    out: str | os.PathLike[str],
    progress: Callable[[int, int, str], None] | None = None,
) -> Watched:
    """Trains a system of the library under the monitor and writes its run folder.

    The same call on the same folder resumes an interrupted run, to the same bits, and reads back a finished one.

    Args:
        name: of the system.
        seed: of everything random in it.
        steps: length of the run; None is the system's own.
        out: run folder.
        progress: called with (step, steps, a note) after each step.

    Raises:
        ValueError: the system is unknown, or seed or steps are out of range.
        RunFolderError: the folder holds something else, or a run with other settings.
        MissingExtraError: an optional package is absent.
    """
    known = systems()
    if name not in known:
        raise ValueError(f"name: expected one of {sorted(known)}, got {name!r}")
    system = known[name](seed=seed, steps=steps)
    monitor = _monitor(system, name, seed, out)
    folder = monitor.folder
    assert folder is not None
    if (folder.path / "transitions.json").exists():
        return read_watched(folder.path)
    with _one_thread():
        for step in range(_restore(system, folder), system.steps + 1):
            change = monitor.update(step)
            if monitor.steps and monitor.steps[-1] == step:
                state = {"step": torch.tensor(step), **{f"system/{k}": v for k, v in system.state_dict().items()}}
                folder.write_tensors(_STATE, state)
            if progress is not None:
                progress(step, system.steps, _note(monitor) if change is None or not change.new else str(change))
            if step < system.steps:
                system.train_step(step)
        return _finish(system, monitor, folder)


@contextmanager
def _one_thread() -> Iterator[None]:
    """The library's networks are small: torch's thread pool only spins on them, and could change a sum's order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def read_watched(path: Path) -> Watched:
    """Reads a finished run back.

    Raises:
        RunFolderError: the folder is not a finished run.
    """
    found = read_json(path, "transitions.json")
    return Watched(path, found["title"], found["transitions"], found["truth"], found["verdict"])


def _monitor(system: System, name: str, seed: int, out: str | os.PathLike[str]) -> Monitor:
    curves = Observable(lambda model, step: system.observe(model), system.channels, Schedule())
    return Monitor(
        system.model, system.loss_fn, system.probe, observables=[curves, "llc"], out=out, llc=system.llc,
        llc_schedule=Schedule(per_decade=0, every=max(system.steps // LLC_TIMES, 1)),
        skip=system.skip, seed=seed, run={"system": name, "steps": system.steps},
    )  # fmt: skip


def _restore(system: System, folder: RunFolder) -> int:
    state = folder.read_tensors(_STATE)
    if state is None:
        return 0
    system.load_state_dict({k.removeprefix("system/"): v for k, v in state.items() if k.startswith("system/")})
    return int(state["step"])


def _note(monitor: Monitor) -> str:
    values = [v for v in monitor.values["llc"] if not np.isnan(v)]
    return f"LLC {values[-1]:.1f}" if values else ""


def _panels(system: System) -> dict[str, list[str]]:
    """One panel for each family of curves: channels that differ in their last word alone ("loss 0", "loss 1")."""
    panels: dict[str, list[str]] = {}
    for name, channel in system.channels.items():
        if channel.kind != "marker":
            family, _, last = name.rpartition(" ")
            panels.setdefault(f"{family} of each" if last.isdigit() else name, []).append(name)
    return {**panels, "LLC": ["llc"]}


def _finish(system: System, monitor: Monitor, folder: RunFolder) -> Watched:
    """Writes what a finished run leaves; ``transitions.json`` last, since it says that the run is finished."""
    curves: dict[str, Any] = {name: np.array(monitor.values[name]) for name in system.channels}
    seen = ~np.isnan(curves["loss"])
    truth = system.truth(np.array(monitor.steps)[seen].tolist(), {name: y[seen] for name, y in curves.items()})
    found = monitor.transitions
    result = score([row.midpoint for row in found], truth)
    rows = [
        {**row.as_dict(), "marker": None if hit is None else hit.name}
        for row, hit in zip(found, result.found, strict=True)
    ]
    watched = Watched(folder.path, system.title, rows, [asdict(marker) for marker in truth], f"{result}.")
    settings = {"system": system.name, "steps": system.steps, **{f"llc {k}": v for k, v in system.llc.items()}}
    folder.write_json("environment.json", environment())
    folder.write_trace(monitor.trace)
    write_report(
        folder, title=system.title, summary=(system.__doc__ or "").strip().split("\n\n")[0], settings=settings,
        trace=monitor.trace, rows=rows, truth=watched.truth, verdict=watched.verdict, panels=_panels(system),
    )  # fmt: skip
    folder.write_json(
        "transitions.json",
        {"title": watched.title, "transitions": rows, "truth": watched.truth, "verdict": watched.verdict},
    )
    return watched
