"""The local learning coefficient, with its error and its doubts."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from torch import Tensor, nn

from devinterp_fast import _flat
from devinterp_fast.errors import NumericalError
from devinterp_fast.sampling import engines, jobs
from devinterp_fast.sampling.batches import as_data
from devinterp_fast.sampling.diagnostics import (
    Diagnostics,
    apart,
    diagnose,
    every_chain_falls,
    extrapolation,
    lost_at,
    step_biases,
)
from devinterp_fast.sampling.objective import LossFn, Objective
from devinterp_fast.sampling.prepare import PerChain, Prepared, prepare
from devinterp_fast.sampling.run import Settings, Trace
from devinterp_fast.sampling.samplers import PRECONDITIONED, SGLD, Sampler
from devinterp_fast.sampling.torch_engine import undisturbed

Floats = npt.NDArray[np.float64]

_DOUBT = 4.0  # standard errors
_RHAT = 1.05
_ERROR = 0.05  # of the value, promised where nothing is set
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
        step_bias: by how much the step size raises ``value``, lr / 8 E[d . nbeta g]; already taken off if
            ``lr="auto"``. Exact for a quadratic loss; where the loss grows as ``|w|^k`` it is k / 2 times the bias.
        warnings: what casts doubt, one sentence each. They never alter the value.
        verdict: "local minimum", "not a local minimum at this temperature", or "undecided" where the value is
            negative within its error, or has no error.
        per_chain: the value of each chain, NaN for a diverged one. Shape: (chains,).
        diverged: {chain: first step whose loss was not finite}.
        settings: what was used, "auto" resolved.
        engine: which engine ran, and on which instruction set.
        engine_reason: why that one.
        seconds: wall time.
        trace: dims (chain, draw): ``loss`` on a step's batch before its update, and ``baseline``, the loss at the
            center on the same batch.

    Units:
        None: a learning coefficient is a number (half a dimension count).
    """

    value: float
    mcse: float
    rhat: float
    ess: float
    step_bias: float
    warnings: tuple[str, ...]
    verdict: str
    per_chain: Floats
    diverged: dict[int, int]
    settings: dict[str, Any]
    engine: str
    engine_reason: str
    seconds: float
    trace: xr.Dataset = field(repr=False)

    def __str__(self) -> str:
        chains, draws = self.trace.sizes["chain"], self.trace.sizes["draw"]
        digits = max(0, min(6, 1 - math.floor(math.log10(self.mcse)))) if self.mcse > 0 else 3
        line = (
            f"LLC {self.value:.{digits}f} ± {self.mcse:.{digits}f}   {chains} chains x {draws} draws   "
            f"R-hat {self.rhat:.2f}   ESS {self.ess:.0f}   {self.engine}   {self.seconds:.1f} s"
        )
        return "\n  ! ".join([line, *self.warnings])


def estimate_llc(
    model: nn.Module,
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
    mask: Tensor | dict[str, Tensor] | None = None,
    backend: str = "auto",
    seed: int = 0,
    progress: bool = True,
) -> LLC:
    """Estimates the local learning coefficient of a model at its present weights w0.

    llc = nbeta (mean_t L(w_t) - L(w0)), over chains of w <- w - (lr / 2) (nbeta g + localization (w - w0)) +
    sqrt(lr) xi started at w0. A draw's loss and its baseline L(w0) are taken on the same minibatch, so that the
    minibatch's noise cancels. The model, its mode and the global random state are left as they were.

    Args:
        model: any module, on the CPU, whose forward is deterministic (``model.eval()``).
        loss_fn: a criterion, applied as ``loss_fn(model(x), y)``, or ``f(model, batch)``; per-sample losses (B,)
            or their mean.
        data: (x, y), a tuple, dict or tensor of samples along the first dimension, a Dataset or a DataLoader.
        chains: how many.
        draws: recorded losses of each chain; "auto" is 400.
        burn_in: steps before the first draw; "auto" is half the draws.
        thin: steps from one draw to the next.
        lr: step size, one or one for each chain; "auto": see ``sampling/defaults.py``.
        localization: strength of the pull to w0, one or one for each chain; "auto" is 1.
        nbeta: inverse temperature times n, one or one for each chain; None is n / ln n.
        n: number of training samples behind the default nbeta; None is the number of samples in ``data``.
        sampler: "sgld", which "auto" chooses.
        batch_size: samples of a minibatch.
        batches: "independent" for each chain, "shared" by all, or "full".
        mask: which coordinates move: bool (dim,), or {parameter name: bool tensor}; None is all.
        backend: "native" runs whole chains in C++ and raises if the model cannot be captured; "torch" runs any module;
            "auto" is native where it can be, and ``engine_reason`` says why not.
        seed: names all noise; the same seed gives the same bits.
        progress: show a bar on the terminal.

    Returns:
        An ``LLC``: prints as one line, and carries error, diagnostics and trace.

    Raises:
        ShapeError, DTypeError, DeviceError, DataError, LossError, ModelError: an input does not fit; one sentence.
        ValueError: a setting is out of range.
        NumericalError: every chain diverged.

    Source:
        Lau, Furman, Wang, Murfet, Wei (2023), The local learning coefficient, arXiv 2308.12108.
    """
    began = time.perf_counter()
    prepared = prepare(
        model, loss_fn, data, chains=chains, draws=draws, burn_in=burn_in, thin=thin, lr=lr,
        localization=localization, nbeta=nbeta, n=n, sampler=sampler, batch_size=batch_size, batches=batches,
        mask=mask, backend=backend, seed=seed,
    )  # fmt: skip
    trace, engine = jobs.run([prepared], "LLC", progress=progress)[0]
    return _result(trace, prepared, engine, time.perf_counter() - began)


