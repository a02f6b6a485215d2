"""Watanabe's information criteria, and the singular fluctuation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

import numpy as np
from torch import nn

from devinterp_fast.estimators.accumulators import SampleMoments
from devinterp_fast.estimators.draws import Chains, Floats, Watched, jackknife, line, one_or_all, pm, run_each, watch
from devinterp_fast.estimators.llc import LLC
from devinterp_fast.sampling.objective import LossFn
from devinterp_fast.sampling.observers import Probe
from devinterp_fast.sampling.prepare import Prepared, RunOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclass(frozen=True)
class WAIC:
    """The widely applicable information criterion, per sample.

    Attributes:
        value: training + beta variance / n, whose mean over data sets is that of the generalization loss.
        mcse: its Monte Carlo standard error.
        training: T = -(1 / n) sum_i log E_w exp(-loss_i(w)).
        variance: V = sum_i Var_w loss_i(w), the functional variance.
        nu: the singular fluctuation beta V / 2.
        nu_mcse: its Monte Carlo standard error.
        beta: inverse temperature, nbeta / n.
        warnings: what casts doubt, one sentence each.
        llc: the learning coefficient of the same draws.

    Units:
        nats a sample for ``value`` and ``training``.
    """

    value: float
    mcse: float
    training: float
    variance: float
    nu: float
    nu_mcse: float
    beta: float
    warnings: tuple[str, ...]
    llc: LLC

    def __str__(self) -> str:
        text = f"WAIC {pm(self.value, self.mcse)}   nu {pm(self.nu, self.nu_mcse)}   beta {self.beta:.3g}"
        return line(text, self.llc, self.warnings)


@dataclass(frozen=True)
class WBIC:
    """The widely applicable Bayesian information criterion.

    Attributes:
        value: E[n L_n(w)] at nbeta = n / ln n: the free energy up to terms of order sqrt(ln n).
        mcse: its Monte Carlo standard error.
        warnings: what casts doubt, one sentence each.
        llc: the learning coefficient of the same draws.

    Units:
        nats of the whole data set.
    """

    value: float
    mcse: float
    warnings: tuple[str, ...]
    llc: LLC

    def __str__(self) -> str:
        return line(f"WBIC {pm(self.value, self.mcse)}", self.llc, self.warnings)


@overload
def estimate_waic(model: nn.Module, loss_fn: LossFn, data: object, **settings: Unpack[RunOptions]) -> WAIC: ...
@overload
def estimate_waic(
    model: Sequence[nn.Module], loss_fn: LossFn, data: object, **settings: Unpack[RunOptions]
) -> list[WAIC]: ...
def estimate_waic(
    model: nn.Module | Sequence[nn.Module], loss_fn: LossFn, data: object, **settings: Unpack[RunOptions]
) -> WAIC | list[WAIC]:
    """Estimates WAIC and the singular fluctuation around a model's weights.

    WAIC = T + beta V / n, nu = beta V / 2, with T = -(1 / n) sum_i log E_w exp(-loss_i) and V = sum_i Var_w loss_i over
    the draws at inverse temperature beta = nbeta / n. The textbook criterion has beta = 1: pass ``nbeta=len(data)``.
    Cost: beside the run, one forward pass over all samples a draw. Memory: 3 float64 a sample and chain.

    Args:
        model: as in ``estimate_llc``; a sequence of checkpoints gives a list.
        loss_fn: minus the log-likelihood of each sample in nats, ``f(model, batch)`` or a criterion; cross-entropy is
            one, a squared error is one for Gaussian noise of variance 1 / 2.
        data: as in ``estimate_llc``.
        settings: of the run, as in ``estimate_llc``; one ``nbeta`` for all chains.

    Returns:
        A ``WAIC``. Errors are the jackknife's over chains, NaN for one chain.

    Raises:
        ValueError: ``nbeta`` differs between chains, or a setting is out of range.
        ShapeError, DTypeError, DeviceError, DataError, LossError, ModelError: as in ``estimate_llc``.

    Source:
        Watanabe (2010), Asymptotic equivalence of Bayes cross validation and WAIC, JMLR 11.
    """

    def observers(job: Prepared) -> list[SampleMoments]:
        one_temperature(job)
        return [SampleMoments(Probe(job.data), job.settings.chains)]

    found = watch(model, loss_fn, data, "WAIC", observers, dict(settings))
    return one_or_all(model, [_waic(run, moments) for run, (moments,) in found])


def one_temperature(job: Prepared) -> float:
    """The nbeta of all chains.

    Raises:
        ValueError: they differ.
    """
    nbeta = job.settings.nbeta
    if np.ptp(nbeta) > 0:
        raise ValueError(f"nbeta: expected one number for all chains, got {nbeta.tolist()}")
    return float(nbeta[0])


def _waic(run: Watched, moments: SampleMoments) -> WAIC:
    n = run.job.data.n
    beta = one_temperature(run.job) / n

    def estimate(chains: Chains) -> Floats:
        training = -moments.log_mean_exp(chains).mean()
        variance = moments.variance(chains).sum()
        return np.array([training + beta * variance / n, training, variance, beta * variance / 2])

    warnings = run.warnings
    bad = np.flatnonzero(~np.isfinite(moments.mean[run.chains]).all(0))
    if len(bad):
        warnings += (f"the loss was not finite at some draw on {len(bad)} of {n} samples, sample {bad[0]} among them",)
        values, errors = np.full((2, 4), math.nan)
    else:
        values, errors = jackknife(estimate, run.chains)
    return WAIC(
        value=float(values[0]), mcse=float(errors[0]), training=float(values[1]), variance=float(values[2]),
        nu=float(values[3]), nu_mcse=float(errors[3]), beta=beta, warnings=warnings, llc=run.llc,
    )  # fmt: skip


@overload
def estimate_wbic(model: nn.Module, loss_fn: LossFn, data: object, **settings: Unpack[RunOptions]) -> WBIC: ...
@overload
def estimate_wbic(
    model: Sequence[nn.Module], loss_fn: LossFn, data: object, **settings: Unpack[RunOptions]
) -> list[WBIC]: ...
def estimate_wbic(
    model: nn.Module | Sequence[nn.Module], loss_fn: LossFn, data: object, **settings: Unpack[RunOptions]
) -> WBIC | list[WBIC]:
    """Estimates WBIC around a model's weights.

    WBIC = E[n L_n(w)] at nbeta = n / ln n = n L_n(w0) + n llc / nbeta, the minibatches' noise taken off by the baseline
    as in ``estimate_llc``. The average is over the localized posterior: localization stands in for the prior.
    Cost and memory: those of ``estimate_llc``.

    Args:
        model: as in ``estimate_llc``; a sequence of checkpoints gives a list.
        loss_fn: minus the log-likelihood of each sample in nats.
        data: as in ``estimate_llc``.
        settings: of the run, as in ``estimate_llc``, but for ``nbeta``.

    Returns:
        A ``WBIC``.

    Raises:
        ValueError: ``nbeta`` is given, or a setting is out of range.
        ShapeError, DTypeError, DeviceError, DataError, LossError, ModelError: as in ``estimate_llc``.

    Source:
        Watanabe (2013), A widely applicable Bayesian information criterion, JMLR 14.
    """
    if settings.get("nbeta") is not None:
        raise ValueError(f"nbeta: expected none, as WBIC is defined at n / ln n, got {settings['nbeta']!r}")
    found = run_each(model, loss_fn, data, "WBIC", dict(settings))
    return one_or_all(model, [_wbic(run, settings.get("n")) for run in found])


def _wbic(run: Watched, n: int | None) -> WBIC:
    n, nbeta = n or run.job.data.n, one_temperature(run.job)
    value = n * (float(run.job.baseline.mean()) + run.llc.value / nbeta)
    return WBIC(value=value, mcse=n * run.llc.mcse / nbeta, warnings=run.llc.warnings, llc=run.llc)
