"""The native engine: a captured model, and whole chains of it in C++.

A model is captured once (`capture`), its arithmetic compared with autograd, and a `NativeRun` then advances
all chains for as many steps as a call asks. Results depend on the settings alone: not on threads, on how
steps are grouped into calls, or on which other chains run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from devinterp_fast import _cpu, _native
from devinterp_fast._program import Curvature, Description, Unsupported, describe
from devinterp_fast.sampling.batches import Batches
from devinterp_fast.sampling.run import State
from devinterp_fast.sampling.samplers import Sampler

MODES = _native.Batches.MODES
LARGEST = _cpu.LARGE_MODEL  # parameters; beyond, torch's own matrix products and its threads are the better engine, but
FEW_ROWS = _cpu.FEW_ROWS  # for batches of at most so many rows, where reading the weights is most of the work
_CALL = 2e9  # multiply-adds of one native call: between two calls come progress and Ctrl-C

__all__ = ["MODES", "NativeRun", "Program", "Unsupported", "batch_indices", "capture"]


def batch_indices(batches: Batches, *, seed: int, chain: int, step: int, n: int, batch_size: int) -> Tensor:
    """The samples of one chain's batch at one step.

    independent: floor(word_j n / 2^32), word_j = word j % 4 of quad j // 4 at (seed, chain, step, stream 1).
    shared: the same with chain = 2^32 - 1. epoch: places step * batch_size + j of an endless row of
    permutations; permutation e swaps i = n - 1, ..., 1 with floor(word_i (i + 1) / 2^32), words at (chain, e,
    stream 1). full: 0, ..., n - 1.

    Args:
        batches: "independent", "shared", "epoch" or "full".
        seed: of the run.
        chain: its number.
        step: counted from 0, burn-in included.
        n: samples of the data set.
        batch_size: samples of a batch; n for full batches.

    Returns:
        int32 indices.

    Shape:
        (batch_size,)

    Units:
        none

    Raises:
        ValueError: an unknown mode.

    Source:
        Fisher, Yates (1938) for the permutation.
    """
    size = n if batches == "full" else batch_size
    return _native.Batches(batches, 1, size, n, seed=seed, first_chain=chain).at(step)[0].int()


def _padded(rows: Tensor) -> Tensor:
    """The same rows where whole registers of four can be read: strides of four, and room behind the last."""
    n, size = rows.shape
    stride = (size + 3) // 4 * 4
    room = torch.zeros(n * stride + 4, dtype=rows.dtype)
    padded = room[: n * stride].view(n, stride)
    padded[:, :size] = rows
    return padded[:, :size]


@dataclass(frozen=True)
class Program:
    """A captured model with its data: losses and gradients in float32, or in float64 to verify them."""

    description: Description
    native: Any
    n: int
    x: Tensor
    y: Tensor

    @property
    def dim(self) -> int:
        """Trainable coordinates, in the order of ``named_parameters()``, each flattened row by row."""
        return self.description.dim

    def data(self, dtype: torch.dtype) -> tuple[Any, list[Tensor]]:
        """Addresses and row lengths as the native side takes them, and the tensors that must stay alive."""
        d = self.description
        none = torch.empty(0, 0)
        inputs = d.inputs.rows(self.x, self.y, dtype) if d.inputs else none
        tokens = d.tokens.rows(self.x, self.y, torch.int32) if d.tokens else none
        target, classes = none, none
        if d.loss.kind != "cross_entropy":
            target = d.target.rows(self.x, self.y, dtype)
        else:
            classes = d.target.rows(self.x, self.y, torch.int32)
            classes = torch.where(classes == d.target.ignore_index, -1, classes).contiguous()
        parts = [inputs, target, tokens, classes]
        parts[:2] = [_padded(p) for p in parts[:2]]
        if d.inputs and d.target.name == "x" and torch.equal(d.inputs.elements, d.target.elements):
            parts[1] = parts[0]  # the engine need not gather it twice
        return (*(p.data_ptr() for p in parts), *(p.stride(0) for p in parts), self.n), parts

    def chain_losses(self, w: Tensor, data: Any, *, threads: int, gradient: bool = False) -> tuple[Tensor, Tensor]:
        """Per-sample losses of many chains, and the gradient of each chain's mean of them.

        Args:
            w: where the chains are.
            data: the first part of ``data(torch.float32)``, whose second part lives on meanwhile.
            threads: over chains and blocks of samples; they do not show in the result.
            gradient: whether it is wanted; (chains, 0) if not.

        Shape:
            w: float32 (chains, dim) -> float64 (chains, n), float32 (chains, dim).
        """
        rows, n = w.detach().to(torch.float32).contiguous(), int(data[-1])
        frozen = self.description.frozen.to(torch.float32).contiguous()
        index = torch.arange(n, dtype=torch.int32)
        losses = torch.empty(len(rows), n, dtype=torch.float64)
        g = torch.empty(len(rows), self.dim if gradient else 0)
        self.native.chain_losses(
            data=data, w=rows.data_ptr(), w_ld=self.dim, chains=len(rows), frozen=frozen.data_ptr(),
            index=index.data_ptr(), count=n, losses=losses.data_ptr(), g=g.data_ptr() if gradient else 0,
            g_ld=self.dim, threads=threads,
        )  # fmt: skip
        return losses, g

    def losses(self, w: Tensor, index: Tensor | None = None) -> Tensor:
        """Per-sample losses at ``w`` (dim), float32 or float64: float64 (samples,)."""
        return self._pass(w, index, False)[0]

    def gradient(self, w: Tensor, index: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Per-sample losses, and the gradient (dim) of their mean in the precision of ``w``."""
        return self._pass(w, index, True)

    def curvature(self, w: Tensor, index: Tensor | None = None, **settings: Any) -> Curvature:
        """The mean loss at ``w`` (dim) or (K, dim), for products with its curvature; settings: cache, threads."""
        return Curvature(self, w, index, **settings)

    def _pass(self, w: Tensor, index: Tensor | None, gradient: bool) -> tuple[Tensor, Tensor]:
        chosen = torch.arange(self.n, dtype=torch.int32) if index is None else index.to(torch.int32).contiguous()
        data, alive = self.data(w.dtype)
        whole = torch.cat([w.detach().reshape(-1), self.description.frozen.to(w.dtype)])
        losses = torch.zeros(len(chosen), dtype=torch.float64)
        g = torch.zeros(whole.numel() if gradient else 0, dtype=w.dtype)
        address = g.data_ptr() if gradient else 0
        arguments = (whole.data_ptr(), data, chosen.data_ptr(), len(chosen), address, losses.data_ptr())
        if w.dtype == torch.float64:
            self.native.pass_f64(*arguments)
        else:
            self.native.pass_f32(self.native.layout(MODES.index("full")), *arguments)
        del alive
        return losses, g[: self.dim]


