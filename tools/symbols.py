"""Checks that no two instruction sets share a weak symbol: ``python tools/symbols.py BUILD_DIR``.

The linker keeps one copy of a weak symbol (an inline function, a template) for the whole program. If the copy
it keeps was compiled for AVX-512, the baseline crashes on an older processor. So the sets' object files may not
define the same one.
"""

import collections
import subprocess
import sys
from pathlib import Path


def weak(file):
    """Returns the weak symbols that an object file defines."""
    lines = subprocess.run(["nm", "--defined-only", "-C", file], capture_output=True, text=True, check=True).stdout
    fields = (line.split(maxsplit=2) for line in lines.splitlines())
    return {name for _, kind, name in fields if kind in "VvWwu"}


def main():
    objects = sorted(Path(sys.argv[1]).rglob("dif_isa_*.dir/**/*.o"))
    if not objects:
        sys.exit(f"BUILD_DIR: expected object files of instruction sets, got none in {sys.argv[1]}")
    owners = collections.defaultdict(set)
    for file in objects:
        target = next(part for part in file.parts if part.startswith("dif_isa_")).removesuffix(".dir")
        for name in weak(file):
            owners[name].add(target)
    shared = {name: sets for name, sets in owners.items() if len(sets) > 1}
    for name, sets in sorted(shared.items()):
        print(f"{name}: weak in {', '.join(sorted(sets))}")
    if shared:
        sys.exit(f"instruction sets: expected no shared weak symbols, got {len(shared)}")
    print(f"symbols: {len(objects)} object files, {len(owners)} weak symbols, none shared")


main()
