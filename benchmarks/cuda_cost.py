"""What the CUDA module costs a machine without a GPU: time to import, bytes in the wheel, and a call from Python.

Run with ``python benchmarks/cuda_cost.py [WHEEL]``, after ``make wheels``.
"""

import statistics
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import torch
from gpu import overhead
from harness import record

from devinterp_fast import _native_cuda

ROUNDS = 15
HIDE = "import sys; sys.modules['devinterp_fast._cuda'] = None; "
PROGRAMS = {
    "torch": "import torch",
    "with the CUDA module": "import devinterp_fast",
    "without": HIDE + "import devinterp_fast",
}


def started(program: str) -> float:
    """Seconds of a process that runs one line."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True)
    return time.perf_counter() - begin


def main() -> None:
    torch.set_num_threads(1)
    _native_cuda.module()  # raises where this build has none: nothing to measure
    found: dict[str, object] = {"microseconds of a call": overhead("cpu")}
    times: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for _ in range(ROUNDS):
        for name, program in PROGRAMS.items():
            times[name].append(started(program))
    found["seconds to import"] = {name: statistics.median(each) for name, each in times.items()}
    pairs = zip(times["with the CUDA module"], times["without"], strict=True)
    found["seconds more for the CUDA module"] = statistics.median(a - b for a, b in pairs)
    wheels = [Path(sys.argv[1])] if sys.argv[1:] else sorted((Path(__file__).parents[1] / "dist").glob("*.whl"))
    with zipfile.ZipFile(wheels[-1]) as wheel:
        sizes = {entry.filename: entry.compress_size for entry in wheel.infolist()}
    found["bytes of the wheel"] = wheels[-1].stat().st_size
    found["bytes of the CUDA module"] = sum(size for name, size in sizes.items() if "/_cuda." in name)
    print(found)
    record("cuda_cost", found)


if __name__ == "__main__":
    main()
