"""Sums over draws, chain by chain, and what they pool to."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from torch import Tensor

from devinterp_fast.estimators.draws import Chains, Floats
from devinterp_fast.sampling.observers import Draw, Probe, grown


class SampleMoments:
    """Mean, spread and log-mean-exp of each sample's loss: 3 float64 a sample and chain, whatever the draws.

    Welford's recursion, so nothing cancels.
    """

    def __init__(self, probe: Probe, chains: int):
        self.probe = probe
        self.count = np.zeros((chains, 1))
        self.mean, self.spread = np.zeros((2, chains, probe.data.n))
        self.log_sum = np.full((chains, probe.data.n), -np.inf)

    def see(self, draw: Draw) -> None:
        """Takes in one draw."""
        losses, c = draw.values(self.probe), draw.chains
        with np.errstate(all="ignore"):  # a diverging chain's numbers are its own, and are left out
            self.count[c] += 1
            change = losses - self.mean[c]
            self.mean[c] += change / self.count[c]
            self.spread[c] += change * (losses - self.mean[c])
            self.log_sum[c] = np.logaddexp(self.log_sum[c], -losses)

    def variance(self, chains: Chains) -> Floats:
        """Of each sample's loss over all draws of these chains. Shape: (n,)."""
        count, mean = self.count[chains], self.mean[chains]
        total = count.sum()
        pooled = (count * mean).sum(0) / total
        variance: Floats = (self.spread[chains] + count * (mean - pooled) ** 2).sum(0) / total
        return variance

    def log_mean_exp(self, chains: Chains) -> Floats:
        """Log E exp(-loss) of each sample over all draws of these chains. Shape: (n,)."""
        pooled: Floats = np.logaddexp.reduce(self.log_sum[chains], 0) - np.log(self.count[chains].sum())
        return pooled


class MeanLoss:
    """The mean loss over all samples at each draw: 8 bytes a draw."""

    def __init__(self, probe: Probe, chains: int, draws: int):
        self.probe = probe
        self.loss = np.full((chains, draws), np.nan)

    def see(self, draw: Draw) -> None:
        """Takes in one draw."""
        self.loss = grown(self.loss, draw.number)
        self.loss[draw.chains, draw.number] = draw.values(self.probe).mean(1)


class LossCovariance:
    """Variance of the mean loss, and its covariance with each value of a probe: 2 float64 a value and chain."""

    def __init__(self, whole: Probe, probe: Probe, chains: int):
        self.whole, self.probe = whole, probe
        self.count, self.loss, self.spread = np.zeros((3, chains))
        self._chains = chains
        self.mean, self.cross = np.zeros((2, 0))  # (chains, samples, ...), made at the first draw

    def see(self, draw: Draw) -> None:
        """Takes in one draw."""
        values, c = draw.values(self.probe), draw.chains
        losses = (values if self.whole is self.probe else draw.values(self.whole)).mean(1)
        if self.mean.shape[1:] != values.shape[1:]:
            self.mean, self.cross = np.zeros((2, self._chains, *values.shape[1:]))
        each = (slice(None), *[None] * (values.ndim - 1))
        with np.errstate(all="ignore"):
            self.count[c] += 1
            change = losses - self.loss[c]
            self.loss[c] += change / self.count[c]
            self.spread[c] += change * (losses - self.loss[c])
            self.mean[c] += (values - self.mean[c]) / self.count[c][each]
            self.cross[c] += change[each] * (values - self.mean[c])

    def covariance(self, chains: Chains) -> Floats:
        """Of the mean loss with (value - mean loss), over all draws of these chains. Shape: (samples, ...)."""
        count, loss, mean = self.count[chains], self.loss[chains], self.mean[chains]
        weight = count / count.sum()
        away = loss - weight @ loss
        between = np.tensordot(weight * away, mean, 1)
        within = self.cross[chains].sum(0) / count.sum()
        covariance: Floats = within + between - (self.spread[chains].sum() / count.sum() + weight @ away**2)
        return covariance


class Values:
    """The probe's values at every draw, less those at the center: 4 bytes a draw and value.

    For quadratic forms of many samples, which would take more room than the draws themselves.
    """

    def __init__(self, probe: Probe, center: Tensor, chains: int, draws: int):
        self.probe, self._center = probe, center
        self._chains, self._draws = chains, draws
        self.values: npt.NDArray[np.float32] = np.zeros((0, 0, 0), dtype=np.float32)
        self._origin: Floats = np.zeros(0)

    def see(self, draw: Draw) -> None:
        """Takes in one draw."""
        values = draw.values(self.probe)
        flat = values.reshape(len(values), -1)
        if not self.values.size:
            self._origin = draw.evaluator.values(self._center[None], self.probe).reshape(-1)
            self.values = np.zeros((self._chains, self._draws, flat.shape[1]), dtype=np.float32)
        self.values = grown(self.values, draw.number)
        with np.errstate(all="ignore"):
            self.values[draw.chains, draw.number] = flat - self._origin
