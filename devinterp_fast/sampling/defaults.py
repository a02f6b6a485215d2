"""Plain, stated rules that stand in for settings left at "auto"; ``warmup.py`` applies those that need a pilot run.

localization: 1. With ``lr`` or ``sampler`` given: 400 draws after 200 steps of burn-in, SGLD, and an "auto" step of
0.2 / (nbeta h + localization), where h is the largest curvature of the mean loss met at the center and at three points
around it, one posterior width away. At that step the stiffest direction's variance is 5 % too wide; ``LLC.step_bias``
estimates what this does to the value, and with ``lr="auto"`` that estimate is taken off.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from devinterp_fast import _native, _reference
from devinterp_fast._flat import Layout
from devinterp_fast.sampling.batches import Data
from devinterp_fast.sampling.objective import Objective

DRAWS = 400
LOCALIZATION = 1.0
STEP = 0.2

_POWER_STEPS = 12
_SAMPLES = 1024
_POINTS = 3


class Curvature:
    """The largest curvature of the mean loss at a point, by power iteration on gradient differences.

    Args:
        model: a private copy; its parameters are moved.
        objective: the loss.
        data: all samples; the first 1,024 are used.
        where: layout of the parameters.
        mask: coordinates that move, or None.
        seed: of the directions.
    """

    def __init__(
        self, model: nn.Module, objective: Objective, data: Data, where: Layout, mask: Tensor | None, *, seed: int
    ):
        self.model, self.objective, self.where, self.seed = model, objective, where, seed
        self.batch = data.select(slice(0, min(data.n, _SAMPLES)))
        self.moves = torch.ones(where.dim, dtype=torch.bool) if mask is None else mask
        own = dict(model.named_parameters())
        self.parameters = [own[name] for name in where.names]
        self.row = where.block(1)[0]
        for parameter, view in zip(self.parameters, where.views(self.row), strict=True):
            parameter.data = view

    def gradient(self, at: Tensor) -> Tensor:
        """Of the mean loss; 0 where nothing moves. Shape: (dim,) -> (dim,)."""
        self.row.copy_(at)
        loss = self.objective.mean(self.model, self.batch)
        grads = torch.autograd.grad(loss, self.parameters, allow_unused=True, materialize_grads=True)
        return torch.cat([g.reshape(-1) for g in grads]) * self.moves

    def direction(self, number: int) -> Tensor:
        """Standard normals where coordinates move. Shape: (dim,)."""
        xi = _reference.normals(number, self.where.dim, seed=self.seed, step=0, stream=_native.PROBES)
        return xi.to(self.where.dtype) * self.moves

    def at(self, point: Tensor, number: int) -> float:
        """The largest curvature at a point, from start direction ``number``. Shape: (dim,)."""
        v = self.direction(number)
        # A difference quotient loses half the digits of the dtype at this distance, which a step size can spare.
        reach = math.sqrt(torch.finfo(self.where.dtype).eps) * max(1.0, float(point.norm()))
        size = 0.0
        for _ in range(_POWER_STEPS):
            v = v / max(float(v.norm()), 1e-30)
            image = (self.gradient(point + reach * v) - self.gradient(point - reach * v)) / (2 * reach)
            size = float(image.norm())
            if not math.isfinite(size) or size == 0.0:
                return 0.0
            v = image
        return size


def stiffness(curvature: Curvature, center: Tensor, *, nbeta: float, localization: float) -> float:
    """Nbeta h + localization, h the largest curvature at the center and at three points around it.

    Curvature at the center alone can be zero where chains meet plenty of it, so it is also taken at three points
    center + xi / sqrt(nbeta h + localization), h growing as it is found.

    Args:
        curvature: of the loss.
        center: of the chains.
        nbeta: inverse temperature times sample count.
        localization: pull to the center.

    Raises:
        ValueError: there is no curvature, and no localization.
    """
    found = nbeta * curvature.at(center, 0) + localization
    for point in range(1, _POINTS + 1):
        # Without curvature or localization the width is unknown: no farther than the default localization allows.
        at = center + curvature.direction(_POINTS + point) / math.sqrt(max(found, LOCALIZATION))
        found = max(found, nbeta * curvature.at(at, point) + localization)
    if found == 0.0:
        raise ValueError("lr: expected a number where neither curvature nor localization sets the step, got 'auto'")
    return found
