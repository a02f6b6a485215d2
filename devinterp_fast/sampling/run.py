"""What a run is told, and what it leaves behind: the same for every engine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

Floats = npt.NDArray[np.float64]


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
        of d . (nbeta g) over the steps after burn-in; last: (chains, dim); diverged: (chains), the first step whose
        loss was not finite, or -1.
    """

    loss: Floats
    baseline: Floats
    energy: Floats
    last: Tensor
    diverged: npt.NDArray[np.int64]
