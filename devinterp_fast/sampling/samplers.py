"""The samplers by name, and what each of them may be told.

All sample exp(-U), U = nbeta L + (localization / 2) |w - center|^2, with gradient d. A step size is ``lr`` for each of
them: those with momentum move by h = sqrt(lr), so that one step's noise is as large as SGLD's. Equations of the steps:
``csrc/core/update.hpp``; the plain form: ``_reference.py``; stability and bias: the page on samplers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

SGLD, LANGEVIN, PRECONDITIONED, HMC = range(4)
KINDS = {
    "sgld": SGLD,
    "rmsprop_sgld": PRECONDITIONED,
    "adam_sgld": PRECONDITIONED,
    "sghmc": LANGEVIN,
    "sgnht": LANGEVIN,
    "mala": HMC,
    "hmc": HMC,
}
"""Names, and which of the four native steps each is."""


@dataclass(frozen=True)
class Sampler:
    """A sampler and its settings; ``estimate_llc(sampler=...)`` takes one, or just a name.

    Attributes:
        name: "sgld", "rmsprop_sgld", "adam_sgld", "sghmc", "sgnht", "mala" or "hmc".
        leapfrog: mean number of leapfrog steps of an "hmc" trajectory; a trajectory's own is uniform in
            ceil(leapfrog / 2) ... floor(3 leapfrog / 2). "mala" has 1.
        friction: of "sghmc" and "sgnht", the share of its momentum that a chain loses in a step; None is 0.1, or with
            a calibrated step size what calibration finds fit.
        inertia: of the thermostat of "sgnht", in steps: friction += (mean p^2 - 1) / inertia.
        beta1: of "adam_sgld": decay of the mean gradient a step.
        beta2: of "rmsprop_sgld" and "adam_sgld": decay of the mean squared gradient a step.
        epsilon: their metric is 1 / (sqrt(mean squared gradient) + epsilon).
        adapt: whether the metric goes on adapting after burn-in. It then moves with w, and the drift that this asks for
            is left out, as is usual: the samples are biased. If it is held, they are not.
        control_variate: the gradient is g_B(w) - g_B(center) + g(center), the last over all samples: of little noise
            near the center, at twice the cost.
        box: each coordinate stays within this distance of its center: clamped, or for "mala" and "hmc" rejected.

    Units:
        friction, beta1, beta2: shares a step; inertia: steps; box: as weights.

    Raises:
        ValueError: a setting is out of range.

    Source:
        Welling, Teh (2011), SGLD; Li, Chen, Carlson, Carin (2016), RMSprop; Chen, Fox, Guestrin (2014), SGHMC, as the
        BAOAB splitting of Leimkuhler, Matthews (2013); Ding et al. (2014), SGNHT; Neal (2011), HMC.
    """

    name: str = "sgld"
    leapfrog: int = 16
    friction: float | None = None
    inertia: float = 100.0
    beta1: float = 0.9
    beta2: float = 0.99
    epsilon: float = 0.1
    adapt: bool = False
    control_variate: bool = False
    box: float = math.inf

    def __post_init__(self) -> None:
        if self.name not in KINDS:
            raise ValueError(f"sampler: expected one of {tuple(KINDS)}, got {self.name!r}")
        if isinstance(self.leapfrog, bool) or not isinstance(self.leapfrog, int) or self.leapfrog < 1:
            raise ValueError(f"leapfrog: expected an integer of at least 1, got {self.leapfrog!r}")
        for key, low, high in (("friction", 0, 2), ("beta1", 0, 1), ("beta2", 0, 1)):
            value = getattr(self, key)
            if value is not None and not low <= value <= high:
                raise ValueError(f"{key}: expected a number from {low} to {high}, got {value!r}")
        for key in ("inertia", "epsilon", "box"):
            if not getattr(self, key) > 0:
                raise ValueError(f"{key}: expected a number above 0, got {getattr(self, key)!r}")
        if self.corrected and self.control_variate:
            raise ValueError(f"control_variate: expected False for {self.name!r}, which takes full gradients, got True")

    @property
    def kind(self) -> int:
        """Which native step."""
        return KINDS[self.name]

    @property
    def corrected(self) -> bool:
        """Whether steps are accepted or rejected, on full batches."""
        return self.kind == HMC

    @property
    def trajectory(self) -> int:
        """Mean gradients of one step."""
        return self.leapfrog if self.name == "hmc" else 1

    @property
    def damping(self) -> float:
        """The friction that runs."""
        return 0.1 if self.friction is None else self.friction

    @property
    def momentum_decay(self) -> float:
        """beta1 of the native step: without Adam the gradient itself."""
        return self.beta1 if self.name == "adam_sgld" else 0.0

    @property
    def thermostat_inertia(self) -> float:
        """Inertia of the native step; 0: no thermostat."""
        return self.inertia if self.name == "sgnht" else 0.0

    @property
    def rows(self) -> tuple[bool, bool]:
        """Whether a chain carries a first and a second vector beside w."""
        return self.kind in (LANGEVIN, PRECONDITIONED), self.kind == PRECONDITIONED
