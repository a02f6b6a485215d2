"""What "auto" does where nothing is set: a sampler that can be trusted, its step size, burn-in and number of draws.

Which sampler is a function of model and data size alone. Where full gradients are affordable it is HMC: accept-reject
makes its step free of bias, and long trajectories reach what SGLD would take a hundred times the gradients for. Else it
is SGNHT on minibatches, in two step sizes within one run, whose value is read off at step size 0. Models too large for
either keep to SGLD with the stated rule (``defaults.py``).

Everything follows from the draws: the same seed gives the same settings. All that is spent here counts as burn-in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from devinterp_fast.sampling.diagnostics import diagnose
from devinterp_fast.sampling.run import Floats, Settings, State, Trace
from devinterp_fast.sampling.samplers import Sampler

Run = Callable[[Settings], Trace]

NATIVE_WORK = 5e11
"""Multiply-adds that a run of the native engine may take; about half a minute of one core."""

TORCH_WORK = 2e10
"""The same of the torch engine, where a call for all chains counts as 2 million at least: its time is Python's."""

CALL = 2e6
ACCEPTANCE = 0.9
"""Of HMC. Higher than what mixes fastest: where curvature varies, a larger step sticks in the narrow places."""
LONGEST = 128  # leapfrog steps
SHORTEST = 8
DRAWS = 400
MOST_DRAWS = 3200
ERROR = 0.025  # of the value, aimed at so that the promised 5 % are met
STEP = 0.2  # of SGNHT, over the stiffness: half of it while it burns in, then it and a quarter of it
EXPLORING = 0.005  # its friction while it burns in: chains go far, heated by their batches' noise
FRICTION = 0.03  # when it counts
_TRIES = 3
_ROUND = 10  # trajectories between two changes of the step
_FIRST = 40  # trajectories, or tens of steps, before the first look
_LOOKS = 5  # at twice the length each
_MOST_LOOKS = 7  # where chains still spread
_LEAST_LOOKS = 4
_FREE = 0.98  # above this acceptance the step is too small for it to say by how much
_RHAT = 1.1
_NO_CHANCE = 0.01  # at an acceptance of 0.9 on a Gaussian it is once in 10^60 trajectories
_HOPELESS = 20.0


@dataclass(frozen=True)
class Budget:
    """What a run may cost: multiply-adds of one sample's gradient, of one call beside that, and in all."""

    sample: float
    call: float
    work: float

    def gradients(self, samples: int, chains: int) -> int:
        """How many gradients each chain may take, on so many samples."""
        return int(self.work / (self.call + self.sample * samples * chains))


def leapfrog_limit(budget: Budget, samples: int, chains: int) -> int:
    """The longest mean trajectory that a run of HMC can afford; 0 where it cannot.

    About 1,000 trajectories, of burn-in and draws, at the budget's full gradients.
    """
    most = budget.gradients(samples, chains) // 1000
    return 0 if most < SHORTEST else min(most, LONGEST)


