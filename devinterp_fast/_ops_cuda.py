"""Torch ops whose noise is addressed from device memory: what a CUDA graph can capture and replay.

As in ``_ops``, but seed and step are int64 tensors of one number: a captured number would draw the same noise at every
replay, a captured address is read anew. On a CPU tensor the same op runs the CPU's kernel, to the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from devinterp_fast import _native, _native_cuda

_library = torch.library.Library("devinterp_fast", "FRAGMENT")
_library.define(
    "sgld_step_at_(Tensor(a!) w, Tensor[] gradients, Tensor center, Tensor lr, Tensor localization, Tensor nbeta, "
    "Tensor? mask, Tensor(b!)? energy, Tensor(c!)? partial, Tensor seed, Tensor step, int first_chain, bool noise)"
    " -> ()"
)


def _sgld_step_cuda(
    w: Tensor,
    gradients: list[Tensor],
    center: Tensor,
    lr: Tensor,
    localization: Tensor,
    nbeta: Tensor,
    mask: Tensor | None,
    energy: Tensor | None,
    partial: Tensor | None,
    seed: Tensor,
    step: Tensor,
    first_chain: int,
    noise: bool,
) -> None:
    _native_cuda.sgld_step_(
        w, gradients, center, lr, localization, nbeta, seed, step,
        first_chain=first_chain, mask=mask, energy=energy, partial=partial, noise=noise,
    )  # fmt: skip


def _sgld_step_cpu(
    w: Tensor,
    gradients: list[Tensor],
    center: Tensor,
    lr: Tensor,
    localization: Tensor,
    nbeta: Tensor,
    mask: Tensor | None,
    energy: Tensor | None,
    partial: Tensor | None,
    seed: Tensor,
    step: Tensor,
    first_chain: int,
    noise: bool,
) -> None:
    _native.sgld_step_(
        w, gradients, center, lr, localization, nbeta, mask=mask, energy=energy, seed=int(seed),
        step=int(step), first_chain=first_chain, noise=noise, threads=torch.get_num_threads(),
    )  # fmt: skip


def _first_is_a_block(w: Tensor, *_: object) -> None:
    torch._check(w.dim() == 2, lambda: f"w: expected (chains, dim), got {tuple(w.shape)}")


_library.impl("sgld_step_at_", _sgld_step_cpu, "CPU")
_library.impl("sgld_step_at_", _sgld_step_cuda, "CUDA")
torch.library.register_fake("devinterp_fast::sgld_step_at_", _first_is_a_block, lib=_library)
