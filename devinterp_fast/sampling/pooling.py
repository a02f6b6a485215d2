"""The value that a run's losses give: which chains count, what their steps did, and how they are weighed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from devinterp_fast.sampling.diagnostics import (
    Diagnostics,
    diagnose,
    extrapolation,
    leaving,
    lost_at,
    step_biases,
    targets_of,
)
from devinterp_fast.sampling.run import Floats, Settings, Trace
from devinterp_fast.sampling.samplers import PRECONDITIONED, SGLD


@dataclass(frozen=True)
class Pooled:
    """What the chains of a run say together.

    Attributes:
        value: the estimate; NaN where every chain was lost.
        plain: the mean over draws and chains that were not lost.
        step_bias: by how much the steps raise ``plain``.
        leaves: how the chains leave for lower loss, "" if they stay.
        doubt: of ``value``.
        scaled: nbeta (L(w_t) - L(w0)), (chains, draws).
        lost: the first step at which each chain was lost, or -1, (chains,).
        per_chain: the value of each, NaN for a lost one, (chains,).
    """

    value: float
    plain: float
    step_bias: float
    leaves: str
    doubt: Diagnostics
    scaled: Floats
    lost: npt.NDArray[np.int64]
    per_chain: Floats


def pooled(trace: Trace, settings: Settings, *, unbias: bool, moving: int) -> Pooled:
    """Pools the chains.

    Args:
        trace: complete.
        settings: of the run.
        unbias: take the step's bias off: ``lr`` was left to us.
        moving: number of moving coordinates.
    """
    scaled = settings.nbeta[:, None] * (trace.loss - trace.baseline)
    lost = lost_at(trace, settings, scaled, moving)
    healthy = lost < 0
    biases, per_chain = np.full((2, len(scaled)), np.nan)
    if not healthy.any():
        nothing = Diagnostics(np.nan, np.nan, np.nan, np.nan)
        return Pooled(np.nan, np.nan, np.nan, "", nothing, scaled, lost, per_chain)
    kept = scaled[healthy]
    biases[healthy] = step_biases(*part(trace, settings, np.flatnonzero(healthy), scaled.shape[1]), kept)
    taken_off = biases if unbias and settings.sampler.kind in (SGLD, PRECONDITIONED) else np.zeros_like(biases)
    per_chain = np.where(healthy, scaled.mean(1) - taken_off, np.nan)
    weights = extrapolation(settings, healthy) if unbias else np.full(healthy.sum(), 1 / healthy.sum())
    doubt = diagnose(kept, targets_of(settings, healthy), share=float((weights**2).sum() * len(weights)))
    value, plain = float(weights @ per_chain[healthy]), float(kept.mean())
    step_bias = plain - value if np.ptp(weights) > 0 else float(biases[healthy].mean())
    return Pooled(value, plain, step_bias, leaving(kept, doubt), doubt, scaled, lost, per_chain)


def part(trace: Trace, settings: Settings, chains: npt.NDArray[np.int64], draws: int) -> tuple[Trace, Settings]:
    """The first draws of some chains, as if no others had run; a chain lost later was not lost yet."""
    rows = {name: getattr(trace, name)[chains, :draws] for name in ("loss", "baseline", "energy", "gauge")}
    each = {name: getattr(settings, name)[chains] for name in ("lr", "localization", "nbeta")}
    kept = replace(settings, chains=len(chains), draws=draws, **each)
    diverged = trace.diverged[chains]
    if draws < trace.loss.shape[1]:
        diverged = np.where(diverged < settings.first_step + kept.steps, diverged, -1)
    return Trace(**rows, diverged=diverged, tenth=trace.tenth), kept
