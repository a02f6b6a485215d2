"""The CUDA kernels, unchanged, as C++ on this machine: the CPU backend's bits, whatever the order of the threads."""

import platform

import pytest

from devinterp_fast import _cpu

# tests/cuda is on the path (pyproject.toml)
builds = pytest.importorskip("builds", reason="tests/cuda is not on the path")
pytest.importorskip("pybind11", reason="pybind11 is not installed: the bindings cannot be built with the shim")
if reason := builds.missing(builds.CXX):
    pytest.skip(f"the shim cannot be built: {reason}", allow_module_level=True)

from cases import GROUPS  # noqa: E402
from guards import SOUND  # noqa: E402
from sanitized import check  # noqa: E402
from shim import Library  # noqa: E402

SEEDS = 3


@pytest.fixture(scope="module")
def kernels():
    return Library(builds.kernels(), module="_cuda")


@pytest.fixture(params=GROUPS)
def cases(request):
    return list(GROUPS[request.param]())


def test_same_bits_as_the_cpu(kernels, cases):
    found = {f"{c.name}, seed {s}": c.differs(kernels.run(c.call, s)) for c in cases for s in range(SEEDS)}
    assert len(cases) >= 3
    assert not {name: numbers for name, numbers in found.items() if numbers}


@pytest.mark.cuda_check
@pytest.mark.skipif(platform.system() != "Linux", reason="the sanitizers are loaded as on Linux")
def test_address_and_undefined_behavior(cases):
    assert check(builds.kernels("address"), "address", [(c.call, c.expected) for c in cases], "_cuda") == ""


@pytest.mark.cuda_check
@pytest.mark.skipif(platform.system() != "Linux", reason="the sanitizers are loaded as on Linux")
def test_threads(cases):
    assert check(builds.kernels("thread"), "thread", [(c.call, c.expected) for c in cases if c.threads], "_cuda") == ""


def test_fibers_without_assembly():
    # other processors than x86-64 switch stacks by ucontext
    one, other = (Library(builds.library("subjects", builds.SUBJECTS, defines=d)) for d in ((), ("DIF_SHIM_UCONTEXT",)))
    for call in SOUND:
        a, b = one.run(call, 1), other.run(call, 1)
        assert [x.tobytes() for x in a] == [x.tobytes() for x in b]


def test_a_difference_would_be_seen(kernels):
    # a guard that compares nothing passes everything
    case = next(iter(GROUPS["sgld"]()))
    number = next(i for i, a in enumerate(case.expected) if a is not None)
    found = kernels.run(case.call)
    found[number].view("u1").reshape(-1)[0] ^= 1
    assert case.differs(found) == [number]


def test_the_oracle_runs_on_every_instruction_set(isa):
    # the bits to compare with are the same on each; one group shows it
    assert _cpu.isa() == isa
    case = list(GROUPS["langevin"]())[4]
    assert not case.differs(Library(builds.kernels(), module="_cuda").run(case.call))
