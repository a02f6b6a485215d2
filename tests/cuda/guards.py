"""Which guard finds which mistake: plants each one and looks. Draws the table in docs/developing/cuda.md.

As a program it rewrites that table: ``python tests/cuda/guards.py``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from builds import ROOT, SUBJECTS, library
from interpret import Program
from ptx import PtxError
from sanitized import check_each
from shim import Call, LaunchError, Library

PAGE = ROOT / "docs" / "developing" / "cuda.md"
GUARDS = {"plain": "shim", "address": "shim, address + undefined", "thread": "shim, thread", "ptx": "PTX interpreter"}
SEEDS = 6
"""Orders of the threads that the plain shim tries."""


def numbers(count: int) -> np.ndarray:
    return np.random.default_rng(count).random(count).astype(np.float32)


OUT = np.zeros(64, np.float32)


@dataclass(frozen=True)
class Fault:
    """A mistake, the call that makes it, and the definition that plants it in a sound kernel, if that is how."""

    title: str
    call: Call
    define: str = ""

    @property
    def defines(self) -> tuple[str, ...]:
        return (self.define,) if self.define else ()


SOUND = [
    *(Call("run_copy", (np.zeros(n, np.float32), numbers(n), n)) for n in (1, 2, 3, 5, 31, 33, 4003)),
    *(Call("run_sum", (np.zeros(-(-n // 64), np.float32), numbers(n), n)) for n in (1, 2, 3, 5, 31, 33, 4003)),
    Call("run_reverse", (OUT, numbers(64), 3)),
]
FAULTS = [
    Fault("missing barrier before a read", Call("run_sum", (OUT, numbers(130), 130)), "DIF_PLANT_MISSING_BARRIER"),
    Fault(
        "missing barrier before a second round",
        Call("run_reverse", (OUT, numbers(64), 3)),
        "DIF_PLANT_MISSING_SECOND_BARRIER",
    ),
    Fault("missing `__syncwarp`", Call("run_missing_syncwarp", (OUT,))),
    Fault("global load out of bounds", Call("run_global_out_of_bounds", (np.zeros(63, np.float32), numbers(63), 63))),
    Fault(
        "global store out of bounds",
        Call("run_global_store_out_of_bounds", (np.zeros(63, np.float32), numbers(63), 63)),
    ),
    Fault("shared store out of bounds", Call("run_shared_out_of_bounds", (OUT,))),
    Fault("shared memory read before it is written", Call("run_uninitialized_shared", (OUT,))),
    Fault("misaligned vector access", Call("run_misaligned", (OUT, numbers(63), 31))),
    Fault("two blocks store to one address", Call("run_blocks_race", (OUT,))),
    Fault("a block reads what another stores", Call("run_blocks_exchange", (OUT,))),
    Fault("lost update", Call("run_lost_update", (np.zeros(1, np.int32),))),
    Fault("barrier that part of a block reaches", Call("run_partial_barrier", (OUT,))),
    Fault("shuffle mask names a lane that has exited", Call("run_exited_lane", (OUT,))),
    Fault("vote of a lane that has exited", Call("run_exited_voter", (OUT,))),
    Fault("shuffle from a lane outside the mask", Call("run_lane_outside_mask", (OUT,))),
]


def found_by_shim(fault: Fault) -> str:
    """By the plain shim: it says so, or an order of the threads changes the result, or the result is no number."""
    subject = Library(library("subjects", SUBJECTS, "plain", fault.defines))
    try:
        results = [subject.run(fault.call, seed)[0] for seed in range(SEEDS)]
    except LaunchError as error:
        return str(error)
    if any(r.tobytes() != results[0].tobytes() for r in results):
        return "the result depends on the order of the threads"
    return "NaN" if results[0].dtype.kind == "f" and np.isnan(results[0]).any() else ""


def found_by_interpreter(fault: Fault, seed: int = 0) -> str:
    subject = Library(library("subjects", SUBJECTS, "plain", fault.defines))
    try:
        Program(subject, SUBJECTS, fault.defines).run(fault.call, seed)
    except PtxError as error:
        return str(error)
    return ""


def found_by_sanitizer(mode: str, faults: list[Fault]) -> dict[str, str]:
    found = {}
    for define in dict.fromkeys(f.define for f in faults):
        some = [f for f in faults if f.define == define]
        built = library("subjects", SUBJECTS, mode, some[0].defines)
        told = check_each(built, mode, [(f.call, ()) for f in some])
        found |= {f.title: t for f, t in zip(some, told, strict=True)}
    return found


def measure() -> dict[str, dict[str, str]]:
    """What each guard says of each fault: {title: {guard: text, empty if it says nothing}}."""
    sanitizers = {mode: found_by_sanitizer(mode, FAULTS) for mode in ("address", "thread")}
    return {
        f.title: {
            "plain": found_by_shim(f),
            **{mode: found[f.title] for mode, found in sanitizers.items()},
            "ptx": found_by_interpreter(f),
        }
        for f in FAULTS
    }


def table(measured: dict[str, dict[str, str]]) -> str:
    lines = [f"| mistake | {' | '.join(GUARDS.values())} |", "|---" * (1 + len(GUARDS)) + "|"]
    for title, told in measured.items():
        lines.append(f"| {title} | {' | '.join('found' if told[g] else '-' for g in GUARDS)} |")
    return "\n".join(lines)


def drawn(page: str, body: str) -> str:
    """The page with this table in its place."""
    return re.sub(r"(<!-- table: guards -->\n).*?(<!-- end -->)", lambda m: f"{m[1]}{body}\n{m[2]}", page, flags=re.S)


if __name__ == "__main__":
    PAGE.write_text(drawn(PAGE.read_text(), table(measure())))
