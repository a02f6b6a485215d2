"""TMS: the toy model of superposition, six features in two hidden dimensions, in its one-sparse limit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from devinterp_fast.changepoint.channel import Channel
from devinterp_fast.errors import ShapeError
from devinterp_fast.transitions.system import (
    Curve,
    Marker,
    check_run,
    check_state,
    read_curves,
    rise,
    squared_error,
)

FEATURES = 6
HIDDEN = 2
LR = 0.05
BATCH = 64
INIT = 0.3
STEPS = 4000
ACTIVE = 0.5  # a column of larger norm represents its feature: those of the critical points have 0 or at least 1
SEED_SHIFT = 3  # so that seed 0 is one of the runs that show the plateau
NODES = 32  # midpoints of the intensity in the probe
NEAR = 0.005  # a run this close to a critical level in loss is at it: SGD's own spread there is about .002
PLATEAU = 200  # steps at a level that make a plateau; runs that only pass 4++ are near it for 30 to 150
COLUMNS = tuple(f"norm {j}" for j in range(FEATURES))


class TMS(nn.Module):
    """f(x) = relu(x WᵀW + b).

    Shape:
        W: (hidden, features); b: (features,); x and f(x): (..., features)

    Source:
        Elhage et al. (2022), Toy Models of Superposition.
    """

    def __init__(self, W: Tensor, b: Tensor) -> None:
        super().__init__()
        if W.ndim != 2 or b.shape != W.shape[1:]:
            raise ShapeError(
                f"W, b: expected shapes (hidden, features) and (features,), got {tuple(W.shape)} and {tuple(b.shape)}"
            )
        self.W = nn.Parameter(W)
        self.b = nn.Parameter(b)

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction of ``x``."""
        return torch.relu((x @ self.W.T) @ self.W + self.b)


def population_loss(W: Tensor, b: Tensor) -> Tensor:
    r"""The exact expected loss for x = λ e_i, i uniform over the features, λ uniform on [0, 1].

    With a = WᵀW, output j answers feature i by relu(a_ji λ + b_j), so

        n L = Σ_ij ∫ relu(a_ji λ + b_j)² dλ - 2 Σ_j ∫ λ relu(a_jj λ + b_j) dλ + n / 3 .

    The integrand is a product of two linear functions on the interval [p, q] where the relu is open, and
    there ∫ uv = (q - p) (2 u_p v_p + u_p v_q + u_q v_p + 2 u_q v_q) / 6. Differentiable twice, except where
    an interval is about to open or close (b_j = 0).

    Shape:
        W: (..., hidden, features); b: (..., features); returns (...)

    Source:
        The limit: Chen, Lau, Mendel, Wei, Murfet (2023), arXiv:2310.06301. The integrals: elementary.
    """
    a = W.transpose(-1, -2) @ W
    bias = b[..., :, None].expand_as(a)
    flat = a == 0
    root = (-bias / torch.where(flat, torch.ones_like(a), a)).clamp(0, 1)
    zero, one = torch.zeros_like(a), torch.ones_like(a)
    p = torch.where(flat, (bias <= 0).to(a), torch.where(a > 0, root, zero))
    q = torch.where(a < 0, root, one)
    u, v, width = a * p + bias, a * q + bias, q - p
    square = (width * (u * u + u * v + v * v) / 3).sum((-1, -2))
    p, q, u, v, width = (torch.diagonal(t, dim1=-2, dim2=-1) for t in (p, q, u, v, width))
    product = (width * (2 * p * u + p * v + q * u + 2 * q * v) / 6).sum(-1)
    n = b.shape[-1]
    return (square - 2 * product) / n + 1 / 3


@dataclass(frozen=True)
class CriticalLevel:
    """A critical point of the population loss, up to rotation and the order of the features.

    ``polygon`` columns of length ``radius`` form a regular polygon, their biases are ``bias``; of the dead
    columns (length 0) ``plus`` have the bias 1/12, each lowering the loss by 1/144, and the others a negative
    one. ``hessian_rank`` and the local learning coefficient ``llc`` = rank / 2 are given where every flat
    direction is exactly flat (one rotation; for each negative dead column its weights and its bias), so that
    the loss is a regular minimum times a flat factor; None elsewhere: with b = 0 the relu has its kink there.
    """

    name: str
    polygon: int
    plus: int
    loss: float
    radius: float
    bias: float
    hessian_rank: int | None
    llc: float | None

    def weights(self) -> tuple[Tensor, Tensor]:
        """One representative, float64: W (2, 6) and b (6,); negative dead biases are -1/2."""
        return _polygon(
            self.polygon,
            self.plus,
            torch.tensor(self.radius, dtype=torch.float64),
            torch.tensor(self.bias, dtype=torch.float64),
        )


