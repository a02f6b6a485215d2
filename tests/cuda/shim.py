"""Runs launchers that were built with the shim, on guarded copies of their arrays, or writes their launches down."""

from __future__ import annotations

import ctypes
import importlib.machinery
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ZONE = 256
"""Bytes on either side of an array that nobody may write."""


@dataclass(frozen=True)
class Call:
    """A launcher and its arguments. An array goes as its address, wherever in the (nested) arguments it stands.

    Of a function in C, positional arguments: int goes as int64, float as double. Of a bound one, keyword arguments; of
    a method, as in "Class.method", the object is made from `constructor`.
    """

    launcher: str
    arguments: tuple[Any, ...] | dict[str, Any]
    constructor: tuple[Any, ...] = ()

    def arrays(self) -> list[np.ndarray]:
        """In the order in which they stand."""
        found: list[np.ndarray] = []
        replaced(self.arguments, found.append)
        return found


def replaced(value: Any, function: Callable[[np.ndarray], Any]) -> Any:
    """The same nested tuples, lists and dicts with function(array) in the place of each array."""
    if isinstance(value, np.ndarray):
        return function(value)
    if isinstance(value, dict):
        return {k: replaced(v, function) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(replaced(v, function) for v in value)
    return value


@dataclass(frozen=True)
class Launch:
    """What a launcher asks of the device: `kernel` is the mangled name, each argument its parameter's bytes."""

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    arguments: tuple[bytes, ...]


class LaunchError(Exception):
    """A launcher said what went wrong."""


class Guarded:
    """A copy of an array, as misaligned as the original, between two zones that must stay as they are."""

    def __init__(self, array: np.ndarray, zone: int = ZONE):
        self.zone = zone
        self.offset = array.ctypes.data % 64
        self.memory = np.full(array.nbytes + 2 * zone + 128, 0xA5, np.uint8)
        self.start = zone + (self.offset - self.memory.ctypes.data - zone) % 64
        self.bytes = self.memory[self.start : self.start + array.nbytes]
        self.bytes[:] = np.frombuffer(array.tobytes(), np.uint8)
        self.array = self.bytes.view(array.dtype).reshape(array.shape)

    @property
    def address(self) -> int:
        return self.bytes.ctypes.data

    def check(self) -> None:
        outside = np.delete(self.memory, np.s_[self.start : self.start + self.bytes.size])
        if (outside != 0xA5).any():
            raise LaunchError("global memory: a store beside an array")


class Exact:
    """A copy of an array in memory of exactly its size, for the address sanitizer to watch."""

    def __init__(self, array: np.ndarray):
        offset = array.ctypes.data % 16
        memory = ctypes.c_void_p()
        size = ctypes.c_size_t(array.nbytes + offset)
        ctypes.CDLL(None).posix_memalign(ctypes.byref(memory), ctypes.c_size_t(16), size)
        self.address = (memory.value or 0) + offset
        self.array = np.frombuffer((ctypes.c_ubyte * array.nbytes).from_address(self.address), array.dtype)
        self.array = self.array.reshape(array.shape)
        self.array[...] = array

    def check(self) -> None:
        pass


class Library:
    """A library of `builds.library`, loaded; `module` is the name of its Python module, if it is one."""

    def __init__(self, path: Path, memory: type[Guarded] | type[Exact] = Guarded, module: str = ""):
        self.path = path
        self.memory = memory
        self.dll = ctypes.CDLL(str(path))
        self.dll.shim_seed.argtypes = [ctypes.c_uint64]
        self.dll.shim_launch.restype = ctypes.c_void_p
        self.dll.shim_argument.restype = ctypes.POINTER(ctypes.c_ubyte)
        self.names: dict[int, str] | None = None
        self.module = None
        if module:
            loader = importlib.machinery.ExtensionFileLoader(module, str(path))
            spec = importlib.util.spec_from_loader(module, loader)
            assert spec is not None
            self.module = importlib.util.module_from_spec(spec)
            loader.exec_module(self.module)

    def start(self, call: Call, addresses: list[int]) -> None:
        """Calls the launcher with these addresses in the place of its arrays."""
        left = iter(addresses)
        if self.module is not None:
            *owner, name = call.launcher.split(".")
            of = getattr(self.module, owner[0])(*call.constructor) if owner else self.module
            error = getattr(of, name)(**replaced(call.arguments, lambda _: next(left)))
        else:
            given = replaced(call.arguments, lambda _: ctypes.c_void_p(next(left)))
            launcher = getattr(self.dll, call.launcher)
            launcher.restype = ctypes.c_char_p
            told = launcher(*[c_type(a) for a in given])
            error = told.decode() if told else None
        if error:
            raise LaunchError(error)

    def run(self, call: Call, seed: int = 0) -> list[np.ndarray]:
        """The arrays after the call, the threads being resumed in an order that `seed` picks."""
        self.dll.shim_record(0)
        self.dll.shim_seed(seed)
        buffers = [self.memory(a) for a in call.arrays()]
        self.start(call, [b.address for b in buffers])
        for buffer in buffers:
            buffer.check()
        return [buffer.array.copy() for buffer in buffers]

    def record(self, call: Call, addresses: list[int]) -> list[Launch]:
        """The launches that the call would start, on these addresses."""
        self.dll.shim_record(1)
        try:
            self.start(call, addresses)
            return list(self.recorded())
        finally:
            self.dll.shim_record(0)

    def recorded(self) -> Iterator[Launch]:
        for i in range(self.dll.shim_recorded()):
            size = (ctypes.c_uint64 * 8)()
            address = self.dll.shim_launch(i, size)
            arguments = []
            for k in range(size[7]):
                n = ctypes.c_uint64()
                at = self.dll.shim_argument(i, k, ctypes.byref(n))
                arguments.append(ctypes.string_at(at, n.value))
            grid, block = (size[0], size[1], size[2]), (size[3], size[4], size[5])
            yield Launch(self.name_of(address), grid, block, size[6], tuple(arguments))

    def name_of(self, address: int) -> str:
        """The mangled name of the function at an address; kernels may be in the symbol table only."""
        if self.names is None:
            from builds import run

            table = [line.split() for line in run(["nm", str(self.path)]).splitlines()]
            symbols = {parts[2]: int(parts[0], 16) for parts in table if len(parts) == 3}
            here = ctypes.cast(self.dll.shim_seed, ctypes.c_void_p).value
            base = here - symbols["shim_seed"]
            self.names = {base + at: name for name, at in symbols.items()}
        return self.names[address]


def c_type(value: Any) -> Any:
    if isinstance(value, ctypes.c_void_p):
        return value
    return ctypes.c_double(value) if isinstance(value, float) else ctypes.c_int64(value)
