"""What each kernel may take of a GPU, checked without one, and what that means on paper.

As a program it measures anew, writes budgets.json and draws the table in docs/developing/cuda.md:
``python tests/cuda/budgets.py``.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from builds import HERE, KERNELS, ROOT, cubin, run
from sass import CHIPS, ISSUE_EFFICIENCY, Chip, Kernel, cycles, kernels, main_path, occupancy, wide

FILE = HERE / "budgets.json"
PAGE = ROOT / "docs" / "developing" / "cuda.md"
SGLD_BAR = 0.75
"""Of the fused SGLD step: compute over memory, at ISSUE_EFFICIENCY."""


@dataclass(frozen=True)
class Streams:
    """A kernel that passes over memory once: `moved` bytes and `stores` 128-bit stores for each quad of numbers."""

    threads: int
    moved: int
    stores: int


@dataclass(frozen=True)
class Other:
    """A kernel that a count for each number does not describe: what bounds it, and why it reads as it does.

    `pool` is the shared memory that a launch asks for, of a typical size.
    """

    threads: int
    bound: str
    pool: int = 0


SPECS: dict[str, Streams | Other] = {
    "step_kernel<dif::Sgld, false>": Streams(256, 64, 1),
    "step_kernel<dif::Sgld, true>": Streams(288, 64, 1),
    "step_kernel<dif::Langevin, false>": Streams(256, 96, 2),
    "step_kernel<dif::Langevin, true>": Streams(288, 96, 2),
    "step_kernel<dif::Preconditioned, false>": Streams(256, 128, 3),
    "step_kernel<dif::Preconditioned, true>": Streams(288, 128, 3),
    "noise_kernel<dif::cuda::Normals>": Streams(256, 16, 1),
    "noise_kernel<dif::cuda::Signs>": Streams(256, 16, 1),
    "noise_kernel<dif::cuda::Words>": Streams(256, 16, 1),
    "moments_kernel": Streams(256, 144, 4),
    "thermostat_kernel": Other(256, "launch: one thread a chain, once a step"),
    "ordered_sums_kernel": Other(256, "latency: a chain's partial sums are added one by one, one for 8192 coordinates"),
    "gram_kernel": Other(256, "shared memory: two loads for each fused multiply-add, 16 x 16 samples a block"),
    "dots_kernel": Other(256, "memory: 4 bytes for each number of the basis, the first of its two readings"),
    "coefficients_kernel": Other(256, "latency: one block a chain, m (m + dim / 1024) additions for m vectors", 512),
    "subtract_kernel": Other(256, "memory: 4 bytes for each number of the basis, the second reading"),
    "squares_of_blocks_kernel": Other(32, "latency: a warp adds 8192 squares in order; 4 bytes a coordinate"),
    "normalize_kernel": Other(256, "memory: 8 bytes a number; a warp reads 128 neighboring bytes"),
    "reduce_kernel": Other(32, "memory: members are gathered one by one, the list is read in order"),
    "resident_kernel": Other(
        128, "latency: barriers between the layers of a small model; nothing but data and draws leaves the chip", 32768
    ),
    "products_kernel": Other(
        128, "latency: barriers between layers; one read of data and directions, a pool that fills what is there", 98304
    ),
    "add_segments_kernel": Other(128, "memory: 4 bytes a segment and number, at most 8 segments"),
}
for _model in range(3):
    SPECS[f"glr_kernel<(dif::GlrModel){_model}, false>"] = Other(
        128, "memory: all candidates of a channel are read each step; a warp reads 128 neighboring bytes"
    )
    SPECS[f"glr_kernel<(dif::GlrModel){_model}, true>"] = Other(
        128, "double: the fit of each candidate to a channel's own weights, about 40 operations and 1 or 2 divisions"
    )
    SPECS[f"squares_kernel<(dif::GlrModel){_model}>"] = Other(
        128, "memory: candidates in, squares out; a warp moves 128 neighboring bytes"
    )


def short(name: str) -> str:
    """``void dif::cuda::k<A>(...)`` is k<A>."""
    found = re.fullmatch(r"(?:void )?dif::cuda::(.*?)\((?!dif::GlrModel\)).*", name)
    return found[1].replace("(anonymous namespace)::", "") if found else name


def nvcc_version() -> str:
    return run(["nvcc", "--version"]).split("V")[-1].split()[0]


def built() -> dict[str, dict[str, Kernel]]:
    """{architecture: {kernel: machine code}}"""
    return {
        chip.arch: {short(n): k for source in KERNELS for n, k in kernels(cubin(source, chip.arch)).items()}
        for chip in CHIPS
    }


def figures(kernel: Kernel, spec: Streams | Other, chip: Chip) -> dict[str, Any]:
    """What budgets.json holds of one kernel on one architecture."""
    pool = spec.pool if isinstance(spec, Other) else 0
    found: dict[str, Any] = {
        "registers": kernel.registers,
        "occupancy": occupancy(kernel, spec.threads, chip, pool),
    }
    if isinstance(spec, Streams):
        path = main_path(kernel.code)
        stores = sum(wide(i) and i.op.startswith("STG") for i in path)
        numbers = 4 * stores / spec.stores
        found["128-bit accesses"] = sum(map(wide, path))
        found["instructions"] = len(path) / numbers if numbers else float("inf")
        # of one number, picoseconds, at the peak of each limit
        per_cycle = 32 * numbers * chip.processors * chip.ghz * 1e-3
        found["limits"] = {k: round(v / per_cycle, 3) for k, v in cycles(path, chip).items()} if numbers else {}
    return found


def measure() -> dict[str, Any]:
    machine = built()
    rows = {
        name: {chip.arch: figures(machine[chip.arch][name], spec, chip) for chip in CHIPS}
        for name, spec in SPECS.items()
    }
    return {"nvcc": nvcc_version(), "kernels": rows}


def broken(name: str, kernel: Kernel) -> list[str]:
    """The rules that hold whatever the compiler's version."""
    spec, found = SPECS[name], []
    if kernel.stack or kernel.local:
        found.append(f"stack {kernel.stack}, local memory {kernel.local} bytes")
    if any(i.op.split(".")[0] in ("LDL", "STL") for i in kernel.code):
        found.append("spills")
    if isinstance(spec, Streams):
        path = main_path(kernel.code)
        needed = spec.moved // 16
        if sum(map(wide, path)) < needed:
            found.append(f"128-bit accesses in the main loop: expected {needed}, got {sum(map(wide, path))}")
        for ins in path:
            if ins.op[:3] in ("LDG", "STG") and not wide(ins):
                found.append(f"on the way through the main loop: {ins.op}")
    return found


