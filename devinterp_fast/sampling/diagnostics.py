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

from devinterp_fast.sampling.run import Settings, Trace
from devinterp_fast.sampling.samplers import LANGEVIN

Floats = npt.NDArray[np.float64]

_BLOCKS = 1000
_LEAST_DRAWS = 4
_AWAY = 1e3
_CHANCE = 6.4e-5  # of 4 standard errors, both sides
DOUBT = 4.0  # standard errors


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


def diagnose(draws: Floats, targets: npt.NDArray[np.int64] | None = None, share: float = 1.0) -> Diagnostics:
    """Diagnoses the mean of a quantity.

    Args:
        draws: of the quantity.
        targets: which chains ought to agree: those of one number. None: all. R-hat is the largest of any target, and
            the spread between targets is no error.
        share: variance of the weighted mean that is wanted over that of the plain mean: chains sum of weights^2.

    Shape:
        draws: (chains, draws), finite; targets: (chains,).

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
    groups = [np.arange(chains)] if targets is None else [np.flatnonzero(targets == k) for k in np.unique(targets)]
    each = [_number(array_stats.rhat, means[group]) for group in groups if len(group) > 1]
    rhat = max((r for r in each if not math.isnan(r)), default=math.nan)
    center = means.mean()
    for group in groups if len(groups) > 1 else ():
        means[group] += center - means[group].mean()
    ess = min(_number(array_stats.ess, means, method="mean") * per_block, float(chains * count))
    mcse = _number(array_stats.mcse, means, method="mean") * math.sqrt(share)
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


def leaving(draws: Floats, doubt: Diagnostics) -> str:
    """How chains leave the weights for lower loss, in words; "" if they stay.

    Args:
        draws: of nbeta (L(w) - L(w0)).
        doubt: of their mean.

    Shape:
        draws: (chains, draws), finite.
    """
    mean = float(draws.mean())
    below = mean / doubt.mcse if doubt.mcse > 0 else 0.0
    if below < -DOUBT:
        return f"the chains' mean loss lies {-below:.0f} standard errors below the loss at the model's weights"
    if mean < 0 and doubt.drift < -DOUBT:
        return f"the chains' loss is still falling ({-doubt.drift:.0f} standard errors from first to second half)"
    if every_chain_falls(draws):
        return "every chain's loss lies below the loss at the model's weights and is still falling"
    return ""


def step_biases(trace: Trace, settings: Settings, scaled: Floats) -> Floats:
    """By how much a chain's step size raises its value.

    SGLD, in a metric G (1 if plain): lr / 8 E[d . G nbeta g] 2 / k, where k = E[(w - center) . nbeta g] / E[nbeta L] is
    the power that the loss grows with (Euler). Exact for a quadratic (k = 2) at every stable step, with batch noise,
    and to first order in the step where L is homogeneous of any degree, flat directions aside. With momentum: the share
    by which batch noise heats the chain, value (1 - 1 / mean p^2). With accept-reject: 0.

    Args:
        trace: of the run.
        settings: of the run.
        scaled: nbeta (L(w_t) - L(w0)).

    Shape:
        scaled: (chains, draws); returns (chains,).

    Source:
        The stationary E|w - center|^2 of Euler's method does not change in a step, which gives
        E[d . (w - center)] = dim + lr / 4 E[d . d]; Talay, Tubaro (1990) for the first order in general.
    """
    if settings.sampler.corrected:
        return np.zeros(len(scaled))
    value: Floats = scaled.mean(1)
    if settings.sampler.kind == LANGEVIN:
        heat: Floats = trace.gauge.mean(1)
        excess: Floats = value * (1 - 1 / np.maximum(heat, 1e-3))
        return excess
    raised: Floats = settings.lr / 8 * trace.energy.mean(1)
    taken = np.isfinite(trace.gauge)
    seen = np.where(taken, scaled, np.nan)
    if not taken.any(1).all():
        return raised
    virial, loss = np.nanmean(trace.gauge, 1), np.nanmean(seen, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        power = virial / loss
    # Above a minimum both are positive; elsewhere, or by chance, the quadratic stands in. A loss that grows slower than
    # |w| has no step bias of this kind to speak of.
    steep = np.where((virial > 0) & (loss > 0), np.maximum(power, 1.0), 2.0)
    bias: Floats = raised * 2 / steep
    return bias


def lost_at(trace: Trace, settings: Settings, scaled: Floats, moving: int) -> npt.NDArray[np.int64]:
    """The first step at which each chain was lost, or -1: its loss was not finite, or no sample of the posterior.

    nbeta (L(w) - L(w0)) is about half the dimension at most where the loss is regular, so above a thousand times the
    dimension the dynamics has run away, whatever it does later.

    Args:
        trace: of the run.
        settings: of the run.
        scaled: nbeta (L(w_t) - L(w0)).
        moving: number of moving coordinates.

    Shape:
        scaled: (chains, draws); returns (chains,).
    """
    lost = trace.diverged.copy()
    with np.errstate(invalid="ignore"):
        away = scaled > _AWAY * moving
    for c in np.flatnonzero(away.any(1) & (lost < 0)):
        lost[c] = settings.first_step + settings.burn_in + settings.thin * int(away[c].argmax())
    return lost


def targets_of(settings: Settings, healthy: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """The same number for chains of the same step, temperature and localization.

    Shape:
        healthy: (chains,); returns (healthy chains,).
    """
    rows = np.stack([settings.lr, settings.nbeta, settings.localization], 1)[healthy]
    return np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1)


def extrapolation(settings: Settings, healthy: npt.NDArray[np.bool_]) -> Floats:
    """Weights of the chains' values: a straight line in lr read off at 0 where chains of one target have two steps.

    Shape:
        healthy: (chains,); returns (healthy chains,), of sum 1.
    """
    lr = settings.lr[healthy]
    targets = np.stack([settings.nbeta, settings.localization], 1)[healthy]
    if settings.sampler.corrected or np.ptp(lr) == 0 or np.ptp(targets, axis=0).any():
        return np.full(len(lr), 1 / len(lr))
    off = lr - lr.mean()
    weights: Floats = 1 / len(lr) - lr.mean() * off / (off**2).sum()
    return weights


def reached(trace: Trace, settings: Settings, center: Floats, value: float, moving: int) -> float:
    """How much of the posterior's energy the chains have found: (localization |w - center|^2 + 2 value) / dim.

    E[(w - center) . grad U] = dim of a perfect sampler. The pull's part is what it is at the chains' last step; the
    loss's is 2 value where it grows as the square, and more where it is flatter, so this errs low there. Far below 1,
    directions that localization alone bounds are hardly filled, and what lies along them is not in the value.

    Args:
        trace: of the run.
        settings: of the run.
        center: of the chains.
        value: nbeta (mean L(w_t) - L(w0)).
        moving: number of moving coordinates.

    Returns:
        NaN where the chains' last places are not kept.

    Shape:
        center: (dim,).

    Source:
        Tolman (1918), the equipartition theorem.
    """
    if trace.state is None:
        return math.nan
    away = ((trace.state.w.double().numpy() - center) ** 2).sum(1)
    healthy = np.isfinite(away)
    return float(((settings.localization * away)[healthy].mean() + 2 * value) / moving) if healthy.any() else math.nan
