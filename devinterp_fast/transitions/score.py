"""Found transitions against known ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from devinterp_fast.transitions.system import Marker

TOLERANCE = 0.1
"""A midpoint this share of the true one away still hits."""


@dataclass(frozen=True)
class Score:
    """How a run's rows compare with its markers.

    Attributes:
        found: for each row, the marker it hits (the nearest midpoint), or None.
        groups: markers whose 10-90 % windows overlap count as one transition; indices into the markers.
        hit: for each group, whether a row hits it.
    """

    found: tuple[Marker | None, ...]
    groups: tuple[tuple[int, ...], ...]
    hit: tuple[bool, ...]

    @property
    def precision(self) -> float:
        """Share of rows that hit a marker; NaN without rows."""
        return sum(m is not None for m in self.found) / len(self.found) if self.found else float("nan")

    @property
    def recall(self) -> float:
        """Share of groups that a row hits; NaN without markers."""
        return sum(self.hit) / len(self.hit) if self.hit else float("nan")

    def __str__(self) -> str:
        right = sum(m is not None for m in self.found)
        return f"{right} of {len(self.found)} rows hit a marker; {sum(self.hit)} of {len(self.hit)} known transitions found"


def _hits(at: float, marker: Marker) -> bool:
    return marker.onset <= at <= marker.end or abs(at - marker.midpoint) <= TOLERANCE * marker.midpoint


def score(midpoints: Sequence[float], markers: Sequence[Marker]) -> Score:
    """Scores rows, given by their midpoints.

    A row hits a marker inside its 10-90 % window, or within 10 % of its midpoint.
    """
    groups: list[list[int]] = []
    for i in sorted(range(len(markers)), key=lambda i: markers[i].onset):
        if groups and markers[i].onset <= max(markers[j].end for j in groups[-1]):
            groups[-1].append(i)
        else:
            groups.append([i])
    found = [
        min((m for m in markers if _hits(at, m)), key=lambda m: abs(at - m.midpoint), default=None) for at in midpoints
    ]
    hit = [any(_hits(at, markers[i]) for at in midpoints for i in group) for group in groups]
    return Score(tuple(found), tuple(tuple(group) for group in groups), tuple(hit))
