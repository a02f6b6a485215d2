"""What a run is told, and what it leaves behind: the same for every engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

Floats = npt.NDArray[np.float64]
See = Callable[[int, slice, Tensor, Floats, Floats], None]
"""see(k, chains, w, loss, baseline): draw k of some chains is recorded; w (count, dim) is where its losses were taken,
valid during the call alone; loss, baseline (count,)."""


@dataclass(frozen=True)
class Settings:
    """What a run needs to know; ``lr``, ``localization`` and ``nbeta`` hold one number for each chain."""

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

    @property
    def steps(self) -> int:
        """Updates of one chain."""
        return self.burn_in + (self.draws - 1) * self.thin + 1

    def draw_at(self, step: int) -> int | None:
        """Which draw a step records, before its update."""
        since = step - self.burn_in
        return since // self.thin if since >= 0 and since % self.thin == 0 else None


@dataclass
class Trace:
    """What the chains left behind.

    Shape:
        loss, baseline: (chains, draws), the batch's mean loss at w_t and at the center; energy: (chains), the mean
        of d . (nbeta g) over the steps after burn-in; diverged: (chains), the first step whose loss was not finite,
        or -1. Draws not reached by an interrupted run are NaN.
    """

    loss: Floats
    baseline: Floats
    energy: Floats
    diverged: npt.NDArray[np.int64]
    interrupted: bool = False

    def recorded(self) -> tuple[npt.NDArray[np.int64], int]:
        """The chains and the number of draws to keep: all of them, unless the run was interrupted.

        Then it is the most draws in all that some chains have in common; a diverged chain counts as finished.
        """
        draws = self.loss.shape[1]
        reached = np.where(self.diverged >= 0, draws, np.isfinite(self.loss).sum(1))
        options = [(np.flatnonzero(reached >= d), int(d)) for d in np.unique(reached) if d > 0]
        return max(options, key=lambda option: len(option[0]) * option[1], default=(np.arange(0), 0))
