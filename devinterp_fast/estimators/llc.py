"""The local learning coefficient, with its error and its doubts."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt
import xarray as xr
from torch import nn

from devinterp_fast import _flat, store
from devinterp_fast.errors import NumericalError
from devinterp_fast.sampling import engines, jobs, resume
from devinterp_fast.sampling.batches import as_data
from devinterp_fast.sampling.checkpoints import as_models
from devinterp_fast.sampling.diagnostics import DOUBT, reached
from devinterp_fast.sampling.goal import change_at_a_tenth
from devinterp_fast.sampling.masks import Mask
from devinterp_fast.sampling.objective import LossFn, Objective
from devinterp_fast.sampling.pooling import Pooled, part, pooled
from devinterp_fast.sampling.prepare import PerChain, Prepared, RunOptions, prepare
from devinterp_fast.sampling.prior import GaussianPrior
from devinterp_fast.sampling.run import Settings, Trace
from devinterp_fast.sampling.samplers import Sampler
from devinterp_fast.sampling.torch_engine import undisturbed

if TYPE_CHECKING:
    from typing_extensions import Unpack

Floats = npt.NDArray[np.float64]

_RHAT = 1.05
_REACHED = 0.15  # of the energy; where it was less, deep narrow nets on minibatches read a quarter low
_DIFFERS = 3.0  # standard errors, and
_SHARE = 0.05  # of the value
_BIAS = 0.1  # of the value
_BIAS_TAKEN_OFF = 0.25  # what is left of it is of second order: its square over the value


@dataclass(frozen=True)
class LLC:
    """An estimate of the local learning coefficient.

    Attributes:
        value: nbeta (mean_t L(w_t) - L(w0)), the mean over the chains that stayed finite.
        mcse: its Monte Carlo standard error.
        rhat: rank-normalized split R-hat of the loss differences; near 1 the chains agree.
        ess: effective number of draws.
        step_bias: by how much the step size raises the plain mean over draws (see ``diagnostics.step_biases``); already
            taken off if ``lr="auto"``; 0 where steps are accepted or rejected.
        at_tenth: the value at a tenth of the localization, where that was left at "auto": of a few chains that went on
            from where the others ended. NaN where it was not run.
        at_tenth_mcse: its Monte Carlo standard error.
        warnings: what casts doubt, one sentence each. They never alter the value.
        verdict: "local minimum", "not a local minimum at this temperature", or "undecided" where the value is
            negative within its error, or has no error.
        per_chain: the value of each chain, NaN for a diverged one. Shape: (chains,).
        diverged: {chain: first step whose loss was not finite}.
        settings: what was used, "auto" resolved.
        engine: which engine ran, and on which instruction set.
        engine_reason: why that one.
        seconds: wall time.
        interrupted: whether Ctrl-C ended the run early; the first warning says what was kept.
        trace: dims (chain, draw): ``loss`` on a step's batch before its update, ``baseline``, the loss at the center
            on the same batch, and ``llc``, nbeta times their difference.

    Units:
        None: a learning coefficient is a number (half a dimension count).
    """

    value: float
    mcse: float
    rhat: float
    ess: float
    step_bias: float
    at_tenth: float
    at_tenth_mcse: float
    warnings: tuple[str, ...]
    verdict: str
    per_chain: Floats
    diverged: dict[int, int]
    settings: dict[str, Any]
    engine: str
    engine_reason: str
    seconds: float
    interrupted: bool
    trace: xr.Dataset = field(repr=False)

    @property
    def running(self) -> xr.DataArray:
        """The estimate of each chain from its draws so far, nbeta mean_{s <= t} (L(w_s) - L(w0)): (chain, draw)."""
        return self.trace["llc"].cumsum("draw") / np.arange(1, self.trace.sizes["draw"] + 1)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the estimate with its trace as Zarr, whole or not at all; ``load_llc`` reads it.

        ``xarray.open_zarr(path)`` reads it too, and ArviZ takes that as it is: ``az.summary``, ``az.plot_trace``.

        Raises:
            MissingExtraError: zarr is not installed.
            RunFolderError: the folder cannot be written.
        """
        kept = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("trace", "per_chain")}
        data = self.trace.assign(per_chain=("chain", self.per_chain)).assign_attrs(result=json.dumps(kept))
        return store.write_zarr("path", data, Path(path))

    def __str__(self) -> str:
        chains, draws = self.trace.sizes["chain"], self.trace.sizes["draw"]
        digits = max(0, min(6, 1 - math.floor(math.log10(self.mcse)))) if self.mcse > 0 else 3
        tenth = f" ({self.at_tenth:.{digits}f} at a tenth of the localization)" if self.at_tenth_mcse > 0 else ""
        line = (
            f"LLC {self.value:.{digits}f} ± {self.mcse:.{digits}f}{tenth}   {chains} chains x {draws} draws   "
            f"R-hat {self.rhat:.2f}   ESS {self.ess:.0f}   {self.engine}   {self.seconds:.1f} s"
        )
        return "\n  ! ".join([line, *self.warnings])


