"""Runs calls in a process of their own, under a sanitizer: what it reports ends that process.

As a program: ``python sanitized.py LIBRARY CALLS.npz REPORT.json`` writes what was found.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import builds
import numpy as np
from shim import Call, Exact, LaunchError, Library, replaced

Checked = tuple[Call, Sequence[np.ndarray | None]]
"""A call and its arrays as they should be afterwards; those that nobody checks are None or left out."""


def check(library: Path, mode: str, calls: list[Checked], module: str = "") -> str:
    """Runs all calls in one process. Returns what was found: an empty text if nothing was."""
    return "\n".join(filter(None, reports(library, mode, calls, module, apart=False)))


def check_each(library: Path, mode: str, calls: list[Checked]) -> list[str]:
    """Runs each call in a process of its own. Returns what was found in each."""
    return reports(library, mode, calls, "", apart=True)


def reports(library: Path, mode: str, calls: list[Checked], module: str, apart: bool) -> list[str]:
    stored: dict[str, np.ndarray] = {}
    plan = []
    for number, (call, expected) in enumerate(calls):
        for i, a in enumerate(call.arrays()):
            stored[f"in{number}_{i}"] = a
        stored |= {f"out{number}_{i}": a for i, a in enumerate(expected) if a is not None}
        arguments = replaced(call.arguments, lambda a: {"array at": a.ctypes.data % 16})
        plan.append({"launcher": call.launcher, "arguments": arguments, "constructor": call.constructor})
    with tempfile.TemporaryDirectory() as folder:
        file, report = Path(folder) / "calls.npz", Path(folder) / "report.json"
        np.savez(file, plan=np.array(json.dumps([plan, module, apart])), **stored)
        command = [sys.executable, __file__, str(library), str(file), str(report)]
        done = subprocess.run(command, capture_output=True, text=True, env=builds.preload(mode))
        if not report.exists():
            return [done.stdout + done.stderr or f"exit code {done.returncode}"]
        found: list[str] = json.loads(report.read_text())
        if done.returncode or done.stderr:
            found.append(done.stderr or f"exit code {done.returncode}")
        return found


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


def run_one(dll: Library, row: dict[str, Any], number: int, stored: Any) -> str:
    given = (stored[name] for name in stored.files if name.startswith(f"in{number}_"))
    try:
        call = Call(row["launcher"], restored(row["arguments"], given), tuple(row["constructor"]))
        found = dll.run(call)
    except LaunchError as error:
        return f"{row['launcher']} (call {number}): {error}"
    names = [f"out{number}_{i}" for i in range(len(found))]
    other = [i for i, n in enumerate(names) if n in stored and found[i].tobytes() != stored[n].tobytes()]
    return f"{row['launcher']} (call {number}): other bits in arrays {other}" if other else ""


def run_apart(dll: Library, row: dict[str, Any], number: int, stored: Any) -> str:
    """In a copy of this process, which the sanitizer may end; its report is what that copy writes."""
    with tempfile.TemporaryFile("w+") as output:
        child = os.fork()
        if child == 0:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            told = run_one(dll, row, number, stored)
            os.write(1, told.encode())
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        output.seek(0)
        return output.read() or (f"exit status {status}" if status else "")


def main(library: Path, file: Path, report: Path) -> None:
    stored = np.load(file)
    plan, module, apart = json.loads(str(stored["plan"]))
    dll = Library(library, Exact, module)
    run = run_apart if apart else run_one
    report.write_text(json.dumps([run(dll, row, number, stored) for number, row in enumerate(plan)]))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
