"""A run that is killed goes on from its checkpoint to the same bits."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import devinterp_fast as dif
from devinterp_fast.errors import RunFolderError
from devinterp_fast.sampling import engines, resume

SETTINGS = {"chains": 3, "draws": 41, "burn_in": 7, "lr": 1e-4, "batch_size": 16, "seed": 3, "progress": False}


def problem():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))
        return model, nn.MSELoss(), (torch.randn(60, 5), torch.randn(60, 2))


def estimate(**settings):
    return dif.estimate_llc(*problem(), **{**SETTINGS, **settings})


def same(a, b):
    assert a.trace.equals(b.trace)
    np.testing.assert_array_equal([a.value, a.mcse, a.step_bias], [b.value, b.mcse, b.step_bias])
    assert a.warnings == b.warnings


SAMPLERS = ["sgld", "rmsprop_sgld", "sghmc", "sgnht"]
RUNS = [("native", s) for s in SAMPLERS] + [("torch", s) for s in SAMPLERS[:2]]


@pytest.mark.parametrize("thin", [1, 3])
@pytest.mark.parametrize(("backend", "sampler"), RUNS)
def test_a_checkpoint_changes_no_bit(tmp_path, backend, sampler, thin):
    settings = {"backend": backend, "sampler": sampler, "thin": thin}
    file = tmp_path / "run.safetensors"
    whole = estimate(**settings)
    same(estimate(**settings, checkpoint=file), whole)
    assert [p.name for p in tmp_path.iterdir()] == ["run.safetensors"]


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_a_finished_run_is_read(tmp_path, backend, monkeypatch):
    file = tmp_path / "run.safetensors"
    first = estimate(backend=backend, checkpoint=file)

    def never(*_: object) -> None:
        raise AssertionError("a finished run moved its chains")

    monkeypatch.setattr(engines.NativeEngine, "run", never)
    monkeypatch.setattr(engines.TorchEngine, "run", never)
    same(estimate(backend=backend, checkpoint=file), first)


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from devinterp_fast.sampling import resume
from test_resume import estimate

seen, replace, moment = [], os.replace, {moment!r}
def kill(*paths):
    seen.append(paths)
    if len(seen) == 5 and moment == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*paths)
    if len(seen) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
resume.os.replace = kill
estimate(backend={backend!r}, checkpoint={file!r})
"""


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("backend", ["native", "torch"])
def test_a_killed_run_goes_on(tmp_path, backend, moment):
    file = tmp_path / "run.safetensors"
    script = KILLED.format(tests=str(Path(__file__).parent), moment=moment, backend=backend, file=str(file))
    assert subprocess.run([sys.executable, "-c", script], timeout=120).returncode == -signal.SIGKILL
    assert file.exists()
    same(estimate(backend=backend, checkpoint=file), estimate(backend=backend))


def test_a_diverged_chain_stays_where_it_diverged(tmp_path):
    settings = {"lr": [1e-4, 1e30, 1e-4]}
    same(estimate(**settings, checkpoint=tmp_path / "run"), estimate(**settings))


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_ctrl_c_keeps_what_was_recorded(tmp_path, backend, monkeypatch):
    saves = []

    def press(*arguments: object) -> None:
        saves.append(arguments)
        save(*arguments)
        if len(saves) == 4:
            signal.raise_signal(signal.SIGINT)

    save = resume._save
    monkeypatch.setattr(resume, "_save", press)
    with pytest.raises(KeyboardInterrupt):
        estimate(backend=backend, checkpoint=tmp_path / "run")
    assert len(saves) == 4
    same(estimate(backend=backend, checkpoint=tmp_path / "run"), estimate(backend=backend))
    assert len(saves) < 4 + 14  # 14 stretches in all


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 2e-4}, "lr = "),
        ({"seed": 4}, "seed = 4"),
        ({"draws": 42}, "draws = 42"),
        ({"batches": "epoch"}, 'batches = "epoch"'),
        ({"backend": "torch"}, 'engine = "torch"'),
        ({"mask": torch.ones(34) > 0}, "mask = "),
    ],
)
def test_another_run_is_refused(tmp_path, change, message):
    file = tmp_path / "run"
    estimate(checkpoint=file)
    kept = file.read_bytes()
    with pytest.raises(RunFolderError, match=f"^checkpoint: expected a run with {message}"):
        estimate(**change, checkpoint=file)
    assert file.read_bytes() == kept


def test_other_weights_or_data_are_refused(tmp_path):
    model, loss_fn, data = problem()
    estimate(checkpoint=tmp_path / "run")
    with torch.no_grad():
        model[0].bias += 1
    with pytest.raises(RunFolderError, match=r"^checkpoint: expected a run with weights = "):
        dif.estimate_llc(model, loss_fn, data, **SETTINGS, checkpoint=tmp_path / "run")
    model, loss_fn, (x, y) = problem()
    with pytest.raises(RunFolderError, match=r"^checkpoint: expected a run with data = "):
        dif.estimate_llc(model, loss_fn, (x, y + 1), **SETTINGS, checkpoint=tmp_path / "run")


def test_what_is_no_checkpoint_is_refused(tmp_path):
    from safetensors.torch import save_file

    file = tmp_path / "run"
    for content in (b"", b"something else", bytes(100)):
        file.write_bytes(content)
        with pytest.raises(RunFolderError, match=r"^checkpoint: expected the checkpoint of a run, got "):
            estimate(checkpoint=file)
    save_file({"w": torch.zeros(3)}, file)
    with pytest.raises(RunFolderError, match=r"which is something else$"):
        estimate(checkpoint=file)
    with pytest.raises(RunFolderError, match=r"^checkpoint: expected a file that can be written, got "):
        estimate(checkpoint=tmp_path / "absent" / "run")
