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
from ptx import SIZES, Entry, Instruction, PtxError
from ptx_arithmetic import (
    BINARY,
    F32,
    F64,
    TYPES,
    U32,
    U64,
    compare,
    convert,
    count_leading_zeros,
    divide,
    extract,
    fma32,
    fma64,
    funnel,
    lop3,
    multiply_high,
    permute,
    population,
)
from ptx_memory import GAP, Arena, Memory, Threads

WINDOW = 1 << 48
"""Where shared memory begins among generic addresses."""
WAVE = 8192
"""Threads that run at once, if blocks are no larger."""
WAITS, DONE = 1 << 40, 1 << 41
"""Program counters of threads at a barrier and of those that have returned."""

Step = Callable[[np.ndarray], None]
Reader = Callable[[np.ndarray], Any]


class Machine:
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
        for d, (x, y, z) in {"tid": self.block, "ctaid": self.grid}.items():
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

    def plain(self, ins: Instruction, kind: str, function, sources: int, out: str | None = None) -> Step:
        """destination = function(sources), all of one type."""
        if len(ins.operands) != sources + 1:
            raise PtxError("unknown operands")
        readers = [self.reader(o, kind) for o in ins.operands[1:]]
        write = self.writer(ins.operands[0], out or kind)
        return lambda idx: write(idx, function(*[r(idx) for r in readers]))

    def exactly(self, ins: Instruction, *allowed: tuple[str, ...]) -> None:
        if ins.op[1:] not in allowed:
            raise PtxError("unknown modifiers")

    def rounded(self, ins: Instruction) -> str:
        """The type of a float operation, whose rounding must be said: ptxas may fuse the others."""
        if ins.op[1:] not in (("rn", "f32"), ("rn", "f64")):
            raise PtxError("a rounding that is not .rn")
        return ins.op[2]

    def sum_like(self, ins: Instruction, function) -> Step:
        if ins.op[-1][0] == "f":
            return self.plain(ins, self.rounded(ins), function, 2)
        if len(ins.op) != 2:
            raise PtxError("unknown modifiers")
        return self.plain(ins, ins.op[1], function, 2)

    def op_add(self, _, ins):
        return self.sum_like(ins, np.add)

    def op_sub(self, _, ins):
        return self.sum_like(ins, np.subtract)

    def op_mul(self, _, ins):
        if ins.op[-1][0] == "f":
            return self.plain(ins, self.rounded(ins), np.multiply, 2)
        how, kind = ins.op[1:]
        if how == "wide":
            wide = kind[0] + str(2 * int(kind[1:]))
            kind_type = TYPES[wide]
            return self.plain(ins, kind, lambda a, b: a.astype(kind_type) * b.astype(kind_type), 2, wide)
        return self.plain(ins, kind, {"lo": np.multiply, "hi": multiply_high}[how], 2)

    def op_mad(self, _, ins):
        how, kind = ins.op[1:]
        if how == "wide":
            wide = kind[0] + str(2 * int(kind[1:]))
            a, b = (self.reader(o, kind) for o in ins.operands[1:3])
            c, write, t = self.reader(ins.operands[3], wide), self.writer(ins.operands[0], wide), TYPES[wide]
            return lambda idx: write(idx, a(idx).astype(t) * b(idx).astype(t) + c(idx))
        product = {"lo": np.multiply, "hi": multiply_high}[how]
        return self.plain(ins, kind, lambda a, b, c: product(a, b) + c, 3)

    def op_fma(self, _, ins):
        kind = self.rounded(ins)
        return self.plain(ins, kind, fma32 if kind == "f32" else fma64, 3)

    def op_div(self, _, ins):
        if ins.op[-1][0] == "f":
            return self.plain(ins, self.rounded(ins), np.divide, 2)
        return self.plain(ins, ins.op[1], divide, 2)

    def op_sqrt(self, _, ins):
        return self.plain(ins, self.rounded(ins), np.sqrt, 1)

    def op_rcp(self, _, ins):
        return self.plain(ins, self.rounded(ins), np.reciprocal, 1)

    def op_neg(self, _, ins):
        return self.plain(ins, ins.op[1], np.negative, 1)

    def op_abs(self, _, ins):
        return self.plain(ins, ins.op[1], np.abs, 1)

    def op_min(self, _, ins):
        self.exactly(ins, (ins.op[-1],))
        return self.plain(ins, ins.op[1], np.fmin, 2)

    def op_max(self, _, ins):
        self.exactly(ins, (ins.op[-1],))
        return self.plain(ins, ins.op[1], np.fmax, 2)

    def bits(self, _, ins):
        kind = ins.op[1]
        if ins.op[0] in ("shl", "shr"):
            a, by = self.reader(ins.operands[1], kind), self.reader(ins.operands[2], "u32")
            write, function = self.writer(ins.operands[0], kind), BINARY[ins.op[0]]
            return lambda idx: write(idx, function(a(idx), by(idx)))
        return self.plain(ins, kind, BINARY[ins.op[0]], 2)

    op_and = op_or = op_xor = op_shl = op_shr = op_rem = bits

    def op_not(self, _, ins):
        return self.plain(ins, ins.op[1], np.invert if ins.op[1] != "pred" else np.logical_not, 1)

    def op_popc(self, _, ins):
        return self.plain(ins, ins.op[1], population, 1, "u32")

    def op_clz(self, _, ins):
        return self.plain(ins, ins.op[1], count_leading_zeros, 1, "u32")

    def op_shf(self, _, ins):
        direction, mode, kind = ins.op[1:]
        return self.plain(ins, kind, lambda a, b, by: funnel(direction, a, b, by, mode == "clamp"), 3)

    def op_prmt(self, _, ins):
        self.exactly(ins, ("b32",))
        return self.plain(ins, "b32", permute, 3)

    def op_bfe(self, _, ins):
        self.exactly(ins, ("u32",))
        return self.plain(ins, "u32", extract, 3)

    def op_lop3(self, _, ins):
        table = int(ins.operands[4], 0)
        readers = [self.reader(o, "b32") for o in ins.operands[1:4]]
        write = self.writer(ins.operands[0], "b32")
        return lambda idx: write(idx, lop3(*np.broadcast_arrays(*[r(idx) for r in readers]), table))

    def op_selp(self, _, ins):
        yes, no = (self.reader(o, ins.op[1]) for o in ins.operands[1:3])
        flag, write = self.reader(ins.operands[3], "pred"), self.writer(ins.operands[0], ins.op[1])
        return lambda idx: write(idx, np.where(flag(idx), yes(idx), no(idx)))

    def op_setp(self, _, ins):
        name, *combine, kind = ins.op[1:]
        a, b = (self.reader(o, kind) for o in ins.operands[1:3])
        targets = [self.writer(o, "pred") for o in ins.operands[0].split("|")]
        if not combine:
            if len(targets) == 1:
                return lambda idx: targets[0](idx, compare(name, a(idx), b(idx)))
            raise PtxError("setp with two targets")
        with_ = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}[combine[0]]
        c = self.reader(ins.operands[3], "pred")
        return lambda idx: targets[0](idx, with_(compare(name, a(idx), b(idx)), c(idx)))

    def op_cvt(self, _, ins):
        *rounding, to, source = ins.op[1:]
        read, write, dtype = self.reader(ins.operands[1], source), self.writer(ins.operands[0], to), TYPES[to]
        how = rounding[0] if rounding else ""
        return lambda idx: write(idx, convert(read(idx), dtype, how, ins.text))

    def op_cvta(self, _, ins):
        space, kind = ins.op[-2:]
        to = ins.op[1] == "to"
        base = {"global": 0, "shared": WINDOW}[space]
        if kind != "u64":
            raise PtxError("unknown modifiers")
        return self.plain(ins, "u64", (lambda a: a - U64(base)) if to else (lambda a: a + U64(base)), 1)

    def op_mov(self, _, ins):
        kind, (target, source) = ins.op[-1], ins.operands
        if target.startswith("{"):
            parts = parts_of(target)
            half = "u" + str(8 * SIZES[kind] // len(parts))
            read, writes = self.reader(source, kind), [self.writer(p, half) for p in parts]
            step = 8 * SIZES[half]

            def unpack(idx: np.ndarray) -> None:
                v = read(idx)
                for k, write in enumerate(writes):
                    write(idx, (v >> v.dtype.type(step * k)).astype(TYPES[half]))

            return unpack
        if source.startswith("{"):
            parts = parts_of(source)
            half = "u" + str(8 * SIZES[kind] // len(parts))
            reads, write, dtype = [self.reader(p, half) for p in parts], self.writer(target, kind), TYPES[kind]
            step = 8 * SIZES[half]

            def pack(idx: np.ndarray) -> None:
                write(idx, sum(r(idx).astype(dtype) << dtype(step * k) for k, r in enumerate(reads)))

            return pack
        return self.plain(ins, kind, lambda a: a, 1)

    # --- memory ---------------------------------------------------------------------------------------------

    def access(self, ins: Instruction, words: tuple[str, ...]):
        """Space, type and number of elements of a load or store."""
        rest = [w for w in ins.op[1:] if w not in words]
        space = rest.pop(0) if rest[0] in ("global", "shared", "param", "local") else "generic"
        lanes = int(rest.pop(0)[1:]) if rest[0] in ("v2", "v4") else 1
        (kind,) = rest
        return space, kind, lanes

    def find(self, space: str, address: np.ndarray) -> tuple[Memory, np.ndarray]:
        if space == "generic":
            inside = address >= WINDOW
            if inside.any() and not inside.all():
                raise PtxError("generic addresses of two spaces in one instruction")
            return (self.shared, address - U64(WINDOW)) if inside.any() else (self.memory, address)
        spaces = {"global": self.memory, "shared": self.shared, "param": self.parameters, "local": self.local}
        return spaces[space], address

    def op_ld(self, _, ins):
        space, kind, lanes = self.access(ins, ("nc", "volatile", "relaxed", "weak"))
        writes = [self.writer(o, kind) for o in parts_of(ins.operands[0])]
        where, dtype = self.address(ins.operands[1]), np.dtype(TYPES[kind])
        width = dtype.itemsize

        def load(idx: np.ndarray) -> None:
            memory, address = self.find(space, where(idx))
            offset = memory.check(address, width * lanes)
            memory.load(offset, width * lanes, self.threads, idx)
            view, first = memory.view(dtype), offset // width
            for k, write in enumerate(writes):
                write(idx, view[first + k])

        return load

    def op_st(self, _, ins):
        space, kind, lanes = self.access(ins, ("volatile", "relaxed", "weak", "wb"))
        reads = [self.reader(o, kind) for o in parts_of(ins.operands[1])]
        where, dtype = self.address(ins.operands[0]), np.dtype(TYPES[kind])
        width = dtype.itemsize
        if space == "param":
            raise PtxError("a store to parameters")

        def store(idx: np.ndarray) -> None:
            memory, address = self.find(space, where(idx))
            offset = memory.check(address, width * lanes)
            memory.store(offset, width * lanes, self.threads, idx)
            view, first = memory.view(dtype), offset // width
            for k, read in enumerate(reads):
                view[first + k] = read(idx)

        return store

    def op_atom(self, _, ins):
        space, operation, kind = ins.op[1:]
        if kind[0] == "f":
            raise PtxError("an atomic on floats: its order of sums is the hardware's")
        reduction = ins.op[0] == "red"
        target, place, *sources = ((), *ins.operands) if reduction else ins.operands
        where, reads = self.address(place), [self.reader(s, kind) for s in sources]
        write, dtype = None if reduction else self.writer(target, kind), np.dtype(TYPES[kind])
        functions = {"add": np.add, "and": np.bitwise_and, "or": np.bitwise_or, "max": np.maximum, "min": np.minimum}
        functions |= {"exch": lambda old, new: new, "cas": lambda old, if_, new: np.where(old == if_, new, old)}
        function = functions[operation]

        def atomic(idx: np.ndarray) -> None:
            memory, address = self.find(space, where(idx))
            offset = memory.check(address, dtype.itemsize)
            memory.store(offset, dtype.itemsize, self.threads, idx, atomic=True)
            view, at = memory.view(dtype), offset // dtype.itemsize
            values = [np.broadcast_to(r(idx), idx.shape) for r in reads]
            old = np.empty(idx.size, dtype)
            for k in self.random.permutation(idx.size):
                old[k] = view[at[k]]
                view[at[k]] = function(old[k], *[v[k] for v in values])
            if write:
                write(idx, old)

        return atomic

    op_red = op_atom

    # --- control --------------------------------------------------------------------------------------------

    def op_bra(self, number, ins):
        target = self.entry.labels[ins.operands[0]]
        pc = self.pc
        if ins.predicate is None:

            def jump(idx: np.ndarray) -> bool:
                pc[idx] = target
                return True

            return jump
        flag = self.register(ins.predicate)

        def branch(idx: np.ndarray) -> bool:
            pc[idx] = np.where(flag[idx] != ins.negated, target, number + 1)
            return True

        return branch

    def op_ret(self, _, ins):
        def leave(idx: np.ndarray) -> bool:
            self.pc[idx] = DONE
            return True

        return leave

    op_exit = op_ret

    def op_bar(self, number, ins):
        if ins.op == ("bar", "warp", "sync"):
            read = self.reader(ins.operands[0], "u32")

            def meet(idx: np.ndarray) -> None:
                self.warps_meet(idx, read(idx))
                self.threads.warp_barriers[idx] += 1

            return meet
        if ins.op != ("bar", "sync") or ins.operands != ("0",) or ins.predicate:
            raise PtxError("unknown barrier")

        def wait(idx: np.ndarray) -> bool:
            self.pc[idx] = WAITS + number + 1
            return True

        return wait

    def op_membar(self, _, ins):
        return lambda idx: None

    op_fence = op_membar

    def warps_meet(self, idx: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Every lane that a mask names must be here, with the same mask. Returns the masks, one for each thread."""
        mask = np.broadcast_to(mask, idx.shape)
        here = np.zeros(self.n, U32)
        here[idx] = mask
        lane = (self.in_block[idx] % 32).astype(U32)
        if ((mask >> lane & U32(1)) == 0).any():
            raise PtxError("a lane that its own mask does not name")
        first = idx - lane
        for k in range(32):
            named = (mask >> U32(k) & U32(1)) != 0
            other = first + k
            outside = named & (self.in_block[idx] - lane + k >= self.size)
            if outside.any() or (here[other[named]] != mask[named]).any():
                raise PtxError(f"the mask names lane {k}, which does not come")
        return mask

    def op_shfl(self, _, ins):
        _, mode, kind = ins.op[1:]
        target, *flags = ins.operands[0].split("|")
        value, by, clamp, mask = (self.reader(o, "u32") for o in ins.operands[1:])
        write, flag = self.writer(target, kind), [self.writer(f, "pred") for f in flags]

        def shuffle(idx: np.ndarray) -> None:
            masks = self.warps_meet(idx, mask(idx))
            lane = (self.in_block[idx] % 32).astype(np.int64)
            b, c = by(idx).astype(np.int64) & 31, clamp(idx).astype(np.int64)
            segment, bound = c >> 8 & 31, c & 31
            last, first = (lane & segment) | (bound & ~segment), lane & segment
            other = {"up": lane - b, "down": lane + b, "bfly": lane ^ b, "idx": first | (b & ~segment)}[mode]
            inside = other >= last if mode == "up" else other <= last
            other = np.where(inside, other, lane)
            if ((masks >> other.astype(U32) & U32(1)) == 0).any():
                raise PtxError("a shuffle from a lane outside the mask")
            everyone = np.zeros(self.n, U32)
            everyone[idx] = value(idx)
            write(idx, everyone[idx - lane + other])
            for f in flag:
                f(idx, inside)

        return shuffle

    def op_vote(self, _, ins):
        mode, kind = ins.op[2:]
        flag, mask = self.reader(ins.operands[1], "pred"), self.reader(ins.operands[2], "u32")
        write = self.writer(ins.operands[0], kind)
        negate = ins.operands[1].startswith("!")
        if negate or ins.op[1] != "sync":
            raise PtxError("unknown vote")

        def vote(idx: np.ndarray) -> None:
            masks = self.warps_meet(idx, mask(idx))
            lane = self.in_block[idx] % 32
            ballots = np.zeros(self.n, U32)
            np.bitwise_or.at(ballots, idx - lane, np.where(flag(idx), U32(1) << lane.astype(U32), U32(0)))
            ballot = ballots[idx - lane] & masks
            write(idx, {"ballot": ballot, "any": ballot != 0, "all": ballot == masks}[mode])

        return vote


def parts_of(operand: str) -> list[str]:
    return [p.strip() for p in operand.strip("{}").split(",")]


__all__ = ["F32", "F64", "Machine"]
