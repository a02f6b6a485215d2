"""Systems whose learning coefficient is known, each at an exact minimum, with the value a perfect sampler returns."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from devinterp_fast.estimators import exact
from devinterp_fast.transitions import tms

N = 1_000_000
NBETA = N / math.log(N)
LOCALIZATION = 1.0


@dataclass
class System:
    """``target`` is what a perfect sampler returns at NBETA and LOCALIZATION, ``coefficient`` the asymptotic value."""

    name: str
    family: str
    model: nn.Module
    loss: Callable[..., Tensor]
    data: Any
    coefficient: float
    multiplicity: int
    target: float
    kind: str  # where the target is from: "exact", "quadrature", "lambda - (m - 1) / ln nbeta", "lambda"

    @property
    def dim(self) -> int:
        return sum(p.numel() for p in self.model.parameters())


def half_squared(out: Tensor, y: Tensor) -> Tensor:
    return 0.5 * ((out - y) ** 2).sum(1)


class DeepLinear(nn.Module):
    """W_L ... W_1 of rank ``rank``, balanced: an exact minimum for its own outputs; without the weakest, a saddle."""

    def __init__(self, widths: list[int], rank: int, seed: int, *, weakest: bool = True):
        super().__init__()
        self.widths, self.rank = widths, rank
        g = torch.Generator().manual_seed(seed)
        self.layers = nn.ModuleList([nn.Linear(a, b, bias=False) for a, b in pairwise(widths)])
        bases = [torch.linalg.qr(torch.randn(w, w, generator=g, dtype=torch.float64))[0] for w in widths]
        size = (0.5 + torch.rand(rank, generator=g, dtype=torch.float64)) ** (1 / len(self.layers))
        with torch.no_grad():
            kept = torch.arange(rank) if weakest else size.argsort()[1:]
            for layer, (a, b) in zip(self.layers, pairwise(bases), strict=True):
                layer.weight.copy_((b[:, kept] * size[kept]) @ a[:, kept].T)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def deep_linear(widths: list[int], rank: int, seed: int, *, family: str, samples: int | None = None) -> System:
    """On inputs sqrt(d) e_i, whose mean loss is the population's, or on ``samples`` Gaussian inputs."""
    model, d = DeepLinear(widths, rank, seed), widths[0]
    x = math.sqrt(d) * torch.eye(d)
    if samples:
        x = torch.randn(samples, d, generator=torch.Generator().manual_seed(seed + 1))
    with torch.no_grad():
        y = model(x)
    coefficient, m = exact.deep_linear(widths, rank)
    name = "-".join(map(str, widths)) + f" rank {rank}"
    target = exact.at_temperature(coefficient, m, NBETA)
    kind = "lambda" if m == 1 else "lambda - (m - 1) / ln nbeta"
    return System(name, family, model, half_squared, (x, y), coefficient, m, target, kind)


def random_deep_linear(seed: int, samples: int | None = None) -> System:
    """2 to 8 layers, widths 4 to 64 (uniform in the logarithm), any rank, at most 2,048 parameters."""
    rng = np.random.default_rng(seed)
    while True:
        layers = int(rng.integers(2, 9))
        widths = [round(math.exp(rng.uniform(math.log(4), math.log(64)))) for _ in range(layers + 1)]
        if sum(a * b for a, b in pairwise(widths)) <= 2048:
            break
    rank = int(rng.integers(0, min(widths) + 1))
    return deep_linear(widths, rank, seed, family="random deep linear", samples=samples)


def saddle(seed: int) -> System:
    """A random deep linear network that has learned all directions but the weakest; there is no coefficient."""
    while (whole := random_deep_linear(seed)).model.rank == 0:
        seed += 10_000
    model = DeepLinear(whole.model.widths, whole.model.rank, seed, weakest=False)
    return System(whole.name, "saddle", model, whole.loss, whole.data, math.nan, 0, math.nan, "none")


def regular(d: int, seed: int) -> System:
    """Noiseless linear regression: the exact posterior value at this localization, from the Hessian."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(4 * d, d, generator=g)
    model = nn.Linear(d, 1, bias=False)
    with torch.no_grad():
        y = model(x)
    h = torch.linalg.eigvalsh(x.double().T @ x.double() / len(x))
    target = float((NBETA * h / (2 * (NBETA * h + LOCALIZATION))).sum())
    return System(f"regression d={d}", "regular", model, half_squared, (x, y), d / 2, 1, target, "exact")


class Crossing(nn.Module):
    """(prod w_i^{k_i}) x at w = 0: layer i of width 1, k_i times."""

    def __init__(self, powers: list[int]):
        super().__init__()
        self.powers = powers
        self.layers = nn.ModuleList([nn.Linear(1, 1, bias=False) for _ in powers])
        for layer in self.layers:
            nn.init.zeros_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        for k, layer in zip(self.powers, self.layers, strict=True):
            for _ in range(k):
                x = layer(x)
        return x


def crossing(powers: list[int]) -> System:
    """K = 1/2 prod w_i^(2 k_i)."""
    coefficient, m = exact.normal_crossing(powers)
    name = " ".join(f"w{i + 1}^{2 * k}" for i, k in enumerate(powers))
    data = (torch.ones(1, 1), torch.zeros(1, 1))
    target = quadrature(powers)
    return System(name, "normal crossing", Crossing(powers), half_squared, data, coefficient, m, target, "quadrature")


def quadrature(powers: list[int], nbeta: float = NBETA, localization: float = LOCALIZATION) -> float:
    """E[nbeta K] of exp(-nbeta K - localization |w|^2 / 2), even in each w: by the trapezoidal rule in ln |w_i|."""
    points = {2: 4000, 3: 400, 4: 100}[len(powers)]
    s = np.linspace(math.log(1e-9), math.log(12 / math.sqrt(localization)), points)
    axes = np.meshgrid(*[s] * len(powers), indexing="ij", sparse=True)
    log_k = math.log(nbeta / 2) + sum(2 * k * axis for k, axis in zip(powers, axes, strict=True))
    weight = sum(axis - localization * np.exp(2 * axis) / 2 for axis in axes)
    k = np.exp(log_k)
    density = np.exp(weight - k)
    return float((k * density).sum() / density.sum())


def superposition(name: str) -> System:
    """A critical level of the toy model of superposition, polished on the probe that stands for the population."""
    level = tms.critical_levels()[name]
    assert level.llc is not None
    x, y = tms.midpoint_probe()
    model = tms.TMS(*level.weights()).double()
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = nn.functional.mse_loss(model(x.double()), y.double())
        value.backward()
        return value

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return System(
        f"TMS {name}", "superposition", model.float(), nn.MSELoss(), (x, y), level.llc, 1, level.llc, "lambda"
    )
