"""Runs a launcher's kernels as nvcc's PTX: the shim's build says what it would launch, the interpreter does it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from builds import ptx, run
from ptx import Entry, PtxError, entries
from ptx_machine import Machine
from ptx_memory import Arena
from shim import Call, Library


def demangled(names: list[str]) -> list[str]:
    """As C++ writes them: unnamed namespaces, which each compiler mangles in its own way, are then the same."""
    return run(["c++filt", *names]).splitlines() if names else []


class Program:
    """The PTX of some sources beside the same sources built with the shim."""

    def __init__(self, library: Library, sources: list[Path], defines: tuple[str, ...] = ()):
        self.library = library
        self.entries: dict[str, Entry] = {}
        for source in sources:
            found = entries(ptx(source, defines))
            self.entries |= dict(zip(demangled(list(found)), found.values(), strict=True))
        self.instructions = 0
        self.ran: set[str] = set()

    def run(self, call: Call, seed: int = 0) -> list[np.ndarray]:
        """The arrays after the call."""
        memory = Arena(call.arrays())
        for launch in self.library.record(call, memory.addresses()):
            (name,) = demangled([launch.kernel])
            if name not in self.entries:
                raise PtxError(f"no kernel {name} in {sorted(self.entries)}")
            machine = Machine(self.entries[name], memory, seed)
            machine.run(launch.grid, launch.block, launch.shared_bytes, launch.arguments)
            self.instructions += machine.count
            self.ran.add(name)
        return memory.arrays()
