"""What an owner of a GPU runs: the CUDA kernels' bits against the CPU's, then their bandwidth: ``benchmarks/gpu.py``.

Prints one line a kernel: bytes moved, time, and the share of the device's bandwidth, which a copy of the same bytes on
the device measures in the same run. Without a GPU it times what can be timed, the call of one step, says why the rest
did not run, and exits with 0. ``--sanitize`` runs the kernels' tests under compute-sanitizer.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from devinterp_fast import _native_cuda, _native_cuda_sums

ROOT = Path(__file__).parents[1]
OP = torch.ops.devinterp_fast.sampler_step_at_.default
CHAINS, DIM = 4, 2**23


def step_problem(sampler: str, chains: int, dim: int, device: str) -> tuple[list[object], int]:
    """Arguments of one step, and the bytes that it reads and writes."""
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(3, chains, dim, generator=draw)
    rows[2].abs_()
    g, center = torch.randn(chains, dim, generator=draw), torch.randn(dim, generator=draw)
    each = torch.arange(1, chains + 1, dtype=torch.float64)
    settings = _native_cuda.coefficients(sampler, 1e-3 * each, 7.0 / each, 30.0 * each, friction=2.0)
    states = _native_cuda.SAMPLERS[sampler][2]
    w, first, second = rows.to(device)
    args = [sampler, w, [g.to(device)], center.to(device), settings.to(device), torch.tensor([5, 6], device=device)]
    args += [first if states > 1 else None, second if states > 2 else None]
    return args, 4 * dim * (chains * (2 * states + 1) + 1)


def same_bits(sampler: str) -> bool:
    """Whether one step on the GPU, with its sums, equals the CPU's."""
    results = []
    for device in ("cpu", "cuda"):
        args, _ = step_problem(sampler, 3, 20001, device)
        length = _native_cuda.sums_length(args[2], 3)  # type: ignore[arg-type]
        sums = torch.zeros(length, dtype=torch.float64, device=device)
        OP(*args, None, sums)
        results.append([x.cpu() for x in (args[1], sums[:6])])  # type: ignore[attr-defined]
    return all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def seconds(run: Callable[[], object], repeats: int = 20) -> float:
    """The shortest of several runs by CUDA events."""
    for _ in range(3):
        run()
    times = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e-3)
    return min(times)


def kernels() -> dict[str, tuple[Callable[[], object], int]]:
    """What is timed: {name: (run, bytes)}."""
    table: dict[str, tuple[Callable[[], object], int]] = {}
    for sampler in _native_cuda.SAMPLERS:
        args, moved = step_problem(sampler, CHAINS, DIM, "cuda")
        sums = torch.zeros(_native_cuda.sums_length(args[2], CHAINS), dtype=torch.float64, device="cuda")  # type: ignore[arg-type]
        table[f"{sampler} step"] = (lambda a=args: OP(*a), moved)
        table[f"{sampler} step with sums"] = (lambda a=args, s=sums: OP(*a, None, s), moved)
    out, clock = torch.empty(CHAINS, DIM, device="cuda"), torch.tensor([5, 6], device="cuda")
    table["normals"] = (lambda: _native_cuda.fill_noise_("normals", out, clock), 4 * out.numel())
    mean, scatter = torch.zeros(2, CHAINS, DIM, dtype=torch.float64, device="cuda")
    one = torch.ones(1, dtype=torch.int64, device="cuda")
    table["running moments"] = (lambda: _native_cuda_sums.add_draw_(mean, scatter, out, one), 36 * out.numel())
    krylov = _native_cuda_sums.Krylov(torch.randn(CHAINS, DIM // 8, device="cuda"), 33)
    while krylov.vectors < 32:
        krylov.extend_(torch.randn(CHAINS, DIM // 8, device="cuda"))
    v = torch.randn(CHAINS, DIM // 8, device="cuda")

    def extend() -> None:
        krylov.vectors = 32
        krylov.extend_(v)

    table["two-pass Gram-Schmidt, 32 vectors"] = (extend, 4 * CHAINS * DIM // 8 * (2 * 32 + 6))
    return table


def overhead(device: str) -> float:
    """Microseconds from Python to the end of one step's call: of 2 x 8 numbers, so nearly nothing is computed."""
    args, _ = step_problem("sgld", 2, 8, device)
    best = float("inf")
    with torch.no_grad():
        for _ in range(20):
            begin = time.perf_counter()
            for _ in range(2000):
                OP(*args[:6])
            best = min(best, (time.perf_counter() - begin) / 2000)
    return best * 1e6


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sanitize", action="store_true", help="run the tests under compute-sanitizer instead")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if why := _native_cuda.unavailable():
        print(f"call of one step on the CPU: {overhead('cpu'):.1f} us")
        print(f"not run: {why}")
        return 0
    if options.sanitize:
        tool = shutil.which("compute-sanitizer")
        if tool is None:
            sys.exit("compute-sanitizer: expected on the PATH, got none: it comes with the CUDA toolkit")
        tests = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", str(ROOT / "tests" / "test_gpu.py")]
        checks = ("memcheck", "racecheck", "synccheck", "initcheck")
        return max(
            subprocess.run([tool, "--tool", check, "--error-exitcode", "1", *tests]).returncode for check in checks
        )
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; {_native_cuda.summary()}")
    wrong = [sampler for sampler in _native_cuda.SAMPLERS if not same_bits(sampler)]
    print(f"bits of the CPU: {'all equal' if not wrong else f'other ones in {wrong}'}")
    source: Tensor = torch.empty(CHAINS, DIM, device="cuda")
    copy = torch.empty_like(source)
    rate = 8 * source.numel() / seconds(lambda: copy.copy_(source))
    print(f"{'copy':36} {8 * source.numel() / 1e6:8.1f} MB                {rate / 1e9:8.0f} GB/s")
    for name, (run, moved) in kernels().items():
        took = seconds(run)
        share = moved / took / rate
        numbers = f"{moved / 1e6:8.1f} MB {took * 1e6:10.1f} us {moved / took / 1e9:8.0f} GB/s"
        print(f"{name:36} {numbers} {share:6.0%} of a copy")
    print(f"call of one step: {overhead('cuda'):.1f} us")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
