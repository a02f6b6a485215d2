"""Draws the figures of docs/curvature.md from two short training runs: ``python tools/curvature_figures.py``."""

from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

import devinterp_fast as dif
from devinterp_fast import plots

FIGURES = Path(__file__).parents[1] / "docs" / "figures"
EVERY = 50


def classifier():
    """An MLP on digits under minibatch SGD: its states, and the model."""
    digits = load_digits()
    data = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    model, loss_fn = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)), nn.CrossEntropyLoss()
    optimizer, states = torch.optim.SGD(model.parameters(), 0.1), []
    for step in range(1001):
        if step % EVERY == 0:
            states.append({name: value.clone() for name, value in model.state_dict().items()})
        i = torch.randint(len(data[0]), (32,))
        optimizer.zero_grad()
        loss_fn(model(data[0][i]), data[1][i]).backward()
        optimizer.step()
    return model, loss_fn, data, states


def deep_linear():
    """Two linear layers that learn singular values 4, 2, 1 one after the other: losses and states of each step."""
    x, target = torch.eye(5), torch.diag(torch.tensor([4.0, 2.0, 1.0, 0.0, 0.0]))
    model, loss_fn = nn.Sequential(nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False)), nn.MSELoss()
    for p in model.parameters():
        p.data *= 0.03
    optimizer, losses, states = torch.optim.SGD(model.parameters(), 0.05), [], []
    for _ in range(700):
        states.append({name: value.clone() for name, value in model.state_dict().items()})
        optimizer.zero_grad()
        loss = loss_fn(model(x), target)
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    return model, loss_fn, (x, target), losses, states


def save(figure, name):
    figure.savefig(FIGURES / f"{name}.png", metadata={"Software": None})


torch.set_num_threads(1)
torch.manual_seed(0)
model, loss_fn, data, states = classifier()
H = dif.hessian(model, loss_fn, data, checkpoints=states)
save(plots.eigenvalue_figure([EVERY * i for i in range(len(states))], dif.eigsh(H, 12)), "curvature_training")
density = dif.spectral_density(dif.hessian(model, loss_fn, data), probes=16, steps=80)
save(plots.density_figure(density), "curvature_density")
model, loss_fn, data, losses, states = deep_linear()
kappa = dif.escape(model, loss_fn, data, checkpoints=states).value
save(plots.escape_figure(range(len(losses)), losses, kappa), "curvature_escape")
