"""The callbacks of devinterp 1.3: what is computed from draws, under its names and keys."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


class SamplerCallback:
    """Called at each draw as ``callback(chain=, draw=, loss=, init_loss=, model=)``; ``model`` is before the step."""

    def __init__(self, device: object = "cpu"):
        self.device = device

    def __call__(self, **seen: Any) -> None:
        """Takes in one draw."""
        raise NotImplementedError

    def finalize(self) -> None:
        """Called once after the last draw."""

    def get_results(self) -> dict[str, Any]:
        """What was found."""
        raise NotImplementedError


def _temperature(nbeta: float | None, temperature: float | None) -> float:
    if nbeta is None and temperature is None:
        raise ValueError("nbeta: expected a number, got none")
    if nbeta is not None and temperature is not None:
        raise ValueError("nbeta: expected nbeta or temperature, its old name, got both")
    return float(temperature if nbeta is None else nbeta)  # type: ignore[arg-type]


def _mean(values: Floats) -> Floats:
    """Over chains, without those that diverged."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmean(values, 0)  # type: ignore[no-any-return]


def _std(values: Floats) -> Floats:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanstd(values, 0, ddof=1)  # type: ignore[no-any-return]


class _OfLosses(SamplerCallback):
    """Keeps the loss of each draw, and what it is compared with; NaN where a chain diverged."""

    def __init__(self, num_chains: int, num_draws: int, device: object, eval_field: str = "loss"):
        super().__init__(device)
        self.num_chains, self.num_draws, self.eval_field = num_chains, num_draws, eval_field
        self.losses, self.baselines = np.full((2, num_chains, num_draws), np.nan)
        self.init_loss: Any = None

    def __call__(self, **seen: Any) -> None:
        chain, draw = seen["chain"], seen["draw"]
        self.losses[chain, draw] = float(seen[self.eval_field])
        baseline = seen.get("init_loss", self.init_loss)
        self.baselines[chain, draw] = np.nan if baseline is None else float(baseline)


class LLCEstimator(_OfLosses):
    """llc = nbeta (mean loss - init_loss) of each chain."""

    def __init__(
        self,
        num_chains: int,
        num_draws: int,
        init_loss: Any = None,
        device: object = "cpu",
        eval_field: str = "loss",
        nbeta: float | None = None,
        temperature: float | None = None,
    ):
        super().__init__(num_chains, num_draws, device, eval_field)
        self.init_loss, self.nbeta = init_loss, _temperature(nbeta, temperature)

    def finalize(self) -> None:
        """Computes the estimate of each chain."""
        self.llc_per_chain = self.nbeta * (self.losses - self.baselines).mean(1)
        self.llc_mean, self.llc_std = _mean(self.llc_per_chain), _std(self.llc_per_chain)

    def get_results(self) -> dict[str, Any]:
        """'llc/mean', 'llc/std', 'llc-chain/i', 'loss/trace'."""
        return {
            "llc/mean": float(self.llc_mean),
            "llc/std": float(self.llc_std),
            **{f"llc-chain/{i}": float(value) for i, value in enumerate(self.llc_per_chain)},
            "loss/trace": self.losses.astype(np.float32),
        }


class OnlineLLCEstimator(LLCEstimator):
    """nbeta (loss - init_loss) of each draw, and its mean and spread over chains."""

    def finalize(self) -> None:
        """Computes mean and spread of each draw."""
        self.llcs = self.nbeta * (self.losses - self.baselines)
        self.llc_means, self.llc_stds = _mean(self.llcs), _std(self.llcs)

    def get_results(self) -> dict[str, Any]:
        """'init_loss', 'llc/means', 'llc/stds', 'llc/trace', 'loss/trace'."""
        return {
            "init_loss": self.init_loss,
            "llc/means": self.llc_means.astype(np.float32),
            "llc/stds": self.llc_stds.astype(np.float32),
            "llc/trace": self.llcs.astype(np.float32),
            "loss/trace": self.losses.astype(np.float32),
        }


class OnlineWBICEstimator(_OfLosses):
    """n times the mean loss of the draws so far."""

    def __init__(self, num_chains: int, num_draws: int, n: int, device: object = "cpu"):
        super().__init__(num_chains, num_draws, device)
        self.n = n

    def finalize(self) -> None:
        """Computes the running estimates."""
        self.wbics = self.n * self.losses.cumsum(1) / np.arange(1, self.num_draws + 1)
        self.wbic_means, self.wbic_stds = _mean(self.wbics), _std(self.wbics)

    def get_results(self) -> dict[str, Any]:
        """'wbic/means', 'wbic/stds', 'wbic/trace', 'loss/trace'."""
        return {
            "wbic/means": self.wbic_means.astype(np.float32),
            "wbic/stds": self.wbic_stds.astype(np.float32),
            "wbic/trace": self.wbics.astype(np.float32),
            "loss/trace": self.losses.astype(np.float32),
        }


class MalaAcceptanceRate(SamplerCallback):
    """Metropolis acceptance of one step of the chains' size from each draw but the first, on the whole loss.

    ``learning_rate`` and ``nbeta`` are those of the run: others are an error.
    """

    def __init__(
        self,
        num_chains: int,
        num_draws: int,
        learning_rate: float,
        device: object = "cpu",
        nbeta: float | None = None,
        temperature: float | None = None,
    ):
        super().__init__(device)
        self.num_chains, self.num_draws, self.learning_rate = num_chains, num_draws, learning_rate
        self.nbeta = _temperature(nbeta, temperature)
        self.mala_acceptance_rate: Floats = np.full((num_chains, num_draws - 1), np.nan)

    def get_results(self) -> dict[str, Any]:
        """'mala_accept/trace', 'mala_accept/mean', 'mala_accept/std'."""
        return {
            "mala_accept/trace": self.mala_acceptance_rate.astype(np.float32),
            "mala_accept/mean": float(np.nanmean(self.mala_acceptance_rate)),
            "mala_accept/std": float(np.nanstd(self.mala_acceptance_rate)),
        }
