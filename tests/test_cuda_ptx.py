"""The CUDA kernels as nvcc's PTX, run by an interpreter: the CPU backend's bits, and nothing that PTX leaves open."""

from fractions import Fraction

import numpy as np
import pytest

builds = pytest.importorskip("builds", reason="tests/cuda is not on the path")
pytest.importorskip("pybind11", reason="pybind11 is not installed: the launchers cannot be built with the shim")
if reason := builds.missing(builds.CXX, "nvcc", "c++filt"):
    pytest.skip(f"no PTX to run: {reason}", allow_module_level=True)

from cases import GROUPS  # noqa: E402
from guards import SOUND  # noqa: E402
from interpret import Program  # noqa: E402
from ptx import PtxError, entries, instruction  # noqa: E402
from ptx_arithmetic import fma32, fma64  # noqa: E402
from ptx_machine import Machine  # noqa: E402
from ptx_memory import Arena  # noqa: E402
from shim import Library  # noqa: E402

pytestmark = pytest.mark.cuda_check
RAN: dict[str, set[str]] = {}


@pytest.fixture(scope="module")
def program():
    return Program(Library(builds.kernels(), module="_cuda"), builds.KERNELS)


@pytest.mark.parametrize("group", GROUPS)
def test_same_bits_as_the_cpu(program, group):
    found = {c.name: c.differs(program.run(c.call, seed)) for seed, c in enumerate(GROUPS[group]())}
    assert not {name: numbers for name, numbers in found.items() if numbers}
    RAN[group] = set(program.ran)


def test_every_kernel_was_run(program):
    if set(RAN) != set(GROUPS):
        pytest.skip("needs all groups in this process")
    assert set(program.entries) == set().union(*RAN.values())


def test_sound_subjects():
    subjects = Library(builds.library("subjects", builds.SUBJECTS))
    for seed in range(3):
        for call in SOUND:
            a, b = subjects.run(call), Program(subjects, builds.SUBJECTS).run(call, seed)
            assert [x.tobytes() for x in a] == [x.tobytes() for x in b]


# --- the interpreter itself -----------------------------------------------------------------------------------


def small(body: str, parameters: str = ".param .u64 k_param_0") -> Machine:
    """A machine for a kernel with this body."""
    registers = ".reg .pred %p<9>; .reg .b32 %r<9>; .reg .f32 %f<9>; .reg .b64 %rd<9>; .reg .f64 %fd<9>;"
    source = f".version 9.0\n.target sm_75\n.address_size 64\n.entry k(\n{parameters}\n)\n{{\n{registers}\n{body}\n}}\n"
    return Machine(entries(source)["k"], Arena([np.zeros(64, np.float32)]))


def start(machine: Machine) -> np.ndarray:
    (address,) = machine.memory.addresses()
    machine.run((1, 1, 1), (32, 1, 1), 0, (address.to_bytes(8, "little"),))
    return machine.memory.arrays()[0]


STORE = "ld.param.u64 %rd1, [k_param_0]; mov.u32 %r1, %tid.x; mul.wide.u32 %rd2, %r1, 4; add.s64 %rd1, %rd1, %rd2;"


@pytest.mark.parametrize(
    "line",
    [
        "ex2.approx.f32 %f1, %f2;",
        "add.rn.ftz.f32 %f1, %f2, %f3;",
        "mul.f32 %f1, %f2, %f3;",
        "add.f32 %f1, %f2, %f3;",
        "fma.rz.f32 %f1, %f2, %f3, %f4;",
        "sqrt.approx.f32 %f1, %f2;",
        "mov.u32 %r1, %clock;",
        "cvt.f32.u32 %f1, %r1;",
        "atom.global.add.f32 %f1, [%rd1], %f2;",
        "bar.sync 1;",
        "call.uni somewhere;",
        "activemask.b32 %r1;",
    ],
)
def test_what_is_unknown_or_left_open_is_an_error(line):
    with pytest.raises(PtxError):
        start(small(f"{line}\nret;"))


def test_what_is_known_runs():
    body = f"{STORE}\ncvt.rn.f32.u32 %f1, %r1;\nst.global.f32 [%rd1], %f1;\nret;"
    assert (start(small(body))[:32] == np.arange(32)).all()


def test_a_branch_meets_again():
    body = (
        f"{STORE}\nand.b32 %r2, %r1, 1;\nsetp.eq.s32 %p1, %r2, 0;\nmov.f32 %f1, 0f40000000;\n@%p1 bra $L1;\n"
        "mov.f32 %f1, 0f3F800000;\n$L1:\nbar.warp.sync -1;\nst.global.f32 [%rd1], %f1;\nret;"
    )
    assert (start(small(body))[:4] == [2, 1, 2, 1]).all()


def test_statements_are_read_whole():
    found = instruction("@!%p1 ld.global.v2.f32 {%f1, %f2}, [%rd1+8]")
    assert (found.predicate, found.negated) == ("%p1", True)
    assert found.op == ("ld", "global", "v2", "f32")
    assert found.operands == ("{%f1, %f2}", "[%rd1+8]")


def rounded(value: Fraction, dtype: type[np.floating]) -> float:
    """The nearest number of this type, ties to even, by exact comparison with its neighbors."""
    near = dtype(float(value)) if dtype is np.float64 else np.float32(float(value))
    around = [np.nextafter(near, dtype(-np.inf)), near, np.nextafter(near, dtype(np.inf))]
    return min(around, key=lambda x: (abs(Fraction(float(x)) - value), int(x.view(f"u{x.itemsize}")) & 1))


@pytest.mark.parametrize(("dtype", "function"), [(np.float32, fma32), (np.float64, fma64)])
def test_fused_multiply_add_is_correctly_rounded(dtype, function):
    random = np.random.default_rng(0)
    n = 3000
    a, b = (random.standard_normal(n).astype(dtype) for _ in range(2))
    # sums near a tie, with cancellation, and with nothing left of c
    c = np.concatenate([-(a * b)[:1000], random.standard_normal(1000), 1e-9 * random.standard_normal(1000)])
    c = c.astype(dtype)
    exact = [Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z)) for x, y, z in zip(a, b, c, strict=True)]
    wanted = np.array([rounded(v, dtype) for v in exact], dtype)
    assert (function(a, b, c) == wanted).all()
