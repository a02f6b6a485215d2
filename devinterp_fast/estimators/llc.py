"""The local learning coefficient, with its error and its doubts."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from torch import Tensor, nn

from devinterp_fast import _flat
from devinterp_fast.errors import LossError, NumericalError
from devinterp_fast.progress import ProgressBar
from devinterp_fast.sampling import defaults, engines
from devinterp_fast.sampling.batches import as_data, check_batches
from devinterp_fast.sampling.diagnostics import Diagnostics, diagnose, every_chain_falls
from devinterp_fast.sampling.objective import LossFn, Objective
from devinterp_fast.sampling.run import Settings, Trace
from devinterp_fast.sampling.torch_engine import private_copy, undisturbed

Floats = npt.NDArray[np.float64]
PerChain = float | Sequence[float]

SAMPLERS = ("auto", "sgld")

_DOUBT = 4.0  # standard errors
_RHAT = 1.05
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
    sampler: str = "auto",
    batch_size: int = 256,
    batches: str = "independent",
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
    samples = as_data(data)
    where = _flat.layout(model)
    moves = None if mask is None else _flat.flat_mask(mask, where)
    _choice("sampler", sampler, SAMPLERS)
    _choice("backend", backend, engines.BACKENDS)
    settings = _settings(
        samples.n, chains=chains, draws=draws, burn_in=burn_in, thin=thin, localization=localization,
        nbeta=nbeta, n=n, batch_size=batch_size, batches=batches, seed=seed, lr=lr,
    )  # fmt: skip
    center = _flat.flatten(model, where)
    with undisturbed(where.dim, settings.batch_size):
        objective = Objective(loss_fn, model, samples)
        baseline = objective.per_sample(model, samples)
        _check_baseline(baseline)
        if isinstance(lr, str):
            found = defaults.step_size(
                private_copy(model), objective, samples, where, center, moves,
                nbeta=float(settings.nbeta.max()), localization=float(settings.localization.max()), seed=seed,
            )  # fmt: skip
            settings.lr[:] = found
        choice = engines.choose(backend, model, objective, samples)
    engine = engines.make(choice, model, objective, samples, where, center, baseline, moves, settings)
    with ProgressBar("LLC", settings.steps * settings.chains, show=progress) as bar:
        trace = engine.run(bar.update)
    return _result(trace, settings, engine.name, choice.reason, isinstance(lr, str), time.perf_counter() - began)


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


def _choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {choices}, got {value!r}")


def _count(name: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name}: expected an integer of at least {least}, got {value!r}")
    return int(value)


def _seed(seed: object) -> int:
    number = _count("seed", seed, 0)
    if number >= 2**64:
        raise ValueError(f"seed: expected an integer below 2^64, got {seed!r}")
    return number


def _per_chain(name: str, value: PerChain, chains: int, *, zero: bool = False) -> Floats:
    try:
        out = np.array(np.broadcast_to(np.asarray(value, dtype=np.float64), (chains,)))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected a number or {chains} numbers, got {value!r}") from error
    if not np.isfinite(out).all() or (out < 0).any() or (not zero and (out == 0).any()):
        least = "at least 0" if zero else "above 0"
        raise ValueError(f"{name}: expected finite numbers {least}, got {value!r}")
    return out


def _settings(
    samples: int,
    *,
    chains: int,
    draws: int | str,
    burn_in: int | str,
    thin: int,
    lr: PerChain | str,
    localization: PerChain | str,
    nbeta: PerChain | None,
    n: int | None,
    batch_size: int,
    batches: str,
    seed: int,
) -> Settings:
    """Checks the settings of a run and fills in the defaults; ``lr="auto"`` is left at 1 for the caller to set."""
    chains, thin = _count("chains", chains, 1), _count("thin", thin, 1)
    for name, value in (("draws", draws), ("burn_in", burn_in), ("lr", lr), ("localization", localization)):
        if isinstance(value, str):
            _choice(name, value, ("auto",))
    draws = defaults.DRAWS if isinstance(draws, str) else _count("draws", draws, 1)
    burn_in = draws // 2 if isinstance(burn_in, str) else _count("burn_in", burn_in, 0)
    if nbeta is not None and n is not None:
        raise ValueError("nbeta: expected nbeta or n, got both")
    if nbeta is None:
        n = samples if n is None else _count("n", n, 2)
        if n < 2:
            raise ValueError("n: expected at least 2 training samples for nbeta = n / ln n, got 1: pass n or nbeta")
        nbeta = n / math.log(n)
    return Settings(
        chains=chains,
        draws=draws,
        burn_in=burn_in,
        thin=thin,
        lr=_per_chain("lr", 1.0 if isinstance(lr, str) else lr, chains),
        localization=_per_chain(
            "localization",
            defaults.LOCALIZATION if isinstance(localization, str) else localization,
            chains,
            zero=True,
        ),
        nbeta=_per_chain("nbeta", nbeta, chains),
        batches=batches,
        batch_size=check_batches(batches, _count("batch_size", batch_size, 1), samples),
        seed=_seed(seed),
    )


def _check_baseline(baseline: Tensor) -> None:
    bad = torch.nonzero(~torch.isfinite(baseline))
    if len(bad):
        raise LossError(
            f"loss_fn: expected finite losses at the model's weights, got {baseline[bad[0, 0]]:g} "
            f"on sample {int(bad[0, 0])} ({len(bad)} of {len(baseline)} samples)"
        )


def _result(trace: Trace, settings: Settings, engine: str, reason: str, unbias: bool, seconds: float) -> LLC:
    healthy = trace.diverged < 0
    diverged = {int(c): int(trace.diverged[c]) for c in np.flatnonzero(~healthy)}
    if not healthy.any():
        chain, step = next(iter(diverged.items()))
        raise NumericalError(
            f"lr: expected a step size at which chains stay finite, got {settings.lr[chain]:.3g}: "
            f"all {settings.chains} chains diverged, chain {chain} at step {step}"
        )
    scaled = settings.nbeta[:, None] * (trace.loss - trace.baseline)
    biases = settings.lr / 8 * trace.energy
    per_chain = np.where(healthy, scaled.mean(1) - (biases if unbias else 0.0), np.nan)
    doubt = diagnose(scaled[healthy])
    value = float(per_chain[healthy].mean())
    step_bias = float(biases[healthy].mean())
    plain, all_fall = float(scaled[healthy].mean()), every_chain_falls(scaled[healthy])
    verdict, warnings = _doubts(value, plain, all_fall, step_bias, unbias, doubt, diverged, settings)
    dims = ("chain", "draw")
    used = {
        "lr": settings.lr.tolist(), "localization": settings.localization.tolist(),
        "nbeta": settings.nbeta.tolist(), "burn_in": settings.burn_in, "thin": settings.thin,
        "batches": settings.batches, "batch_size": settings.batch_size, "seed": settings.seed, "sampler": "sgld",
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
