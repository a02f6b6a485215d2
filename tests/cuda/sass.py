"""Reads machine code that no one has run: registers, spills, and the way through a kernel's main loop.

What a GPU would make of it is arithmetic on data-sheet rates: an estimate on paper, not a measurement.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from builds import find, run
from interpret import demangled


@dataclass(frozen=True)
class Chip:
    """Data-sheet rates. Lanes of each pipe and warp instructions issued are per multiprocessor and cycle."""

    name: str
    arch: str
    processors: int
    ghz: float
    bytes_per_second: float
    float_lanes: int
    shared_bytes: int
    integer_lanes: int = 64
    special_lanes: int = 16
    memory_lanes: int = 32
    double_lanes: int = 64
    issues: int = 4
    registers: int = 65536
    warps: int = 64
    blocks: int = 32


CHIPS = (
    Chip("H100 SXM", "sm_90", 132, 1.83, 3.35e12, 128, 227 * 1024),
    Chip("A100 80 GB", "sm_80", 108, 1.41, 2.039e12, 64, 163 * 1024, double_lanes=32),
)
ISSUE_EFFICIENCY = 0.6
"""Of the peak issue rate: what a kernel of this kind may reach that seldom stalls."""

PIPES = {
    "float": "FFMA FADD FMUL",
    "multiply": "IMAD IMUL",
    "integer": "IADD3 IADD LOP3 LOP SHF LEA ISETP SEL FSEL FSETP FMNMX IMNMX PRMT MOV PLOP3 SGXT IABS VIADD VIMNMX "
    "FCHK I2FP P2R R2P BMSK CS2R DSETP",
    "special": "MUFU I2F F2I F2F POPC FRND FLO BREV",
    "double": "DADD DMUL DFMA DMNMX",
    "memory": "LDG STG LDS STS LDL STL LD ST ATOM ATOMG ATOMS RED SHFL LDGSTS LDC LDSM",
}
PIPE_OF = {name: pipe for pipe, names in PIPES.items() for name in names.split()}


@dataclass(frozen=True)
class Ins:
    """One instruction: `guard` is its predicate."""

    address: int
    guard: str
    op: str
    rest: str

    @property
    def target(self) -> int | None:
        found = re.findall(r"0x([0-9a-f]+)", self.rest)
        return int(found[-1], 16) if found and self.op.split(".")[0] in ("BRA", "BSSY") else None

    @property
    def conditional(self) -> bool:
        return bool(self.guard) or "P" in self.rest.split("0x")[0] or self.op not in ("BRA", "EXIT")


@dataclass(frozen=True)
class Kernel:
    """One kernel's machine code and what it takes."""

    name: str
    code: list[Ins]
    registers: int
    stack: int
    local: int
    shared: int


def kernels(cubin: Path) -> dict[str, Kernel]:
    """By demangled name."""
    tool = find("cuobjdump")
    if tool is None:
        raise FileNotFoundError("cuobjdump")
    code: dict[str, list[Ins]] = {}
    for line in run([tool, "-sass", str(cubin)]).splitlines():
        if found := re.search(r"Function : (\S+)", line):
            here = code.setdefault(found[1], [])
        elif found := re.match(r"\s*/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)\s*([^;]*);", line):
            here.append(Ins(int(found[1], 16), (found[2] or "").strip(), found[3], found[4]))
    usage = {
        m[0]: [int(x) for x in m[1:]]
        for m in re.findall(
            r"Function (\S+?):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)",
            run([tool, "-res-usage", str(cubin)]),
        )
    }
    names = dict(zip(usage, demangled(list(usage)), strict=True))
    return {
        names[k]: Kernel(names[k], code[k], registers, stack, local, shared)
        for k, (registers, stack, shared, local) in usage.items()
    }


def wide(ins: Ins) -> bool:
    """A 128-bit access to global memory."""
    return ins.op[:3] in ("LDG", "STG") and ".128" in ins.op


def work(ins: Ins) -> int:
    """What the way through the loop should pass as much of as it can: vector accesses, and the roots of the noise."""
    return int(wide(ins) or ins.op == "MUFU.RSQ")