def hmc(run: Run, settings: Settings, stiffness: float, limit: int, gradients: int) -> Settings:
    """HMC that is ready to draw: step size by acceptance, trajectories as long as they may be, drift gone.

    Trajectories double in length with the burn-in's, up to ``limit``: what short ones cannot reach shows as drift when
    they grow. The burn-in ends when two looks in a row see none, of the loss nor of the distance from where the chains
    began, which grows long after the loss where directions are nearly flat; after 320 trajectories, or at most after
    half of the gradients.

    Args:
        run: runs settings.
        settings: of the run; chains, targets and seed are taken from it.
        stiffness: largest nbeta h + localization known.
        limit: of the mean trajectory.
        gradients: that each chain may take in all.
    """
    state: State | None = None
    name = "mala" if settings.sampler.name == "mala" else "hmc"
    leapfrog, calm = min(SHORTEST, limit), 0
    lr = np.full(settings.chains, 0.25 / stiffness)
    history: list[Floats] = []
    distance: list[float] = []
    begin: torch.Tensor | None = None
    spent = 0
    targets = _targets(settings)
    for look in range(_MOST_LOOKS):
        sampler = replace(settings.sampler, name=name, leapfrog=leapfrog)
        trajectories = _ROUND * len(history) or _FIRST
        if look >= _LOOKS and spent + trajectories * leapfrog > gradients // 2:
            break
        spent += trajectories * leapfrog
        for _ in range(trajectories // _ROUND):
            piece = replace(settings, draws=_ROUND, burn_in=0, thin=1, lr=lr, sampler=sampler, start=state)
            trace = run(piece)
            state, chance = trace.state, np.nan_to_num(trace.gauge)
            history.append(settings.nbeta[:, None] * (trace.loss - trace.baseline))
            assert state is not None
            begin = state.w.mean(0) if begin is None else begin
            distance.append(float((state.w - begin).square().sum(1).mean()))
            lr = lr * _regulated(chance, targets)
        regulated = float(chance.mean()) < _FREE
        spreading = _drifts(np.array(distance), 3, 0.05)
        calm = calm + 1 if regulated and settled(history) and not spreading else 0
        if look >= _LEAST_LOOKS - 1 and (calm >= 2 or (look >= _LOOKS - 1 and not spreading)):
            break
        leapfrog = min(2 * leapfrog, limit)
    draws = _draws_needed(np.concatenate(history[len(history) // 2 :], axis=1))
    draws = max(DRAWS, min(draws, (gradients - spent) // leapfrog))
    return replace(
        settings, draws=draws, burn_in=0, thin=1, lr=lr, start=state,
        sampler=replace(settings.sampler, name=name, leapfrog=leapfrog),
    )  # fmt: skip


def _regulated(chance: Floats, targets: list[np.ndarray]) -> Floats:
    """The factor on each chain's lr: chains of one target share theirs.

    A trajectory with no chance at all met a place where the step is unstable. Chains that cannot enter such places read
    low by what lies there, at any mean acceptance, so these count ``_HOPELESS`` times: about 0.5 % of them are left.

    Shape:
        chance: (chains, trajectories), of acceptance.
    """
    factor = np.ones(len(chance))
    for chains in targets:
        rate = float(chance[chains].mean())
        hopeless = float((chance[chains] < _NO_CHANCE).mean())
        push = math.exp(max(rate - ACCEPTANCE - _HOPELESS * hopeless, -1.4))
        factor[chains] = 0.25 if rate < 0.2 else 2.0 if rate > _FREE and not hopeless else push
    return factor


def _targets(settings: Settings) -> list[np.ndarray]:
    """The chains that sample the same density."""
    rows = np.stack([settings.nbeta, settings.localization], 1)
    _, group = np.unique(rows, axis=0, return_inverse=True)
    return [np.flatnonzero(group.reshape(-1) == k) for k in range(group.max() + 1)]


def sgnht(
    run: Run, settings: Settings, stiffness: float, steps: int, stiffness_at: Callable[[torch.Tensor], float]
) -> Settings:
    """SGNHT ready to draw: burnt in at low friction, cooled at its own, half of the chains at a quarter of the step.

    The burn-in ends when two looks in a row see no drift, at a third of all steps at the latest. Low friction
    carries chains far along what is nearly flat; the noise of their batches, which it does not damp, heats what is
    stiff, and the cooling takes that back. Steps follow the largest stiffness that chains have met. The friction of a
    sampler given with one of its own is kept.

    Args:
        run: runs settings.
        settings: of the run; chains, targets and seed are taken from it.
        stiffness: largest nbeta h + localization known.
        steps: that each chain may take in all.
        stiffness_at: the same where a chain is: w (dim) -> nbeta h + localization.
    """
    own = settings.sampler.friction
    drawing = replace(settings.sampler, name="sgnht", friction=FRICTION if own is None else own)
    burning = replace(drawing, friction=min(EXPLORING, drawing.damping))
    state: State | None = None
    history: list[Floats] = []
    calm, spent, look, met = 0, 0, 10 * _FIRST, 0.0
    while spent + look <= steps // 3 and calm < 2:
        lr = np.full(settings.chains, STEP / 2 / stiffness)
        for _ in range(4):
            piece = replace(
                settings, draws=look // 4, burn_in=0, thin=1, lr=lr, sampler=burning, start=state,
            )  # fmt: skip
            trace = run(piece)
            if _ran_away(trace, settings):  # the step was too large for where they went: from the center again
                history, state, calm = [], None, 0
                met = stiffness = 4 * stiffness
                break
            state = trace.state
            history.append(settings.nbeta[:, None] * (trace.loss - trace.baseline))
        spent += look
        if state is not None:
            met = stiffness = max(met, *(stiffness_at(w) for w in state.w))
            calm = calm + 1 if settled(history) else 0
            look *= 2
    cool = max(spent // 2, 10 * _FIRST)
    uniform = len(_targets(settings)) == 1 and settings.chains >= 4
    small = uniform & (np.arange(settings.chains) % 2 == 1)
    for _ in range(_TRIES):
        lr = np.where(small, STEP / 4, STEP) / stiffness
        trace = run(replace(settings, draws=cool, burn_in=0, thin=1, lr=lr, sampler=drawing, start=state))
        if not _ran_away(trace, settings):
            break
        stiffness *= 4
    late = settings.nbeta[:, None] * (trace.loss - trace.baseline)[:, cool // 2 :]
    needed = 4 * _draws_needed(late[(trace.diverged < 0)], 1)  # two step sizes cost 34 / 9 of the variance
    count = max(2 * cool, min(needed, steps - spent - cool))
    thin = max(1, count // 1000)
    return replace(settings, draws=count // thin, burn_in=cool, thin=thin, sampler=drawing, start=trace.state, lr=lr)


def _ran_away(trace: Trace, settings: Settings) -> bool:
    """Whether a chain has a loss that is no sample of the posterior: not finite, or above 10 for each coordinate."""
    scaled = settings.nbeta[:, None] * (trace.loss - trace.baseline)
    dim = 0 if trace.state is None else trace.state.w.shape[1]
    return bool((trace.diverged >= 0).any() or not (scaled < 10 * dim).all())


def settled(history: list[Floats]) -> bool:
    """Whether the second half of what was seen lies where the quarter before it did.

    Within two standard errors of the difference, taken from the spread of the rounds, or within 1 % of the value; and
    whether the chains agree.

    Shape:
        history: rounds of (chains, draws).
    """
    if not all(np.isfinite(r).any() for r in history) or _drifts(np.array([np.nanmean(r) for r in history])):
        return False
    late = np.concatenate(history[len(history) // 2 :], axis=1)
    return not diagnose(late[np.isfinite(late).all(1)]).rhat > _RHAT


def _drifts(rounds: Floats, errors: float = 2, share: float = 0.01) -> bool:
    """Whether the mean of the second half differs from that of the quarter before it. Shape: (rounds,)."""
    half = len(rounds) // 2
    if half - half // 2 < 2:  # too few to tell
        return True
    before, after = rounds[half // 2 : half], rounds[half:]
    error = math.sqrt(before.var(ddof=1) / len(before) + after.var(ddof=1) / len(after))
    return bool(abs(after.mean() - before.mean()) > max(errors * error, share * abs(after.mean())))


def _draws_needed(scaled: Floats, least: int = DRAWS) -> int:
    """Draws of each chain for a standard error of 2.5 % of the value, judged by those of a pilot."""
    scaled = scaled[np.isfinite(scaled).all(1)]
    error = diagnose(scaled).mcse if len(scaled) else math.nan
    value = abs(float(scaled.mean())) if len(scaled) else 0.0
    if not (error > 0 and value > 0):
        return least
    needed = scaled.shape[1] * (error / (ERROR * value)) ** 2
    return int(min(max(least, needed), MOST_DRAWS))


def automatic(sampler: Sampler, budget: Budget, n: int, batch_size: int, chains: int) -> tuple[str, int]:
    """Which sampler "auto" is, and its limit: ("hmc", leapfrog steps), ("sgnht", steps) or ("sgld", 0).

    Args:
        sampler: settings that the choice must respect.
        budget: of the run.
        n: samples of the data.
        batch_size: of a minibatch.
        chains: how many.
    """
    limit = leapfrog_limit(budget, n, chains)
    if limit and not sampler.control_variate:
        return "hmc", limit
    steps = min(budget.gradients(batch_size, chains), 40_000)
    return ("sgnht", steps) if steps >= 4000 else ("sgld", 0)


def limit(sampler: str | Sampler, budget: Budget, n: int, batch_size: int, chains: int) -> int:
    """The limit of ``automatic`` for a sampler that was asked for, affordable or not; arguments as there."""
    if isinstance(sampler, Sampler) and sampler.name == "hmc":
        return sampler.leapfrog
    if sampler == "hmc":
        return max(SHORTEST, leapfrog_limit(budget, n, chains))
    return max(4000, min(budget.gradients(batch_size, chains), 40_000))
