"""How far a mean over chains may be trusted: R-hat, effective sample size, standard error, drift.

All by ArviZ, on at most 1,000 equal-block means of each chain: means of blocks keep the mean and its standard
error, and bound the cost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from arviz_stats.base import array_stats

Floats = npt.NDArray[np.float64]

_BLOCKS = 1000
_LEAST_DRAWS = 4
_CHANCE = 6.4e-5  # of 4 standard errors, both sides


@dataclass(frozen=True)
class Diagnostics:
    """Of the mean of one quantity over chains and draws.

    Attributes:
        mcse: Monte Carlo standard error of the mean; NaN below 4 draws.
        rhat: rank-normalized split R-hat; NaN below 2 chains or 4 draws.
        ess: effective number of draws behind the mean; NaN below 4 draws.
        drift: second half minus first half, in its standard errors; NaN below 8 draws.
    """

    mcse: float
    rhat: float
    ess: float
    drift: float


def block_means(draws: Floats) -> Floats:
    """Means of equal blocks, at most 1,000 a chain; what does not fill a block is left off the front.

    Shape:
        draws: (chains, draws) -> (chains, blocks).
    """
    size = -(-draws.shape[1] // _BLOCKS)
    used = draws.shape[1] // size * size
    means: Floats = draws[:, draws.shape[1] - used :].reshape(len(draws), -1, size).mean(2)
    return means


def _number(function: Any, draws: Floats, **options: Any) -> float:
    with np.errstate(all="ignore"):
        return float(function(draws, chain_axis=0, draw_axis=1, **options))


def diagnose(draws: Floats) -> Diagnostics:
    """Diagnoses the mean of a quantity.

    Shape:
        draws: (chains, draws), finite.

    Source:
        Vehtari, Gelman, Simpson, Carpenter, Bürkner (2021), Bayesian Analysis 16(2); computed by ArviZ.
    """
    chains, count = draws.shape
    if count < _LEAST_DRAWS or chains == 0:
        return Diagnostics(math.nan, math.nan, math.nan, math.nan)
    means = block_means(draws)
    if np.ptp(means) == 0.0:
        return Diagnostics(0.0, math.nan, math.nan, 0.0)
    per_block = count // means.shape[1]
    rhat = _number(array_stats.rhat, means) if chains > 1 else math.nan
    ess = min(_number(array_stats.ess, means, method="mean") * per_block, float(chains * count))
    mcse = _number(array_stats.mcse, means, method="mean")
    return Diagnostics(mcse, rhat, ess, _drift(means))


def _drift(means: Floats) -> float:
    """Change of the mean from the first to the second half, in standard errors of that change."""
    half = means.shape[1] // 2
    if half < _LEAST_DRAWS:
        return math.nan
    first, second = means[:, :half], means[:, -half:]
    error = math.hypot(
        _number(array_stats.mcse, first, method="mean"), _number(array_stats.mcse, second, method="mean")
    )
    return float((second.mean() - first.mean()) / error) if error > 0 else 0.0


def every_chain_falls(draws: Floats) -> bool:
    """Whether every chain lies below zero and falls from its first to its second half.

    A sign test, since chains that run down a slope have errors as large as their fall. Chains around a minimum are
    below zero, or fall, by chance half the time at most: 4^-chains together. Asked for is 4 standard errors, 6e-5,
    so below 7 chains the answer is no.

    Shape:
        draws: (chains, draws), finite.
    """
    chains, count = draws.shape
    if 4.0**-chains > _CHANCE or count < 2 * _LEAST_DRAWS:
        return False
    first, second = draws[:, : count // 2].mean(1), draws[:, -(count // 2) :].mean(1)
    return bool(((draws.mean(1) < 0) & (second < first)).all())
