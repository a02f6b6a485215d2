"""Compiles the project's .cu files for those who run them without a GPU: the shim, the interpreter, the static report.

What was built stays in build/cuda under a name that holds the hash of everything it was made from.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
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

    Only .cu files are instrumented: what the shim and the bindings do is no business of the kernels' sanitizers.
    """
    name = "-".join([name, *defines])
    given = [f"-D{d}" for d in defines]
    sanitize = [] if mode == "plain" else [f"-fsanitize={SANITIZERS[mode]}", "-fno-sanitize-recover=all"]
    # -march=native: __builtin_fmaf as one instruction; the bits are the same
    kernel = [*SHIM, *given, *(["-O2", "-march=native"] if mode == "plain" else ["-O1", *sanitize])]
    shim = ["-O2", *SHIM, *([] if mode == "plain" else [f"-DDIF_SHIM_{mode.upper()}"])]
    parts = [(HERE / "shim" / "fiber.cpp", shim, mode), (HERE / "shim" / "runtime.cpp", shim, mode)]
    parts += [(s, kernel, f"{mode}-{name}") if s.suffix == ".cu" else (s, binding(), "bind") for s in sources]

    def make(target: Path) -> None:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(lambda part: str(compiled(*part)), parts))
        run([CXX, "-shared", *sanitize, *objects, "-o", str(target)])

    return built(f"{mode}-{name}", ".so", ([str(p) for p in parts], sanitize), make)


def compiled(source: Path, flags: list[str], prefix: str) -> Path:
    command = [CXX, *flags, "-c", "-x", "c++", str(source), "-o"]
    return built(f"{prefix}-{source.stem}", ".o", tuple(command), lambda target: run([*command, str(target)]))


def binding() -> list[str]:
    """Flags for csrc/bind."""
    import pybind11

    python = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
    return ["-O0", *SHIM, *python, '-DDIF_CUDA_VERSION="shim"', '-DDIF_CUDA_ARCHITECTURES="shim"']


def kernels(mode: str = "plain") -> Path:
    """The module devinterp_fast._cuda, built with the shim."""
    return library("kernels", [*KERNELS, ROOT / "csrc" / "bind" / "cuda.cpp"], mode)


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
    # Python frees nothing at its end. Old accesses need no stack of their own in a report, which costs memory a fiber.
    key, value = {
        "address": ("ASAN_OPTIONS", "detect_leaks=0"),
        "thread": ("TSAN_OPTIONS", "exitcode=66:atexit_sleep_ms=0:history_size=0"),
    }[mode]
    return {**os.environ, "LD_PRELOAD": path, key: value}
