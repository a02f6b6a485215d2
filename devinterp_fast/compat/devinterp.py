"""devinterp 1.3's estimation of learning coefficients, on our engines: change the import, keep the calls.

What differs, and why, is on the page "Coming from devinterp" of the documentation.
"""

from __future__ import annotations

import functools
import math
import secrets
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from devinterp_fast.compat.callbacks import (
    LLCEstimator,
    MalaAcceptanceRate,
    OnlineLLCEstimator,
    OnlineWBICEstimator,
    SamplerCallback,
)
from devinterp_fast.compat.optimizers import SGLD, SGMCMC, SGNHT
from devinterp_fast.compat.utilities import (
    get_init_loss_full_batch,
    get_init_loss_multi_batch,
    get_init_loss_one_batch,
    loss_of,
    plot_trace,
)
from devinterp_fast.errors import DataError, DeviceError
from devinterp_fast.estimators.llc import summarize
from devinterp_fast.sampling import jobs
from devinterp_fast.sampling.batches import Batch, as_data
from devinterp_fast.sampling.observers import Draw
from devinterp_fast.sampling.prepare import Prepared, prepare
from devinterp_fast.sampling.prior import GaussianPrior
from devinterp_fast.sampling.proposals import Proposals
from devinterp_fast.sampling.run import Trace

__all__ = [
    "SGLD",
    "SGMCMC",
    "SGNHT",
    "LLCEstimator",
    "MalaAcceptanceRate",
    "OnlineLLCEstimator",
    "OnlineWBICEstimator",
    "SamplerCallback",
    "default_nbeta",
    "estimate_learning_coeff",
    "estimate_learning_coeff_with_summary",
    "evaluate_ce",
    "evaluate_mse",
    "get_init_loss_full_batch",
    "get_init_loss_multi_batch",
    "get_init_loss_one_batch",
    "make_evaluate",
    "plot_trace",
    "sample",
]

_OF_LOSSES = (LLCEstimator, OnlineLLCEstimator, OnlineWBICEstimator)


def default_nbeta(dataloader: DataLoader[Any] | int, grad_accum_steps: int = 1) -> float:
    """B / ln b, b = the batch size (not the size of the data set) times ``grad_accum_steps``; 1 where b = 1."""
    if not isinstance(dataloader, DataLoader | int):
        raise NotImplementedError(f"dataloader: expected a DataLoader or an integer, got {type(dataloader).__name__}")
    size = (dataloader.batch_size or 1) if isinstance(dataloader, DataLoader) else dataloader
    size *= grad_accum_steps
    if size <= 1:
        warnings.warn("nbeta is 1, as b / ln b is undefined for one sample a batch", stacklevel=2)
        return 1.0
    return size / math.log(size)


def _evaluate(criterion: Callable[..., Tensor], model: nn.Module, data: Any) -> tuple[Tensor, dict[str, Tensor]]:
    x, y = data
    out = model(x)
    return criterion(out, y), {"output": out}


def make_evaluate(criterion: Callable[..., Tensor]) -> Callable[..., Any]:
    """evaluate(model, (x, y)) of a criterion; the native engine runs it where it knows the model."""
    return functools.partial(_evaluate, criterion)


evaluate_ce = make_evaluate(F.cross_entropy)
evaluate_mse = make_evaluate(F.mse_loss)


def _loss_fn(evaluate: Callable[..., Any] | None) -> Callable[..., Tensor]:
    if isinstance(evaluate, functools.partial) and evaluate.func is _evaluate:
        criterion: Callable[..., Tensor] = evaluate.args[0]
        return criterion

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return loss_of(model(batch) if evaluate is None else evaluate(model, batch))

    return loss


