"""How far a run goes: until its standard error is small enough, and then a little at a tenth of its localization.

Both follow from the draws alone, so a run of one stretch or of many, in one process or several, does the same.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from devinterp_fast.sampling.diagnostics import diagnose
from devinterp_fast.sampling.pooling import part, pooled
from devinterp_fast.sampling.prepare import Prepared
from devinterp_fast.sampling.run import Settings, State, Trace

_SHARE = 4  # of the run: what the chains at a tenth cost beside it
_SPARE = 1.1  # on the draws that the error so far asks for, as that is an estimate itself


def missing(job: Prepared, done: Trace | None) -> int:
    """How many more draws of each chain the run takes next; 0 if it is over.

    Where the number of draws was left open: as many as the standard error so far asks for, at least a quarter and at
    most as many again, until the error is small enough, the gradients are spent or the chains have left.
    """
    have, want = 0 if done is None else done.loss.shape[1], job.settings.draws
    while done is not None and have >= want:
        further = _asked_for(job, *part(done, job.settings, np.arange(job.settings.chains), want))
        if further == 0:
            return 0
        want += further
    return want - have


def _asked_for(job: Prepared, trace: Trace, settings: Settings) -> int:
    if job.goal is None or settings.draws >= job.goal.most:
        return 0
    found = pooled(trace, settings, unbias=job.auto_lr, moving=job.moving)
    allowed = job.goal.allowed(found.value)
    if found.leaves or not found.doubt.mcse > allowed:  # or there is no error to go by
        return 0
    draws = settings.draws
    needed = math.ceil(_SPARE * draws * min((found.doubt.mcse / allowed) ** 2, 2.0)) - draws
    return min(max(needed, draws // 4, 1), draws, job.goal.most - draws)


def at_a_tenth(job: Prepared, done: Trace) -> Settings | None:
    """A quarter as many steps once more, of a quarter of the chains, from where they are, at a tenth of the pull.

    None where it was not asked for, or where chains leave even at the whole pull. The chains are those of the smallest
    step. Their noise is that of later steps; a fifth of them is burn-in.
    """
    settings = replace(job.settings, draws=done.loss.shape[1])
    if not job.tenth or done.state is None:
        return None
    found = pooled(done, settings, unbias=job.auto_lr, moving=job.moving)
    healthy = np.flatnonzero(found.lost < 0)
    if found.leaves or not len(healthy):
        return None
    alike = healthy[settings.lr[healthy] == settings.lr[healthy].min()]
    chains = alike[: max(1, len(healthy) // _SHARE)]
    s = done.state
    state = State(s.step, s.w[chains], s.first[chains], s.second[chains], s.thermostat[chains], s.diverged[chains])
    steps = settings.steps * len(healthy) // (_SHARE * len(chains))
    return replace(
        settings, chains=len(chains), lr=settings.lr[chains], localization=settings.localization[chains] / 10,
        nbeta=settings.nbeta[chains], burn_in=steps // 5, draws=max(1, (steps - steps // 5) // settings.thin),
        start=state, settled=settings.adapts_until,
    )  # fmt: skip


def change_at_a_tenth(job: Prepared, done: Trace) -> tuple[float, float]:
    """By how much the value changes at a tenth of the localization, and the standard error of those chains' mean.

    Compared are chains of the same step, so that what the step does to both drops out. NaN where it was not run.
    """
    if done.tenth is None:
        return math.nan, math.nan
    settings = job.settings
    scaled = settings.nbeta[:, None] * (done.loss - done.baseline)
    healthy = np.isfinite(scaled).all(1) & (done.diverged < 0)
    alike = healthy & (settings.lr == settings.lr[healthy].min()) if healthy.any() else healthy
    weaker = settings.nbeta[0] * (done.tenth.loss - done.tenth.baseline)
    weaker = weaker[np.isfinite(weaker).all(1)]
    if not len(weaker) or not alike.any():
        return math.nan, math.nan
    return float(weaker.mean() - scaled[alike].mean()), diagnose(weaker).mcse
