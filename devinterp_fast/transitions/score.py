"""Found transitions against known ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from devinterp_fast.transitions.system import Marker

TOLERANCE = 0.1
"""A midpoint this share of the true one away still hits."""


@dataclass(frozen=True)
class Score:
    """How a run's rows compare with its markers, matched one to one.

    Attributes:
        found: for each row, the marker it is matched with, or None.
        known: number of markers.
    """

    found: tuple[Marker | None, ...]
    known: int

    @property
    def hits(self) -> int:
        """Number of matched pairs."""
        return sum(marker is not None for marker in self.found)

    @property
    def precision(self) -> float:
        """Share of rows that are matched; NaN without rows."""
        return self.hits / len(self.found) if self.found else math.nan

    @property
    def recall(self) -> float:
        """Share of markers that are matched; NaN without markers."""
        return self.hits / self.known if self.known else math.nan

    def __str__(self) -> str:
        rows = f"{len(self.found)} row{'' if len(self.found) == 1 else 's'}"
        if not self.known:
            return f"no known transition in this run, {rows}"
        return f"{self.hits} of {self.known} known transitions found, in {rows}"


def score(midpoints: Sequence[float], markers: Sequence[Marker]) -> Score:
    """Scores rows, given by their midpoints.

    A row may be matched with a marker if it lies inside its 10-90 % window or within 10 % of its midpoint; the pairs
    nearest in log step are matched first, each row and each marker once.
    """
    pairs = sorted(
        (abs(math.log(at / marker.midpoint)), i, j)
        for i, at in enumerate(midpoints)
        for j, marker in enumerate(markers)
        if marker.onset <= at <= marker.end or abs(at - marker.midpoint) <= TOLERANCE * marker.midpoint
    )
    found: list[Marker | None] = [None] * len(midpoints)
    taken: set[int] = set()
    for _, i, j in pairs:
        if found[i] is None and j not in taken:
            found[i] = markers[j]
            taken.add(j)
    return Score(tuple(found), len(markers))
