"""Runs nvcc's PTX: all threads of several blocks at once, an instruction being one operation on arrays.

Of the threads of a group those with the smallest program counter go on, so branches meet again as soon as they can. The
warps of a block are split into groups at random, anew after each barrier, and a group runs as far as it gets before the
next one starts; blocks are taken in random order. An instruction, a modifier or a declaration that is not known is an
error, and so is every floating-point operation whose rounding PTX leaves open.
"""

from __future__ import annotations

import re
import struct
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from ptx import Entry, Instruction, PtxError
from ptx_arithmetic import TYPES, U32, U64
from ptx_instructions import DONE, WAITS, Instructions, Reader, Step
from ptx_memory import GAP, Arena, Memory, Threads

WAVE = 8192
"""Threads that run at once, if blocks are no larger."""


class Machine(Instructions):
    """One kernel on one launch's sizes and arguments; `count` is the number of instructions run, times threads."""

    def __init__(self, entry: Entry, memory: Arena, seed: int = 0):
        self.entry = entry
        self.memory = memory
        self.random = np.random.default_rng(seed)
        self.count = 0
        self.seen: Counter[str] = Counter()

    def run(self, grid, block, shared_bytes: int, arguments: tuple[bytes, ...]) -> None:
        """One launch. Arguments are the bytes of each parameter."""
        e = self.entry
        self.parameters = Memory("parameters", -(-max(e.parameter_bytes, 1) // 16) * 16, watched=False)
        self.parameters.exists[:] = True
        if [len(a) for a in arguments] != [p.size for p in e.parameters]:
            raise PtxError(f"{e.name}: expected parameters of {[p.size for p in e.parameters]} bytes, got {arguments}")
        for p, a in zip(e.parameters, arguments, strict=True):
            at = e.offsets[p.name]
            self.parameters.bytes[at : at + p.size] = np.frombuffer(a, np.uint8)
        self.grid, self.block = grid, block
        self.size = block[0] * block[1] * block[2]
        blocks = self.random.permutation(grid[0] * grid[1] * grid[2])
        per_wave = max(1, WAVE // self.size)
        self.memory.forget()
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("error", DeprecationWarning)
            for first in range(0, len(blocks), per_wave):
                self.wave(blocks[first : first + per_wave], shared_bytes)

    # --- a wave: some blocks together -----------------------------------------------------------------------

    def wave(self, blocks: np.ndarray, shared_bytes: int) -> None:
        n = self.n = len(blocks) * self.size
        i, slot = np.arange(n) % self.size, np.arange(n) // self.size
        b = blocks[slot]
        self.slot, self.in_block = slot, i
        t = self.threads = Threads(n)
        t.thread[:] = b * self.size + i
        t.block[:] = b
        t.warp[:] = b * (-(-self.size // 32)) + i // 32
        self.special = {}
        for d, (x, y, _) in {"tid": self.block, "ctaid": self.grid}.items():
            k = i if d == "tid" else b
            for axis, v in zip("xyz", (k % x, k // x % y, k // (x * y)), strict=True):
                self.special[f"%{d}.{axis}"] = v.astype(U32)
        for d, sizes in {"ntid": self.block, "nctaid": self.grid}.items():
            for axis, v in zip("xyz", sizes, strict=True):
                self.special[f"%{d}.{axis}"] = np.full(n, v, U32)
        self.special["%laneid"] = (i % 32).astype(U32)
        self.special["%warpid"] = (i // 32).astype(U32)
        self.shared_layout(len(blocks), shared_bytes)
        self.registers: dict[str, np.ndarray] = {}
        self.pc = np.zeros(n, np.int64)
        self.everyone = np.arange(n)
        steps = [self.compile(k, ins) for k, ins in enumerate(self.entry.code)]
        self.loop(steps)

    def shared_layout(self, slots: int, shared_bytes: int) -> None:
        self.symbols: dict[str, int] = {p.name: self.entry.offsets[p.name] for p in self.entry.parameters}
        at, places, local = GAP, [], 0
        for v in self.entry.variables:
            if v.space == "shared":
                at = -(-at // 128) * 128
                self.symbols[v.name] = at
                places.append((at, shared_bytes if v.external else v.size))
                at += places[-1][1] + GAP
            elif v.space == "local":
                self.symbols[v.name] = local
                local += -(-v.size // 16) * 16
            else:
                raise PtxError(f"a variable in .{v.space}: {v.name}")
        self.stride = -(-at // 128) * 128
        self.shared = Memory("shared memory", self.stride * slots, blank=True)
        for s in range(slots):
            for start, size in places:
                self.shared.exists[s * self.stride + start : s * self.stride + start + size] = True
        self.local_stride = local
        self.local = Memory("local memory", max(local, 16) * self.n, watched=False)
        self.local.exists[:] = True

    def loop(self, steps: list[Step]) -> None:
        """Groups of warps one after another, barriers, and again."""
        pc, t = self.pc, self.threads
        while True:
            ready = pc < WAITS
            if not ready.any():
                if (pc == DONE).all():
                    return
                self.open_barriers()
                continue
            warps = self.random.permutation(-(-self.size // 32) * (self.n // self.size))
            groups = np.array_split(warps, self.random.integers(1, 4))
            warp_here = self.slot * (-(-self.size // 32)) + self.in_block // 32
            for group in groups:
                self.run_group(self.everyone[ready & np.isin(warp_here, group)], steps)
            del t
            t = self.threads

    def open_barriers(self) -> None:
        pc, first = self.pc, 0
        while first < self.n:
            here = slice(first, first + self.size)
            waits = pc[here] >= WAITS
            waits &= pc[here] < DONE
            if waits.any():
                if not waits.all():
                    raise PtxError(f"bar.sync: {waits.sum()} of {self.size} threads come, the others have returned")
                if (pc[here] != pc[first]).any():
                    raise PtxError("bar.sync: the threads of a block wait at different ones")
                pc[here] -= WAITS
                self.threads.barriers[here] += 1
            first += self.size

    def run_group(self, group: np.ndarray, steps: list[Step]) -> None:
        pc = self.pc
        while group.size:
            here = pc[group]
            at = int(here.min())
            if at >= WAITS:
                return
            chosen = here == at
            idx = group[chosen]
            # until somebody else of the group is met, or the program counters part
            stop = WAITS if chosen.all() else int(here[~chosen].min())
            while at < stop:
                step = steps[at]
                self.count += idx.size
                self.current = self.entry.code[at]
                try:
                    moved = step(idx)
                except PtxError as error:
                    raise PtxError(f"{error}: `{self.current.text}`") from None
                at += 1
                if moved is not None:
                    break
            else:
                pc[idx] = at

    # --- operands -------------------------------------------------------------------------------------------

    def register(self, name: str) -> np.ndarray:
        if name not in self.registers:
            prefix = re.match(r"%[a-zA-Z]+", name)
            kind = self.entry.registers.get(name) or self.entry.registers.get(prefix[0] if prefix else "")
            if kind is None:
                raise PtxError(f"unknown register {name}")
            unsigned = np.bool_ if kind == "pred" else TYPES["u" + kind[1:]]
            self.registers[name] = np.zeros(self.n, unsigned)
        return self.registers[name]

    def reader(self, operand: str, kind: str) -> Reader:
        """Values of an operand as arrays of this type."""
        dtype = np.dtype(TYPES[kind])
        if operand.startswith("%"):
            if operand in self.special:
                values = self.special[operand].astype(dtype)
            else:
                values = self.register(operand)
                if values.dtype.itemsize != dtype.itemsize:
                    if values.dtype.itemsize < dtype.itemsize or dtype.kind == "f":
                        raise PtxError(f"{operand} is too narrow for {kind}")
                    return lambda idx: values[idx].astype(dtype)
                if dtype != np.bool_:
                    values = values.view(dtype)
            return lambda idx: values[idx]
        if operand in self.symbols:
            number = self.symbols[operand]
            if any(v.name == operand and v.space == "shared" for v in self.entry.variables):
                base = (self.slot * self.stride + number).astype(dtype)
                return lambda idx: base[idx]
            if any(v.name == operand and v.space == "local" for v in self.entry.variables):
                base = (self.everyone * self.local_stride + number).astype(dtype)
                return lambda idx: base[idx]
        elif operand.startswith("0f"):
            number = struct.unpack(">f", bytes.fromhex(operand[2:]))[0]
        elif operand.startswith("0d"):
            number = struct.unpack(">d", bytes.fromhex(operand[2:]))[0]
        elif dtype == np.bool_:
            number = bool(int(operand))
        else:
            try:
                number = int(operand.rstrip("U"), 0)
            except ValueError:
                raise PtxError(f"unknown operand {operand}") from None
            if dtype.kind != "f":
                number &= (1 << 8 * dtype.itemsize) - 1
                number = np.array([number], f"u{dtype.itemsize}").view(dtype)[0]
        constant = np.array([number], dtype)
        return lambda idx: constant

    def writer(self, operand: str, kind: str) -> Callable[[np.ndarray, Any], None]:
        if operand == "_":
            return lambda idx, v: None
        register = self.register(operand)
        dtype = np.dtype(TYPES[kind])
        if dtype != np.bool_:
            wider = register.dtype.itemsize > dtype.itemsize
            register = register.view(f"{dtype.kind}{register.dtype.itemsize}" if wider else dtype)

        def write(idx: np.ndarray, v: Any) -> None:
            register[idx] = v

        return write

    def address(self, operand: str) -> Reader:
        """[register + offset] or [symbol + offset], in bytes."""
        found = re.fullmatch(r"\[([%$\w.]+)(?:\+(-?\d+))?\]", operand)
        if not found:
            raise PtxError(f"unknown address {operand}")
        offset = np.uint64(int(found[2] or 0) & (1 << 64) - 1)
        register = found[1]
        narrow = register.startswith("%") and self.register(register).dtype.itemsize == 4
        base = self.reader(register, "u32" if narrow else "u64")
        return lambda idx: np.broadcast_to(base(idx).astype(U64) + offset, idx.shape)

    # --- instructions ---------------------------------------------------------------------------------------

    def compile(self, number: int, ins: Instruction) -> Step:
        self.seen[".".join(ins.op)] += 1
        make = getattr(self, "op_" + ins.op[0], None)
        try:
            if make is None or "ftz" in ins.op or "sat" in ins.op:
                raise PtxError("unknown instruction")
            step = make(number, ins)
        except (PtxError, KeyError, IndexError, ValueError) as error:
            raise PtxError(f"{error}: `{ins.text}`") from None
        if ins.predicate is None or ins.op[0] == "bra":
            return step
        flag = self.register(ins.predicate)

        def guarded(idx: np.ndarray) -> Any:
            some = idx[flag[idx] != ins.negated]
            if some.size == 0:
                return None
            moved = step(some)
            if moved is not None and some.size < idx.size:
                others = np.setdiff1d(idx, some, assume_unique=True)
                self.pc[others] = number + 1
            return moved

        return guarded
