"""The engine for any ``nn.Module``: gradients by autograd, the update by the fused kernel.

Chains run one at a time, each to its end, unless the model is tiny: then all chains take a step together under
``vmap``, if it knows the model's operations. Which of the two is a function of the model and the batch's size alone,
never of a clock or of the number of chains.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from devinterp_fast import _cpu
from devinterp_fast._flat import Layout
from devinterp_fast._random import kept_random_state
from devinterp_fast.errors import ModelError
from devinterp_fast.sampling.batches import Data, Minibatches, draw
from devinterp_fast.sampling.moves import Gradients, Mover, flat
from devinterp_fast.sampling.objective import MeanLoss, Objective
from devinterp_fast.sampling.prior import Pull, forget_virial
from devinterp_fast.sampling.run import Floats, See, Settings, State, Trace

VMAP_LIMIT = 2**16
"""Below this many parameters x samples a step is all Python: chains go together. Measured: benchmarks/bench_llc.py."""

POOL_LIMIT = 2**24
"""Below this many parameters x samples torch's thread pool costs more than it gives, and one thread runs."""


@contextmanager
def undisturbed(parameters: int, batch: int) -> Iterator[None]:
    """Runs without touching the caller's random state or thread count, with gradients even under ``no_grad``."""
    threads = torch.get_num_threads()
    if parameters * batch < POOL_LIMIT:
        torch.set_num_threads(1)
    try:
        with kept_random_state(), torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.set_num_threads(threads)


def private_copy(model: nn.Module) -> nn.Module:
    """A copy whose parameters the engine may point elsewhere.

    Until it does, they share the memory of the model's own: the engine gives each moving one a view of a chain's
    vector, and only reads the others.

    Raises:
        ModelError: the model cannot be copied.
    """
    try:
        with torch.inference_mode(False):
            shared = {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in model.parameters()}
            return copy.deepcopy(model, shared)
    except (RuntimeError, TypeError, AttributeError, copy.Error) as error:
        raise ModelError(f"model: expected a module that copy.deepcopy can copy, got {error}") from error


