"""The workloads every table names: W1 toy model of superposition, W3 small MLP on digits, W5 MLP of 10 M parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass
class Workload:
    name: str
    model: nn.Module
    loss: nn.Module
    x: Tensor
    y: Tensor
    batch: int
    settings: dict[str, Any]  # lr, localization, nbeta
    draws: int
    check_draws: int


class Superposition(nn.Module):
    """ReLU(W^T W x + b), n = 6 features in m = 2 dimensions: 18 parameters."""

    def __init__(self):
        super().__init__()
        angles = torch.arange(5) * 2 * torch.pi / 5
        self.W = nn.Parameter(torch.zeros(2, 6))
        self.W.data[:, :5] = 1.17046 * torch.stack([angles.cos(), angles.sin()])
        self.b = nn.Parameter(torch.tensor([-0.28230] * 5 + [1 / 12]))

    def forward(self, x):
        return F.relu(x @ self.W.T @ self.W + self.b)


def w1() -> Workload:
    g = torch.Generator().manual_seed(0)
    x = torch.zeros(1000, 6)
    x[torch.arange(1000), torch.randint(6, (1000,), generator=g)] = torch.rand(1000, generator=g)
    settings = {"lr": 1e-4, "localization": 1.0, "nbeta": 1000.0}
    return Workload("W1", Superposition(), nn.MSELoss(), x, x, 128, settings, draws=200, check_draws=2000)


def mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def w3() -> Workload:
    digits = load_digits()
    x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    torch.manual_seed(0)
    model = mlp(64, 128, 128, 10)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(160):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    settings = {"lr": 1e-4, "localization": 100.0, "nbeta": 240.0}
    return Workload("W3", model, nn.CrossEntropyLoss(), x, y, 256, settings, draws=100, check_draws=300)


def w5() -> Workload:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(64, 784, generator=g), torch.randint(10, (64,), generator=g)
    torch.manual_seed(0)
    settings = {"lr": 1e-7, "localization": 1.0, "nbeta": 10.0}
    return Workload(
        "W5", mlp(784, 2048, 2048, 2048, 10), nn.CrossEntropyLoss(), x, y, 8, settings, draws=20, check_draws=5
    )


def regression() -> Workload:
    """Linear regression with d = 8 at its least-squares solution: the learning coefficient is d / 2 = 4."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1000, 8, generator=g)
    y = x @ torch.randn(8, 1, generator=g) + torch.randn(1000, 1, generator=g)
    model = nn.Linear(8, 1, bias=False)
    model.weight.data = torch.linalg.lstsq(x, y).solution.T.contiguous()
    # The published test settings of the established package for half the squared error; nbeta = n / ln n / 2 here.
    settings = {"lr": 4e-4, "localization": 1.0, "nbeta": 1000 / math.log(1000) / 2}
    return Workload("regression", model, nn.MSELoss(), x, y, 100, settings, draws=200, check_draws=4000)
