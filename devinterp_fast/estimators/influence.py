"""Which samples move together: Bayesian influence functions and the loss kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, overload

import numpy as np
import torch
from torch import nn

from devinterp_fast.estimators.accumulators import Values
from devinterp_fast.estimators.draws import Chains, Floats, Watched, jackknife, line, one_or_all, watch
from devinterp_fast.estimators.llc import LLC
from devinterp_fast.sampling.batches import Data, as_data
from devinterp_fast.sampling.objective import LossFn
from devinterp_fast.sampling.observers import Function, Probe
from devinterp_fast.sampling.prepare import Prepared, RunOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclass(frozen=True)
class Influence:
    """A matrix over samples.

    Attributes:
        values: (samples, queries), or (samples, samples) for a kernel.
        mcse: the Monte Carlo standard error of each.
        warnings: what casts doubt, one sentence each.
        llc: the learning coefficient of the same draws.

    Units:
        Squared nats for losses in nats; none for correlations.
    """

    values: Floats = field(repr=False)
    mcse: Floats = field(repr=False)
    warnings: tuple[str, ...]
    llc: LLC

    def __str__(self) -> str:
        rows, columns = self.values.shape
        with np.errstate(all="ignore"):
            ratio = float(np.nanmedian(np.abs(self.values) / self.mcse)) if len(self.llc.per_chain) > 1 else np.nan
        return line(f"influence {rows} x {columns}   median |value| / mcse {ratio:.1f}", self.llc, self.warnings)


@overload
def influence(
    model: nn.Module,
    loss_fn: LossFn,
    data: object,
    queries: object,
    *,
    samples: object = None,
    function: Function | None = None,
    **settings: Unpack[RunOptions],
) -> Influence: ...
@overload
def influence(
    model: Sequence[nn.Module],
    loss_fn: LossFn,
    data: object,
    queries: object,
    *,
    samples: object = None,
    function: Function | None = None,
    **settings: Unpack[RunOptions],
) -> list[Influence]: ...
def influence(
    model: nn.Module | Sequence[nn.Module],
    loss_fn: LossFn,
    data: object,
    queries: object,
    *,
    samples: object = None,
    function: Function | None = None,
    **settings: Unpack[RunOptions],
) -> Influence | list[Influence]:
    """Estimates the local Bayesian influence of training samples on queries.

    BIF(z_i, phi_q) = -Cov(loss_i(w), phi_q(w)) over the draws: d<phi_q> / d epsilon where sample i weighs 1 + epsilon /
    nbeta times more in nbeta L. Negative for phi = loss: more of sample i lowers the loss of query q.
    Cost: beside the run, a forward pass over samples and queries a draw, and chains x samples x queries x draws
    multiply-adds. Memory: 4 bytes x draws x (samples + queries), and 5 matrices.

    Args:
        model: as in ``estimate_llc``; a sequence of checkpoints gives a list.
        loss_fn: as in ``estimate_llc``.
        data: what the chains walk on, as in ``estimate_llc``.
        queries: samples whose phi is asked for.
        samples: those whose influence is asked for; None is the data.
        function: phi = f(model, batch) -> (B, ...), flattened to one column a value; None is the loss.
        settings: of the run, as in ``estimate_llc``.

    Returns:
        An ``Influence``. Errors are the jackknife's over chains, NaN for one chain.

    Raises:
        ValueError: a setting is out of range.
        ShapeError, DTypeError, DeviceError, DataError, LossError, ModelError: as in ``estimate_llc``.

    Source:
        Kreer et al. (2025), Bayesian influence functions for Hessian-free data attribution, arXiv 2509.26544.
    """
    training, asked = as_data(data), as_data(queries)
    rows = training if samples is None else as_data(samples)

    def observers(job: Prepared) -> list[Values]:
        return [_values(job, rows), _values(job, asked, function)]

    found = watch(model, loss_fn, training, "influence", observers, dict(settings))
    return one_or_all(model, [_influence(run, a, b) for run, (a, b) in found])


@overload
def loss_kernel(
    model: nn.Module,
    loss_fn: LossFn,
    data: object,
    *,
    samples: object = None,
    correlation: bool = True,
    **settings: Unpack[RunOptions],
) -> Influence: ...
@overload
def loss_kernel(
    model: Sequence[nn.Module],
    loss_fn: LossFn,
    data: object,
    *,
    samples: object = None,
    correlation: bool = True,
    **settings: Unpack[RunOptions],
) -> list[Influence]: ...
def loss_kernel(
    model: nn.Module | Sequence[nn.Module],
    loss_fn: LossFn,
    data: object,
    *,
    samples: object = None,
    correlation: bool = True,
    **settings: Unpack[RunOptions],
) -> Influence | list[Influence]:
    """Estimates the loss kernel: how the losses of samples vary together around the weights.

    K_ij = Cov(loss_i, loss_j) over the draws, or their correlation; positive semidefinite either way.
    Cost: beside the run, a forward pass over the samples a draw, and chains x samples^2 x draws multiply-adds.
    Memory: 4 bytes x draws x samples, and 5 matrices.

    Args:
        model: as in ``estimate_llc``; a sequence of checkpoints gives a list.
        loss_fn: as in ``estimate_llc``.
        data: what the chains walk on, as in ``estimate_llc``.
        samples: those of the kernel; None is the data.
        correlation: False gives covariances.
        settings: of the run, as in ``estimate_llc``.

    Returns:
        An ``Influence`` with a square matrix; the row of a sample whose loss does not move is NaN as a correlation.

    Raises:
        ValueError: a setting is out of range.
        ShapeError, DTypeError, DeviceError, DataError, LossError, ModelError: as in ``estimate_llc``.

    Source:
        Adam et al. (2025), The loss kernel, arXiv 2509.26537.
    """
    training = as_data(data)
    rows = training if samples is None else as_data(samples)
    found = watch(model, loss_fn, training, "kernel", lambda job: [_values(job, rows)], dict(settings))
    return one_or_all(model, [_kernel(run, seen, correlation) for run, (seen,) in found])


def _values(job: Prepared, data: Data, function: Function | None = None) -> Values:
    return Values(Probe(data, function), job.center, job.settings.chains, job.settings.draws)


class _Covariance:
    """Of two sets of values over the draws of some chains: of all, or of all but one, whose share is taken off."""

    def __init__(self, run: Watched, a: Values, b: Values):
        draws = run.llc.trace.sizes["draw"]
        self.a, self.b = a.values[:, :draws], b.values[:, :draws]
        self.chains = run.chains
        self.total = self._sums(run.chains[0])
        for chain in run.chains[1:]:
            self.total = tuple(x + y for x, y in zip(self.total, self._sums(chain), strict=True))

    def _sums(self, chain: int) -> tuple[Floats, ...]:
        a, b = self.a[chain].astype(np.float64), self.b[chain].astype(np.float64)
        product: Floats = (torch.from_numpy(a).t() @ torch.from_numpy(b)).numpy()  # on as many threads as torch may use
        return product, a.sum(0), b.sum(0)

    def __call__(self, chains: Chains) -> Floats:
        cross, a, b = self.total
        for chain in np.setdiff1d(self.chains, chains):
            cross, a, b = (x - y for x, y in zip((cross, a, b), self._sums(chain), strict=True))
        count = len(chains) * self.a.shape[1]
        covariance: Floats = cross / count - np.outer(a / count, b / count)
        return covariance


def _not_finite(run: Watched, *seen: Values) -> tuple[str, ...]:
    for values in seen:
        bad = np.flatnonzero(~np.isfinite(values.values[run.chains, : run.llc.trace.sizes["draw"]]).all((0, 1)))
        if len(bad):
            return (f"{len(bad)} values were not finite at some draw, column {bad[0]} among them: theirs are NaN",)
    return ()


def _influence(run: Watched, a: Values, b: Values) -> Influence:
    with np.errstate(invalid="ignore"):
        values, mcse = jackknife(_Covariance(run, a, b), run.chains)
    return Influence(-values, mcse, run.warnings + _not_finite(run, a, b), run.llc)


def _kernel(run: Watched, seen: Values, correlation: bool) -> Influence:
    covariance = _Covariance(run, seen, seen)

    def kernel(chains: Chains) -> Floats:
        k = covariance(chains)
        if correlation:
            size = np.sqrt(np.diagonal(k))
            k = k / np.outer(size, size)
        return k

    with np.errstate(invalid="ignore", divide="ignore"):
        values, mcse = jackknife(kernel, run.chains, unbias=False)
    return Influence(values, mcse, run.warnings + _not_finite(run, seen), run.llc)
