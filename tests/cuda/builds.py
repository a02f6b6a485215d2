"""Compiles the project's .cu files for those who run them without a GPU: the shim, the interpreter, the static report.

What was built stays in build/cuda under a name that holds the hash of everything it was made from.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
HERE = ROOT / "tests" / "cuda"
OUT = ROOT / "build" / "cuda"
CXX = os.environ.get("CXX", "g++")

KERNELS = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
SUBJECTS = [HERE / "subjects.cu"]

SANITIZERS = {"plain": "", "address": "address,undefined", "thread": "thread"}
# -ffp-contract=off and -fmad=false: the sources name every fused operation
SHIM = ["-std=c++17", "-g", "-fPIC", "-ffp-contract=off", "-fvisibility=hidden", "-Wall", "-Wextra"]
SHIM += [f"-I{HERE / 'shim'}", f"-I{ROOT / 'csrc'}"]
NVCC = ["-std=c++17", "-O3", "-fmad=false", f"-I{ROOT / 'csrc'}"]


def missing(*tools: str) -> str:
    """Why these tools cannot be used, or an empty text."""
    absent = [tool for tool in tools if not find(tool)]
    return f"not found: {', '.join(absent)}" if absent else ""


def find(tool: str) -> str | None:
    """The path of a program: on the PATH, or in the wheels nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm."""
    if found := shutil.which(tool):
        return found
    try:
        import nvidia
    except ImportError:
        return None
    wheels = [file for folder in nvidia.__path__ for file in Path(folder).glob(f"*/bin/{tool}")]
    return str(wheels[0]) if wheels else None


def run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


def digest(*parts: object) -> str:
    """Of the sources that any build may include, and of `parts`."""
    files = [f for folder in (ROOT / "csrc", HERE) for f in sorted(folder.rglob("*")) if f.suffix in SOURCES]
    sha = hashlib.sha256(repr(parts).encode())
    for file in files:
        sha.update(file.read_bytes())
    return sha.hexdigest()[:16]


SOURCES = {".cu", ".cuh", ".hpp", ".h", ".cpp"}


def built(name: str, suffix: str, key: tuple[object, ...], make) -> Path:
    target = OUT / f"{name}-{digest(*key)}{suffix}"
    if not target.exists():
        OUT.mkdir(parents=True, exist_ok=True)
        for old in OUT.glob(f"{name}-????????????????{suffix}"):
            old.unlink()
        beside = OUT / f"{name}.{os.getpid()}{suffix}"
        make(beside)
        beside.rename(target)
    return target


def library(name: str, sources: list[Path], mode: str = "plain", defines: tuple[str, ...] = ()) -> Path:
    """A shared library of these sources and the shim; `mode` is a key of SANITIZERS.

    The shim itself is never instrumented: what it does is no business of the kernels' sanitizers.
    """
    level = "-O2" if mode == "plain" else "-O1"
    fma = ["-march=native"] if mode == "plain" else []  # __builtin_fmaf as one instruction; the bits are the same
    shim = [level, *SHIM, *[f"-D{d}" for d in defines]]
    shim += [] if mode == "plain" else [f"-DDIF_SHIM_{mode.upper()}"]
    sanitize = [] if mode == "plain" else [f"-fsanitize={SANITIZERS[mode]}", "-fno-sanitize-recover=all"]
    kernels = [level, *SHIM, *fma, *[f"-D{d}" for d in defines], *sanitize]

    def make(target: Path) -> None:
        objects = []
        for source in [HERE / "shim" / "fiber.cpp", HERE / "shim" / "runtime.cpp", *sources]:
            flags = shim if source.parent.name == "shim" else kernels
            key = (str(source), flags)
            file = built(f"{mode}-{name}-{source.stem}", ".o", key, lambda o, f=flags, s=source: compile_one(o, f, s))
            objects.append(str(file))
        run([CXX, "-shared", *sanitize, *objects, "-o", str(target)])

    return built(f"{mode}-{name}", ".so", (mode, [str(s) for s in sources], shim, kernels), make)


def compile_one(target: Path, flags: list[str], source: Path) -> None:
    run([CXX, *flags, "-c", "-x", "c++", str(source), "-o", str(target)])


def ptx(source: Path, defines: tuple[str, ...] = ()) -> str:
    """nvcc's PTX of one source, for the oldest architecture it supports."""
    flags = [*NVCC, "-arch=compute_75", *[f"-D{d}" for d in defines]]
    name = "-".join([source.stem, *defines])

    def make(target: Path) -> None:
        run(["nvcc", *flags, "--ptx", str(source), "-o", str(target)])

    return built(f"ptx-{name}", ".ptx", (str(source), flags), make).read_text()


def cubin(source: Path, arch: str) -> Path:
    """The machine code of one source for one architecture, such as sm_90."""
    flags = [*NVCC, f"-arch={arch}"]

    def make(target: Path) -> None:
        run(["nvcc", *flags, "-cubin", str(source), "-o", str(target)])

    return built(f"{arch}-{source.stem}", ".cubin", (str(source), flags), make)


def preload(mode: str) -> dict[str, str]:
    """The environment in which a Python process can load a sanitized library."""
    name = {"address": "libasan.so", "thread": "libtsan.so"}[mode]
    # libstdc++ too: the sanitizer looks for __cxa_throw when it starts, and Python itself has none
    path = " ".join(run([CXX, f"-print-file-name={file}"]).strip() for file in (name, "libstdc++.so"))
    # Python frees nothing at its end; a shim's report is worth more than a signal handler's
    options = {"address": ("ASAN_OPTIONS", "detect_leaks=0"), "thread": ("TSAN_OPTIONS", "report_bugs=1:exitcode=66")}
    key, value = options[mode]
    return {**os.environ, "LD_PRELOAD": path, key: value}
