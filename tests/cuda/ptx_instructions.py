"""What each PTX instruction does to the registers and the memory of the threads `idx`.

A method op_NAME makes the function that does it, once for each statement; a function that sets program counters returns
True. What is not here, a modifier that is not expected, and a float operation whose rounding is left open are errors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from ptx import SIZES, Entry, Instruction, PtxError
from ptx_arithmetic import (
    BINARY,
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
from ptx_memory import Memory, Threads

WINDOW = 1 << 48
"""Where shared memory begins among generic addresses."""
WAITS, DONE = 1 << 40, 1 << 41
"""Program counters of threads at a barrier and of those that have returned."""

Step = Callable[[np.ndarray], Any]
Reader = Callable[[np.ndarray], Any]


class Instructions:
    """Of a machine, which has the threads, the registers and the memories."""

    entry: Entry
    n: int
    size: int
    pc: np.ndarray
    in_block: np.ndarray
    threads: Threads
    memory: Memory
    shared: Memory
    local: Memory
    parameters: Memory
    random: np.random.Generator
    register: Callable[[str], np.ndarray]
    reader: Callable[[str, str], Reader]
    writer: Callable[[str, str], Callable[[np.ndarray, Any], None]]
    address: Callable[[str], Reader]

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
