"""Curvature on the probe set while a model trains: the escape indicator, and what the Hessian's spectrum says."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from devinterp_fast.changepoint.channel import Channel
from devinterp_fast.curvature.density import spectral_density
from devinterp_fast.curvature.eigen import eigsh
from devinterp_fast.curvature.escape import escape
from devinterp_fast.curvature.operators import hessian
from devinterp_fast.errors import NumericalError
from devinterp_fast.monitor.observables import Observable, Value
from devinterp_fast.monitor.schedule import Schedule
from devinterp_fast.sampling.batches import as_data
from devinterp_fast.sampling.objective import LossFn

TOP = 10
_TOL = 1e-2
_PROBES, _STEPS = 4, 32


def probe_kappa(loss_fn: LossFn, probe: object, model: nn.Module, schedule: Schedule) -> Observable:
    """The escape indicator kappa = g'Hg / g'g and each module's share of it; NaN at a critical point.

    The channels are "kappa" and "kappa MODULE" for every module with trainable parameters of its own. They are
    recorded and not given to a detector: under minibatch noise the plain kappa scatters.
    """
    data = as_data(probe).all()
    modules = sorted({n.rpartition(".")[0] for n, p in model.named_parameters() if p.requires_grad} - {""})
    channels = {"kappa": Channel("marker")} | {f"kappa {name}": Channel("marker") for name in modules}

    def measure(model: nn.Module, step: int) -> Mapping[str, Value]:
        try:
            found = escape(model, loss_fn, data)
        except NumericalError:  # no gradient, no direction to look along: a gap in the curve
            return dict.fromkeys(channels, math.nan)
        return {"kappa": float(found.value)} | {f"kappa {name}": float(found.modules[name]) for name in modules}

    return Observable(measure, channels, schedule)


def probe_top(loss_fn: LossFn, probe: object, model: nn.Module, schedule: Schedule) -> Observable:
    """The Hessian's largest eigenvalues, and how the gradient and the last top subspace lie to the present one.

    "hessian_top I": the I-th eigenvalue by magnitude, with its error bound. "gradient_overlap": the share
    ``|V'g|^2 / |g|^2`` of the gradient in the top subspace. "subspace_overlap": ``|V'U|_F^2 / k`` with the subspace U
    of the observation before; NaN at the first. Each measurement starts from the vectors of the last.
    """
    data = as_data(probe).all()
    k = min(TOP, sum(p.numel() for p in model.parameters() if p.requires_grad))
    names = [f"hessian_top {i}" for i in range(1, k + 1)]
    channels = {name: Channel("marker") for name in (*names, "gradient_overlap", "subspace_overlap")}
    memory: dict[str, torch.Tensor] = {}

    def measure(model: nn.Module, step: int) -> Mapping[str, Value]:
        H = hessian(model, loss_fn, data)
        before = memory.get("vectors")
        found = eigsh(H, k, tol=_TOL, start=before)
        overlap = math.nan if before is None else subspace_overlap(found.vectors, before)
        g = H.gradient().double()
        memory["vectors"] = found.vectors.contiguous()
        size = float(g.square().sum())
        inside = float((found.vectors.double().T @ g).square().sum())
        out: dict[str, Value] = {
            name: (float(v), float(b)) for name, v, b in zip(names, found.values, found.bounds, strict=True)
        }
        return out | {"gradient_overlap": inside / size if size > 0 else math.nan, "subspace_overlap": overlap}

    return Observable(measure, channels, schedule, memory, folder="hessian_top", keeps_last=True)


def probe_spectrum(
    loss_fn: LossFn,
    probe: object,
    seed: int,
    schedule: Schedule,
    *,
    nbeta: float | None = None,
    localization: float = 1.0,
) -> Observable:
    """Sums over the Hessian's whole spectrum by stochastic Lanczos quadrature, with their standard errors.

    "hessian_trace": sum_i h_i. "effective_dimension": sum_i h_i / (h_i + localization / nbeta) over the eigenvalues
    above zero: twice the LLC that a chain with this localization would find in the quadratic bowl of the same
    curvature. nbeta is n / ln n of the probe's n unless given.
    """
    samples = as_data(probe)
    scale = localization / (samples.n / math.log(max(samples.n, 2)) if nbeta is None else nbeta)
    channels = {"hessian_trace": Channel("marker"), "effective_dimension": Channel("marker")}

    def measure(model: nn.Module, step: int) -> Mapping[str, Value]:
        density = spectral_density(hessian(model, loss_fn, samples.all()), probes=_PROBES, steps=_STEPS, seed=seed)
        trace, trace_se = density.total(lambda h: h)
        size, size_se = density.total(lambda h: h.clamp_min(0) / (h.clamp_min(0) + scale))
        return {
            "hessian_trace": (float(trace), float(trace_se)), "effective_dimension": (float(size), float(size_se)),
        }  # fmt: skip

    return Observable(measure, channels, schedule)


def subspace_overlap(a: torch.Tensor, b: torch.Tensor) -> float:
    """|A'B|_F^2 over the smaller number of columns: 1 for equal subspaces, 0 for orthogonal ones. Shape: (dim, k)."""
    return float((a.double().T @ b.double()).square().sum()) / min(a.shape[1], b.shape[1])