def capture(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    x: Tensor,
    y: Tensor,
    dtype: torch.dtype = torch.float32,
    *,
    batch: int | None = None,
) -> Program:
    """The Program of ``loss_fn(model(x), y)``, its loss and gradient compared with autograd on a few samples.

    Args:
        model: any module whose arithmetic the engine knows; nothing of it changes.
        loss_fn: a criterion that averages over samples (or gives one loss for each).
        x: inputs, of this dtype or integer tokens.
        y: targets; may be ``x`` itself.
        dtype: of the parameters. Chains run in float32 alone, curvature in float64 too.
        batch: samples of a step; None: many. Above ``LARGEST`` parameters only few of them have a native form.

    Returns:
        The captured Program.

    Shape:
        x: (n, ...); y: (n, ...).

    Units:
        none

    Raises:
        Unsupported: the model, its size or its precision has no native form, or the answers differ; one
        sentence.

    Source:
        none
    """
    if x.device.type != "cpu" or y.device.type != "cpu":
        raise Unsupported(f"the data are on {x.device}, the engine runs on cpu")
    if x.is_floating_point() and x.dtype != dtype:
        raise Unsupported(f"the inputs are {x.dtype}, the engine runs {dtype}")
    size = sum(p.numel() for p in model.parameters() if p.requires_grad)
    many = f"the model has {size} parameters, above {LARGEST} torch's own products are as fast"
    if size > LARGEST and (batch is None or batch > FEW_ROWS):
        raise Unsupported(many if batch is None else f"{many} on a batch of {batch}")
    description = describe(model, loss_fn, x, y, dtype)
    rows = max(v.rows for v in description.values)
    if size > LARGEST and batch is not None and batch * rows > FEW_ROWS:
        raise Unsupported(f"{many} on {rows} rows for each of {batch} samples")
    program = Program(description, description.native(), x.shape[0], x, y)
    check_integers(program)
    _check_autograd(program, model, loss_fn)
    return program


