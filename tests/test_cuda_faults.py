"""The guards are tested too: each planted mistake is found, by the guards that the documentation says find it."""

import platform

import pytest

builds = pytest.importorskip("builds", reason="tests/cuda is not on the path")
if reason := builds.missing(builds.CXX, "nvcc", "c++filt"):
    pytest.skip(f"the guards cannot be built: {reason}", allow_module_level=True)
if platform.system() != "Linux":
    pytest.skip("the sanitizers are loaded as on Linux", allow_module_level=True)

from guards import FAULTS, PAGE, SOUND, drawn, measure, table  # noqa: E402
from sanitized import check  # noqa: E402
from shim import Library  # noqa: E402

pytestmark = pytest.mark.cuda_check


@pytest.fixture(scope="module")
def measured():
    return measure()


@pytest.mark.parametrize("title", [f.title for f in FAULTS])
def test_each_mistake_is_found(measured, title):
    assert any(measured[title].values())


def test_the_table_in_the_documentation(measured):
    page = PAGE.read_text()
    assert drawn(page, table(measured)) == page, "run: python tests/cuda/guards.py"


@pytest.mark.parametrize("mode", ["address", "thread"])
def test_nobody_accuses_sound_kernels(mode):
    plain = Library(builds.library("subjects", builds.SUBJECTS))
    calls = [(call, plain.run(call)) for call in SOUND if call.arguments[-1] < 4000]
    assert check(builds.library("subjects", builds.SUBJECTS, mode), mode, calls) == ""
