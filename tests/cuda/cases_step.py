"""The fused steps and the noise on many shapes.

Sizes straddle the quad, the warp and the block of coordinates; rows are padded as the package pads them, or follow one
another so closely that most are misaligned.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from case import CHAINS, SIZES, Case, aligned, expected, normal, rows, uniform
from shim import Call

from devinterp_fast import _native, _native_cuda


def clock(random: np.random.Generator) -> np.ndarray:
    """Seed and step."""
    return aligned(np.array([random.integers(-(2**63), 2**63), random.integers(0, 2**31)]))


def steps(sampler: str) -> Iterator[Case]:
    """The fused step, its options taking turns: all sizes with all numbers of chains, then blocks and many tensors."""
    number_of_sampler, _, states = _native_cuda.SAMPLERS[sampler]
    plans = [(size, chains) for size in SIZES for chains in CHAINS] + [(8192, 1), (8193, 2), (17000, 1), (700, 2)]
    for number, (size, chains) in enumerate(plans):
        random = np.random.default_rng(number)
        padded, sums, noise = number % 2 == 0, number % 3 != 0, number % 7 != 0
        mask_rows, center_rows = (0, 1, chains)[number % 3], (1, chains)[number // 2 % 2]
        # 70 tensors do not fit one launch
        cuts = {0, size, *random.integers(0, size + 1, 70 if size == 700 else number % 4).tolist()}
        bounds = list(zip(sorted(cuts), sorted(cuts)[1:], strict=False))

        state = [rows(normal(random, chains, size), padded) for _ in range(states)]
        if sampler == "preconditioned":
            state[2] = aligned(abs(state[2]))
        ld = state[0].shape[1]
        center = normal(random, center_rows, size)
        mask = aligned((random.random((mask_rows, size)) < 0.8).astype(np.uint8)) if mask_rows else None
        gradients = [normal(random, chains, high - low) for low, high in bounds]
        settings = aligned(
            _native_cuda.coefficients(
                sampler,
                *(torch.from_numpy(uniform(random, chains, scale=s)) for s in (1e-3, 100.0, 50.0)),
                friction=1.5,
                beta1=0.9,
            ).numpy()
        )
        time = clock(random)
        room = aligned(np.full(2 * chains * (1 + size // 8192 + 1 + len(bounds)), np.nan)) if sums else None
        call = Call(
            "sampler_step_f32",
            {
                "device": 0,
                "stream": 0,
                "sampler": number_of_sampler,
                "w": state[0],
                "w_ld": ld,
                "center": center,
                "center_ld": size if center_rows > 1 else 0,
                "mask": 0 if mask is None else mask,
                "mask_ld": size if mask_rows > 1 else 0,
                "first": state[1] if states > 1 else 0,
                "second": state[2] if states > 2 else 0,
                "state_ld": ld if states > 1 else 0,
                "chains": chains,
                "gradients": [
                    (low, high - low, g, high - low) for (low, high), g in zip(bounds, gradients, strict=True)
                ],
                "coefficients": settings,
                "seed": time[:1],
                "step": time[1:],
                "first_chain": number,
                "noise": noise,
                "partial": 0 if room is None else room[2 * chains :],
                "work": 0 if room is None else room[:chains],
                "gauge": 0 if room is None else room[chains : 2 * chains],
            },
        )
        after = [s.copy() for s in state]
        sum_after = torch.full((10000,), torch.nan, dtype=torch.float64)
        _native_cuda.sampler_step_(
            sampler,
            torch.from_numpy(after[0])[:, :size],
            [torch.from_numpy(g) for g in gradients],
            torch.from_numpy(center if center_rows > 1 else center[0]),
            torch.from_numpy(settings),
            torch.from_numpy(time),
            *(torch.from_numpy(s)[:, :size] for s in after[1:]),
            mask=None if mask is None else torch.from_numpy(mask if mask_rows > 1 else mask[0]).bool(),
            sums=sum_after if sums else None,
            first_chain=number,
            noise=noise,
        )
        changed: dict[str, np.ndarray | None] = dict(zip(("w", "first", "second"), after, strict=False))
        if sums:
            work, gauge = sum_after[: 2 * chains].numpy().reshape(2, chains)
            changed |= {"work": work, "gauge": gauge, "partial": None}
        watched = chains == 2 and size in (5, 33, 8193)
        yield Case(f"{sampler} {size} x {chains}", call, expected(call, changed), watched)


def thermostat() -> Iterator[Case]:
    """The formula of ``_native_cuda.thermostat_`` in float64, operation by operation."""
    for chains in (1, 5, 300):
        random = np.random.default_rng(chains)
        gauge, friction, zeta = (uniform(random, chains, scale=s) for s in (20.0, 0.3, 0.2))
        zeta -= 4.0 * (random.random(chains) < 0.2)  # beyond where keep is capped
        settings = normal(random, chains, 6)
        call = Call(
            "thermostat_f64",
            {
                "device": 0,
                "stream": 0,
                "gauge": gauge,
                "moving": 7,
                "friction": friction,
                "inertia": 0.3,
                "zeta": zeta,
                "coefficients": settings,
                "chains": chains,
            },
        )
        zeta_after = zeta + (gauge / 7.0 - 1.0) / 0.3
        x = np.maximum(-0.5, 0.5 * zeta_after)
        after = settings.copy()
        after[:, 4] = (1.0 - x) / (1.0 + x)
        after[:, 5] = np.sqrt(2.0 * friction) / (1.0 + x)
        yield Case(f"thermostat {chains}", call, expected(call, {"zeta": zeta_after, "coefficients": after}))


def noise() -> Iterator[Case]:
    """Normals, signs and words."""
    plans = [(kind, size, chains) for kind in _native_cuda.NOISE for size in SIZES for chains in (1, 3)]
    for number, (kind, size, chains) in enumerate([*plans, ("normals", 8193, 2)]):
        random = np.random.default_rng(number)
        out, time = rows(normal(random, chains, size), number % 2 == 0), clock(random)
        seed, step = time.tolist()
        address = {"seed": seed, "step": step, "first_chain": number, "stream": 3}
        call = Call(
            "fill_noise_f32",
            {
                "device": 0,
                "stream": 0,
                "kind": _native_cuda.NOISE[kind],
                "out": out,
                "chains": chains,
                "size": size,
                "ld": out.shape[1],
                "stream_number": 3,
                "seed": time[:1],
                "step": time[1:],
                "first_chain": number,
            },
        )
        after = out.copy()
        words = _native.words(chains, size, **address).numpy().astype(np.uint32)
        if kind == "normals":
            _native.normals_(torch.from_numpy(after)[:, :size], **address)
        else:
            sign = (words & 0x80000000) | np.float32(1.0).view(np.uint32)
            after[:, :size] = (words if kind == "words" else sign).view(np.float32)
        yield Case(f"{kind} {size} x {chains}", call, expected(call, {"out": after}), size in (5, 8193))
