"""devinterp 1.3's small helpers, which its notebooks call beside the estimators: losses at the weights, and a plot."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import cycle, islice
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.utils.data import DataLoader

from devinterp_fast import plots
from devinterp_fast.errors import DataError, LossError, ShapeError

Evaluate = Callable[[nn.Module, Any], Any]


def loss_of(results: Any) -> Tensor:
    """The loss in what an ``evaluate`` returned: a tensor, a tuple that starts with it, a dict or an object of it."""
    if isinstance(results, Mapping):
        results = results.get("loss")
    elif isinstance(results, tuple | list):
        results = results[0]
    elif not isinstance(results, Tensor):
        results = getattr(results, "loss", None)
    if not isinstance(results, Tensor):
        raise LossError("evaluate: expected a loss tensor, a tuple that starts with it, or .loss or ['loss'] of it")
    return results


def get_init_loss_multi_batch(
    dataloader: DataLoader[Any],
    n_batches: int,
    model: nn.Module,
    evaluate: Evaluate,
    device: torch.device | str = "cpu",
    seed: int | None = None,
) -> float:
    """The mean loss of ``n_batches`` batches, from the first one again where the loader ends before.

    Raises:
        ValueError: ``n_batches`` is below 1.
        DataError: the loader has no batch.
        LossError: ``evaluate`` returns no loss.
    """
    if n_batches < 1:
        raise ValueError(f"n_batches: expected an integer of at least 1, got {n_batches}")
    return _mean_loss(islice(cycle(_batches(dataloader, seed)), n_batches), model, evaluate, device)


def get_init_loss_one_batch(
    dataloader: DataLoader[Any],
    model: nn.Module,
    evaluate: Evaluate,
    device: torch.device | str = "cpu",
    seed: int | None = None,
) -> float:
    """The loss of one batch; raises as ``get_init_loss_multi_batch``."""
    return get_init_loss_multi_batch(dataloader, 1, model, evaluate, device, seed)


def get_init_loss_full_batch(
    dataloader: DataLoader[Any],
    model: nn.Module,
    evaluate: Evaluate,
    device: torch.device | str = "cpu",
    seed: int | None = None,
) -> float:
    """The mean over all batches, each counting alike; raises as ``get_init_loss_multi_batch``."""
    return _mean_loss(_batches(dataloader, seed), model, evaluate, device)


def _batches(dataloader: DataLoader[Any], seed: int | None) -> Iterator[Any]:
    """The loader's batches, in the order that a seed of torch's generator gives; the generator is put back."""
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        yield from dataloader


def _mean_loss(batches: Iterator[Any], model: nn.Module, evaluate: Evaluate, device: torch.device | str) -> float:
    with torch.no_grad():
        losses = [float(loss_of(evaluate(model, _moved(batch, device)))) for batch in batches]
    if not losses:
        raise DataError("dataloader: expected at least one batch, got none")
    return float(np.mean(losses))


def _moved(batch: Any, device: torch.device | str) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, dict):
        return {key: _moved(value, device) for key, value in batch.items()}
    return type(batch)(_moved(value, device) for value in batch) if isinstance(batch, tuple | list) else batch


def plot_trace(
    trace: ArrayLike,
    y_axis: str,
    x_axis: str = "step",
    title: str | None = None,
    plot_mean: bool = True,
    plot_std: bool = True,
    fig_size: tuple[float, float] = (12, 9),
    true_lc: float | None = None,
) -> None:
    """Shows each chain's curve, their mean, and a band of one standard deviation between chains around it.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ShapeError: the trace is not (chains, draws).
    """
    pyplot = plots.matplotlib("pyplot")
    rows = np.asarray(trace, dtype=float)
    if rows.ndim != 2:
        raise ShapeError(f"trace: expected (chains, draws), got {rows.shape}")
    _, ax = pyplot.subplots(figsize=fig_size)
    steps, mean = np.arange(rows.shape[1]), rows.mean(0)
    for chain, row in enumerate(rows):
        ax.plot(steps, row, linewidth=0.8, label=f"chain {chain}")
    if plot_mean:
        ax.plot(steps, mean, color="black", linestyle="--", label="mean")
    if plot_std:
        spread = rows.std(0)
        ax.fill_between(steps, mean - spread, mean + spread, color="gray", alpha=0.3, label="standard deviation")
    if true_lc is not None:
        ax.axhline(true_lc, color="red", linestyle=":", label="true value")
    ax.set(xlabel=x_axis, ylabel=y_axis, title=title or f"{y_axis} of each chain")
    ax.legend()
    pyplot.show()
