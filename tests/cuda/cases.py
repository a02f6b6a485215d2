"""All cases, by group."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import cases_detector
import cases_products
import cases_resident
import cases_step
import cases_sums
from case import Case

GROUPS: dict[str, Callable[[], Iterator[Case]]] = {
    "sgld": lambda: cases_step.steps("sgld"),
    "langevin": lambda: cases_step.steps("langevin"),
    "preconditioned": lambda: cases_step.steps("preconditioned"),
    "thermostat": cases_step.thermostat,
    "noise": cases_step.noise,
    "moments": cases_sums.moments,
    "gram": cases_sums.gram,
    "orthogonalize": cases_sums.orthogonalize,
    "normalize": cases_sums.normalize,
    "detector": cases_detector.follow,
    "missing": cases_detector.missing,
    "groups": cases_detector.reduce,
    "resident": cases_resident.resident,
    "products": cases_products.products,
}
