"""What the estimators share: one run whose draws they watch, and errors by leaving chains out.

Each estimator is a set of observers and a function of their sums. It comes with the ``LLC`` of the same draws, whose
warnings are its own, and takes one model or a sequence of checkpoints.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from torch import nn

from devinterp_fast.estimators.llc import LLC, summarize
from devinterp_fast.sampling import jobs
from devinterp_fast.sampling.batches import as_data
from devinterp_fast.sampling.checkpoints import as_models
from devinterp_fast.sampling.objective import LossFn
from devinterp_fast.sampling.observers import Observer
from devinterp_fast.sampling.prepare import Prepared, prepare
from devinterp_fast.sampling.run import Settings

Floats = npt.NDArray[np.float64]
Chains = npt.NDArray[np.int64]
R = TypeVar("R")
W = TypeVar("W", bound=Observer)


@dataclass(frozen=True)
class Watched:
    """A finished run.

    Attributes:
        job: what ran.
        llc: the estimate from its losses.
        chains: those that count: not diverged, not cut short by an interrupt, and of one step size, temperature and
            localization. Where several were asked for, they are those of the smallest step.
        finished: those that count for a number of each chain: settings may differ.
        warnings: those of ``llc``, and what was left out.
    """

    job: Prepared
    llc: LLC
    chains: Chains
    finished: Chains

    @property
    def warnings(self) -> tuple[str, ...]:
        """What casts doubt, one sentence each."""
        out = len(self.finished) - len(self.chains)
        if not out:
            return self.llc.warnings
        lr = self.job.settings.lr[self.chains[0]]
        return (
            *self.llc.warnings,
            f"{out} of {len(self.finished)} chains have another lr, localization or nbeta than those of the smallest "
            f"step ({lr:.3g}) and do not count here",
        )


def prepare_each(
    model: nn.Module | Sequence[nn.Module],
    loss_fn: LossFn,
    data: object,
    settings: dict[str, Any],
    *,
    one_step: bool = True,
) -> list[Prepared]:
    """One run for each model, of the same data read once.

    A mean is read off at step size 0 from chains of two steps; nothing else can be, so by default "auto" gives all
    chains the smaller one.
    """
    options, samples = {k: v for k, v in settings.items() if k != "progress"}, as_data(data)
    return [prepare(each, loss_fn, samples, one_step=one_step, **options) for each in as_models(model)]


def alike(settings: Settings, chains: Chains) -> Chains:
    """Those of some chains that sample the same density with the same step: of the smallest step, the first such."""
    if not len(chains):
        return chains
    rows = np.stack([settings.lr, settings.nbeta, settings.localization], 1)[chains]
    same: Chains = chains[(rows == rows[rows[:, 0].argmin()]).all(1)]
    return same


def watch(
    model: nn.Module | Sequence[nn.Module],
    loss_fn: LossFn,
    data: object,
    title: str,
    observers: Callable[[Prepared], Sequence[W]],
    settings: dict[str, Any],
) -> list[tuple[Watched, Sequence[W]]]:
    """Runs the chains of each model and shows every draw to its observers.

    Args:
        model: one, or checkpoints.
        loss_fn: as in ``estimate_llc``.
        data: as in ``estimate_llc``.
        title: of the progress bar.
        observers: makes those of one prepared run.
        settings: those of ``estimate_llc``.

    Returns:
        For each model the run and its observers.
    """
    began = time.perf_counter()
    prepared = prepare_each(model, loss_fn, data, settings)
    return watch_prepared(prepared, title, observers, progress=settings.get("progress", True), began=began)


def watch_prepared(
    prepared: Sequence[Prepared],
    title: str,
    observers: Callable[[Prepared], Sequence[W]],
    *,
    progress: bool,
    began: float,
) -> list[tuple[Watched, Sequence[W]]]:
    """As ``watch``, of runs prepared at the time ``began``."""
    watching = [observers(job) for job in prepared]
    results = jobs.run(prepared, title, progress=progress, observers=watching)
    share = (time.perf_counter() - began) / len(results)
    found = []
    for job, seen, (trace, engine) in zip(prepared, watching, results, strict=False):
        llc = summarize(trace, job, engine, share)
        chains, _ = trace.recorded()
        finished = np.setdiff1d(chains, list(llc.diverged))
        found.append((Watched(job, llc, alike(job.settings, finished), finished), seen))
    return found


def run_each(
    model: nn.Module | Sequence[nn.Module], loss_fn: LossFn, data: object, title: str, settings: dict[str, Any]
) -> list[Watched]:
    """As ``watch``, with nothing to observe."""
    began = time.perf_counter()
    prepared = prepare_each(model, loss_fn, data, settings, one_step=False)

    def nothing(job: Prepared) -> Sequence[Observer]:
        return ()

    found = watch_prepared(prepared, title, nothing, progress=settings.get("progress", True), began=began)
    return [run for run, _ in found]


def one_or_all(model: nn.Module | Sequence[nn.Module], results: list[R]) -> R | list[R]:
    """The result of a module, the list of a sequence."""
    return results[0] if isinstance(model, nn.Module) else results


def pm(value: float, mcse: float) -> str:
    """A number and its error, to two digits of the error."""
    digits = max(0, min(6, 1 - math.floor(math.log10(mcse)))) if mcse > 0 and math.isfinite(mcse) else 3
    return f"{value:.{digits}f} ± {mcse:.{digits}f}"


def line(text: str, llc: LLC, warnings: Sequence[str]) -> str:
    """How a result prints: what it is, how many draws stand behind it, and each doubt on a line of its own."""
    chains, draws = llc.trace.sizes["chain"], llc.trace.sizes["draw"]
    return "\n  ! ".join([f"{text}   {chains} chains x {draws} draws   {llc.engine}   {llc.seconds:.1f} s", *warnings])


def jackknife(estimate: Callable[[Chains], Floats], chains: Chains, *, unbias: bool = True) -> tuple[Floats, Floats]:
    """A function of chains, with the error that the chains' disagreement gives it.

    value = C f(all) - (C - 1) mean_c f(all but c), which takes off the bias of order 1 / C (a variance over few
    effective draws is too small by a part 1 / ESS); error^2 = (C - 1) / C sum_c (f(all but c) - their mean)^2.

    Args:
        estimate: f of some chains.
        chains: all of them.
        unbias: False gives f(all) as the value.

    Returns:
        Value and standard error, of the shape of f; one chain alone has error NaN.

    Source:
        Quenouille (1956); Tukey (1958).
    """
    whole, count = estimate(chains), len(chains)
    if count < 2:
        return whole, np.full_like(whole, math.nan)
    mean, spread = np.zeros_like(whole), np.zeros_like(whole)
    for done, out in enumerate(chains):
        without = estimate(chains[chains != out])
        change = without - mean
        mean = mean + change / (done + 1)
        spread = spread + change * (without - mean)
    value = count * whole - (count - 1) * mean if unbias else whole
    return value, np.sqrt((count - 1) / count * np.maximum(spread, 0.0))
