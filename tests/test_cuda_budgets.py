"""What the kernels take of a GPU, read off their machine code: no spills, wide accesses, and no more than budgeted."""

import copy
import json

import pytest

builds = pytest.importorskip("builds", reason="tests/cuda is not on the path")
import budgets  # noqa: E402
from budgets import CHIPS, FILE, PAGE, SGLD_BAR, SPECS, Streams, broken, exceeded, ratio  # noqa: E402
from sass import Ins, Kernel, main_path  # noqa: E402

BUDGET = json.loads(FILE.read_text())
pytestmark = pytest.mark.cuda_check
compiles = pytest.mark.skipif(
    bool(builds.missing("nvcc", "cuobjdump", "c++filt")),
    reason=f"no machine code to read: {builds.missing('nvcc', 'cuobjdump', 'c++filt')}",
)


@pytest.fixture(scope="module")
def machine_code():
    return budgets.built()


@compiles
def test_every_kernel_is_described(machine_code):
    assert all(set(kernels) == set(SPECS) for kernels in machine_code.values())


@compiles
@pytest.mark.parametrize("name", SPECS)
def test_no_spills_no_stack_and_wide_accesses(machine_code, name):
    assert {arch: broken(name, kernels[name]) for arch, kernels in machine_code.items()} == {
        arch: [] for arch in machine_code
    }


@compiles
def test_nothing_exceeds_its_budget():
    if budgets.nvcc_version() != BUDGET["nvcc"]:
        pytest.skip(f"the budgets are of nvcc {BUDGET['nvcc']}, this is {budgets.nvcc_version()}")
    assert not exceeded(budgets.measure(), BUDGET), "meant? run: python tests/cuda/budgets.py"


def test_the_fused_step_waits_for_memory():
    name = "step_kernel<dif::Sgld, false>"
    spec = SPECS[name]
    assert isinstance(spec, Streams)
    shares = [ratio(BUDGET["kernels"][name][chip.arch], spec, chip)[0] for chip in CHIPS]
    assert max(shares) <= SGLD_BAR


def test_the_table_in_the_documentation():
    page = PAGE.read_text()
    assert budgets.drawn(page, budgets.table(BUDGET)) == page, "run: python tests/cuda/budgets.py"


# --- the guard itself -----------------------------------------------------------------------------------------


def test_more_than_the_budget_is_reported():
    now = copy.deepcopy(BUDGET)
    row = now["kernels"]["step_kernel<dif::Sgld, false>"][CHIPS[0].arch]
    row["registers"] += 1
    row["instructions"] += 0.25
    row["occupancy"] -= 0.125
    del now["nvcc"]
    now["kernels"]["new_kernel"] = {CHIPS[0].arch: row}
    assert len(exceeded(now, BUDGET)) == 4


def code(text: str) -> list[Ins]:
    """Lines ``guard? op rest``, 16 bytes apart."""
    lines = [line.strip() for line in text.strip().splitlines()]
    found = []
    for i, line in enumerate(lines):
        guard = line.split()[0] if line.startswith("@") else ""
        op, _, rest = line.removeprefix(guard).strip().partition(" ")
        found.append(Ins(16 * i, guard, op, rest))
    return found


LOOP = """
MOV R1, R2
LDG.E.128 R4, [R2]
@P0 BRA 0x60
STG.E [R2], R4
STG.E [R2+0x4], R5
BRA 0x70
STG.E.128 [R2], R4
IADD3 R2, R2, 0x10, RZ
@P1 BRA 0x10
EXIT
"""


def test_the_main_path_takes_the_wide_branch():
    path = [i.op for i in main_path(code(LOOP))]
    assert path == ["LDG.E.128", "BRA", "STG.E.128", "IADD3", "BRA"]


def test_a_store_that_fell_apart_is_reported():
    name = "noise_kernel<dif::cuda::Words>"
    whole = LOOP.replace("LDG.E.128 R4, [R2]", "MOV R4, R5")
    good = Kernel(name, code(whole), 32, 0, 0, 0)
    assert not broken(name, good)
    apart = Kernel(name, code(whole.replace("STG.E.128", "STG.E")), 32, 0, 0, 0)
    assert any("128-bit" in text for text in broken(name, apart))
    assert broken(name, Kernel(name, good.code, 32, 8, 0, 0))
    assert "spills" in broken(name, Kernel(name, [*good.code, Ins(160, "", "STL", "[R1], R2")], 32, 0, 0, 0))