class _Called:
    """Shows draws to the callbacks of others."""

    def __init__(self, callbacks: Sequence[Callable[..., Any]], init_loss: float | None, first: int):
        self.callbacks, self.init_loss, self.first = callbacks, init_loss, first

    def see(self, draw: Draw) -> None:
        """Takes in one draw."""
        for i, chain in enumerate(range(draw.chains.start, draw.chains.stop)):
            seen = {
                "chain": self.first + chain,
                "draw": draw.number,
                "loss": torch.tensor(draw.loss[i]),
                "init_loss": float(draw.baseline[i]) if self.init_loss is None else self.init_loss,
                "model": draw.evaluator.model_at(draw.w[i]),
            }
            with torch.no_grad():
                for callback in self.callbacks:
                    callback(**seen)


def sample(
    model: nn.Module,
    loader: DataLoader[Any],
    callbacks: Sequence[Callable[..., Any]] | Mapping[str, Callable[..., Any]],
    evaluate: Callable[..., Any] | None = None,
    sampling_method: Any = SGLD,
    optimizer_kwargs: Mapping[str, Any] | None = None,
    num_draws: int = 100,
    num_chains: int = 10,
    num_burnin_steps: int = 0,
    num_steps_bw_draws: int = 1,
    init_loss: float | None = None,
    grad_accum_steps: int = 1,
    cores: object = 1,
    seed: int | Sequence[int] | None = None,
    device: torch.device | str = "cpu",
    verbose: bool = True,
    optimize_over_per_model_param: Mapping[str, Tensor] | None = None,
    gpu_idxs: object = None,
    batch_size: object = 1,
    use_amp: bool = False,
) -> dict[str, Any]:
    """Runs chains and shows their draws to callbacks; returns the callbacks' results in one dict.

    Args:
        model: as in ``estimate_llc``; its mode is left as it is.
        loader: of the data, read once; its batch size, times ``grad_accum_steps``, is that of a step.
        callbacks: called at each draw, and their results asked at the end.
        evaluate: f(model, batch), whose loss comes first, as "loss" or as .loss; None is ``model(batch)``.
        sampling_method: ``SGLD``, ``SGNHT`` or one of ``SGMCMC``.
        optimizer_kwargs: its settings; ``nbeta`` defaults to ``default_nbeta(loader)``.
        num_draws: of each chain.
        num_chains: how many.
        num_burnin_steps: steps before the first draw.
        num_steps_bw_draws: steps from one draw to the next.
        init_loss: what llc callbacks take off; None is the loss at the center on the draw's own batch.
        grad_accum_steps: factor of the batch size.
        cores: unused: threads are torch's.
        seed: of all chains, or one for each; None draws a fresh one.
        device: "cpu".
        verbose: show a bar on a terminal.
        optimize_over_per_model_param: {name: which elements move}.
        gpu_idxs: unused.
        batch_size: unused, as in the original.
        use_amp: unused on the CPU, as in the original.

    Raises:
        DeviceError: ``device`` is not the CPU.
        DataError: ``loader`` is no DataLoader with a batch size.
        ShapeError, DTypeError, LossError, ModelError, ValueError, TypeError: an input does not fit; one sentence.
        NumericalError: every chain diverged.
    """
    if torch.device(device).type != "cpu" or gpu_idxs is not None:
        raise DeviceError(f"device: expected cpu, got {device}{'' if gpu_idxs is None else ' and gpu_idxs'}")
    if not isinstance(loader, DataLoader) or loader.batch_size is None:
        raise DataError(f"loader: expected a DataLoader with a batch size, got {type(loader).__name__}")
    settings = dict(optimizer_kwargs or {})
    if settings.get("temperature") is not None:
        if "nbeta" in settings:
            raise ValueError("nbeta: expected nbeta or temperature, its old name, got both")
        settings["nbeta"] = settings.pop("temperature")
    settings.setdefault("nbeta", default_nbeta(loader, grad_accum_steps))
    sampler = sampling_method.sampler(settings)
    every = {**sampling_method.defaults_of, **settings}
    mask = None
    if optimize_over_per_model_param:
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        mask = {name: part.bool() for name, part in optimize_over_per_model_param.items() if name in trained}
    samples, loss_fn = as_data(loader), _loss_fn(evaluate)
    if seed is None:
        seed = secrets.randbits(63)
    seeds = [seed] if isinstance(seed, int) else list(seed)
    if len(seeds) not in (1, num_chains) or (not isinstance(seed, int) and len(seeds) != num_chains):
        raise ValueError(f"seed: expected one or {num_chains} seeds, got {len(seeds)}")
    each = num_chains // len(seeds)
    # Noise of another level at this step and drift is noise of level 1 at step lr s^2, with drift terms of 1 / s^2.
    heat = float(every.get("noise_level", 1.0)) ** 2
    if heat != 1.0:
        warnings.warn(f"noise_level: chains sample at nbeta / {heat:g}, the llc is taken with nbeta", stacklevel=2)
    decay = float(every.get("weight_decay", 0.0)) / heat
    prepared = [
        prepare(
            model, loss_fn, samples, chains=each, draws=num_draws, burn_in=num_burnin_steps, thin=num_steps_bw_draws,
            lr=every["lr"] * heat, localization=every.get("localization", 0.0) / heat, nbeta=every["nbeta"] / heat,
            sampler=sampler, batch_size=loader.batch_size * grad_accum_steps, batches="epoch", mask=mask, seed=number,
            prior=GaussianPrior(decay, 0.0) if decay else None,
        )
        for number in seeds
    ]  # fmt: skip
    named = dict(callbacks) if isinstance(callbacks, Mapping) else {str(i): c for i, c in enumerate(callbacks)}
    _check_rates(named.values(), every)
    _run(prepared, list(named.values()), init_loss, verbose)
    results: dict[str, Any] = {}
    for name, callback in named.items():
        if hasattr(callback, "get_results"):
            found = callback.get_results()
            results.update({name: found} if isinstance(callbacks, Mapping) and name else found)
    return results


