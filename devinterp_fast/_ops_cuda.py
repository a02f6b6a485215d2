"""Torch ops whose noise is addressed from device memory: what a CUDA graph can capture and replay.

As in ``_ops``, but seed and step are numbers of an int64 tensor, ``clock``: a captured number would draw the same noise
at every replay, a captured address is read anew. On CPU tensors the same ops run the CPU's kernels, to the same bits.
Trailing arguments have defaults, which the dispatcher does not pass on: most of a call's cost is passing arguments.
"""

from __future__ import annotations

import torch
from torch import Tensor

from devinterp_fast import _native, _native_cuda, _native_cuda_sums

_library = torch.library.Library("devinterp_fast", "FRAGMENT")
_library.define(
    "sampler_step_at_(str sampler, Tensor(a!) w, Tensor[] gradients, Tensor center, Tensor settings, Tensor clock, "
    "Tensor(b!)? first=None, Tensor(c!)? second=None, Tensor? mask=None, Tensor(d!)? sums=None, int first_chain=0, "
    "bool noise=True) -> ()"
)
_library.define("normal_at_(Tensor(a!) out, Tensor clock, int first_chain=0, int stream=0) -> ()")
_library.define(
    "resident_hvp_(Tensor(a!) out, Tensor v, Tensor w, Tensor x, Tensor y, Tensor classes, Tensor frozen, Tensor plan, "
    "Tensor(b!)? partial=None) -> ()"
)


def _normal_cuda(out: Tensor, clock: Tensor, first_chain: int = 0, stream: int = 0) -> None:
    _native_cuda.fill_noise_("normals", out, clock, first_chain=first_chain, stream=stream)


def _normal_cpu(out: Tensor, clock: Tensor, first_chain: int = 0, stream: int = 0) -> None:
    seed, step = clock.tolist()
    _native.normals_(out, seed=seed, step=step, first_chain=first_chain, stream=stream)


def _step_fake(sampler: str, w: Tensor, *_: object, **__: object) -> None:
    torch._check(w.dim() == 2, lambda: f"w: expected (chains, dim), got {tuple(w.shape)}")


def _normal_fake(out: Tensor, *_: object, **__: object) -> None:
    torch._check(out.dim() == 2, lambda: f"out: expected (chains, dim), got {tuple(out.shape)}")


def _hvp_fake(out: Tensor, v: Tensor, *_: object, **__: object) -> None:
    torch._check(out.shape == v.shape, lambda: f"out: expected {tuple(v.shape)}, got {tuple(out.shape)}")


for _key in ("CPU", "CUDA"):
    _library.impl("resident_hvp_", _native_cuda_sums.resident_hvp_, _key)
    _library.impl("sampler_step_at_", _native_cuda.sampler_step_, _key)
_library.impl("normal_at_", _normal_cpu, "CPU")
_library.impl("normal_at_", _normal_cuda, "CUDA")
torch.library.register_fake("devinterp_fast::sampler_step_at_", _step_fake, lib=_library)
torch.library.register_fake("devinterp_fast::resident_hvp_", _hvp_fake, lib=_library)
torch.library.register_fake("devinterp_fast::normal_at_", _normal_fake, lib=_library)
