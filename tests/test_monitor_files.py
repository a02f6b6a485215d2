"""The monitor's folder: what is kept of a run, and that a killed one loses nothing."""

from __future__ import annotations

import json
import math
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from planted_run import CHEAP, EVERY, Deep, modes, monitor, train, watched_modes
from safetensors.torch import load_file
from torch import nn

from devinterp_fast import store
from devinterp_fast.changepoint.channel import Channel
from devinterp_fast.errors import RunFolderError
from devinterp_fast.monitor.checkpoints import Checkpoints
from devinterp_fast.monitor.observables import Observable
from devinterp_fast.monitor.schedule import Schedule

# --- checkpoints -------------------------------------------------------------------------------------------


def files(folder):
    return {path.name for path in (folder / "checkpoints").iterdir()}


def test_listed_transitions_have_their_states(planted):
    watch, _, _, states = planted
    for row in watch.transitions:
        assert set(row.checkpoints) == {"before", "alarm", "after"}
        step = {which: int(name[-20:-12]) for which, name in row.checkpoints.items()}
        assert step["before"] < step["alarm"] <= step["after"]
        assert step["alarm"] == row.alarm
        # The state before is one of the plateau: at or before the onset of the earliest alarm.
        assert step["before"] <= min(stage.onset for stage in row.observables.values())
        for which, name in row.checkpoints.items():
            kept = load_file(watch.folder.path / name)
            assert set(kept) == {"a", "b"}
            assert all(torch.equal(kept[key], states[step[which]][key]) for key in kept)


def test_a_stage_that_goes_on_after_a_rest_has_its_last_state(tmp_path):
    """A fall that wavers: its row ends, becomes provisional again, and ends at a later state; it is announced once."""
    with np.load(Path(__file__).parents[1] / "benchmarks" / "results" / "stages_curves.npz") as file:
        steps, curve = file["more parity/28/step"].tolist(), file["more parity/28/task2"].tolist()
    values = dict(zip(map(int, steps), curve, strict=True))
    seen = Observable(lambda model, step: {"y": values[step]}, {"y": Channel("loss")}, Schedule(0, EVERY))
    watch = monitor(Deep(), tmp_path / "run", [seen])
    found, ended, history = [], [], []
    for step in values:
        change = watch.update(step)
        found += [] if change is None else [change]
        history.append([row.provisional for row in watch.transitions])
        if history[-1] == [False] != history[-2]:
            ended.append(step)
    assert [True] in history[history.index([False]) :]
    (row,) = watch.transitions
    (change,) = found
    assert row.alarm == change.step
    step = {which: int(name[-20:-12]) for which, name in row.checkpoints.items()}
    assert step["before"] < step["alarm"] < step["after"] == ended[-1] > ended[0]
    assert all((watch.folder.path / name).exists() for name in row.checkpoints.values())


def test_only_needed_states_are_kept(planted):
    """The three states of each stage that is listed, since stages may still regroup, and the trail."""
    watch = planted[0]
    pinned = {
        Checkpoints.name(step)
        for row in watch.transitions
        for name, stage in row.observables.items()
        for step in watch._around[name, int(stage.alarm)].values()
    }
    assert pinned >= {name for row in watch.transitions for name in row.checkpoints.values()}
    trail = {Checkpoints.name(step) for _, step in watch.checkpoints.saved}
    assert {f"checkpoints/{name}" for name in files(watch.folder.path)} == pinned | trail


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_the_trail_is_thin_and_reaches_back(keep):
    """Ages in [keep 2^(j-1), keep 2^j) hold the multiples of 2^(j-1), keep of them, and ages below keep all."""
    trail = Checkpoints(None, keep)
    for number in range(3000):
        trail.observed(number, 10 * number)
        kept = [old for old, _ in trail.saved]
        assert len(kept) <= keep * (math.ceil(math.log2(number / keep + 1)) + 2)
        assert kept[-1] == number
        assert kept[0] == 0  # the first is a multiple of everything
        for older, newer in pairwise(kept):  # gaps grow no faster than age
            assert newer - older <= max(1, 2 * (number - older) / keep)
    assert len(kept) < 10 * keep + 10


def test_pins_hold_and_are_let_go(tmp_path):
    trail = Checkpoints(store.RunFolder(tmp_path, {}), 1)
    model = nn.Linear(1, 1)
    for number in range(40):
        trail.write(model, number)
        trail.observed(number, number)
        trail.pin({3, 7, 99} if number < 30 else {7})
        here = {int(name[5:13]) for name in files(tmp_path)}
        assert here == trail._present()
        assert 7 in here or number < 7
        assert (3 in here) == (3 <= number < 30) or number > 30
    assert 3 not in here
    assert trail.before(7.5) == 7
    assert trail.before(-1) is None


def test_without_a_folder_there_are_no_files():
    model = Deep()
    watch = monitor(model)
    changes = []
    for step in range(700):
        changes.append(watch.update(step))
        train(model)
    (change,) = [change for change in changes if change is not None]
    assert change.checkpoint is None
    assert watch.transitions[0].checkpoints == {}


# --- a killed run ------------------------------------------------------------------------------------------


def run(folder, steps=1400):
    """The user's script: it starts from the beginning each time, the monitor goes on."""
    model = Deep()
    watch = monitor(model, folder, ["loss", watched_modes(), "llc"], llc=CHEAP, llc_schedule=Schedule(0, 200))
    changes = {}
    for step in range(steps + 1):
        change = watch.update(step)
        if change is not None:
            changes[step] = change
        train(model)
    return watch, changes


