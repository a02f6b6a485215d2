"""What a run is told, and what it leaves behind: the same for every engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from devinterp_fast.sampling.samplers import Sampler

Floats = npt.NDArray[np.float64]
See = Callable[[int, slice, Tensor, Floats, Floats], None]
"""see(k, chains, w, loss, baseline): draw k of some chains is recorded; w (count, dim) is where its losses were taken,
valid during the call alone; loss, baseline (count,)."""


@dataclass
class State:
    """Where chains are: all that a run needs to go on.

    Shape:
        w, first, second: (chains, dim), rows 0 where the sampler has none (momenta, or means of g and g^2);
        thermostat: (chains), the friction of each; diverged: (chains), as in ``Trace``.
    """

    step: int
    w: Tensor
    first: Tensor
    second: Tensor
    thermostat: Floats
    diverged: npt.NDArray[np.int64]

    @staticmethod
    def at(center: Tensor, chains: int, sampler: Sampler) -> State:
        """The beginning of a run: every chain at its center, at rest."""
        dim = center.shape[-1]
        first, second = (torch.zeros(chains, dim if has else 0, dtype=center.dtype) for has in sampler.rows)
        w = center.expand(chains, dim).clone(memory_format=torch.contiguous_format)
        return State(0, w, first, second, np.full(chains, sampler.damping), np.full(chains, -1, dtype=np.int64))


@dataclass(frozen=True)
class Settings:
    """What a run needs to know; ``lr``, ``localization`` and ``nbeta`` hold one number for each chain.

    ``start`` is where an earlier run left the chains: its steps count on, so that no noise is drawn twice. ``settled``
    is the step from which a learned metric stands still, None the first draw.
    """

    chains: int
    draws: int
    burn_in: int
    thin: int
    lr: Floats
    localization: Floats
    nbeta: Floats
    batches: str
    batch_size: int
    seed: int
    sampler: Sampler = field(default_factory=Sampler)
    start: State | None = None
    settled: int | None = None

    @property
    def steps(self) -> int:
        """Updates of one chain."""
        return self.burn_in + (self.draws - 1) * self.thin + 1

    @property
    def first_step(self) -> int:
        """Steps taken before this run."""
        return 0 if self.start is None else self.start.step

    @property
    def adapts_until(self) -> int:
        """The step from which a learned metric stands still."""
        return self.first_step + self.burn_in if self.settled is None else self.settled

    def draw_at(self, step: int) -> int | None:
        """Which draw a step records, before its update; steps are counted from the chains' beginning."""
        since = step - self.first_step - self.burn_in
        return since // self.thin if since >= 0 and since % self.thin == 0 else None


@dataclass(frozen=True)
class Goal:
    """Until when a run goes on whose number of draws was left open.

    Attributes:
        mcse: the standard error to reach, as a share of the value.
        most: draws of each chain at which its limit of gradients is spent.
    """

    mcse: float
    most: int

    def allowed(self, value: float) -> float:
        """The standard error to reach: of a value near 0, that of 0.1, below which no coefficient is told apart."""
        return self.mcse * max(abs(value), 0.1)


@dataclass
class Trace:
    """What the chains left behind.

    Shape:
        loss, baseline: (chains, draws), the batch's mean loss at w_t and at the center; energy: (chains, draws),
        d . (nbeta g) of the step (weighted with its metric); gauge: (chains, draws), what tells whether the step is
        right: of SGLD the virial (w - center) . (nbeta g), NaN where it was not taken; with momentum the mean p^2; of
        HMC the probability of acceptance; diverged: (chains), the first step whose loss was not finite, or -1. Draws
        not reached by an interrupted run are NaN.

    ``tenth`` is what a few chains did afterwards at a tenth of the localization.
    """

    loss: Floats
    baseline: Floats
    energy: Floats
    gauge: Floats
    diverged: npt.NDArray[np.int64]
    state: State | None = None
    interrupted: bool = False
    tenth: Trace | None = None

    def recorded(self) -> tuple[npt.NDArray[np.int64], int]:
        """The chains and the number of draws to keep: all of them, unless the run was interrupted.

        Then it is the most draws in all that some chains have in common; a diverged chain counts as finished.
        """
        draws = self.loss.shape[1]
        reached = np.where(self.diverged >= 0, draws, np.isfinite(self.loss).sum(1))
        options = [(np.flatnonzero(reached >= d), int(d)) for d in np.unique(reached) if d > 0]
        return max(options, key=lambda option: len(option[0]) * option[1], default=(np.arange(0), 0))


def stretch(settings: Settings, done: Trace | None, draws: int) -> Settings:
    """The settings of a run's next ``draws`` draws, from where ``done`` left its chains."""
    if done is None:
        return replace(settings, draws=draws, settled=settings.adapts_until)
    return replace(settings, draws=draws, burn_in=settings.thin - 1, start=done.state, settled=settings.adapts_until)


def joined(done: Trace | None, more: Trace) -> Trace:
    """A run and its next stretch as one."""
    if done is None:
        return more
    curves: dict[str, Any] = {
        name: np.concatenate([getattr(done, name), getattr(more, name)], 1)
        for name in ("loss", "baseline", "energy", "gauge")
    }
    return replace(more, **curves)
