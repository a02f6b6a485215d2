"""Installs a wheel into a fresh environment, far from the sources, and runs it: ``python tools/try_wheel.py WHEEL``.

The environment's PATH holds its own folder and nothing else: no compiler, no CMake.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
NEEDED = ("devinterp_fast/__init__.py", "devinterp_fast/_cpu.pyi", "devinterp_fast/py.typed")
PROGRAM = """
import shutil, sys
import torch
import devinterp_fast as dif
assert not any(map(shutil.which, ("cc", "c++", "gcc", "g++", "clang", "cmake", "nvcc"))), "a compiler is on PATH"
assert dif.__file__.startswith(sys.prefix), dif.__file__
x = torch.linspace(-1, 1, 64)[:, None]
model = torch.nn.Linear(1, 1)
with torch.no_grad():
    model.weight.fill_(2.0)
    model.bias.fill_(0.0)
llc = dif.estimate_llc(model, torch.nn.MSELoss(), (x, 2 * x), chains=2, draws=50, progress=False)
assert llc.trace.sizes == {"chain": 2, "draw": 50} and llc.verdict == "local minimum", llc
print(llc)
from devinterp_fast import _native_cuda
if sys.argv[1] == "with-cuda":
    built = _native_cuda.module().architectures.split()
    assert {"75-real", "120"} <= set(built), f"architectures: expected those of a release, got {built}"
print("cuda", _native_cuda.summary())
"""


def main():
    wheel = Path(sys.argv[1]).resolve()
    names = zipfile.ZipFile(wheel).namelist()
    missing = [name for name in NEEDED if name not in names]
    native = [name for name in names if name.startswith("devinterp_fast/_cpu.") and name.endswith((".so", ".pyd"))]
    if missing or len(native) != 1:
        sys.exit(f"{wheel.name}: expected {', '.join(NEEDED)} and one native module, got no {missing}, {native}")
    if any(not name.startswith(("devinterp_fast", "devinterp_fast.libs")) for name in names):
        sys.exit(f"{wheel.name}: expected nothing but devinterp_fast, got {sorted({n.split('/')[0] for n in names})}")
    cuda = [name for name in names if name.startswith("devinterp_fast/_cuda.")]
    if shutil.which("nvcc") and len(cuda) != 1:
        sys.exit(f"{wheel.name}: expected one CUDA module, as nvcc is here, got {cuda}")
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = str(Path(folder, "bin", "python"))
        pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        version = subprocess.run(
            [sys.executable, "-c", "import torch; print(torch.__version__)"], capture_output=True, text=True, check=True
        ).stdout.strip()
        index = os.environ.get("TORCH_INDEX")
        subprocess.run([*pip, f"torch=={version}", *(["--extra-index-url", index] if index else [])], check=True)
        subprocess.run([*pip, "--constraint", str(ROOT / "constraints.txt"), str(wheel)], check=True)
        clean = {"PATH": str(Path(folder, "bin")), "HOME": folder, "PYTHONWARNINGS": "error"}
        subprocess.run(
            [python, "-I", "-c", PROGRAM, "with-cuda" if cuda else "without"], cwd=folder, env=clean, check=True
        )
    print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB, installs and runs without a compiler")


main()
