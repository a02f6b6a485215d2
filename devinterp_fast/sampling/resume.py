"""A run that survives: its chains are written to a file as they go, and go on from there, bit for bit.

The run is cut into stretches of draws; after each the file is replaced whole. What a chain does next follows from its
state and its settings alone, so a run of many stretches, in one process or several, has the numbers of one.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from devinterp_fast import store
from devinterp_fast._interrupt import Interrupt
from devinterp_fast.errors import RunFolderError
from devinterp_fast.progress import ProgressBar
from devinterp_fast.sampling.goal import at_a_tenth, missing
from devinterp_fast.sampling.prepare import Prepared
from devinterp_fast.sampling.run import State, Trace, joined, stretch

_FORMAT = 2
_STRETCHES = 20
_CURVES = ("loss", "baseline", "energy", "gauge")
_ROWS = ("w", "first", "second")


def run(job: Prepared, path: str | os.PathLike[str], title: str, *, progress: bool) -> tuple[Trace, str]:
    """Runs the chains to their end from where ``path`` says they are.

    The file is written after each twentieth of the draws; what is not yet in it is computed again after a crash or
    after Ctrl-C.

    Args:
        job: what to run.
        path: of the checkpoint; begun if it is absent.
        title: of the progress bar.
        progress: show it on a terminal.

    Returns:
        The trace and the engine's name, as ``jobs.run``.

    Raises:
        RunFolderError: the file belongs to another run, is damaged, or cannot be written.
        KeyboardInterrupt: Ctrl-C; the same call goes on from the file.
    """
    s, file = job.settings, Path(path)
    identity = _identity(job)
    done = _load(file, identity)
    name = job.engine().name
    every = -(-s.draws // _STRETCHES)
    before = 0 if done is None else done.loss.shape[1] * s.thin * s.chains
    with ProgressBar(title, s.steps * s.chains, show=progress) as bar, Interrupt() as stop:

        def report(updates: int, note: str) -> None:
            bar.update(before + updates, note)

        while (more := missing(job, done)) and not stop():
            part = stretch(s, done, min(every, more))
            trace = job.engine(part).run(report, None, stop)
            if stop():
                break
            done, before = joined(done, trace), before + part.steps * s.chains
            _save(file, identity, done)
        if done is None or stop():
            raise KeyboardInterrupt
        weaker = at_a_tenth(job, done) if done.tenth is None else None
        if weaker is not None:
            tenth = job.engine(weaker).run(report, None, stop)
            if stop():
                raise KeyboardInterrupt
            done.tenth = tenth
            _save(file, identity, done)
    return done, name


def _identity(job: Prepared) -> dict[str, Any]:
    """What makes this run this run. The baseline's losses stand for loss function and data."""
    s = job.settings
    return {
        "format": _FORMAT, "engine": job.choice.engine, "chains": s.chains, "draws": s.draws, "burn_in": s.burn_in,
        "thin": s.thin, "lr": s.lr.tolist(), "localization": s.localization.tolist(), "nbeta": s.nbeta.tolist(),
        "batches": s.batches, "batch_size": s.batch_size, "seed": s.seed, "sampler": asdict(s.sampler),
        "first_step": s.first_step, "weights": _digest(job.center), "data": _digest(job.baseline),
        "mask": None if job.mask is None else _digest(job.mask), "tenth": job.tenth,
        "prior": None if job.pull is None else [_digest(job.pull.precision), _digest(job.pull.prior_center)],
        "goal": None if job.goal is None else asdict(job.goal),
    }  # fmt: skip


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()[:16]


def _save(file: Path, identity: dict[str, Any], done: Trace) -> None:
    assert done.state is not None
    tensors = {name: torch.from_numpy(np.ascontiguousarray(getattr(done, name))) for name in _CURVES}
    tensors |= {name: getattr(done.state, name).contiguous() for name in _ROWS}
    if done.tenth is not None:
        tensors |= {f"tenth {name}": torch.from_numpy(getattr(done.tenth, name)) for name in (*_CURVES, "diverged")}
    tensors["thermostat"] = torch.from_numpy(done.state.thermostat)
    tensors["diverged"] = torch.from_numpy(done.state.diverged)
    tensors["step"] = torch.tensor(done.state.step)
    try:
        store.write_whole(file, save(tensors, {"run": json.dumps(identity, sort_keys=True)}))
    except OSError as error:
        raise RunFolderError(f"checkpoint: expected a file that can be written, got {error}") from error


def _load(file: Path, identity: dict[str, Any]) -> Trace | None:
    if not file.exists():
        return None
    try:
        with safe_open(file, "pt") as held:
            found = json.loads((held.metadata() or {}).get("run", "null"))
            tensors = {key: held.get_tensor(key) for key in held.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise RunFolderError(f"checkpoint: expected the checkpoint of a run, got {file}: {error}") from error
    if not isinstance(found, dict):
        raise RunFolderError(f"checkpoint: expected the checkpoint of a run, got {file}, which is something else")
    wanted = json.loads(json.dumps(identity))
    for key in wanted:
        if found.get(key) != wanted[key]:
            raise RunFolderError(
                f"checkpoint: expected a run with {key} = {json.dumps(wanted[key])}, got {file} with {key} = "
                f"{json.dumps(found.get(key))}; choose another file"
            )
    loss, baseline, energy, gauge = (tensors[name].numpy() for name in _CURVES)
    w, first, second = (tensors[name] for name in _ROWS)
    diverged = tensors["diverged"].numpy()
    state = State(int(tensors["step"]), w, first, second, tensors["thermostat"].numpy(), diverged)
    held = [tensors[key].numpy() for key in (f"tenth {name}" for name in (*_CURVES, "diverged")) if key in tensors]
    return Trace(loss, baseline, energy, gauge, diverged, state, tenth=Trace(*held) if held else None)
