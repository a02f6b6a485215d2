"""Writes devinterp_fast/_cpu.pyi from the compiled module; with ``--check``, says whether the one there is fresh."""

import difflib
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
STUB = ROOT / "devinterp_fast" / "_cpu.pyi"


def run(*command):
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")


def generate(folder):
    """Returns the stub's text as pybind11-stubgen and ruff make it."""
    run("pybind11_stubgen", "devinterp_fast._cpu", "--output-dir", folder, "--exit-code")
    (made,) = Path(folder).rglob("_cpu.pyi")
    text = made.read_text()
    # our own settings leave the generated file alone; --isolated shapes it all the same
    style = ["--isolated", "--line-length", "120", "--stdin-filename", "_cpu.pyi"]
    for command in (["check", "--fix-only", "--select", "D200,D212,D403,I"], ["format"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *style, "-"],
            input=text, capture_output=True, text=True, check=True,
        )  # fmt: skip
        text = done.stdout
    return text


with tempfile.TemporaryDirectory() as folder:
    fresh = generate(folder)
if "--check" not in sys.argv[1:]:
    STUB.write_text(fresh)
elif fresh != STUB.read_text():
    old, new = STUB.read_text().splitlines(), fresh.splitlines()
    print("\n".join(difflib.unified_diff(old, new, "committed", "fresh", lineterm="")))
    sys.exit("_cpu.pyi: expected the stub of the compiled module, got another: run `make stubs`")