def exceeded(now: dict[str, Any], budget: dict[str, Any]) -> list[str]:
    """What is above (occupancy: below) its budget."""
    found = []
    for name, archs in now["kernels"].items():
        for arch, row in archs.items():
            allowed = budget["kernels"].get(name, {}).get(arch)
            if allowed is None:
                found.append(f"{name}, {arch}: no budget")
                continue
            found += [
                f"{name}, {arch}: {key} {row[key]:g}, allowed {allowed[key]:g}"
                for key in ("registers", "instructions")
                if key in row and row[key] > allowed[key]
            ]
            if row["occupancy"] < allowed["occupancy"]:
                found.append(f"{name}, {arch}: occupancy {row['occupancy']:g}, needed {allowed['occupancy']:g}")
    return found


def ratio(row: dict[str, Any], spec: Streams, chip: Chip) -> tuple[float, str]:
    """Compute over memory time, and which limit of compute it is."""
    limit, time = max(row["limits"].items(), key=lambda item: item[1])
    memory = spec.moved / 4 / chip.bytes_per_second * 1e12
    return time / ISSUE_EFFICIENCY / memory, limit


def table(budget: dict[str, Any]) -> str:
    chips = " | ".join(f"{c.name}: compute / memory" for c in CHIPS)
    lines = [
        f"| kernel | registers | occupancy | bytes a number | instructions a number | {chips} | bound |",
        "|---" * (6 + len(CHIPS)) + "|",
    ]
    for name, spec in SPECS.items():
        rows = [budget["kernels"][name][c.arch] for c in CHIPS]
        registers = " / ".join(f"{r['registers']}" for r in rows)
        filled = " / ".join(f"{100 * r['occupancy']:.0f} %" for r in rows)
        if isinstance(spec, Streams):
            found = [ratio(r, spec, c) for r, c in zip(rows, CHIPS, strict=True)]
            instructions = " / ".join(f"{r['instructions']:.0f}" for r in rows)
            shares = " | ".join(f"{value:.2f} ({limit})" for value, limit in found)
            bounds = ["memory" if value < 1 else limit for value, limit in found]
            bound = bounds[0] if len(set(bounds)) == 1 else " / ".join(bounds)
            lines.append(
                f"| `{name}` | {registers} | {filled} | {spec.moved / 4:g} | {instructions} | {shares} | {bound} |"
            )
        else:
            lines.append(f"| `{name}` | {registers} | {filled} | | |{' |' * len(CHIPS)} {spec.bound} |")
    lines += ["", f"Pairs are {' / '.join(c.name for c in CHIPS)}; nvcc {budget['nvcc']}."]
    return "\n".join(lines)


def drawn(page: str, body: str) -> str:
    """The page with this table in its place."""
    return re.sub(r"(<!-- table: roofline -->\n).*?(<!-- end -->)", lambda m: f"{m[1]}{body}\n{m[2]}", page, flags=re.S)


if __name__ == "__main__":
    now = measure()
    FILE.write_text(json.dumps(now, indent=1) + "\n")
    PAGE.write_text(drawn(PAGE.read_text(), table(now)))
