"""A watched run, from its first step to its report: the same bytes however often it was killed."""

from __future__ import annotations

import json
import os
import platform
import random
import signal
import subprocess
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path

import cheap
import numpy as np
import pytest
import torch
import xarray as xr
from rich.console import Console
from safetensors.torch import load_file

from devinterp_fast import watch as room
from devinterp_fast.errors import MissingExtraError, RunFolderError
from devinterp_fast.watch import read_watched, watch

STEPS = {"tms": 2000, "digits": 40}  # tms then leaves its plateau: one transition to find
PROGRAM = [sys.executable, cheap.__file__]


@pytest.fixture(autouse=True)
def _cheap(monkeypatch):
    monkeypatch.setattr(room, "systems", cheap.systems)
    monkeypatch.setattr(room, "LLC_TIMES", 10)


def content(folder):
    """Every file but the one that says where the run ran; and but those that say that they are not whole."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "environment.json" and ".partial" not in str(path.relative_to(folder))
    }


@pytest.fixture(scope="module", params=["tms", "digits"])
def whole(request, tmp_path_factory):
    """(name, folder, result) of an uninterrupted run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "systems", cheap.systems)
        patch.setattr(room, "LLC_TIMES", 10)
        folder = tmp_path_factory.mktemp(request.param) / "whole"
        return request.param, folder, watch(request.param, steps=STEPS[request.param], out=folder)


@pytest.fixture(scope="module")
def tms(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "systems", cheap.systems)
        patch.setattr(room, "LLC_TIMES", 10)
        folder = tmp_path_factory.mktemp("tms") / "whole"
        return folder, watch("tms", steps=STEPS["tms"], out=folder)


# --- what a run leaves -------------------------------------------------------------------------------------


def test_the_folder(whole):
    name, folder, result = whole
    assert {path.name for path in folder.iterdir()} == {
        "run.json", "transitions.json", "environment.json", "observations.safetensors", "training.safetensors",
        "trace.zarr", "checkpoints", "llc", "plots", "report.html",
    }  # fmt: skip
    assert not list(folder.rglob("*.partial"))
    written = json.loads((folder / "transitions.json").read_text())
    assert written["transitions"] == json.loads(json.dumps(result.rows))
    assert json.loads((folder / "run.json").read_text())["run"] == {"system": name, "steps": STEPS[name]}
    assert len(list((folder / "llc").iterdir())) == 11  # 10 and the first


def test_the_known_transition_of_tms_is_found(tms):
    folder, result = tms
    (row,), (marker,) = result.rows, result.truth
    assert row["marker"] == marker["name"]
    assert marker["onset"] <= row["midpoint"] <= marker["end"]
    assert result.verdict == "1 of 1 known transitions found, in 1 row."
    step = {which: int(name[-20:-12]) for which, name in row["checkpoints"].items()}
    assert step["before"] < step["alarm"] == row["alarm"] <= step["after"]
    before, after = (load_file(folder / row["checkpoints"][which]) for which in ("before", "after"))
    # A fifth column switches on between them: of norm above 1/2.
    assert int((before["W"].norm(dim=0) > 0.5).sum()) == 4
    assert int((after["W"].norm(dim=0) > 0.5).sum()) == 5


def test_the_result_knows_no_clock_path_or_host(tms):
    text = (tms[0] / "transitions.json").read_text() + (tms[0] / "run.json").read_text()
    for secret in (str(tms[0]), str(Path.home()), platform.node(), time.strftime("%Y-"), os.sep + "tmp"):
        assert secret not in text
    keys = set()

    def walk(node):
        if isinstance(node, dict):
            keys.update(node)
        for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            walk(child)

    walk(json.loads(text[: text.index("\n}\n") + 3]))
    assert not {key for key in keys if "time" in key or "date" in key or "second" in key}


def test_equal_runs_in_different_folders_are_equal_bytes(whole, tmp_path):
    name, folder, result = whole
    torch.manual_seed(99)  # nothing depends on the global generator
    again = watch(name, steps=STEPS[name], out=tmp_path / "another place")
    assert content(again.folder) == content(folder)
    assert again.rows == result.rows


def test_another_seed_is_another_run(tms, tmp_path):
    again = watch("tms", steps=100, seed=1, out=tmp_path / "run")
    one, other = (load_file(f / "checkpoints/step-00000000.safetensors") for f in (tms[0], again.folder))
    assert not torch.equal(one["W"], other["W"])


def test_trace_opens_without_a_word_and_holds_the_curves(tms):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with xr.open_zarr(tms[0] / "trace.zarr") as opened:
            trace = opened.load()
    state = load_file(tms[0] / "observations.safetensors")
    assert trace["step"].values.tolist() == state["step"].tolist()
    assert trace["step"].values[-1] == 2000
    assert {"loss", "active", "distance", "llc", "llc_se", "llc_escaped"} <= set(trace.data_vars)
    for name in trace.data_vars:
        stored = f"se/{name[:-3]}" if name.endswith("_se") else f"value/{name}"
        np.testing.assert_array_equal(trace[name].values, state[stored].numpy())


