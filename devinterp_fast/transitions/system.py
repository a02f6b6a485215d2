"""What a system of the transition library is: a training run whose stages are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from devinterp_fast.changepoint.channel import Channel
from devinterp_fast.errors import DTypeError, ShapeError

Curve = NDArray[np.float64]


@dataclass(frozen=True)
class Marker:
    """One ground-truth transition; onset, midpoint and end are steps, where 10, 50 and 90 % of it is done."""

    name: str
    onset: float
    midpoint: float
    end: float

    def __str__(self) -> str:
        return f"{self.name}: {self.onset:.0f} - {self.midpoint:.0f} - {self.end:.0f}"


class System(Protocol):
    """A training run whose stages are known.

    ``probe`` is what an LLC estimator samples: with ``(x, y) = probe``, ``loss_fn(model(x), y)`` is the
    mean loss over its samples. ``llc`` holds the estimator's settings that suit the system. ``skip`` is the
    first observed step a detector may look at.
    """

    name: str
    title: str
    steps: int
    model: nn.Module
    loss_fn: Callable[[Tensor, Tensor], Tensor]
    probe: tuple[Tensor, ...]
    channels: dict[str, Channel]
    llc: dict[str, object]
    skip: int

    def train_step(self, step: int) -> None:
        """Make the update that leads from ``step`` to ``step + 1``."""

    def observe(self, model: nn.Module) -> dict[str, float]:
        """One value for each channel, without side effects."""
        ...

    def truth(self, steps: Sequence[int], curves: Mapping[str, Any]) -> list[Marker]:
        """The transitions of a recorded run, from its marker curves, in order of midpoint."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Everything needed to continue to the same bits: contiguous tensors that share no storage."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a ``state_dict`` of the same system."""


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    """Mean over samples of ||output - target||².

    Shape:
        output, target: (samples, outputs); returns ()
    """
    return (output - target).square().sum(-1).mean()


def check_run(seed: int, steps: int) -> None:
    """Refuse a seed outside 0 ... 2⁶³ - 1 and a run without steps."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ValueError(f"seed: expected an integer from 0 to 2**63 - 1, got {seed!r}")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps: expected an integer >= 1, got {steps!r}")


def check_state(state: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> None:
    """Refuse a state whose names, shapes or element types are not those of ``like``."""
    if set(state) != set(like):
        raise ValueError(f"state: expected the tensors {sorted(like)}, got {sorted(state)}")
    for name, want in like.items():
        got = state[name]
        if got.shape != want.shape:
            raise ShapeError(f"state[{name!r}]: expected shape {tuple(want.shape)}, got {tuple(got.shape)}")
        if got.dtype != want.dtype:
            raise DTypeError(f"state[{name!r}]: expected {want.dtype}, got {got.dtype}")


def read_curves(steps: Sequence[int], curves: Mapping[str, Any], names: Sequence[str]) -> tuple[Curve, Curve]:
    """The steps, shape (T,), and the named curves, shape (len(names), T), as float64.

    Raises:
        ValueError: a named curve is absent.
        ShapeError: a curve has another length than ``steps``.
    """
    absent = [name for name in names if name not in curves]
    if absent:
        raise ValueError(f"curves: expected the curves {list(names)}, got none for {absent}")
    x = np.asarray(steps, dtype=np.float64)
    rows = [np.asarray(curves[name], dtype=np.float64) for name in names]
    for name, row in zip(names, rows, strict=True):
        if row.shape != x.shape:
            raise ShapeError(f"curves[{name!r}]: expected shape {x.shape}, got {row.shape}")
    return x, np.stack(rows)


def rise(x: Curve, y: Curve, start: int = 0) -> tuple[float, float, float] | None:
    """Where a share ``y`` passes 10, 50 and 90 %, linear between observations.

    The midpoint is the first passage of one half after index ``start``; 10 % and 90 % are the nearest
    passages to it. None if a level is never passed, or if the curve is above 10 % from ``start`` to the
    midpoint: then the beginning was not seen.
    """
    above = np.flatnonzero(y[start:] >= 0.5)
    if above.size == 0:
        return None
    middle = start + int(above[0])
    low = np.flatnonzero(y[start:middle] < 0.1)
    high = np.flatnonzero(y[middle:] >= 0.9)
    if low.size == 0 or high.size == 0:
        return None
    first = start + int(low[-1]) + 1
    last = middle + int(high[0])

    def passage(i: int, level: float) -> float:
        return float(x[i - 1] + (x[i] - x[i - 1]) * (level - y[i - 1]) / (y[i] - y[i - 1]))

    return passage(first, 0.1), passage(middle, 0.5), passage(last, 0.9)
