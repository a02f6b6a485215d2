"""Plain, stated rules that stand in for settings left at "auto".

draws: 400. burn_in: half the draws. localization: 1. lr: 0.2 / (nbeta h + localization), where h is the largest
curvature of the mean loss met at the center and at three points around it, one posterior width away. At that step
the stiffest direction's variance is 5 % too wide; ``LLC.step_bias`` estimates what this does to the value, and with
``lr="auto"`` that estimate is taken off.
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


def step_size(
    model: nn.Module,
    objective: Objective,
    data: Data,
    where: Layout,
    center: Tensor,
    mask: Tensor | None,
    *,
    nbeta: float,
    localization: float,
    seed: int,
) -> float:
    """The rule for ``lr="auto"``: 0.2 / (nbeta h + localization), h by power iteration on gradient differences.

    Curvature at the center alone can be zero where chains meet plenty of it, so it is also taken at three points
    center + xi / sqrt(nbeta h + localization), h growing as it is found.

    Args:
        model: a private copy; its parameters are moved.
        objective: the loss.
        data: all samples; the first 1,024 are used.
        where: layout of the parameters.
        center: of the chains.
        mask: coordinates that move, or None.
        nbeta: inverse temperature times sample count.
        localization: pull to the center.
        seed: of the directions.

    Raises:
        ValueError: there is no curvature, and no localization.
    """
    batch = data.select(slice(0, min(data.n, _SAMPLES)))
    moves = torch.ones(where.dim, dtype=torch.bool) if mask is None else mask
    own = dict(model.named_parameters())
    parameters = [own[name] for name in where.names]
    row = where.block(1)[0]
    for parameter, view in zip(parameters, where.views(row), strict=True):
        parameter.data = view

    def gradient(at: Tensor) -> Tensor:
        row.copy_(at)
        loss = objective.mean(model, batch)
        grads = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        return torch.cat([g.reshape(-1) for g in grads]) * moves

    def direction(number: int) -> Tensor:
        xi = _reference.normals(number, where.dim, seed=seed, step=0, stream=_native.PROBES)
        return xi.to(where.dtype) * moves

    def curvature(at: Tensor, number: int) -> float:
        v = direction(number)
        # A difference quotient loses half the digits of the dtype at this distance, which a step size can spare.
        reach = math.sqrt(torch.finfo(where.dtype).eps) * max(1.0, float(at.norm()))
        size = 0.0
        for _ in range(_POWER_STEPS):
            v = v / max(float(v.norm()), 1e-30)
            image = (gradient(at + reach * v) - gradient(at - reach * v)) / (2 * reach)
            size = float(image.norm())
            if not math.isfinite(size) or size == 0.0:
                return 0.0
            v = image
        return size

    stiffness = nbeta * curvature(center, 0) + localization
    for point in range(1, _POINTS + 1):
        # Without curvature or localization the width is unknown: no farther than the default localization allows.
        at = center + direction(_POINTS + point) / math.sqrt(max(stiffness, LOCALIZATION))
        stiffness = max(stiffness, nbeta * curvature(at, point) + localization)
    if stiffness == 0.0:
        raise ValueError("lr: expected a number where neither curvature nor localization sets the step, got 'auto'")
    return STEP / stiffness
