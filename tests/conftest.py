"""What several test files share: toy models whose posterior is known, and the instruction sets of this machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from planted_run import watched_run
from torch import Tensor, nn

from devinterp_fast import _cpu

SIZES = (0, 1, 2, 3, 7, 15, 16, 17, 63, 64, 65, 127, 128, 129, 1000, 8191, 8193, 20000)


class Quadratic(nn.Module):
    """w with curvatures h; its per-sample loss on sample s is 1/2 sum h w^2 + s.w (``quadratic_loss``)."""

    def __init__(self, h: list[float], dtype: torch.dtype = torch.float32):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(len(h), dtype=dtype))
        self.h = torch.tensor(h, dtype=dtype)


def quadratic_loss(model: nn.Module, batch: Tensor) -> Tensor:
    return 0.5 * (model.h * model.w**2).sum() + batch @ model.w


def _one_thread() -> Iterator[None]:
    """At these sizes a second thread only waits for the first, and on a busy machine it waits long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# of a module, so that its own fixtures run on one thread too; of a test, since some ask for two
_module_on_one_thread = pytest.fixture(autouse=True, scope="module")(_one_thread)
_test_on_one_thread = pytest.fixture(autouse=True)(_one_thread)


@pytest.fixture(params=_cpu.isa_available())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    assert _cpu.use_isa(request.param)
    yield request.param
    _cpu.use_isa("")


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """A run whose transitions are known to the step; see ``planted_run``."""
    return watched_run(tmp_path_factory.mktemp("planted") / "run")
