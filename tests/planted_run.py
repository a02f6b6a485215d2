"""Runs for tests: one whose transitions are known to the step, for the monitor; any of the library's, recorded."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from devinterp_fast.changepoint.channel import Channel
from devinterp_fast.monitor.monitor import Monitor
from devinterp_fast.monitor.observables import Observable, of_function
from devinterp_fast.monitor.schedule import Schedule

# A deep linear network of two layers W = A B on a full batch of the unit vectors, balanced and diagonal at the start:
# L = (1/3) sum_i (s_i - a_i)^2, and under gradient flow each a_i = A_ii B_ii follows da/dt = (4/3) a (s - a), a
# logistic law from a(0) = INIT^2.

STRENGTHS = (3.0, 1.0, 0.5)
INIT = 1e-3
LR = 0.01
EVERY = 20
STEPS = 2400
CHEAP = {"chains": 2, "draws": 20, "burn_in": 5, "lr": 1e-3, "nbeta": 10.0}  # an estimate
X, Y = torch.eye(3), torch.diag(torch.tensor(STRENGTHS))


def passage(s: float, share: float) -> float:
    """The step at which a / s = share, from the logistic law."""
    return math.log(share / (1 - share) * (s / INIT**2 - 1)) / (4 / 3 * s) / LR


class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(INIT * torch.eye(3))
        self.b = nn.Parameter(INIT * torch.eye(3))

    def forward(self, x):
        return x @ self.a @ self.b


def loss_fn(out, y):
    return (out - y).square().sum(1)


@torch.no_grad()
def train(model: Deep) -> None:
    error = (2 / 3) * (model.a @ model.b - Y)
    a, b = error @ model.b.T, model.a.T @ error
    model.a -= LR * a
    model.b -= LR * b


def modes(model: nn.Module) -> dict[str, float]:
    return {f"mode {i}": float(v) for i, v in enumerate((model.a @ model.b).diagonal().detach())}


def watched_modes() -> Observable:
    channels = {f"mode {i}": Channel("metric", scale=s) for i, s in enumerate(STRENGTHS)}
    return of_function(modes, channels, Schedule(0, EVERY))


def monitor(model, out=None, observables=("loss",), **settings):
    settings = {"schedule": Schedule(0, EVERY), "skip": 0.0} | settings
    return Monitor(model, loss_fn, (X, Y), observables=observables, out=out, **settings)


def watched_run(folder):
    """One whole run: the monitor, its changes, its transitions after each step, and the states of the model."""
    torch.set_num_threads(1)
    model = Deep()
    watch = monitor(model, folder, ["loss", watched_modes()])
    changes, reads, states = {}, {}, {}
    for step in range(STEPS + 1):
        change = watch.update(step)
        if change is not None:
            changes[step] = change
        if step % EVERY == 0:
            reads[step] = watch.transitions
            states[step] = {name: value.clone() for name, value in model.state_dict().items()}
        train(model)
    return watch, changes, reads, states


def record(system, steps, every):
    """The observed steps and the curves of a run of ``steps`` steps."""
    seen, rows = [], []
    for step in range(steps + 1):
        if step % every == 0:
            seen.append(step)
            rows.append(system.observe(system.model))
        system.train_step(step)
    return seen, {name: np.array([row[name] for row in rows]) for name in system.channels}
