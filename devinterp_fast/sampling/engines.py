"""Which engine runs the chains, and why.

``native`` runs whole chains in C++, if the model can be captured as a Program; ``torch`` runs any module. The choice is
a function of the model, the loss and the data, never of a clock, and the result names it with its reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from devinterp_fast import _cpu
from devinterp_fast._flat import Layout
from devinterp_fast.errors import ModelError
from devinterp_fast.sampling import native
from devinterp_fast.sampling.batches import Batches, Data
from devinterp_fast.sampling.objective import Objective
from devinterp_fast.sampling.prior import Pull, forget_virial
from devinterp_fast.sampling.run import See, Settings, State, Trace
from devinterp_fast.sampling.torch_engine import TorchEngine, private_copy

BACKENDS = ("auto", "native", "torch")


class Engine(Protocol):
    """Runs the chains of one run."""

    @property
    def name(self) -> str:
        """As results quote it."""
        ...

    def run(
        self, progress: Callable[[int, str], None], see: See | None = None, stop: Callable[[], bool] = lambda: False
    ) -> Trace:
        """Runs every chain to its end, or until ``stop()``; draws not reached by then are NaN.

        Args:
            progress: hears (updates done, a note) now and then.
            see: is shown each draw; numbers are the same with and without it.
            stop: whether to end early.
        """
        ...


@dataclass(frozen=True)
class Choice:
    """What would run.

    Attributes:
        engine: "native" or "torch".
        reason: why, in one sentence.
        program: the captured model, if there is one.
    """

    engine: str
    reason: str
    program: native.Program | None

    def __str__(self) -> str:
        lines = [f"{self.engine}: {self.reason}"]
        if self.program is not None:
            lines.append(str(self.program.description))
        return "\n".join(lines)


def choose(
    backend: str,
    model: nn.Module,
    objective: Objective,
    data: Data,
    dtype: torch.dtype = torch.float32,
    pull: Pull | None = None,
    batch: int | None = None,
) -> Choice:
    """Chooses between the engines.

    Args:
        backend: "auto", "native" or "torch".
        model: at the center.
        objective: the loss.
        data: all samples.
        dtype: in which the native engine would run; chains run in float32 alone.
        pull: a prior beside the localization, or None.
        batch: samples of a step, as ``native.capture`` takes it.

    Raises:
        ValueError: the backend is unknown.
        ModelError: ``backend="native"`` and the model cannot be captured; the reason is in the message.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {BACKENDS}, got {backend!r}")
    if backend == "torch":
        return Choice("torch", "it was asked for", None)
    try:
        if pull is not None and not pull.uniform:
            raise native.Unsupported("the prior has more than one precision")
        program = _capture(model, objective, data, dtype, batch)
    except native.Unsupported as why:
        if backend == "native":
            raise ModelError(
                f"backend: expected a model that the native engine can capture, got one where {why}"
            ) from None
        return Choice("torch", str(why), None)
    return Choice("native", "the model was captured, its loss and gradient agree with autograd", program)


def _capture(
    model: nn.Module, objective: Objective, data: Data, dtype: torch.dtype, batch: int | None
) -> native.Program:
    if objective.with_model:
        raise native.Unsupported("the loss is a function of the model, not a criterion on its output")
    x, y = data.tensors.values()
    return native.capture(model, objective.loss_fn, x, y, dtype, batch=batch)


class NativeEngine:
    """Runs a captured model: all chains and all steps in C++, a few calls in all."""

    def __init__(
        self,
        program: native.Program,
        center: Tensor,
        baseline: Tensor,
        mask: Tensor | None,
        settings: Settings,
        threads: int | None = None,
        pull: Pull | None = None,
    ):
        self.program, self.center, self.baseline, self.mask, self.settings = program, center, baseline, mask, settings
        self.pull = pull
        self.threads = torch.get_num_threads() if threads is None else threads

    @property
    def name(self) -> str:
        """The engine, as results quote it."""
        return f"native/{_cpu.isa()}"

    def run(
        self, progress: Callable[[int, str], None], see: See | None = None, stop: Callable[[], bool] = lambda: False
    ) -> Trace:
        """As ``Engine.run``; the result does not depend on the number of threads."""
        s = self.settings
        center, localization, start = self.center, s.localization, s.start
        if self.pull is not None:
            start = State.at(self.center, s.chains, s.sampler) if start is None else start
            center, localization = self._pulled(), self.pull.strength(s).numpy()
        run = native.NativeRun(
            self.program, draws=s.draws, burn_in=s.burn_in, thin=s.thin, lr=s.lr, localization=localization,
            nbeta=s.nbeta, center=center, mask=self.mask, seed=s.seed, batches=cast(Batches, s.batches),
            batch_size=s.batch_size, threads=self.threads, baseline=self.baseline.numpy(),
            sampler=s.sampler, anchor=self._anchor(center), start=start, settled=s.adapts_until,
        )  # fmt: skip

        def report(step: int, steps: int) -> None:
            seen = ~np.isnan(run.loss[0])
            gain = (run.loss[0] - run.baseline[0])[seen]
            progress((step - s.first_step) * s.chains, f"LLC {s.nbeta[0] * gain.mean():.3g}" if len(gain) else "")

        def show(k: int, w: Tensor) -> None:
            if see is not None:
                see(k, slice(0, s.chains), w, run.loss[:, k], run.baseline[:, k])

        run.finish(report, see=show if see else None, stop=stop)
        end = State(run.step, run.w, run.first, run.second, run.thermostat, run.diverged)
        trace = Trace(run.loss, run.baseline, run.energy, run.gauge, run.diverged, end)
        if self.pull is not None:
            forget_virial(trace, s)
        return trace

    def _pulled(self) -> Tensor:
        """What localization and prior pull to: one center where it is that of all chains."""
        assert self.pull is not None
        centers = self.pull.center(self.settings).to(self.center.dtype)
        return centers[0].contiguous() if bool((centers == centers[0]).all()) else centers

    def _anchor(self, center: Tensor) -> Tensor | None:
        return self.program.gradient(center)[1] if self.settings.sampler.control_variate else None


def make(
    choice: Choice,
    model: nn.Module,
    objective: Objective,
    data: Data,
    where: Layout,
    center: Tensor,
    baseline: Tensor,
    mask: Tensor | None,
    settings: Settings,
    threads: int | None = None,
    pull: Pull | None = None,
) -> Engine:
    """Builds the engine of a choice; the arguments are those of ``TorchEngine``, and threads of the native one."""
    if choice.program is not None:
        return NativeEngine(choice.program, center, baseline, mask, settings, threads, pull)
    return TorchEngine(private_copy(model), objective, data, where, center, baseline, mask, settings, pull)