def test_draws_are_chains_by_draws(tms):
    """As ArviZ wants them; and their mean is the recorded LLC, whose lr is a number (no bias is taken off)."""
    from arviz_stats.base import array_stats

    state = load_file(tms[0] / "observations.safetensors")
    for path in sorted((tms[0] / "llc").iterdir()):
        draws = load_file(path)
        assert draws["loss"].shape == draws["baseline"].shape == (2, 10)
        i = state["step"].tolist().index(int(path.stem[5:]))
        scaled = 1e4 * (draws["loss"] - draws["baseline"])
        assert float(state["value/llc"][i]) == pytest.approx(float(scaled.mean()), rel=1e-9, abs=1e-9)
        assert np.isfinite(array_stats.rhat(scaled.numpy(), chain_axis=0, draw_axis=1))


def test_the_table_keeps_each_checkpoint_on_one_line(tms):
    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115 (closed with the process)
    console.print(tms[1].table())
    console.file.close()
    text = console.export_text()
    (row,) = tms[1].rows
    assert f"step-{row['alarm']:08d}" in text
    assert "1 of 1 known transitions found" in text


def test_threads_are_given_back(tmp_path):
    torch.set_num_threads(2)
    seen = []
    watch("tms", steps=2, out=tmp_path / "run", progress=lambda *a: seen.append(torch.get_num_threads()))
    assert torch.get_num_threads() == 2
    assert set(seen) == {1}


def test_progress_tells_each_step(tmp_path):
    told = []
    watch("tms", steps=50, out=tmp_path / "run", progress=lambda *a: told.append(a))
    assert [(step, total) for step, total, _ in told] == [(step, 50) for step in range(51)]
    assert all(note.startswith("LLC ") for *_, note in told)


# --- a finished run ----------------------------------------------------------------------------------------


def test_a_finished_run_is_read_back(tms, monkeypatch):
    folder, result = tms
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    monkeypatch.setattr(cheap.CheapTMS, "train_step", None)  # not called
    again = watch("tms", steps=2000, out=folder)
    assert again == read_watched(folder)
    assert list(again.rows) == json.loads(json.dumps(result.rows))
    assert (again.title, again.verdict) == (result.title, result.verdict)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize(
    ("name", "settings", "what"),
    [
        ("tms", {"steps": 2001}, "run"),
        ("tms", {"steps": 2000, "seed": 1}, "seed"),
        ("digits", {"steps": 2000}, "run"),
    ],
)
def test_other_settings_are_refused(tms, name, settings, what):
    before = content(tms[0])
    with pytest.raises(RunFolderError, match=rf"^out: expected a run with {what} = .*; choose another folder$"):
        watch(name, out=tms[0], **settings)
    assert content(tms[0]) == before


@pytest.mark.parametrize("bad", ["", "[]", "3", '{"title": "x"}', "{"])
def test_a_damaged_result(tmp_path, bad):
    watch("tms", steps=1, out=tmp_path)
    (tmp_path / "transitions.json").write_text(bad)
    with pytest.raises(RunFolderError, match=r"transitions.json: expected "):
        watch("tms", steps=1, out=tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "nope"}, r"^name: expected one of \['digits', 'tms'\], got 'nope'$"),
        ({"steps": 0}, r"^steps: expected an integer >= 1, got 0$"),
        ({"seed": -1}, r"^seed: expected an integer from 0 to 2\*\*63 - 1, got -1$"),
        ({"seed": 2**63}, r"^seed: expected an integer from 0 to 2\*\*63 - 1, got 9223372036854775808$"),
    ],
)
def test_bad_settings_leave_no_folder(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        watch(**({"name": "tms", "out": tmp_path / "run"} | settings))
    assert not (tmp_path / "run").exists()


def test_the_largest_seed(tmp_path):
    assert watch("tms", steps=2, seed=2**63 - 4, out=tmp_path / "run").rows == []


@pytest.mark.parametrize("module", ["jinja2", "matplotlib", "zarr"])
def test_absent_extras_are_said_before_the_training(tmp_path, monkeypatch, module):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, module, None)
        patch.setattr(cheap.CheapTMS, "train_step", None)  # not called
        message = rf"^watch: expected {module}, got none: pip install 'devinterp-fast\[demo\]'$"
        with pytest.raises(MissingExtraError, match=message):
            watch("tms", steps=10, out=tmp_path / "run")
    assert watch("tms", steps=10, out=tmp_path / "run").rows == []  # once it is there


# --- a killed run ------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Not an Exception: nothing may catch it."""