def check_integers(program: Program) -> None:
    """Raises ``Unsupported`` where a token or class of the data has no row or column of its own."""
    d = program.description
    if d.tokens:
        tokens = d.tokens.rows(program.x, program.y, torch.int64)
        size = min(op.size for op in d.ops if op.kind == "embedding")
        if tokens.min() < 0 or tokens.max() >= size:
            raise Unsupported(f"the tokens lie outside 0 ... {size - 1}")
    if d.loss.kind == "cross_entropy":
        classes = d.target.rows(program.x, program.y, torch.int64)
        live = classes != d.target.ignore_index
        size = d.values[d.loss.prediction].cols
        if bool(((classes < 0) | (classes >= size))[live].any()):
            raise Unsupported(f"the classes lie outside 0 ... {size - 1}")
        counts = live.sum(1)
        if counts.min() != counts.max():
            raise Unsupported("ignored targets differ in number between samples, so the loss is no mean over samples")


def _check_autograd(program: Program, model: nn.Module, loss_fn: Callable[[Any, Any], Tensor]) -> None:
    """Compares at the parameters moved by a twentieth of their size, where no gradient vanishes by luck."""
    generator = torch.Generator().manual_seed(0)
    moved = {}
    for name, p in model.named_parameters():
        if not p.requires_grad:
            moved[name] = p.detach()
            continue
        scale = 0.05 * p.detach().square().mean().sqrt() + 1e-3
        noise = torch.randn(p.shape, generator=generator).to(p.dtype)
        moved[name] = noise.mul_(scale).add_(p.detach()).requires_grad_()
    buffers = {name: b.detach().clone() for name, b in model.named_buffers()}
    few = min(program.n, 5)
    x, y = program.x[:few], program.y[:few]
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        out = loss_fn(torch.func.functional_call(model, {**moved, **buffers}, (x,)), y)
        loss = out.mean()
        trained = [moved[name] for name in program.description.names]
        parts = torch.autograd.grad(loss, trained, allow_unused=True)
    zero = [torch.zeros_like(p) if g is None else g for p, g in zip(trained, parts, strict=True)]
    expected = torch.cat([g.reshape(-1) for g in zero])
    w = torch.cat([p.detach().reshape(-1) for p in trained])
    losses, g = program.gradient(w, torch.arange(few))
    got, want = float(losses.mean()), float(loss.detach())
    fine = 1e-6 if w.dtype == torch.float64 else 1.0  # of float32's tolerances
    if not abs(got - want) <= fine * (1e-4 * abs(want) + 1e-6):
        raise Unsupported(f"the native loss is {got:.6g} where autograd has {want:.6g}")
    error, norm = float((g - expected).norm()), float(expected.norm())
    if not error <= fine * (1e-3 * norm + 1e-6):
        raise Unsupported(f"the native gradient differs from autograd's by {error:.3g}, its norm is {norm:.3g}")


