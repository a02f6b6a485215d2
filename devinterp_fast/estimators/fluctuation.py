"""The learning coefficient from fluctuations and from two temperatures: neither needs the loss at the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

import numpy as np
from torch import nn

from devinterp_fast.estimators.accumulators import MeanLoss
from devinterp_fast.estimators.draws import Chains, Floats, Watched, jackknife, line, one_or_all, pm, run_each, watch
from devinterp_fast.estimators.llc import LLC
from devinterp_fast.estimators.waic import one_temperature
from devinterp_fast.sampling.checkpoints import as_models
from devinterp_fast.sampling.objective import LossFn
from devinterp_fast.sampling.observers import Probe
from devinterp_fast.sampling.prepare import Prepared, RunOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclass(frozen=True)
class VarianceLLC:
    """The learning coefficient as a variance.

    Attributes:
        value: Var(nbeta L_n(w)).
        mcse: its Monte Carlo standard error.
        warnings: what casts doubt, one sentence each.
        llc: the estimate from the mean of the same draws.

    Units:
        none
    """

    value: float
    mcse: float
    warnings: tuple[str, ...]
    llc: LLC

    def __str__(self) -> str:
        return line(f"LLC by variance {pm(self.value, self.mcse)}", self.llc, self.warnings)


@dataclass(frozen=True)
class TwoTemperatureLLC:
    """The learning coefficient from two temperatures.

    Attributes:
        value: (E_1[L_n] - E_2[L_n]) / (1 / nbeta_1 - 1 / nbeta_2).
        mcse: its Monte Carlo standard error.
        warnings: what casts doubt, one sentence each.
        warm: the estimate at nbeta_1, the smaller one.
        cold: the estimate at nbeta_2.

    Units:
        none
    """

    value: float
    mcse: float
    warnings: tuple[str, ...]
    warm: LLC
    cold: LLC

    def __str__(self) -> str:
        return line(f"LLC from two temperatures {pm(self.value, self.mcse)}", self.warm, self.warnings)


@overload
def variance_llc(model: nn.Module, loss_fn: LossFn, data: object, **settings: Unpack[RunOptions]) -> VarianceLLC: ...
@overload
def variance_llc(
    model: Sequence[nn.Module], loss_fn: LossFn, data: object, **settings: Unpack[RunOptions]
) -> list[VarianceLLC]: ...
def variance_llc(
    model: nn.Module | Sequence[nn.Module], loss_fn: LossFn, data: object, **settings: Unpack[RunOptions]
) -> VarianceLLC | list[VarianceLLC]:
    """Estimates the local learning coefficient by the variance of the loss.

    llc = Var(nbeta L_n(w)), L_n over all samples. Equal to the mean's estimate where the loss around w0 scales as one
    power; it needs no baseline, but takes more draws.
    Cost: beside the run, one forward pass over all samples a draw. Memory: 8 bytes a draw.

    Args:
        model: as in ``estimate_llc``; a sequence of checkpoints gives a list.
        loss_fn: as in ``estimate_llc``.
        data: as in ``estimate_llc``.
        settings: of the run, as in ``estimate_llc``; one ``nbeta`` for all chains.

    Returns:
        A ``VarianceLLC``. Errors are the jackknife's over chains, NaN for one chain.

    Raises:
        ValueError: ``nbeta`` differs between chains, or a setting is out of range.
        ShapeError, DTypeError, DeviceError, DataError, LossError, ModelError: as in ``estimate_llc``.

    Source:
        Imai (2019), Estimating real log canonical thresholds, arXiv 1906.01341.
    """

    def observers(job: Prepared) -> list[MeanLoss]:
        one_temperature(job)
        return [MeanLoss(Probe(job.data), job.settings.chains, job.settings.draws)]

    found = watch(model, loss_fn, data, "LLC", observers, dict(settings))
    return one_or_all(model, [_variance(run, seen) for run, (seen,) in found])


def _variance(run: Watched, seen: MeanLoss) -> VarianceLLC:
    scaled = one_temperature(run.job) * seen.loss[:, : run.llc.trace.sizes["draw"]]

    def estimate(chains: Chains) -> Floats:
        return np.asarray(scaled[chains].var())

    value, mcse = jackknife(estimate, run.chains)
    return VarianceLLC(float(value), float(mcse), run.warnings, run.llc)


@overload
def two_temperature_llc(
    model: nn.Module, loss_fn: LossFn, data: object, *, ratio: float = 2.0, **settings: Unpack[RunOptions]
) -> TwoTemperatureLLC: ...
@overload
def two_temperature_llc(
    model: Sequence[nn.Module], loss_fn: LossFn, data: object, *, ratio: float = 2.0, **settings: Unpack[RunOptions]
) -> list[TwoTemperatureLLC]: ...
def two_temperature_llc(
    model: nn.Module | Sequence[nn.Module],
    loss_fn: LossFn,
    data: object,
    *,
    ratio: float = 2.0,
    **settings: Unpack[RunOptions],
) -> TwoTemperatureLLC | list[TwoTemperatureLLC]:
    """Estimates the local learning coefficient from the mean loss at two temperatures.

    llc = (E_1[L_n] - E_2[L_n]) / (1 / nbeta_1 - 1 / nbeta_2), nbeta_2 = ratio nbeta_1. The loss at the weights cancels:
    they need not be a minimum. Each temperature has chains and noise of its own, and a step size of its own if
    ``lr="auto"``. Cost and memory: twice those of ``estimate_llc``.

    Args:
        model: as in ``estimate_llc``; a sequence of checkpoints gives a list.
        loss_fn: as in ``estimate_llc``.
        data: as in ``estimate_llc``.
        ratio: nbeta_2 / nbeta_1, above 1.
        settings: of the run, as in ``estimate_llc``; ``nbeta`` is nbeta_1, one for all chains.

    Returns:
        A ``TwoTemperatureLLC``.

    Raises:
        ValueError: ``ratio`` is not above 1, ``nbeta`` differs between chains, or a setting is out of range.
        ShapeError, DTypeError, DeviceError, DataError, LossError, ModelError: as in ``estimate_llc``.

    Source:
        Watanabe (2013), A widely applicable Bayesian information criterion, JMLR 14, corollary 3.
    """
    if not (ratio > 1 and math.isfinite(ratio)):
        raise ValueError(f"ratio: expected a finite number above 1, got {ratio!r}")
    models = as_models(model)
    warm = run_each(models, loss_fn, data, "LLC, warm", dict(settings))
    nbeta = one_temperature(warm[0].job)
    seed = settings.get("seed", 0) ^ 2**63  # noise of its own
    chosen: dict[str, object] = {**settings, "nbeta": ratio * nbeta, "n": None, "seed": seed}
    cold = run_each(models, loss_fn, data, "LLC, cold", chosen)
    results = [_two_temperatures(a.llc, b.llc, nbeta, ratio) for a, b in zip(warm, cold, strict=False)]
    return one_or_all(model, results)


def _two_temperatures(warm: LLC, cold: LLC, nbeta: float, ratio: float) -> TwoTemperatureLLC:
    scale = 1 / (1 - 1 / ratio)
    value = scale * (warm.value - cold.value / ratio)
    mcse = scale * math.hypot(warm.mcse, cold.mcse / ratio)
    warnings = [f"at nbeta {nbeta:.4g}: {sentence}" for sentence in warm.warnings]
    warnings += [f"at nbeta {ratio * nbeta:.4g}: {sentence}" for sentence in cold.warnings]
    return TwoTemperatureLLC(value, mcse, tuple(warnings), warm, cold)
