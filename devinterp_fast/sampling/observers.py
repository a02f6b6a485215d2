"""Observers of draws: what an estimator looks at while chains run, with no draw stored.

An engine shows every kept draw to every observer: where the chains are before the step's update, what the step
recorded, and, when asked, the loss of each sample of a probe set there. An observer keeps sums for each chain apart, so
that neither the order of chains nor the number of threads shows in a result, and a chain can be left out afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from devinterp_fast._flat import Layout
from devinterp_fast.sampling import native
from devinterp_fast.sampling.batches import Data
from devinterp_fast.sampling.objective import Objective

Floats = npt.NDArray[np.float64]
Function = Callable[[nn.Module, Any], Tensor]
"""f(model, batch) -> (B, ...), one value or more for each sample."""


@dataclass(frozen=True, eq=False)
class Probe:
    """Samples to look at, and what of them: the run's own loss, or a function of model and batch."""

    data: Data
    function: Function | None = None


class Evaluator:
    """Values of probes at the weights of chains, natively where the model was captured and the probe fits.

    Args:
        model: a private copy; its parameters are moved.
        objective: the loss.
        where: layout of the parameters.
        program: the captured model, or None.
    """

    def __init__(self, model: nn.Module, objective: Objective, where: Layout, program: native.Program | None):
        self.model, self.objective, self.where, self.program = model, objective, where, program
        self._threads = torch.get_num_threads()
        self._row = where.block(1)[0]
        own = dict(model.named_parameters())
        self._parameters = [own[name] for name in where.names]
        for parameter, view in zip(self._parameters, where.views(self._row), strict=True):
            parameter.data = view
        self._native: dict[int, tuple[Probe, Any, Any] | None] = {}

    def values(self, w: Tensor, probe: Probe) -> Floats:
        """The probe's values at each chain. Shape: w (count, dim) -> float64 (count, samples, ...)."""
        data = self._native_data(probe)
        if data is not None and self.program is not None:
            return self.program.chain_losses(w, data, threads=self._threads)[0].numpy()
        return np.stack([self._at(row, probe) for row in w])

    def gradients(self, w: Tensor, probe: Probe) -> tuple[Floats, Tensor]:
        """Mean loss over the probe's samples and its gradient. Shape: w (count, dim) -> (count,), (count, dim)."""
        data = self._native_data(probe)
        if data is not None and self.program is not None:
            losses, g = self.program.chain_losses(w, data, threads=self._threads, gradient=True)
            return losses.mean(1).numpy(), g
        values, gradients = [], torch.empty(len(w), self.where.dim, dtype=w.dtype)
        for row, out in zip(w, gradients, strict=True):
            self._row.copy_(row)
            loss = self.objective.mean(self.model, probe.data.all())
            each = torch.autograd.grad(loss, self._parameters, allow_unused=True, materialize_grads=True)
            torch.cat([g.reshape(-1) for g in each], out=out)
            values.append(float(loss.detach()))
        return np.array(values), gradients

    def model_at(self, row: Tensor) -> nn.Module:
        """The private copy with these weights; it is good until the next call of anything here."""
        self._row.copy_(row)
        return self.model

    def _at(self, row: Tensor, probe: Probe) -> Floats:
        self.model_at(row)
        if probe.function is None:
            return self.objective.per_sample(self.model, probe.data).numpy()
        with torch.no_grad():
            return probe.function(self.model, probe.data.all()).detach().double().numpy()

    def _native_data(self, probe: Probe) -> Any:
        """The probe's data as the native engine takes them; None where torch has to look."""
        if id(probe) not in self._native:
            self._native[id(probe)] = self._fit(probe)
        found = self._native[id(probe)]
        return None if found is None else found[1]

    def _fit(self, probe: Probe) -> tuple[Probe, Any, Any] | None:
        if self.program is None or probe.function is not None:
            return None
        x, y = probe.data.tensors.values()
        mine = self.program.x, self.program.y
        if any(a.shape[1:] != b.shape[1:] or a.dtype != b.dtype for a, b in zip((x, y), mine, strict=True)):
            return None
        program = replace(self.program, x=x, y=y, n=probe.data.n)
        try:
            native.check_integers(program)
        except native.Unsupported:
            return None
        return probe, *program.data(torch.float32)


@dataclass(frozen=True)
class Draw:
    """One draw of some chains.

    Attributes:
        number: of the draw.
        chains: which chains these rows are.
        w: where they are before the step's update; valid during the call alone.
        loss: of each chain on its step's batch; NaN for one that diverged.
        baseline: the loss at the center on the same batch.
        evaluator: of probes.

    Shape:
        w: (count, dim); loss, baseline: float64 (count,).
    """

    number: int
    chains: slice
    w: Tensor
    loss: Floats
    baseline: Floats
    evaluator: Evaluator

    def values(self, probe: Probe) -> Floats:
        """The probe's values here. Shape: float64 (count, samples, ...)."""
        return self.evaluator.values(self.w, probe)


def grown(kept: npt.NDArray[Any], draw: int) -> npt.NDArray[Any]:
    """An array (chains, draws, ...) with room for this draw too: a run whose length was left open may go on.

    It doubles, so that a draw costs the same however long the run; what is new is NaN.
    """
    have = kept.shape[1]
    if draw < have:
        return kept
    out = np.full((len(kept), max(draw + 1, 2 * have), *kept.shape[2:]), np.nan, dtype=kept.dtype)
    out[:, :have] = kept
    return out


class Observer(Protocol):
    """Looks at draws."""

    def see(self, draw: Draw) -> None:
        """Takes in one draw of some chains; draws of one chain come in order."""
        ...
