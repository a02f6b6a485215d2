"""Which steps are looked at: a rule on the step alone, so that it needs neither a clock nor the run's length."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Log-spaced steps and evenly spaced ones together.

    Attributes:
        per_decade: how many steps of each factor of ten are due; 0 for none.
        every: each multiple of this is due; 0 for none.

    Raises:
        ValueError: both are 0, or one is negative.
    """

    per_decade: int = 40
    every: int = 10

    def __post_init__(self) -> None:
        if self.per_decade < 0 or self.every < 0 or self.per_decade == self.every == 0:
            raise ValueError(
                "schedule: expected per_decade and every of at least 0 and one above 0, "
                f"got per_decade={self.per_decade}, every={self.every}"
            )

    def due(self, step: int) -> bool:
        """Whether a step is looked at; step 0 always is."""
        if step == 0 or (self.every and step % self.every == 0):
            return True
        if step == 1 or not self.per_decade:
            return step == 1 and self.per_decade > 0
        return math.floor(self.per_decade * math.log10(step)) > math.floor(self.per_decade * math.log10(step - 1))
