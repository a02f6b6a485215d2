"""Memory of the PTX interpreter: which bytes exist, and who touched which word since when.

A race is an access to a word by two threads, one of them storing, with nothing between that orders them: a barrier of
their block, or of their warp if they share one. Blocks of one launch are never ordered. Atomic operations race only
with the others.
"""

from __future__ import annotations

import numpy as np
from ptx import PtxError

NOBODY, SEVERAL, ATOMIC = -1, -2, -3
GAP = 256


class Threads:
    """Who runs: a thread's number in the launch, its warp and its block, and how many barriers each has passed."""

    def __init__(self, count: int):
        self.thread = np.zeros(count, np.int32)
        self.warp = np.zeros(count, np.int32)
        self.block = np.zeros(count, np.int32)
        self.barriers = np.zeros(count, np.int32)
        self.warp_barriers = np.zeros(count, np.int32)


class Memory:
    """Bytes at addresses base .. base + size - 1, of which those in `exists` may be touched."""

    def __init__(self, name: str, size: int, base: int = 0, watched: bool = True, blank: bool = False):
        self.name = name
        self.base = base
        # as aligned as an address says: element i of a view lies at base + i * width
        room = np.empty(size + 64, np.uint8)
        start = (base - room.ctypes.data) % 64
        self.bytes = room[start : start + size]
        self.bytes[:] = 0xFF
        self.exists = np.zeros(size, bool)
        self.views: dict[np.dtype, np.ndarray] = {}
        words = size // 4 + 1
        self.watched = watched
        self.blank = blank  # holds nothing until somebody stores
        if watched:
            self.writer = np.full(words, NOBODY, np.int32)
            self.reader = np.full(words, NOBODY, np.int32)
            # of the last store and of the last load: warp, block, and the barriers passed by then
            self.stored = np.zeros((4, words), np.int32)
            self.loaded = np.zeros((4, words), np.int32)

    def forget(self) -> None:
        """A launch is over: all that was done is ordered before the next."""
        if self.watched:
            self.writer[:] = NOBODY
            self.reader[:] = NOBODY

    def view(self, dtype: np.dtype) -> np.ndarray:
        if dtype not in self.views:
            usable = self.bytes.size // dtype.itemsize * dtype.itemsize
            self.views[dtype] = self.bytes[:usable].view(dtype)
        return self.views[dtype]

    def check(self, address: np.ndarray, width: int) -> np.ndarray:
        """Offsets of accesses of `width` bytes, as aligned as they are wide."""
        offset = (address - np.uint64(self.base)).astype(np.int64)
        if ((address & np.uint64(width - 1)) != 0).any():
            raise PtxError(f"misaligned {width}-byte access")
        inside = (offset >= 0) & (offset <= self.bytes.size - width)
        if not inside.all() or not self.exists[offset].all() or not self.exists[offset + (width - 1)].all():
            raise PtxError(f"{self.name}: out of bounds, {width} bytes")
        return offset

    # --- races ----------------------------------------------------------------------------------------------

    def ordered(self, by: np.ndarray, last: np.ndarray, t: Threads, idx: np.ndarray) -> np.ndarray:
        """Whether accesses `last` (warp, block, barriers, warp barriers) by threads `by` come before those of `idx`."""
        warp, block, barriers, warp_barriers = last
        apart = (barriers < t.barriers[idx]) | ((warp == t.warp[idx]) & (warp_barriers < t.warp_barriers[idx]))
        return (by == NOBODY) | (by == t.thread[idx]) | ((block == t.block[idx]) & apart)

    def load(self, offset: np.ndarray, width: int, t: Threads, idx: np.ndarray) -> None:
        """Notes loads."""
        if not self.watched:
            return
        for word in self.words(offset, width):
            by = self.writer[word]
            if self.blank and (by == NOBODY).any():
                raise PtxError(f"{self.name}: a load of what nobody has stored")
            if not self.ordered(by, self.stored[:, word], t, idx).all():
                raise PtxError(f"{self.name}: race, a load of what another thread stores")
            # Several readers since the last barrier: the thread is SEVERAL, the warp and block too if they differ.
            old, last = self.reader[word], self.loaded[:, word]
            same = (old != NOBODY) & (last[1] == t.block[idx]) & (last[2] == t.barriers[idx])
            other = same & (old != t.thread[idx])
            other_block = (old != NOBODY) & (last[1] != t.block[idx])
            now = np.where(other | other_block, SEVERAL, t.thread[idx])
            warp = np.where(same & (last[0] != t.warp[idx]) | other_block, SEVERAL, t.warp[idx])
            block = np.where(other_block, SEVERAL, t.block[idx])
            self.reader[word] = now
            self.loaded[:, word] = np.stack([warp, block, t.barriers[idx], t.warp_barriers[idx]])
            # Two lanes of this very instruction at one word: the last one was noted.
            for noted, mine in (
                (self.loaded[1], block),
                (self.loaded[0], warp),
                (self.reader, now),
            ):
                differs = noted[word] != mine
                if differs.any():
                    noted[word[differs]] = SEVERAL

    def store(self, offset: np.ndarray, width: int, t: Threads, idx: np.ndarray, atomic: bool = False) -> None:
        """Notes stores."""
        if not self.watched:
            return
        for word in self.words(offset, width):
            by = self.writer[word]
            fine = self.ordered(by, self.stored[:, word], t, idx) | ((by == ATOMIC) & atomic)
            if not fine.all():
                raise PtxError(f"{self.name}: race, two threads store to one word")
            if not self.ordered(self.reader[word], self.loaded[:, word], t, idx).all():
                raise PtxError(f"{self.name}: race, a store to what another thread loads")
            self.writer[word] = ATOMIC if atomic else t.thread[idx]
            self.stored[:, word] = np.stack([t.warp[idx], t.block[idx], t.barriers[idx], t.warp_barriers[idx]])
            if not atomic and (self.writer[word] != t.thread[idx]).any():
                raise PtxError(f"{self.name}: race, two threads store to one word at once")

    def words(self, offset: np.ndarray, width: int) -> list[np.ndarray]:
        first = offset >> 2
        return [first + k for k in range(max(width // 4, 1))]


class Arena(Memory):
    """Global memory: copies of arrays, as misaligned as the originals, with gaps between them."""

    def __init__(self, arrays: list[np.ndarray]):
        size = sum(a.nbytes + 2 * GAP for a in arrays) + GAP
        super().__init__("global memory", size, base=1 << 40)
        self.bytes[:] = 0xA5
        self.starts = []
        at = GAP
        for a in arrays:
            at = -(-at // 64) * 64 + a.ctypes.data % 64
            self.bytes[at : at + a.nbytes] = np.frombuffer(a.tobytes(), np.uint8)
            self.exists[at : at + a.nbytes] = True
            self.starts.append((at, a))
            at += a.nbytes + GAP

    def addresses(self) -> list[int]:
        return [self.base + at for at, _ in self.starts]

    def arrays(self) -> list[np.ndarray]:
        return [self.bytes[at : at + a.nbytes].copy().view(a.dtype).reshape(a.shape) for at, a in self.starts]
