"""A call to run, and what the CPU backend makes of it, bit for bit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from shim import Call

SIZES = (1, 2, 3, 5, 31, 33, 4003)
CHAINS = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Case:
    """A call and its arrays afterwards; None where the kernels keep what is theirs alone."""

    name: str
    call: Call
    expected: tuple[np.ndarray | None, ...]
    threads: bool = True
    """Whether the thread sanitizer sees it too: every thread of a block costs it half a millisecond."""

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


def expected(call: Call, changed: dict[str, np.ndarray | None]) -> tuple[np.ndarray | None, ...]:
    """The arrays of a call as they were, except the arguments that change."""
    assert isinstance(call.arguments, dict)
    new = {id(call.arguments[name]): value for name, value in changed.items()}
    return tuple(new.get(id(a), a) for a in call.arrays())


def uniform(random: np.random.Generator, *shape: int, scale: float = 1.0) -> np.ndarray:
    return aligned(scale * random.random(shape))


def normal(random: np.random.Generator, *shape: int) -> np.ndarray:
    return aligned(random.standard_normal(shape, np.float32))
