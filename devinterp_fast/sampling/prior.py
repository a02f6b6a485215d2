"""A Gaussian prior over the weights, beside the localization: what it is to an engine, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from devinterp_fast._flat import Layout
from devinterp_fast.errors import ShapeError
from devinterp_fast.sampling.run import Settings, Trace
from devinterp_fast.sampling.samplers import PRECONDITIONED, SGLD

PerParameter = float | Tensor | Mapping[str, float | Tensor]
"""One number; a number for each coordinate, (dim,); or {parameter name: number or tensor like it}, 0 for the others."""


@dataclass(frozen=True, eq=False)
class GaussianPrior:
    """Independent normals over the weights: p(w) ~ exp(-1/2 sum_i precision_i (w_i - center_i)^2).

    ``estimate_llc(prior=...)`` samples exp(-nbeta L) times this and times the localization, which ``localization=0``
    takes away. A prior of one precision runs in every engine: two Gaussians make one, of precision localization +
    precision around the mean of their centers. One of several precisions runs in the torch engine.

    Attributes:
        precision: one over the variance: a number, (dim,) or {parameter name: number or tensor}, 0 where not named.
        center: where it is widest: likewise, at 0 where not named; None is the model's weights.

    Units:
        precision: one over squared weights; center: as weights.
    """

    precision: PerParameter
    center: PerParameter | None = None


class Pull:
    """A prior laid out as chains are.

    Args:
        prior: of the user.
        where: layout of the parameters.
        weights: the model's, (dim,).

    Attributes:
        precision: float64 (dim,).
        uniform: whether it is one number.

    Raises:
        ValueError: a precision is negative or not finite, or a name is no parameter's.
        ShapeError: a tensor does not fit.
    """

    def __init__(self, prior: GaussianPrior, where: Layout, weights: Tensor):
        self.weights = weights.double()
        self.precision = _rows("precision", prior.precision, where)
        self.prior_center = self.weights if prior.center is None else _rows("center", prior.center, where)
        if not torch.isfinite(self.precision).all() or bool((self.precision < 0).any()):
            raise ValueError("precision: expected finite numbers of at least 0, got others")
        if not torch.isfinite(self.prior_center).all():
            raise ValueError("center: expected finite numbers, got others")
        self.uniform = bool((self.precision == self.precision[0]).all())

    @property
    def stiffness(self) -> float:
        """The largest curvature that it adds."""
        return float(self.precision.max())

    def strength(self, settings: Settings) -> Tensor:
        """Of localization and prior together: float64 (chains,), or (chains, dim) where precisions differ."""
        localization = torch.from_numpy(settings.localization)
        return localization + self.precision[0] if self.uniform else localization[:, None] + self.precision

    def center(self, settings: Settings) -> Tensor:
        """Where the two together pull to: float64 (chains, dim); the weights where neither pulls."""
        localization = torch.from_numpy(settings.localization)[:, None]
        total = localization + self.precision
        away = self.precision * (self.prior_center - self.weights)
        return self.weights + torch.where(total > 0, away / total, torch.zeros_like(total))


def forget_virial(trace: Trace, settings: Settings) -> None:
    """Takes out of a trace what tells the power that the loss grows with, as it was not taken around the weights."""
    if settings.sampler.kind in (SGLD, PRECONDITIONED):
        trace.gauge[:] = np.nan


def _rows(name: str, value: PerParameter, where: Layout) -> Tensor:
    if isinstance(value, Mapping):
        unknown = sorted(set(value) - set(where.names))
        if unknown:
            raise ValueError(f"{name}: expected names of parameters, got {unknown[0]!r}")
        row = torch.zeros(1, where.dim, dtype=torch.float64)
        for key, view in zip(where.names, where.views(row), strict=True):
            part = torch.as_tensor(value.get(key, 0.0), dtype=torch.float64)
            if part.dim() and part.shape != view.shape[1:]:
                raise ShapeError(f"{name}: expected {tuple(view.shape[1:])} for {key}, got {tuple(part.shape)}")
            view.copy_(part)
        return row[0]
    each = torch.as_tensor(value, dtype=torch.float64)
    if each.dim() and each.shape != (where.dim,):
        raise ShapeError(f"{name}: expected a number or ({where.dim},), got {tuple(each.shape)}")
    return each.expand(where.dim).clone()