class TorchEngine:
    """Runs chains of any module.

    Args:
        model: a private copy of the model; its parameters become views into the chains' vectors.
        objective: the loss.
        data: all samples.
        where: layout of the parameters.
        center: what the chains start from and are localized at.
        baseline: the loss of each sample at the center.
        mask: coordinates that move, or None for all.
        settings: of the run.
        pull: a prior beside the localization, or None.

    Shape:
        center: (dim,) in the model's dtype; baseline: float64 (n,); mask: bool (dim,).
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        data: Data,
        where: Layout,
        center: Tensor,
        baseline: Tensor,
        mask: Tensor | None,
        settings: Settings,
        pull: Pull | None = None,
    ):
        self.model, self.objective, self.data, self.where = model, objective, data, where
        self.center, self.baseline, self.mask, self.settings = center, baseline.numpy(), mask, settings
        self.pull = pull
        self.together = where.dim * settings.batch_size <= VMAP_LIMIT
        self.fused = where.dtype == torch.float32

    @property
    def name(self) -> str:
        """The engine, as results quote it."""
        return f"torch/{_cpu.isa()}" if self.fused else "torch/reference"

    def run(
        self, progress: Callable[[int, str], None], see: See | None = None, stop: Callable[[], bool] = lambda: False
    ) -> Trace:
        """Runs every chain to its end, or until ``stop()``; draws not reached by then are NaN.

        Args:
            progress: called with (updates done, a note with the estimate so far) now and then.
            see: is shown each draw; numbers are the same with and without it.
            stop: whether to end early, asked at every step.
        """
        s = self.settings
        with undisturbed(self.where.dim, s.batch_size):
            state = State.at(self.center, s.chains, s.sampler) if s.start is None else copy.deepcopy(s.start)
            loss, baseline, energy, gauge = (np.full((s.chains, s.draws), np.nan) for _ in range(4))
            trace = Trace(loss, baseline, energy, gauge, state.diverged, state)
            # One chain at a time needs the memory of one while no run goes on from where it ends.
            row = self.where.block(1).copy_(self.center)
            if self.together and self._vmap_knows(row):
                rows = self.where.block(s.chains).copy_(state.w)
                self._walk(trace, 0, rows, self._gradients_together(rows), progress, see, stop)
                state.w.copy_(rows)
            else:
                for c in range(s.chains):
                    row.copy_(state.w[c])
                    self._walk(trace, c, row, self._gradients_alone(row[0]), progress, see, stop)
                    state.w[c] = row[0]
            state.step += s.steps
        if self.pull is not None:
            forget_virial(trace, s)
        return trace

    def _vmap_knows(self, row: Tensor) -> bool:
        """Whether vmap can take this model's gradient; one chain tells, so the answer is the same for any number."""
        s = self.settings
        try:
            self._gradients_together(row)(draw(s.batches, 0, 1, s.batch_size, self.data.n, seed=s.seed, step=0))
        except RuntimeError:  # control flow on values, .item(), an operation without a batching rule
            return False
        return True

    def _walk(
        self,
        trace: Trace,
        low: int,
        rows: Tensor,
        gradients: Gradients,
        progress: Callable[[int, str], None],
        see: See | None,
        stop: Callable[[], bool],
    ) -> None:
        """Takes the chains that start with number ``low``, whose vectors are ``rows``, to their end."""
        s, count = self.settings, len(rows)
        high = low + count
        center, strength = self.center, None
        if self.pull is not None:
            center = self.pull.center(s)[low:high].to(self.where.dtype)
            strength = self.pull.strength(s)[low:high]
        move = Mover(
            rows, center, self.mask, s, trace.state, low, gradients,
            self._anchor(rows, gradients) if s.sampler.control_variate else None, strength,
        )  # fmt: skip
        batches = Minibatches(s.batches, low, count, s.batch_size, self.data.n, seed=s.seed)
        for step in range(s.first_step, s.first_step + s.steps):
            if stop() or (trace.diverged[low:high] >= 0).all():
                return
            index = batches.at(step)
            losses, grads = move.gradients(index)
            values = losses.numpy()
            finite = np.isfinite(values)
            if not finite.all():
                lost = low + np.flatnonzero(~finite)
                trace.diverged[lost[trace.diverged[lost] < 0]] = step
                if (trace.diverged[low:high] >= 0).all():
                    return
            at = s.draw_at(step)
            if at is not None:
                trace.loss[low:high, at] = values
                trace.baseline[low:high, at] = self._baseline(index, count)
                if see is not None:
                    see(at, slice(low, high), rows, values, trace.baseline[low:high, at])
                if at % 16 == 0:
                    gain = trace.loss[low, : at + 1] - trace.baseline[low, : at + 1]
                    progress(low * s.steps + (step - s.first_step + 1) * count, f"LLC {s.nbeta[low] * gain.mean():.3g}")
            energy, gauge = move.step(losses, grads, step)
            if at is not None:
                trace.energy[low:high, at], trace.gauge[low:high, at] = energy, gauge
        progress(high * s.steps, "")

    def _anchor(self, rows: Tensor, gradients: Gradients) -> tuple[Tensor, Gradients]:
        """The full gradient at the center, and the function that gives a batch's there, for control variates."""
        center = self.where.block(1).copy_(self.center)
        model = private_copy(self.model)
        at_center = TorchEngine(
            model, self.objective, self.data, self.where, self.center, torch.from_numpy(self.baseline), None,
            self.settings,
        )._gradients_alone(center[0])  # fmt: skip

        def each(index: Tensor | slice) -> tuple[Tensor, list[Tensor]]:
            if isinstance(index, slice) or index.shape[0] == 1:
                return at_center(index)
            parts = [at_center(row[None]) for row in index]
            return torch.cat([loss for loss, _ in parts]), [torch.cat([flat(g, 1) for _, g in parts])]

        return flat(at_center(slice(None))[1], 1), each

    def _baseline(self, index: Tensor | slice, count: int) -> Floats:
        if isinstance(index, slice):
            return np.full(count, self.baseline.mean())
        return np.broadcast_to(self.baseline[index.numpy()].mean(1), (count,))

    def _gradients_alone(self, row: Tensor) -> Gradients:
        """One chain: the copy's parameters are views of its row, so the update moves the model itself."""
        own = dict(self.model.named_parameters())
        parameters = [own[name] for name in self.where.names]
        for parameter, view in zip(parameters, self.where.views(row), strict=True):
            parameter.data = view

        def gradients(index: Tensor | slice) -> tuple[Tensor, list[Tensor]]:
            batch = self.data.select(index if isinstance(index, slice) else index[0])
            loss = self.objective.mean(self.model, batch)
            grads = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
            return loss.detach().double().reshape(1), [g.contiguous() for g in grads]

        return gradients

    def _gradients_together(self, rows: Tensor) -> Gradients:
        """All chains: parameters stacked along a first dimension that vmap removes."""
        module = MeanLoss(self.objective, self.model)
        names = [f"model.{name}" for name in self.where.names]
        stacked = dict(zip(names, self.where.views(rows), strict=True))

        def loss(parameters: dict[str, Tensor], index: Tensor | slice) -> Tensor:
            value: Tensor = torch.func.functional_call(module, parameters, (self.data.select(index),))
            return value

        each = torch.func.grad_and_value(loss)

        def gradients(index: Tensor | slice) -> tuple[Tensor, list[Tensor]]:
            if isinstance(index, slice):
                grads, values = torch.func.vmap(lambda p: each(p, index))(stacked)
            elif index.shape[0] == 1:
                grads, values = torch.func.vmap(each, in_dims=(0, None))(stacked, index[0])
            else:
                grads, values = torch.func.vmap(each)(stacked, index)
            return values.detach().double(), [grads[name].contiguous() for name in names]

        return gradients
