"""Whole chains that live in a GPU's shared memory: a captured Program of narrow layers, one block of threads a chain.

The draws are the native engine's, bit for bit (csrc/cuda/resident.cuh says in which order sums are taken).
"""

from __future__ import annotations

import torch
from torch import Tensor

from devinterp_fast._native_cuda import coefficients, module, stream_of
from devinterp_fast.errors import CudaError, ShapeError
from devinterp_fast.sampling.native import Program

__all__ = ["ResidentRun"]


class ResidentRun:
    """SGLD chains of one Program on a GPU; ``advance`` moves them, and the trace can be read at any time.

    As ``NativeRun`` with the plain sampler. A step neither starts a kernel nor touches global memory but for the data:
    ``advance`` is one kernel, however many steps it takes.

    Args:
        program: a captured Program; narrow, of linear maps, relu, tanh, sigmoid, sums and scales.
        draws: recorded a chain.
        burn_in: steps before the first.
        thin: steps between two.
        lr: step size of each chain.
        localization: of each chain.
        nbeta: inverse temperature times sample count, of each chain.
        center: where chains start and are localized at.
        mask: zero keeps a coordinate.
        seed: the key of noise and batches.
        first_chain: the number of row 0 in their addresses.
        batches: "independent" or "full".
        batch_size: samples of a step.
        baseline: per-sample losses at the center, or none.
        device: a GPU.

    Attributes:
        w: float32 (chains, dim), where the chains are.
        loss, baseline, energy, gauge: float64 (chains, draws); NaN where nothing is recorded yet.
        diverged: int64 (chains,), the first step whose loss was not finite, or -1.
        step: steps taken.
        shared_bytes: of shared memory that one chain takes.

    Shape:
        lr, localization, nbeta: float64 (chains); center: (dim) or (chains, dim); mask: (dim); baseline: (n).

    Raises:
        ValueError: the Program does not fit; one sentence says why.
        ShapeError: ``mask`` or ``baseline`` has another length.
        CudaError: the kernel could not be started.
    """

    def __init__(
        self,
        program: Program,
        *,
        draws: int,
        burn_in: int,
        thin: int,
        lr: Tensor,
        localization: Tensor,
        nbeta: Tensor,
        center: Tensor,
        mask: Tensor | None = None,
        seed: int = 0,
        first_chain: int = 0,
        batches: str = "independent",
        batch_size: int = 256,
        baseline: Tensor | None = None,
        device: str = "cuda",
    ) -> None:
        if batches not in ("independent", "full"):
            raise ValueError(f"batches: expected 'independent' or 'full', got {batches!r}")
        d = program.description
        self.full, self.batch = batches == "full", program.n if batches == "full" else batch_size
        self.plan = module().ResidentPlan(*d.plain(), self.batch)
        self.shared_bytes: int = self.plan.shared_bytes
        self.chains, self.dim, self.burn_in, self.thin, self.step = len(lr), d.dim, burn_in, thin, 0
        self.first_chain = first_chain
        for name, given, size in (("mask", mask, d.dim), ("baseline", baseline, program.n)):
            if given is not None and given.numel() != size:
                raise ShapeError(f"{name}: expected {size} elements, got {given.numel()}")
        if center.shape not in ((d.dim,), (self.chains, d.dim)):
            raise ShapeError(f"center: expected ({d.dim},) or ({self.chains}, {d.dim}), got {tuple(center.shape)}")

        where = torch.device(device)
        self.center = center.detach().to(where, torch.float32).contiguous()
        self.w = self.center.expand(self.chains, d.dim).clone()
        self.settings = coefficients("sgld", lr.double(), localization.double(), nbeta.double()).to(where)
        self.nbeta = nbeta.detach().to(where, torch.float64).contiguous()
        self.mask = None if mask is None else (mask.reshape(-1) != 0).to(where, torch.uint8)
        self.start = None if baseline is None else baseline.detach().to(where, torch.float64).contiguous()
        self.frozen = d.frozen.to(where, torch.float32).contiguous()
        self.clock = torch.tensor([_signed(seed), 0], device=where)
        self.trace = torch.full((4, self.chains, draws), float("nan"), dtype=torch.float64, device=where)
        self.loss, self.baseline, self.energy, self.gauge = self.trace
        self.diverged = torch.full((self.chains,), -1, dtype=torch.int64, device=where)
        _, (x, y, _, classes) = program.data(torch.float32)
        self.data = x.to(where), y.to(where), classes.to(where)
        self.n, self.draws = program.n, draws

    @property
    def steps(self) -> int:
        """Steps of the chains at the end of this run."""
        return self.burn_in + (self.draws - 1) * self.thin + 1

    def advance(self, steps: int) -> None:
        """Takes ``steps`` more steps, or as many as the run has left."""
        steps = min(steps, self.steps - self.step)
        if steps <= 0:
            return
        x, y, classes = self.data
        error = self.plan.run(
            device=self.w.device.index or 0, stream=stream_of(self.w.device),
            x=x.data_ptr(), y=y.data_ptr(), classes=classes.data_ptr(), x_size=x.stride(0), y_size=y.stride(0),
            class_size=classes.stride(0),
            n=self.n, w=self.w.data_ptr(), w_ld=self.dim, chains=self.chains, batch=self.batch, full=self.full,
            coefficients=self.settings.data_ptr(), nbeta=self.nbeta.data_ptr(), center=self.center.data_ptr(),
            center_ld=0 if self.center.dim() == 1 else self.dim, mask=_at(self.mask), frozen=self.frozen.data_ptr(),
            baseline=_at(self.start), burn_in=self.burn_in, thin=self.thin, loss=self.loss.data_ptr(),
            baselines=self.baseline.data_ptr(), energy=self.energy.data_ptr(), gauge=self.gauge.data_ptr(),
            trace_ld=self.draws, diverged=self.diverged.data_ptr(), seed=self.clock.data_ptr(),
            step=self.clock.data_ptr() + 8, first_chain=self.first_chain, steps=steps,
        )  # fmt: skip
        if error is not None:
            raise CudaError(f"cuda: {error}")
        self.step += steps
        self.clock[1:].add_(steps)


def _at(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _signed(seed: int) -> int:
    """A 64-bit key as int64 holds it."""
    seed &= 2**64 - 1
    return seed - 2**64 if seed >= 2**63 else seed