def _check_rates(callbacks: Iterable[Any], every: Mapping[str, Any]) -> None:
    for rate in callbacks:
        if type(rate) is not MalaAcceptanceRate:
            continue
        for name, said, used in (("learning_rate", rate.learning_rate, "lr"), ("nbeta", rate.nbeta, "nbeta")):
            if not math.isclose(said, every[used], rel_tol=1e-6):
                raise ValueError(
                    f"{name}: expected that of the run, {every[used]:.6g}, got {said:.6g} in MalaAcceptanceRate"
                )


def _run(prepared: list[Prepared], callbacks: list[Any], init_loss: float | None, verbose: bool) -> None:
    """Runs the chains and lets every callback finish."""
    rates = [c for c in callbacks if type(c) is MalaAcceptanceRate]
    others = [c for c in callbacks if type(c) not in (*_OF_LOSSES, MalaAcceptanceRate)]
    proposals = [Proposals(job) for job in prepared]
    observers: list[list[Any]] = []
    for number, job in enumerate(prepared):
        called = [_Called(others, init_loss, number * job.settings.chains)] if others else []
        observers.append([*called, *([proposals[number]] if rates else [])])
    trace, whole, engine = _joined(prepared, jobs.run(prepared, "chains", progress=verbose, observers=observers))
    llc = summarize(trace, whole, engine, 0.0)
    for sentence in llc.warnings:
        warnings.warn(sentence, stacklevel=4)
    trace.loss[list(llc.diverged)] = np.nan
    for callback in callbacks:
        if type(callback) in _OF_LOSSES:
            callback.losses[: len(trace.loss)] = trace.loss
            callback.baselines[: len(trace.loss)] = trace.baseline if init_loss is None else init_loss
            callback.init_loss = float(whole.baseline.mean()) if init_loss is None else init_loss
        elif type(callback) is MalaAcceptanceRate:
            seen = np.concatenate([p.probabilities for p in proposals])
            seen[list(llc.diverged)] = np.nan
            callback.mala_acceptance_rate[:] = seen[:, 1:]
        if hasattr(callback, "finalize"):
            callback.finalize()


