"""Runs calls in a process of their own, under a sanitizer: what it reports ends that process.

As a program: ``python sanitized.py LIBRARY CALLS.npz``, which prints the calls whose arrays came out otherwise.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import builds
import numpy as np
from shim import Call, Exact, LaunchError, Library, replaced


def check(
    library: Path, mode: str, calls: list[tuple[Call, list[np.ndarray] | None]], seeds: int = 1, module: str = ""
) -> str:
    """Runs each call with `seeds` orders of its threads. Returns what was found: an empty text if nothing was.

    Each call comes with its arrays as they should be afterwards, or with None.
    """
    stored: dict[str, np.ndarray] = {}
    plan = []
    for number, (call, expected) in enumerate(calls):
        for i, a in enumerate(call.arrays()):
            stored[f"in{number}_{i}"] = a
        for i, a in enumerate(expected or []):
            stored[f"out{number}_{i}"] = a
        arguments = replaced(call.arguments, lambda a: {"array at": a.ctypes.data % 16})
        plan.append({"launcher": call.launcher, "arguments": arguments, "expected": expected is not None})
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "calls.npz"
        np.savez(file, plan=np.array(json.dumps([plan, seeds, module])), **stored)
        command = [sys.executable, __file__, str(library), str(file)]
        done = subprocess.run(command, capture_output=True, text=True, env=builds.preload(mode))
    if done.returncode == 0:
        return ""
    return done.stdout + done.stderr or f"exit code {done.returncode}"


def restored(value: Any, arrays: Iterator[np.ndarray]) -> Any:
    """What `check` wrote down, with the arrays in their places."""
    if isinstance(value, dict):
        if set(value) == {"array at"}:
            return at_offset(next(arrays), value["array at"])
        return {k: restored(v, arrays) for k, v in value.items()}
    return [restored(v, arrays) for v in value] if isinstance(value, list) else value


def at_offset(array: np.ndarray, offset: int) -> np.ndarray:
    """A copy whose address is `offset` modulo 16."""
    memory = np.empty(array.nbytes + 32, np.uint8)
    start = (offset - memory.ctypes.data) % 16
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def main(library: Path, file: Path) -> int:
    """Prints each call that failed or gave other bits."""
    stored = np.load(file)
    plan, seeds, module = json.loads(str(stored["plan"]))
    dll = Library(library, Exact, module)
    wrong = 0
    for number, row in enumerate(plan):
        given = (stored[name] for name in stored.files if name.startswith(f"in{number}_"))
        arguments = restored(row["arguments"], given)
        for seed in range(seeds):
            try:
                found = dll.run(Call(row["launcher"], arguments), seed)
            except LaunchError as error:
                print(f"{row['launcher']} (call {number}): {error}")
                wrong = 1
                continue
            if row["expected"]:
                same = [a.tobytes() == stored[f"out{number}_{i}"].tobytes() for i, a in enumerate(found)]
                if not all(same):
                    print(f"{row['launcher']} (call {number}, seed {seed}): other bits in arrays {same}")
                    wrong = 1
    sys.stdout.flush()
    return wrong


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
