"""The fused operations as torch ops, for graphs: ``torch.ops.devinterp_fast.normal_`` and ``.sgld_step_``.

Registered with ``define`` and ``impl``: the decorator form costs ten times the call overhead. Each has a fake, so
``torch.compile`` and ``torch.export`` pass through it. Inside this package the same functions are called directly.
The GPU's own, with seed and step in tensors, are in ``_ops_cuda``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from devinterp_fast import _native

_library = torch.library.Library("devinterp_fast", "DEF")
_library.define("normal_(Tensor(a!) out, int seed, int step, int first_chain, int stream) -> ()")
_library.define(
    "sgld_step_(Tensor(a!) w, Tensor[] gradients, Tensor center, Tensor lr, Tensor localization, Tensor nbeta, "
    "Tensor? mask, Tensor(b!)? energy, int seed, int step, int first_chain, bool noise) -> ()"
)


def _normal_(out: Tensor, seed: int, step: int, first_chain: int, stream: int) -> None:
    _native.normals_(out, seed=seed, step=step, first_chain=first_chain, stream=stream, threads=torch.get_num_threads())


def _sgld_step_(
    w: Tensor,
    gradients: list[Tensor],
    center: Tensor,
    lr: Tensor,
    localization: Tensor,
    nbeta: Tensor,
    mask: Tensor | None,
    energy: Tensor | None,
    seed: int,
    step: int,
    first_chain: int,
    noise: bool,
) -> None:
    _native.sgld_step_(
        w, gradients, center, lr, localization, nbeta, mask=mask, energy=energy,
        seed=seed, step=step, first_chain=first_chain, noise=noise, threads=torch.get_num_threads(),
    )  # fmt: skip


def _normal_fake(out: Tensor, seed: int, step: int, first_chain: int, stream: int) -> None:
    torch._check(out.dim() == 2, lambda: f"out: expected (chains, dim), got {tuple(out.shape)}")


def _sgld_step_fake(w: Tensor, *_: object) -> None:
    torch._check(w.dim() == 2, lambda: f"w: expected (chains, dim), got {tuple(w.shape)}")


_library.impl("normal_", _normal_, "CPU")
_library.impl("sgld_step_", _sgld_step_, "CPU")
torch.library.register_fake("devinterp_fast::normal_", _normal_fake, lib=_library)
torch.library.register_fake("devinterp_fast::sgld_step_", _sgld_step_fake, lib=_library)