@overload
def estimate_llc(
    model: nn.Module,
    loss_fn: LossFn,
    data: object,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    **settings: Unpack[RunOptions],
) -> LLC: ...
@overload
def estimate_llc(
    model: Sequence[nn.Module], loss_fn: LossFn, data: object, **settings: Unpack[RunOptions]
) -> list[LLC]: ...
def estimate_llc(
    model: nn.Module | Sequence[nn.Module],
    loss_fn: LossFn,
    data: object,
    *,
    chains: int = 8,
    draws: int | str = "auto",
    burn_in: int | str = "auto",
    thin: int = 1,
    lr: PerChain | str = "auto",
    localization: PerChain | str = "auto",
    nbeta: PerChain | None = None,
    n: int | None = None,
    sampler: str | Sampler = "auto",
    batch_size: int = 256,
    batches: str = "auto",
    mask: Mask | None = None,
    backend: str = "auto",
    seed: int = 0,
    mcse: float | None = None,
    gradients: int | None = None,
    prior: GaussianPrior | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> LLC | list[LLC]:
    """Estimates the local learning coefficient of a model at its present weights w0.

    llc = nbeta (mean_t L(w_t) - L(w0)), over chains of w <- w - (lr / 2) (nbeta g + localization (w - w0)) +
    sqrt(lr) xi started at w0. A draw's loss and its baseline L(w0) are taken on the same minibatch, so that the
    minibatch's noise cancels. The model, its mode and the global random state are left as they were.

    Args:
        model: any module, on the CPU, whose forward is deterministic (``model.eval()``); or a sequence of checkpoints
            (see ``Checkpoints``), which run at once. Each gives the bits it gives alone, so their noise is the same and
            their errors move together: a difference of neighbors is better known than its two values.
        loss_fn: a criterion, applied as ``loss_fn(model(x), y)``, or ``f(model, batch)``; per-sample losses (B,)
            or their mean.
        data: (x, y), a tuple, dict or tensor of samples along the first dimension, a Dataset or a DataLoader.
        chains: how many.
        draws: recorded losses of each chain; "auto" is as many as ``mcse`` asks for, within ``gradients``: the run
            begins with 400, or with what the warm-up expects, and goes on until the error is small enough.
        burn_in: steps before the first draw; "auto" is half the draws, and where ``lr`` and ``draws`` are left alone,
            as many as it takes until the loss drifts no more.
        thin: steps from one draw to the next.
        lr: step size, one or one for each chain; "auto" follows a rule (``sampling/defaults.py``), and where ``draws``
            and ``burn_in`` are left alone too is found by acceptance, or from the curvature met on the way.
        localization: strength of the pull to w0, one or one for each chain; "auto" is 1, and where ``lr``, ``draws``
            and ``burn_in`` are left alone too the weakest of 1, 10 and 100 that keeps the chains in the basin. The
            value at a tenth of it is reported beside, for a quarter more steps: ``at_tenth``.
        nbeta: inverse temperature times n, one or one for each chain; None is n / ln n.
        n: number of training samples behind the default nbeta; None is the number of samples in ``data``.
        sampler: a ``Sampler`` or its name. "auto" is SGLD; where ``lr``, ``draws``, ``burn_in`` and ``batches`` are
            left alone too it is HMC if full gradients are affordable, SGNHT on minibatches if they are not, and SGLD
            for models too large for either.
        batch_size: samples of a minibatch.
        batches: "independent" for each chain, "shared" by all, "epoch": each chain its own permutations of the data
            one after the other, or "full"; "auto" is "full" for samplers with accept-reject, else "independent".
        mask: which coordinates move: bool (dim,), {parameter name: bool tensor}, or names: "l0h1" (a head), "l1 mlp",
            "layer.weight[0:2]", any regular expression; None is all.
        backend: "native" runs whole chains in C++ and raises if the model cannot be captured; "torch" runs any module;
            "auto" is native where it can be, and ``engine_reason`` says why not.
        seed: names all noise; the same seed gives the same bits.
        mcse: with ``draws="auto"``, the standard error to go on for, as a share of the value; None is 0.05.
        gradients: with ``draws="auto"``, the most gradients of a minibatch that each chain takes, warm-up included, a
            full one counted by its size; None is about half a minute of one core (``sampling/warmup.py``).
        prior: a ``GaussianPrior`` over the weights, with a center and precisions of its own, beside the localization.
        checkpoint: a file that keeps the run: written whole after each twentieth of the draws, so that the same call
            goes on after a crash, to the same bits; a finished run gives its result at once.
        progress: show a bar on the terminal.

    Returns:
        An ``LLC``: prints as one line, and carries error, diagnostics and trace. A list of them for a sequence. After
        Ctrl-C, that of the draws recorded so far, with a warning.

    Raises:
        ShapeError, DTypeError, DeviceError, DataError, LossError, ModelError: an input does not fit; one sentence.
        ValueError: a setting is out of range.
        RunFolderError: the checkpoint belongs to another run, is damaged, or cannot be written.
        NumericalError: every chain diverged.
        KeyboardInterrupt: Ctrl-C before the first draw was recorded, or twice.

    Source:
        Lau, Furman, Wang, Murfet, Wei (2023), The local learning coefficient, arXiv 2308.12108.
    """
    began = time.perf_counter()
    samples = as_data(data)
    prepared = [
        prepare(
            each, loss_fn, samples, chains=chains, draws=draws, burn_in=burn_in, thin=thin, lr=lr,
            localization=localization, nbeta=nbeta, n=n, sampler=sampler, batch_size=batch_size, batches=batches,
            mask=mask, backend=backend, seed=seed, mcse=mcse, gradients=gradients, prior=prior, tenth=True,
        )
        for each in as_models(model)
    ]  # fmt: skip
    if checkpoint is None:
        results = jobs.run(prepared, "LLC", progress=progress)
    elif isinstance(model, nn.Module):
        results = [resume.run(prepared[0], checkpoint, "LLC", progress=progress)]
    else:
        raise ValueError(f"checkpoint: expected one model to run, got {len(prepared)}")
    seconds = (time.perf_counter() - began) / len(results)
    found = [summarize(trace, job, engine, seconds) for job, (trace, engine) in zip(prepared, results, strict=False)]
    return found[0] if isinstance(model, nn.Module) else found


def explain(model: nn.Module, loss_fn: LossFn, data: object, batch_size: int = 256) -> engines.Choice:
    """Says which engine ``estimate_llc`` would run, why, and, if the model is captured, as what list of operations.

    Args:
        model: any module on the CPU.
        loss_fn: as in ``estimate_llc``.
        data: as in ``estimate_llc``.
        batch_size: as in ``estimate_llc``; ``len(data)`` for full batches. Only of millions of parameters it decides.

    Returns:
        A ``Choice``; print it.

    Raises:
        ShapeError, DTypeError, DeviceError, DataError, LossError, ModelError: an input does not fit; one sentence.
    """
    samples = as_data(data)
    with undisturbed(_flat.layout(model).dim, samples.n):
        return engines.choose("auto", model, Objective(loss_fn, model, samples), samples, batch=batch_size)


def summarize(trace: Trace, prepared: Prepared, engine: str, seconds: float) -> LLC:
    """The estimate that the recorded losses give, with its doubts.

    Raises:
        NumericalError: every chain diverged.
    """
    reason = prepared.choice.reason
    trace, settings, cut = _kept(trace, replace(prepared.settings, draws=trace.loss.shape[1]))
    found = pooled(trace, settings, unbias=prepared.auto_lr, moving=prepared.moving)
    diverged = {int(c): int(found.lost[c]) for c in np.flatnonzero(found.lost >= 0)}
    if len(diverged) == settings.chains:
        chain, step = next(iter(diverged.items()))
        raise NumericalError(
            f"lr: expected a step size at which chains stay finite, got {settings.lr[chain]:.3g}: "
            f"all {settings.chains} chains diverged, chain {chain} at step {step}"
        )
    change, tenth_mcse = change_at_a_tenth(prepared, trace)
    verdict, warnings = _doubts(found, prepared, diverged, settings)
    warnings = (
        *cut,
        *warnings,
        *_of_localization(found, change, tenth_mcse, prepared),
        *_of_reach(trace, found, prepared),
    )
    dims = ("chain", "draw")
    used = {
        "lr": settings.lr.tolist(), "localization": settings.localization.tolist(),
        "nbeta": settings.nbeta.tolist(), "burn_in": settings.burn_in, "thin": settings.thin,
        "batches": settings.batches, "batch_size": settings.batch_size, "seed": settings.seed,
        "sampler": settings.sampler.name,
    }  # fmt: skip
    dataset = xr.Dataset(
        {"llc": (dims, found.scaled), "loss": (dims, trace.loss), "baseline": (dims, trace.baseline)},
        coords={"chain": np.arange(settings.chains), "draw": np.arange(settings.draws)},
        attrs={**used, "engine": engine, "engine_reason": reason},
    )
    return LLC(
        value=found.value, mcse=found.doubt.mcse, rhat=found.doubt.rhat, ess=found.doubt.ess, step_bias=found.step_bias,
        at_tenth=found.value + change, at_tenth_mcse=tenth_mcse, warnings=warnings, verdict=verdict,
        per_chain=found.per_chain, diverged=diverged, settings=used, engine=engine, engine_reason=reason,
        seconds=seconds, interrupted=bool(cut), trace=dataset,
    )  # fmt: skip


def _kept(trace: Trace, settings: Settings) -> tuple[Trace, Settings, tuple[str, ...]]:
    """What there is after an interrupt, and the sentence that says so."""
    if not trace.interrupted:
        return trace, settings, ()
    chains, draws = trace.recorded()
    sentence = (
        f"interrupted: {len(chains)} of {settings.chains} chains and {draws} of {settings.draws} draws were kept; "
        "run it again for the rest"
    )
    return *part(trace, settings, chains, draws), (sentence,)


def _of_reach(trace: Trace, found: Pooled, prepared: Prepared) -> list[str]:
    """The sentence for chains that a warm-up could not carry through what the localization leaves open."""
    settings = prepared.settings
    if settings.start is None or prepared.pull is not None:  # a prior confines too: localization alone says nothing
        return []
    if found.leaves:  # what lies at the center says nothing of where they went
        return []
    share = reached(trace, settings, prepared.center.double().numpy(), found.value, prepared.moving)
    if not share < _REACHED:
        return []
    return [
        f"the chains fill {100 * share:.0f} % of what the localization lets them: directions still open may hold more; "
        "raise gradients or localization"
    ]


def _doubts(
    found: Pooled, prepared: Prepared, diverged: dict[int, int], settings: Settings
) -> tuple[str, tuple[str, ...]]:
    """The verdict, and the sentences that go with a doubtful estimate."""
    warnings = []
    doubt, value, unbias = found.doubt, found.value, prepared.auto_lr
    below = found.plain / doubt.mcse if doubt.mcse > 0 else 0.0
    escaped = bool(found.leaves or prepared.left)
    if found.leaves:
        warnings.append(
            f"not a local minimum at this temperature: {found.leaves}; train further, or raise localization or nbeta"
        )
    elif prepared.left:
        warnings.append(
            f"not a local minimum at this temperature: at localization {prepared.left:g} the chains leave for lower "
            f"loss, and the value is that of what localization {settings.localization[0]:g} holds; train further"
        )
    elif below < 0:
        warnings.append(
            f"the value is negative, by {-below:.1f} standard errors: too few to tell a minimum from a saddle; "
            "take more draws or chains"
        )
    for chain, step in diverged.items():
        warnings.append(f"chain {chain} diverged at step {step} and is left out; lower lr ({settings.lr[chain]:.3g})")
    if math.isnan(doubt.mcse):
        warnings.append(f"no standard error: it takes at least 4 draws, got {settings.draws}")
    elif prepared.goal is not None and doubt.mcse > prepared.goal.allowed(value) and not found.leaves:
        share = 100 * doubt.mcse / abs(value) if value else math.inf
        warnings.append(
            f"the standard error is {share:.0f} % of the value, not {100 * prepared.goal.mcse:g} %: the limit of "
            "gradients ended the run; raise gradients or take more chains"
        )
    if doubt.rhat > _RHAT:
        warnings.append(f"the chains disagree (R-hat {doubt.rhat:.2f}); take more draws or a longer burn_in")
    if abs(doubt.drift) > DOUBT and not found.leaves:
        warnings.append(
            f"the loss is still drifting {'up' if doubt.drift > 0 else 'down'} "
            f"({abs(doubt.drift):.0f} standard errors from first to second half); take a longer burn_in"
        )
    tolerated = (_BIAS_TAKEN_OFF if unbias else _BIAS) * max(abs(value), 4 * doubt.mcse if doubt.mcse > 0 else 0.0)
    if abs(found.step_bias) > tolerated:
        done = "was taken off" if unbias else "is in the value"
        warnings.append(f"the step is large: a bias of about {found.step_bias:.2g} {done}; lower lr")
    if settings.batches == "shared" and settings.chains > 1:
        warnings.append("chains share their minibatches: they are correlated, and mcse and rhat look too good")
    if escaped:
        return "not a local minimum at this temperature", tuple(warnings)
    return ("undecided" if below < 0 or math.isnan(doubt.mcse) else "local minimum"), tuple(warnings)


def _of_localization(found: Pooled, change: float, mcse: float, prepared: Prepared) -> tuple[str, ...]:
    """The sentence of a value that the pull to the weights has a part in."""
    error = math.hypot(mcse, found.doubt.mcse)
    if not abs(change) > max(_DIFFERS * error, _SHARE * abs(found.value)):
        return ()
    pull = prepared.settings.localization[0]
    return (
        f"the localization is part of the value: at {pull / 10:g} instead of {pull:g} it is "
        f"{found.value + change:.3g} ± {mcse:.2g}; compare values of the same localization only",
    )