class NativeRun:
    """All chains of one run; `advance` moves them, and what they have recorded can be read at any time.

    w <- w - (lr / 2) (nbeta g + localization (w - center)) + sqrt(lr) xi, as in csrc/core/update.hpp. Draw k is step
    burn_in + k thin: the loss at w on that step's batch before the update, the mean of ``baseline`` over the same
    samples, and the energy sum d . (nbeta g) of that step's drift.

    Attributes:
        step: steps taken.
        w: float32 (chains, dim), where the chains are.
        loss, baseline, energy: float64 (chains, draws); NaN where nothing is recorded yet.
        diverged: int64 (chains,), the first step whose loss was not finite, or -1; such a chain stands still.

        gauge: float64 (chains, draws), see ``Trace``.
        mean: float64 (chains, dim), of w over the draws so far; of no chains unless ``moments``.

    To continue a run, pass its ``state`` as ``start``: the numbers are the same bits.

    Memory: 4 dim bytes a chain (and 16 with ``moments``) and 32 a draw; a thread needs four vectors of dim floats and
    the scratch of one block of samples (``program.native.scratch(layout)`` floats: under a megabyte unless one sample
    alone takes more, and a transposed copy of the weights), whatever the number of chains. Where threads outnumber
    chains they share batches: up to 15 more vectors of dim floats for each chain at work. Full batches of a narrow
    model are held once more, rearranged.
    """

    def __init__(
        self,
        program: Program,
        *,
        draws: int,
        burn_in: int,
        thin: int,
        lr: np.ndarray[Any, Any],
        localization: np.ndarray[Any, Any],
        nbeta: np.ndarray[Any, Any],
        center: Tensor,
        mask: Tensor | None = None,
        seed: int = 0,
        first_chain: int = 0,
        batches: Batches = "independent",
        batch_size: int = 256,
        threads: int = 1,
        baseline: np.ndarray[Any, Any] | Tensor | None = None,
        sampler: Sampler | None = None,
        anchor: Tensor | None = None,
        start: State | None = None,
        settled: int | None = None,
        moments: bool = False,
        w: Tensor | None = None,
        step: int = 0,
        diverged: np.ndarray[Any, Any] | None = None,
    ) -> None:
        """Chains start at ``center`` (dim) or (chains, dim), or at the ``start`` that an earlier run left.

        A run that was cut short goes on from its own ``w``, ``step`` and ``diverged`` (and momenta, if it has any, in
        ``start`` with ``step`` 0); draws are then numbered as in the whole run.
        ``anchor`` (dim) is the full gradient at the center, for a sampler with control variates; ``settled`` the step
        from which a learned metric stands still (None: the first draw); ``moments`` keeps those of w over the draws.
        """
        self.program = program
        self.lr, self.localization, self.nbeta = (np.array(v, dtype=np.float64) for v in (lr, localization, nbeta))
        self.chains, self.draws, self.burn_in, self.thin = len(self.lr), draws, burn_in, thin
        self.seed, self.first_chain, self.threads = seed, first_chain, threads
        self.mode, self.batch_size = MODES.index(batches), program.n if batches == "full" else batch_size
        self.center = center.detach().to(torch.float32).contiguous()
        self.mask = None if mask is None else (mask.detach().reshape(-1) != 0).to(torch.uint8)
        self.start = None if baseline is None else torch.as_tensor(baseline).detach().double().contiguous().numpy()
        self.sampler = Sampler() if sampler is None else sampler
        own = start is None  # its vectors are this run's already
        if start is None:
            start = State.at(self.center, self.chains, self.sampler)
        self.begun, self.step = start.step, start.step + step
        if w is not None:
            start, own = replace(start, w=w), False
        if diverged is not None:
            start = replace(start, diverged=diverged)
        self.w, self.first, self.second = (
            x if own else x.detach().to(torch.float32).clone(memory_format=torch.contiguous_format)
            for x in (start.w, start.first, start.second)
        )
        self.thermostat, self.diverged = start.thermostat.copy(), start.diverged.astype(np.int64)
        self._friction = np.full(self.chains, self.sampler.damping)
        self.anchor = None if anchor is None else anchor.detach().to(torch.float32).contiguous()
        self._check()
        self.loss, self.baseline, self.energy, self.gauge = (np.full((self.chains, draws), np.nan) for _ in range(4))
        self.moments, kept = moments, self.chains if moments else 0
        self.mean, self.scatter = (np.zeros((kept, program.dim)) for _ in range(2))
        self.settled = self.begun + self.burn_in if settled is None else settled
        self._frozen = program.description.frozen.to(torch.float32).contiguous()
        self._data, self._alive = program.data(torch.float32)

    def _check(self) -> None:
        dim = self.program.dim
        if self.center.shape not in ((dim,), (self.chains, dim)):
            raise ValueError(f"center: expected ({dim},) or ({self.chains}, {dim}), got {tuple(self.center.shape)}")
        if self.w.shape != (self.chains, dim):
            raise ValueError(f"w: expected ({self.chains}, {dim}), got {tuple(self.w.shape)}")
        for name, has in zip(("first", "second"), self.sampler.rows, strict=True):
            if getattr(self, name).shape != (self.chains, dim if has else 0):
                raise ValueError(f"start: expected {name} ({self.chains}, {dim if has else 0}), got another sampler's")
        if self.sampler.corrected and MODES[self.mode] != "full":
            raise ValueError(f"batches: expected 'full' for {self.sampler.name!r}, got {MODES[self.mode]!r}")
        if (self.anchor is not None) != self.sampler.control_variate:
            raise ValueError("anchor: expected one exactly for a sampler with control variates")
        if self.mask is not None and self.mask.numel() != dim:
            raise ValueError(f"mask: expected {dim} elements, got {self.mask.numel()}")
        for name in ("localization", "nbeta"):
            if getattr(self, name).shape != (self.chains,):
                raise ValueError(f"{name}: expected ({self.chains},), got {getattr(self, name).shape}")
        if self.start is not None and self.start.shape != (self.program.n,):
            raise ValueError(f"baseline: expected ({self.program.n},), got {self.start.shape}")
        for name, low in (("draws", 1), ("burn_in", 0), ("thin", 1), ("batch_size", 1), ("threads", 1)):
            if getattr(self, name) < low:
                raise ValueError(f"{name}: expected at least {low}, got {getattr(self, name)}")

    @property
    def steps(self) -> int:
        """Steps of the chains at the end of this run."""
        return self.begun + self.burn_in + (self.draws - 1) * self.thin + 1

    def advance(self, steps: int) -> None:
        """Takes ``steps`` more steps, or as many as the run has left; the GIL is free meanwhile."""
        steps = min(steps, self.steps - self.step)
        if steps <= 0:
            return
        _cpu.Program.run(
            self.program.native,
            data=self._data,
            chains=self.chains,
            first_chain=self.first_chain,
            seed=self.seed,
            mode=self.mode,
            batch_size=self.batch_size,
            burn_in=self.begun + self.burn_in,
            thin=self.thin,
            lr=self.lr.ctypes.data,
            localization=self.localization.ctypes.data,
            nbeta=self.nbeta.ctypes.data,
            center=self.center.data_ptr(),
            center_ld=0 if self.center.dim() == 1 else self.program.dim,
            mask=0 if self.mask is None else self.mask.data_ptr(),
            frozen=self._frozen.data_ptr(),
            baseline=0 if self.start is None else self.start.ctypes.data,
            w=self.w.data_ptr(),
            w_ld=self.program.dim,
            first_step=self.step,
            steps=steps,
            trace_loss=self.loss.ctypes.data,
            trace_baseline=self.baseline.ctypes.data,
            trace_energy=self.energy.ctypes.data,
            trace_gauge=self.gauge.ctypes.data,
            trace_ld=self.draws,
            diverged=self.diverged.ctypes.data,
            mean=self.mean.ctypes.data if self.moments else 0,
            scatter=self.scatter.ctypes.data if self.moments else 0,
            sampler=self._sampler(),
            threads=self.threads,
        )
        self.step += steps

    def _sampler(self) -> tuple[Any, ...]:
        """As SamplerSettings (csrc/cpu/samplers.hpp)."""
        s = self.sampler
        return (
            s.kind, s.trajectory, s.momentum_decay, s.beta2, s.epsilon,
            2**62 if s.adapt else self.settled, s.thermostat_inertia, s.box,
            self._friction.ctypes.data, self.thermostat.ctypes.data,
            self.first.data_ptr() if self.first.numel() else 0, self.second.data_ptr() if self.second.numel() else 0,
            self.program.dim, 0 if self.anchor is None else self.anchor.data_ptr(),
        )  # fmt: skip

    @property
    def variance(self) -> np.ndarray[Any, Any]:
        """float64 (chains, dim): the variance of w over the draws so far; NaN below two."""
        draws = (~np.isnan(self.loss)).sum(1)[: len(self.scatter), None]
        return np.where(draws > 1, self.scatter / np.maximum(draws - 1, 1), np.nan)

    @property
    def state(self) -> State:
        """Where the chains are: what a later run takes as ``start``."""
        w, first, second = (x.clone() for x in (self.w, self.first, self.second))
        return State(self.step, w, first, second, self.thermostat.copy(), self.diverged.copy())

    def finish(
        self,
        progress: Callable[[int, int], None] | None = None,
        *,
        see: Callable[[int, Tensor], None] | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> NativeRun:
        """Runs to the end, or until ``stop()``, which every tenth of a second or so is asked and progress told.

        Args:
            progress: called as ``progress(step, steps)``.
            see: called as ``see(k, w)`` once draw k is recorded, w (chains, dim) being where its losses were taken;
                the memory of w is used again. Numbers are the same with and without it.
            stop: whether to end early.
        """
        work = max(1, self.program.description.multiply_adds) * self.batch_size * self.sampler.trajectory
        # Of millions of parameters, what a call copies should be little beside what it does.
        call = max(1 + self.program.dim // 1_000_000, int(_CALL / (work * self.chains)))
        w = torch.empty_like(self.w) if see else self.w
        while self.step < self.steps and not stop():
            left = self.begun + self.burn_in - self.step
            ahead = left if left > 0 else left % self.thin
            if see is None or ahead:
                self.advance(min(call, ahead) if see else call)
            else:
                w.copy_(self.w)
                self.advance(1)
                see((self.step - 1 - self.begun - self.burn_in) // self.thin, w)
            if progress:
                progress(self.step, self.steps)
        return self