def successors(code: list[Ins]) -> list[list[int]]:
    """Where each instruction may go on, as numbers of instructions."""
    at = {ins.address: i for i, ins in enumerate(code)}
    joins: dict[str, int] = {}
    ways = []
    for i, ins in enumerate(code):
        after = [i + 1] if i + 1 < len(code) else []
        if ins.op == "BSSY" and ins.target is not None:
            joins[ins.rest.split(",")[0]] = at[ins.target]
        if ins.op.startswith("BRA") and not ins.op.startswith("BRA.DIV") and ins.target is not None:
            after = [*(after if ins.conditional else []), at[ins.target]]
        elif ins.op.startswith("BSYNC"):
            after = [joins[ins.rest.strip()]]
        elif ins.op.split(".")[0] in ("EXIT", "RET"):
            after = after if ins.guard else []
        ways.append(after)
    return ways


def loop(code: list[Ins]) -> tuple[int, set[int]]:
    """The head and the instructions of the loop with the most 128-bit accesses; an empty set if none has any."""
    ways = successors(code)
    before: dict[int, list[int]] = {}
    for i, after in enumerate(ways):
        for j in after:
            before.setdefault(j, []).append(i)
    best: tuple[int, set[int]] = (0, set())
    for tail, after in enumerate(ways):
        for head in after:
            if code[head].address > code[tail].address:
                continue
            body = {i for i in reach(ways, head) if i in reach(before, tail, stop=head)}
            count, most = (sum(wide(code[i]) for i in b) for b in (body, best[1]))
            if count > most or (count == most > 0 and len(body) < len(best[1])):
                best = (head, body)
    return best


def reach(ways: list[list[int]] | dict[int, list[int]], start: int, stop: int = -1) -> set[int]:
    """What can be reached from `start` without going on from `stop`."""
    seen, open_ = {start}, [start]
    while open_:
        i = open_.pop()
        if i == stop:
            continue
        for j in ways[i] if isinstance(ways, list) else ways.get(i, []):
            if j not in seen:
                seen.add(j)
                open_.append(j)
    return seen


def main_path(code: list[Ins]) -> list[Ins]:
    """The way around the main loop that does the most `work`, in the fewest instructions. Inner loops count once."""
    head, body = loop(code)
    if not body:
        return []
    ways = successors(code)
    order = postorder(ways, head, body)[::-1]
    place = {i: k for k, i in enumerate(order)}
    best = {head: (0, 0, -1)}  # work, minus length, where from
    ends = []
    for i in order:
        if i not in best:
            continue
        reached = (best[i][0] + work(code[i]), best[i][1] - 1, i)
        for j in ways[i]:
            if j == head:
                ends.append(reached)
            elif j in body and place[j] > place[i] and reached > best.get(j, (-1, 0, 0)):
                best[j] = reached
    path, i = [], max(ends)[2]
    while i >= 0:
        path.append(code[i])
        i = best[i][2]
    return path[::-1]


def postorder(ways: list[list[int]], head: int, body: set[int]) -> list[int]:
    """Of the loop's instructions, by depth-first search from its head: reversed, each stands after all before it."""
    out: list[int] = []
    seen = {head}
    stack = [(head, iter(ways[head]))]
    while stack:
        i, after = stack[-1]
        for j in after:
            if j in body and j not in seen:
                seen.add(j)
                stack.append((j, iter(ways[j])))
                break
        else:
            out.append(i)
            stack.pop()
    return out


def cycles(path: list[Ins], chip: Chip) -> dict[str, float]:
    """Cycles of one multiprocessor for one warp's turn, by the limit that asks for them."""
    mix = Counter(PIPE_OF.get(ins.op.split(".")[0], "other") for ins in path)
    return {
        "issue": len(path) / chip.issues,
        # multiplications of integers go through half of the float pipe
        "float": 32 * (mix["float"] / chip.float_lanes + mix["multiply"] / chip.integer_lanes),
        "integer": 32 * mix["integer"] / chip.integer_lanes,
        "special": 32 * mix["special"] / chip.special_lanes,
        "double": 32 * mix["double"] / chip.double_lanes,
        "memory pipe": 32 * mix["memory"] / chip.memory_lanes,
    }


def occupancy(kernel: Kernel, threads: int, chip: Chip, pool: int = 0) -> float:
    """Share of a multiprocessor's warps that can be resident; `pool` is the shared memory that a launch asks for."""
    warps = -(-threads // 32)
    per_warp = -(-max(kernel.registers, 1) * 32 // 256) * 256
    by_registers = chip.registers // per_warp // 4 * 4 // warps
    by_shared = chip.shared_bytes // (kernel.shared + pool + 1024)
    return min(by_registers, by_shared, chip.warps // warps, chip.blocks) * warps / chip.warps