def explain(model: nn.Module, loss_fn: LossFn, data: object) -> engines.Choice:
    """Says which engine ``estimate_llc`` would run, why, and, if the model is captured, as what list of operations.

    Args:
        model: any module on the CPU.
        loss_fn: as in ``estimate_llc``.
        data: as in ``estimate_llc``.

    Returns:
        A ``Choice``; print it.

    Raises:
        ShapeError, DTypeError, DeviceError, DataError, LossError, ModelError: an input does not fit; one sentence.
    """
    samples = as_data(data)
    with undisturbed(_flat.layout(model).dim, samples.n):
        return engines.choose("auto", model, Objective(loss_fn, model, samples), samples)


def _result(trace: Trace, prepared: Prepared, engine: str, seconds: float) -> LLC:
    settings, unbias, reason = prepared.settings, prepared.auto_lr, prepared.choice.reason
    scaled = settings.nbeta[:, None] * (trace.loss - trace.baseline)
    moving = prepared.where.dim if prepared.mask is None else int(prepared.mask.sum())
    lost = lost_at(trace, settings, scaled, moving)
    healthy = lost < 0
    diverged = {int(c): int(lost[c]) for c in np.flatnonzero(~healthy)}
    if not healthy.any():
        chain, step = next(iter(diverged.items()))
        raise NumericalError(
            f"lr: expected a step size at which chains stay finite, got {settings.lr[chain]:.3g}: "
            f"all {settings.chains} chains diverged, chain {chain} at step {step}"
        )
    biases = step_biases(trace, settings, scaled)
    taken_off = biases if unbias and settings.sampler.kind in (SGLD, PRECONDITIONED) else np.zeros_like(biases)
    per_chain = np.where(healthy, scaled.mean(1) - taken_off, np.nan)
    weights = extrapolation(settings, healthy) if unbias else np.full(healthy.sum(), 1 / healthy.sum())
    doubt = diagnose(apart(scaled[healthy], settings, healthy), share=float((weights**2).sum() * len(weights)))
    value = float(weights @ per_chain[healthy])
    plain, all_fall = float(scaled[healthy].mean()), every_chain_falls(scaled[healthy])
    extrapolated = np.ptp(weights) > 0
    step_bias = plain - value if extrapolated else float(biases[healthy].mean())
    verdict, warnings = _doubts(value, plain, all_fall, step_bias, unbias, doubt, diverged, settings)
    dims = ("chain", "draw")
    used = {
        "lr": settings.lr.tolist(), "localization": settings.localization.tolist(),
        "nbeta": settings.nbeta.tolist(), "burn_in": settings.burn_in, "thin": settings.thin,
        "batches": settings.batches, "batch_size": settings.batch_size, "seed": settings.seed, "sampler": settings.sampler.name,
    }  # fmt: skip
    dataset = xr.Dataset(
        {"loss": (dims, trace.loss), "baseline": (dims, trace.baseline)},
        coords={"chain": np.arange(settings.chains), "draw": np.arange(settings.draws)},
        attrs={**used, "engine": engine, "engine_reason": reason},
    )
    return LLC(
        value=value, mcse=doubt.mcse, rhat=doubt.rhat, ess=doubt.ess, step_bias=step_bias, warnings=warnings,
        verdict=verdict, per_chain=per_chain, diverged=diverged, settings=used, engine=engine, engine_reason=reason,
        seconds=seconds,
        trace=dataset,
    )  # fmt: skip


def _doubts(
    value: float,
    plain: float,
    all_fall: bool,
    step_bias: float,
    unbias: bool,
    doubt: Diagnostics,
    diverged: dict[int, int],
    settings: Settings,
) -> tuple[str, tuple[str, ...]]:
    """The verdict, and the sentences that go with a doubtful estimate."""
    warnings = []
    below = plain / doubt.mcse if doubt.mcse > 0 else 0.0
    falling = plain < 0 and doubt.drift < -_DOUBT
    escaped = below < -_DOUBT or falling or all_fall
    if escaped:
        how = (
            f"the chains' mean loss lies {-below:.0f} standard errors below the loss at the model's weights"
            if below < -_DOUBT
            else f"the chains' loss is still falling ({-doubt.drift:.0f} standard errors from first to second half)"
            if falling
            else "every chain's loss lies below the loss at the model's weights and is still falling"
        )
        warnings.append(
            f"not a local minimum at this temperature: {how}; train further, or raise localization or nbeta"
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
    elif settings.start is not None and doubt.mcse > _ERROR * abs(value) and not escaped:
        share = 100 * doubt.mcse / abs(value) if value else math.inf
        warnings.append(f"the standard error is {share:.0f} % of the value; take more draws or chains")
    if doubt.rhat > _RHAT:
        warnings.append(f"the chains disagree (R-hat {doubt.rhat:.2f}); take more draws or a longer burn_in")
    if abs(doubt.drift) > _DOUBT and not escaped:
        warnings.append(
            f"the loss is still drifting {'up' if doubt.drift > 0 else 'down'} "
            f"({abs(doubt.drift):.0f} standard errors from first to second half); take a longer burn_in"
        )
    tolerated = (_BIAS_TAKEN_OFF if unbias else _BIAS) * max(abs(value), 4 * doubt.mcse if doubt.mcse > 0 else 0.0)
    if abs(step_bias) > tolerated:
        done = "was taken off" if unbias else "is in the value"
        warnings.append(f"the step is large: a bias of about {step_bias:.2g} {done}; lower lr")
    if settings.batches == "shared" and settings.chains > 1:
        warnings.append("chains share their minibatches: they are correlated, and mcse and rhat look too good")
    if escaped:
        return "not a local minimum at this temperature", tuple(warnings)
    return ("undecided" if below < 0 or math.isnan(doubt.mcse) else "local minimum"), tuple(warnings)
