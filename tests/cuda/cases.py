"""What the kernels are run on, and what the CPU backend makes of it, bit for bit.

Sizes straddle the quad, the warp and the block of coordinates; rows are padded as the package pads them, or follow one
another so closely that most are misaligned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from shim import Call

from devinterp_fast import _native

SIZES = (1, 2, 3, 5, 31, 33, 4003)
CHAINS = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Case:
    """A call and its arrays afterwards; None where the kernels keep what is theirs alone."""

    name: str
    call: Call
    expected: tuple[np.ndarray | None, ...]

    def differs(self, found: list[np.ndarray]) -> list[int]:
        """The numbers of the arrays that came out otherwise."""
        pairs = enumerate(zip(self.expected, found, strict=True))
        return [i for i, (a, b) in pairs if a is not None and a.tobytes() != b.tobytes()]


def aligned(array: np.ndarray, offset: int = 0) -> np.ndarray:
    """A copy whose address is `offset` modulo 64."""
    memory = np.empty(array.nbytes + 128, np.uint8)
    start = (offset - memory.ctypes.data) % 64
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def rows(values: np.ndarray, padded: bool) -> np.ndarray:
    """The block (chains, ld) that holds `values` (chains, dim): NaN behind each row if padded."""
    chains, dim = values.shape
    ld = -(-dim // 32) * 32 if padded else dim
    block = np.full((chains, ld), np.nan, values.dtype)
    block[:, :dim] = values
    return aligned(block)


def expected(call: Call, changed: dict[int, np.ndarray | None]) -> tuple[np.ndarray | None, ...]:
    """The arrays of a call as they were, except those that change."""
    return tuple(changed.get(i, a) for i, a in enumerate(call.arrays()))


def number_of(call: Call, array: np.ndarray) -> int:
    return next(i for i, a in enumerate(call.arrays()) if a is array)


def sgld() -> Iterator[Case]:
    """The fused step, its options taking turns: every pair of a size with a number of chains, several tensors."""
    plans = [(size, chains) for size in SIZES for chains in CHAINS] + [(8192, 1), (8193, 2), (20000, 1)]
    for number, (size, chains) in enumerate(plans):
        random = np.random.default_rng(number)
        padded, energy, noise = number % 2 == 0, number % 3 != 0, number % 7 != 0
        mask_rows, center_rows = (0, 1, chains)[number % 3], (1, chains)[number // 2 % 2]
        cuts = sorted({0, size, *(random.integers(0, size + 1, number % 4).tolist())})

        w = rows(random.standard_normal((chains, size), np.float32), padded)
        center = aligned(random.standard_normal((center_rows, size), np.float32))
        mask = aligned((random.random((mask_rows, size)) < 0.8).astype(np.uint8)) if mask_rows else None
        tensors = [
            (low, high - low, aligned(random.standard_normal((chains, high - low), np.float32)), high - low)
            for low, high in zip(cuts, cuts[1:], strict=False)
        ]
        lr, localization, nbeta = (aligned(random.random(chains) * s) for s in (1e-3, 100.0, 50.0))
        seed = aligned(random.integers(-(2**63), 2**63, 1))
        step = aligned(random.integers(0, 2**31, 1))
        partial = aligned(np.full((-(-size // 8192) + len(cuts)) * chains, np.nan)) if energy else 0
        out = aligned(np.zeros(chains)) if energy else 0

        moved = torch.from_numpy(w.copy())[:, :size]
        total = torch.zeros(chains, dtype=torch.float64)
        _native.sgld_step_(
            moved,
            [torch.from_numpy(g) for _, _, g, _ in tensors],
            torch.from_numpy(center if center_rows > 1 else center[0]),
            *(torch.from_numpy(v) for v in (lr, localization, nbeta)),
            seed=int(seed[0]),
            step=int(step[0]),
            first_chain=number,
            mask=None if mask is None else torch.from_numpy(mask if mask_rows > 1 else mask[0]).bool(),
            energy=total if energy else None,
            noise=noise,
        )
        call = Call(
            "sgld_step_f32",
            {
                "device": 0,
                "stream": 0,
                "w": w,
                "w_ld": w.shape[1],
                "center": center,
                "center_ld": size if center_rows > 1 else 0,
                "mask": 0 if mask is None else mask,
                "mask_ld": size if mask_rows > 1 else 0,
                "chains": chains,
                "gradients": tensors,
                "lr": lr,
                "localization": localization,
                "nbeta": nbeta,
                "seed": seed,
                "step": step,
                "first_chain": number,
                "noise": noise,
                "partial": partial,
                "energy": out,
            },
        )
        after = w.copy()
        after[:, :size] = moved.numpy()
        changed: dict[int, np.ndarray | None] = {number_of(call, w): after}
        if isinstance(out, np.ndarray) and isinstance(partial, np.ndarray):
            changed |= {number_of(call, out): total.numpy(), number_of(call, partial): None}
        yield Case(f"sgld {size} x {chains}", call, expected(call, changed))


GROUPS: dict[str, Callable[[], Iterator[Case]]] = {"sgld": sgld}
"""By the name of the source that holds the kernels, or of a part of it."""