def content(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    watch, changes = run(folder)
    return content(folder), changes, watch.transitions


class Killed(BaseException):
    """Not an Exception: nothing may catch it."""


def deadly(function, at, after):
    """The function, but its ``at``-th call kills, before or after the work is done."""
    calls = 0

    def wrapper(*args, **settings):
        nonlocal calls
        calls += 1
        if calls == at and not after:
            raise Killed
        result = function(*args, **settings)
        if calls == at:
            raise Killed
        return result

    return wrapper


def whole_files(folder):
    """Every file that has its own name can be read; a partial one is called so."""
    for path in folder.rglob("*.safetensors"):
        load_file(path)
    for path in folder.rglob("*.json"):
        json.loads(path.read_text())


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("call", ["fsync", "replace", "unlink"])
def test_killed_at_any_point_goes_on_to_the_same_bytes(tmp_path, monkeypatch, whole, call, after):
    """The run is killed again and again in the same folder, each life longer than the last, then allowed to end.

    Some 150 files are written (settings, 71 states, 71 records, 8 draws) and 60 removed; 85 calls are lived through.
    """
    target = Path if call == "unlink" else os
    deaths = 0
    for at in (1, 2, 3, 4, 7, 11, 20, 37):
        with monkeypatch.context() as patch:
            patch.setattr(target, call, deadly(getattr(target, call), at, after))
            try:
                run(tmp_path / "run")
            except Killed:
                deaths += 1
        whole_files(tmp_path / "run")
    assert deaths >= 5
    watch, changes = run(tmp_path / "run")
    found = {name: data for name, data in content(tmp_path / "run").items() if not name.endswith(".partial")}
    assert found == whole[0]
    assert changes == whole[1]
    assert watch.transitions == whole[2]


def test_the_run_that_is_killed_is_worth_killing(whole):
    """It has transitions, estimates and removed states, else the tests above prove little."""
    assert len(whole[2]) == 2
    assert sum(name.startswith("llc/") for name in whole[0]) == 8
    assert 10 < sum(name.startswith("checkpoints/") for name in whole[0]) < 71


def test_leftover_partial_files_harm_nothing(tmp_path, whole):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json.partial").write_bytes(b"half a fi")
    run(folder, 40)
    halves = [folder / f"{name}.partial" for name in ("run.json", "observations.safetensors", "transitions.json")]
    halves += [folder / "checkpoints" / f"step-{step:08d}.safetensors.partial" for step in (20, 60, 61)]
    for half in halves:
        half.write_bytes(b"half a fi")
    run(folder)
    assert {name: data for name, data in content(folder).items() if not name.endswith(".partial")} == whole[0]


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    def full(fd):
        raise OSError(28, "No space left on device")

    model = Deep()
    watch = monitor(model, tmp_path / "run")
    watch.update(0)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFolderError, match=r"^out: expected a folder that can be written, got .*No space left"):
        watch.update(20)
    monkeypatch.undo()
    again = monitor(model, tmp_path / "run")
    assert again.steps == [0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": 1}, "expected a run with seed = 1, got .* with seed = 0; choose another folder"),
        ({"keep": 3}, "expected a run with keep = 3, got .* with keep = 2; choose another folder"),
        ({"run": {"a": 1}}, r"expected a run with run = \{\"a\": 1\}, got .* with run = \{\}; choose another folder"),
        ({"observables": [modes]}, "expected a run with channels = .*; choose another folder"),
        ({"llc": {"chains": 2}}, "expected a run with llc = .*; choose another folder"),
    ],
)
def test_another_run_is_refused(tmp_path, settings, message):
    monitor(Deep(), tmp_path / "run").update(0)
    before = content(tmp_path / "run")
    with pytest.raises(RunFolderError, match=f"^out: {message}$"):
        monitor(Deep(), tmp_path / "run", **settings)
    assert content(tmp_path / "run") == before


def test_settings_that_json_cannot_hold(tmp_path):
    llc = {"mask": torch.zeros(18, dtype=torch.bool)}
    with pytest.raises(RunFolderError, match=r"^out: expected settings that JSON can hold .* Tensor is not JSON"):
        monitor(Deep(), tmp_path / "run", llc=llc)
    monitor(Deep(), llc=llc)  # without a folder nothing is written


def test_a_damaged_record_is_one_sentence(tmp_path):
    folder = tmp_path / "run"
    monitor(Deep(), folder).update(0)
    record = folder / "observations.safetensors"
    good = record.read_bytes()
    for bad in (b"", good[: len(good) // 2], b"\xff" * 100):
        record.write_bytes(bad)
        with pytest.raises(RunFolderError, match=r"observations.safetensors: expected whole safetensors, got "):
            monitor(Deep(), folder)
    store.RunFolder.write_tensors(monitor_folder(folder), "observations.safetensors", {"step": torch.zeros(1)})
    with pytest.raises(
        RunFolderError, match=r"observations.safetensors: expected curves of \['loss'\], got \['step'\]$"
    ):
        monitor(Deep(), folder)


def monitor_folder(path):
    """The folder of a run without reading its record."""
    settings = json.loads((path / "run.json").read_text())
    settings.pop("format")
    return store.RunFolder(path, settings)