def whole_files(folder):
    """Every file that has its own name can be read."""
    for path in folder.rglob("*.safetensors"):
        load_file(path)
    for path in folder.rglob("*.json"):
        json.loads(path.read_text())


def test_killed_between_steps(whole, tmp_path):
    name, folder, result = whole
    for at in (0, 1, 7, 7, 23, 40) if name == "digits" else (0, 500, 999, 1205, 2000):

        def stop(step, total, note, at=at):
            if step == at:
                raise Killed

        with pytest.raises(Killed):
            watch(name, steps=STEPS[name], out=tmp_path, progress=stop)
        whole_files(tmp_path)
    again = watch(name, steps=STEPS[name], out=tmp_path)
    assert content(tmp_path) == content(folder)
    assert again.rows == result.rows


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_killed_inside_a_write(tms, tmp_path, monkeypatch, call, after):
    """Killed at calls far apart, and at every call of the last step, where trace, figure, page and result are made."""
    function = getattr(os, call)
    left = 0

    def deadly(*args):
        nonlocal left
        left -= 1
        if left == 0 and not after:
            raise Killed
        function(*args)
        if left == 0:
            raise Killed

    def stop_at_the_end(step, total, note):
        if step == total:
            raise Killed

    monkeypatch.setattr(os, call, deadly)
    for at in (1, 2, 3, 100, 271):
        left = at
        with pytest.raises(Killed):
            watch("tms", steps=2000, out=tmp_path)
        whole_files(tmp_path)
    with pytest.raises(Killed):
        watch("tms", steps=2000, out=tmp_path, progress=stop_at_the_end)
    lives = 0
    while not (tmp_path / "transitions.json").exists():
        lives += 1
        left = lives
        with suppress(Killed):
            watch("tms", steps=2000, out=tmp_path)
        whole_files(tmp_path)
    assert lives >= 5  # state, environment, figure, page, result; the trace too is renamed
    watch("tms", steps=2000, out=tmp_path)
    assert content(tmp_path) == content(tms[0])


def stored_step(folder):
    """How far the run on disk is, or -1: read while another process writes, so every read finds a whole file."""
    path = folder / "training.safetensors"
    return int(load_file(path)["step"]) if path.exists() else -1


def test_sigkill_of_the_real_program(tms, tmp_path):
    """The kernel ends the program wherever it is; what lies in the folder goes on to the same bytes."""
    folder = tmp_path / "run"
    command = [*PROGRAM, "watch", "tms", "--steps", "2000", "--out", str(folder)]
    draw = random.Random(0)
    for reach in (0, 700, 1500):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            deadline = time.monotonic() + 120
            while stored_step(folder) < reach and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.002)
            time.sleep(draw.random() * 0.1)
            process.kill()
            process.wait()
            assert process.returncode == -signal.SIGKILL
            assert b"Traceback" not in process.stderr.read()
        whole_files(folder)
        assert not (folder / "transitions.json").exists()
    watch("tms", steps=2000, out=folder)
    assert content(folder) == content(tms[0])


def test_exit_inside_a_write_leaves_the_old_file(tmp_path):
    """os._exit after the bytes are in the partial file: no handler runs, as after a crash of the interpreter."""
    code = (
        "import os, runpy, sys\n"
        "replace, calls = os.replace, [0]\n"
        "def die(*args):\n"
        "    calls[0] += 1\n"
        "    if calls[0] == 40: os._exit(9)\n"
        "    replace(*args)\n"
        "os.replace = die\n"
        f"sys.argv = ['x', 'watch', 'tms', '--steps', '100', '--out', {str(tmp_path / 'run')!r}]\n"
        f"runpy.run_path({cheap.__file__!r}, run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (9, b"")
    assert len(list((tmp_path / "run").rglob("*.partial"))) == 1
    whole_files(tmp_path / "run")
    watch("tms", steps=100, out=tmp_path / "run")
    watch("tms", steps=100, out=tmp_path / "other")
    assert content(tmp_path / "run") == content(tmp_path / "other")


def test_a_damaged_state_is_one_sentence(tmp_path):
    def stop(step, total, note):
        if step == 30:
            raise Killed

    with pytest.raises(Killed):
        watch("tms", steps=50, out=tmp_path, progress=stop)
    path = tmp_path / "training.safetensors"
    good = path.read_bytes()
    path.write_bytes(good[:-10])
    with pytest.raises(RunFolderError, match=r"training.safetensors: expected whole safetensors, got "):
        watch("tms", steps=50, out=tmp_path)
    path.write_bytes((tmp_path / "checkpoints/step-00000000.safetensors").read_bytes())
    with pytest.raises(RunFolderError, match=r"training.safetensors: expected a state of this run, got "):
        watch("tms", steps=50, out=tmp_path)
    path.write_bytes(good)
    watch("tms", steps=50, out=tmp_path)