def _joined(prepared: list[Prepared], results: list[tuple[Trace, str]]) -> tuple[Trace, Prepared, str]:
    """The chains of all jobs as those of one."""
    traces = [trace for trace, _ in results]
    if len(traces) == 1:
        return traces[0], prepared[0], results[0][1]
    rows: dict[str, Any] = {
        name: np.concatenate([getattr(trace, name) for trace in traces])
        for name in ("loss", "baseline", "energy", "gauge", "diverged")
    }
    used = [job.settings for job in prepared[: len(traces)]]
    each: dict[str, Any] = {
        name: np.concatenate([getattr(s, name) for s in used]) for name in ("lr", "localization", "nbeta")
    }
    whole = replace(prepared[0], settings=replace(used[0], chains=sum(s.chains for s in used), **each))
    return Trace(**rows, interrupted=any(trace.interrupted for trace in traces)), whole, results[0][1]


def estimate_learning_coeff_with_summary(
    model: nn.Module,
    loader: DataLoader[Any],
    callbacks: Sequence[Callable[..., Any]] = (),
    evaluate: Callable[..., Any] | None = None,
    sampling_method: Any = SGLD,
    optimizer_kwargs: Mapping[str, Any] | None = None,
    num_draws: int = 100,
    num_chains: int = 10,
    num_burnin_steps: int = 0,
    num_steps_bw_draws: int = 1,
    init_loss: float | None = None,
    grad_accum_steps: int = 1,
    cores: object = 1,
    seed: int | Sequence[int] | None = None,
    device: torch.device | str = "cpu",
    gpu_idxs: object = None,
    verbose: bool = True,
    optimize_over_per_model_param: Mapping[str, Tensor] | None = None,
    online: bool = False,
    use_amp: bool = False,
) -> dict[str, Any]:
    """The learning coefficient with its traces; arguments and errors are those of ``sample``.

    Returns:
        'llc/mean', 'llc/std' over chains, 'llc-chain/i' and 'loss/trace' (chains, draws); with ``online`` instead
        'init_loss', 'llc/means', 'llc/stds', 'llc/trace' and 'loss/trace'; and the results of ``callbacks``.
    """
    settings = dict(optimizer_kwargs or {})
    nbeta = settings.get("nbeta", settings.get("temperature"))
    estimator = (OnlineLLCEstimator if online else LLCEstimator)(
        num_chains, num_draws, init_loss, nbeta=default_nbeta(loader, grad_accum_steps) if nbeta is None else nbeta
    )
    return sample(
        model, loader, [estimator, *callbacks], evaluate, sampling_method, settings, num_draws, num_chains,
        num_burnin_steps, num_steps_bw_draws, init_loss, grad_accum_steps, cores, seed, device, verbose,
        optimize_over_per_model_param, gpu_idxs, use_amp=use_amp,
    )  # fmt: skip


def estimate_learning_coeff(
    model: nn.Module,
    loader: DataLoader[Any],
    callbacks: Sequence[Callable[..., Any]] = (),
    evaluate: Callable[..., Any] | None = None,
    sampling_method: Any = SGLD,
    optimizer_kwargs: Mapping[str, Any] | None = None,
    num_draws: int = 100,
    num_chains: int = 10,
    num_burnin_steps: int = 0,
    num_steps_bw_draws: int = 1,
    init_loss: float | None = None,
    grad_accum_steps: int = 1,
    cores: object = 1,
    seed: int | Sequence[int] | None = None,
    device: torch.device | str = "cpu",
    verbose: bool = True,
    optimize_over_per_model_param: Mapping[str, Tensor] | None = None,
) -> float:
    """The learning coefficient, a number; arguments and errors are those of ``sample``."""
    results = estimate_learning_coeff_with_summary(
        model, loader, callbacks, evaluate, sampling_method, optimizer_kwargs, num_draws, num_chains, num_burnin_steps,
        num_steps_bw_draws, init_loss, grad_accum_steps, cores, seed, device, verbose=verbose,
        optimize_over_per_model_param=optimize_over_per_model_param,
    )  # fmt: skip
    return float(results["llc/mean"])