def _polygon(k: int, plus: int, radius: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    angle = torch.arange(k, dtype=torch.float64) * (2 * math.pi / k)
    directions = torch.zeros(HIDDEN, FEATURES, dtype=torch.float64)
    directions[0, :k], directions[1, :k] = angle.cos(), angle.sin()
    alive = torch.zeros(FEATURES, dtype=torch.float64)
    alive[:k] = 1
    dead = torch.zeros(FEATURES, dtype=torch.float64)
    dead[k : k + plus], dead[k + plus :] = 1 / (2 * FEATURES), -0.5
    return radius * directions, bias * alive + dead


@torch.enable_grad()
def _solve_polygon(k: int) -> tuple[float, float]:
    """Radius and bias of the k-gon: (1, 0) up to four columns, Newton on the exact loss beyond."""
    if k <= 4:  # angles of 90° and more: the columns do not interfere, the reconstruction is perfect
        return 1.0, 0.0
    point = torch.tensor({5: [1.17, -0.28], 6: [1.32, -0.62]}[k], dtype=torch.float64)

    def loss(z: Tensor) -> Tensor:
        return population_loss(*_polygon(k, 0, z[0], z[1]))

    for _ in range(8):  # quadratic convergence from three digits: five steps reach rounding
        z = point.requires_grad_()
        (gradient,) = torch.autograd.grad(loss(z), z, create_graph=True)
        hessian = torch.stack([torch.autograd.grad(g, z, retain_graph=True)[0] for g in gradient])
        point = (z - torch.linalg.solve(hessian, gradient)).detach()
    return float(point[0]), float(point[1])


@lru_cache(maxsize=1)
def critical_levels() -> dict[str, CriticalLevel]:
    """The critical levels "2----" ... "6" by name, in falling order of loss.

    A name is the number of active columns, then one ``+`` or ``-`` for each dead column by the sign of its
    bias. One active column is left out: beside a positive dead column it is not critical.

    Source:
        The configurations and their names: Chen, Lau, Mendel, Wei, Murfet (2023), arXiv:2310.06301.
    """
    ranks = {"5-": 14, "5+": 17, "6": 17}
    levels = []
    for k in range(2, FEATURES + 1):
        radius, bias = _solve_polygon(k)
        for plus in range(FEATURES - k + 1):
            name = f"{k}{'+' * plus}{'-' * (FEATURES - k - plus)}"
            W, b = _polygon(k, plus, *torch.tensor([radius, bias], dtype=torch.float64))
            rank = ranks.get(name)
            llc = None if rank is None else rank / 2
            loss = float(population_loss(W, b))
            levels.append(CriticalLevel(name, k, plus, loss, radius, bias, rank, llc))
    return {level.name: level for level in sorted(levels, key=lambda level: -level.loss)}


def midpoint_probe() -> tuple[Tensor, Tensor]:
    """Inputs λ e_i for every feature and 32 midpoints of [0, 1]: a data set that stands for the population.

    Its mean loss is the population loss up to h² / 24 ∫|∂²r²| + h² / 8 Σ|kinks| per residual r, h = 1/32;
    at the critical points the two differ by less than .00006.

    Shape:
        two times the same (192, 6) float32: input and target
    """
    nodes = (torch.arange(NODES, dtype=torch.float32) + 0.5) / NODES
    x = torch.kron(torch.eye(FEATURES, dtype=torch.float32), nodes[:, None]).contiguous()
    return x, x.clone()


def plateaus(steps: Curve, loss: Curve, active: Curve) -> list[tuple[int, int, CriticalLevel]]:
    """Where a run waits at a critical level: (first, last) observation and the level, in order.

    An observation is at a level if its loss is within .005 of it and it has as many active columns; of
    several such levels the nearest counts. A plateau lasts 200 steps or more, from its first to its last
    observation at that level without one at another level between.
    """
    levels = list(critical_levels().values())
    value = np.array([level.loss for level in levels])
    columns = np.array([level.polygon for level in levels])
    far = np.abs(loss[:, None] - value) + np.where(active[:, None] == columns, 0.0, np.inf)
    nearest = np.where(far.min(1) < NEAR, far.argmin(1), -1)
    seen = np.flatnonzero(nearest >= 0)
    runs = np.split(seen, np.flatnonzero(np.diff(nearest[seen])) + 1)
    return [
        (int(run[0]), int(run[-1]), levels[int(nearest[run[0]])])
        for run in runs
        if run.size and steps[run[-1]] - steps[run[0]] >= PLATEAU
    ]


class ToyModelsOfSuperposition:
    """TMS trained by plain SGD on fresh one-sparse samples: x = λ e_i, i uniform, λ uniform on [0, 1].

    The run falls fast to four active columns and two dead ones (4++, loss .0972), waits there, and then a
    fifth column switches on (5+, loss .0618). How long it waits is luck: of 48 seeds counted over 4,000
    steps, 11 stay within .005 of .0972 for 250 steps or more before they leave, 31 pass it by without a
    plateau to see, and 6 have not left. Seed 0 is one of the 11. Initial weights of width .1 to .4 give the
    same shares.

    The weights SGD leaves on the plateau are not quite a critical point, and the way down is near: there an
    LLC estimate escapes and must say so. At the end of the run it is close to the exact 8.5.

    Args:
        seed: 0 to 2⁶³ - 1; same seed, same bits.
        steps: length of the run; 4,000 by default.

    Raises:
        ValueError: ``seed`` is out of range or ``steps`` below 1.

    Source:
        Elhage et al. (2022); Chen, Lau, Mendel, Wei, Murfet (2023), arXiv:2310.06301.
    """

    name = "tms"
    title = "Toy models of superposition, n = 6, m = 2: four columns, a plateau (in a quarter of the seeds), five"
    skip = 10  # plain SGD has no warm-up; ten steps keep the first falling of the biases out

    def __init__(self, seed: int = 0, steps: int | None = None) -> None:
        self.steps = STEPS if steps is None else steps
        check_run(seed, self.steps)
        self._generator = torch.Generator().manual_seed(seed + SEED_SHIFT)
        W = INIT * torch.randn(HIDDEN, FEATURES, generator=self._generator, dtype=torch.float32)
        self._net = TMS(W, torch.zeros_like(W[0]))
        self.model: nn.Module = self._net
        self.loss_fn: Callable[[Tensor, Tensor], Tensor] = squared_error
        self.probe: tuple[Tensor, ...] = midpoint_probe()
        self.channels = {"loss": Channel("loss")}
        self.channels |= {name: Channel("marker") for name in (*COLUMNS, "active", "distance")}
        self.llc: dict[str, object] = {
            "nbeta": 1e4,  # the loss is exact, there is no n: cold enough for the 5- and 6-gon
            "lr": 2e-5,  # nbeta * 2 (the largest curvature) * lr / 4 = .1: a step bias of a tenth there
            "localization": 100.0,  # 5+ and 6 then read 8.4 and 8.3, exact 8.5; 1,000 takes a quarter off
            "chains": 8,
            "burn_in": 300,  # the curvatures that count, above .05, relax in 2 / (lr * 600) = 170 steps
            "draws": 500,  # s.e. .3 over eight chains
            "batch_size": len(self.probe[0]),  # the whole probe: no batch noise
        }

    def train_step(self, step: int) -> None:
        """One step of SGD on 64 fresh samples, the gradient written out: autograd costs several times it."""
        W, b = self._net.W.data, self._net.b.data
        feature = torch.randint(FEATURES, (BATCH, 1), generator=self._generator)
        intensity = torch.rand(BATCH, 1, generator=self._generator, dtype=torch.float32)
        x = intensity.new_zeros(BATCH, FEATURES).scatter_(1, feature, intensity)
        hidden = x @ W.T
        z = hidden @ W + b
        d = (z.relu() - x) * (z > 0) * (2 / BATCH)
        W -= LR * (hidden.T @ d + (d @ W.T).T @ x)
        b -= LR * d.sum(0)

    @torch.no_grad()
    def observe(self, model: nn.Module) -> dict[str, float]:
        """The exact population loss and the column norms of ``model``, in float64.

        ``active`` counts the columns of norm above 1/2; ``distance`` is the least |loss - critical level|.
        """
        W, b = (p.detach().double() for p in (model.get_parameter("W"), model.get_parameter("b")))
        loss = float(population_loss(W, b))
        norms = W.norm(dim=0).tolist()
        distance = min(abs(loss - level.loss) for level in critical_levels().values())
        active = float(sum(norm > ACTIVE for norm in norms))
        return {
            "loss": loss,
            **dict(zip(COLUMNS, norms, strict=True)),
            "active": active,
            "distance": distance,
        }

    def truth(self, steps: Sequence[int], curves: Mapping[str, Any]) -> list[Marker]:
        """One marker for two successive plateaus: 10, 50 and 90 % of the exact step between their levels.

        A plateau is a wait at a critical level, see ``plateaus``. The midpoint is the loss's first crossing
        of the level halfway, onset and end are the crossings nearest to it (SGD returns to a level several
        times). Where the number of columns changes, the one whose norm changed most is named; 4+- -> 4++ and
        5- -> 5+ are the change of a bias alone, slow and small: .007 in loss.

        Raises:
            ValueError: a curve is absent.
            ShapeError: a curve has another length than ``steps``.
        """
        x, rows = read_curves(steps, curves, ("loss", "active", *COLUMNS))
        loss, norms = rows[0], rows[2:]
        waits = plateaus(x, loss, rows[1])
        markers = []
        for (first, left, a), (reached, _, b) in pairwise(waits):
            times = rise(x, (loss - a.loss) / (b.loss - a.loss), first)
            if times is not None:
                column = int(np.abs(norms[:, reached] - norms[:, left]).argmax())
                switched = f" (column {column})" if a.polygon != b.polygon else ""
                markers.append(Marker(f"{a.name} -> {b.name}{switched}", *times))
        return markers

    def state_dict(self) -> dict[str, Tensor]:
        """W, b and the generator's state."""
        return {
            "W": self._net.W.detach().clone(),
            "b": self._net.b.detach().clone(),
            "generator": self._generator.get_state(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from ``state``, a ``state_dict`` of this system.

        Raises:
            ValueError: other names; ShapeError, DTypeError: other tensors.
        """
        check_state(state, self.state_dict())
        self._net.W.copy_(state["W"])
        self._net.b.copy_(state["b"])
        self._generator.set_state(state["generator"])
