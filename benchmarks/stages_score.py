"""Score table of `Stages` on the curves of `stages_systems`, one default for all.

Run: python benchmarks/stages_score.py [--half 0]        (0: the curves that defaults were chosen on; else the others)

A row hits a transition if its midpoint lies within the larger of 10 % of the true one and the true 10-90 window.
Transitions whose windows overlap form one group: one row hits it, and as many rows as it has members are no error.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import dataclass, field

import numpy as np
from harness import record
from stages_systems import Curve, Truth, more, nulls, systems

from devinterp_fast.changepoint import Alarm, Stage, Stages


@dataclass
class Score:
    """Counts over many curves."""

    hits: int = 0
    groups: int = 0
    rows: int = 0
    good_rows: int = 0
    errors: list[float] = field(default_factory=list)  # |log(midpoint / true midpoint)|, groups of one member
    sizes: list[float] = field(default_factory=list)  # size of the row / true size
    delays: list[float] = field(default_factory=list)  # (alarm - t10) / (t90 - t10)

    @property
    def precision(self) -> float:
        """Share of rows that hit."""
        return self.good_rows / self.rows if self.rows else 1.0

    @property
    def recall(self) -> float:
        """Share of transitions that are hit."""
        return self.hits / self.groups if self.groups else 1.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        both = self.precision + self.recall
        return 2 * self.precision * self.recall / both if both else 0.0


def watch(curve: Curve, **settings: float) -> tuple[list[Stage], list[Alarm]]:
    """Rows and alarms of one curve."""
    stages = Stages(curve.kind, scale=curve.scale, **settings)  # type: ignore[arg-type]
    alarms = stages.extend(curve.steps, curve.values, curve.se)
    return stages.rows(), alarms


def grouped(truths: tuple[Truth, ...]) -> list[list[Truth]]:
    """Transitions that overlap, together."""
    groups: list[list[Truth]] = []
    for truth in sorted(truths, key=lambda t: t.t50):
        if groups and truth.t10 <= max(t.t90 for t in groups[-1]):
            groups[-1].append(truth)
        else:
            groups.append([truth])
    return groups


def add(score: Score, curve: Curve, rows: list[Stage]) -> None:
    """Counts one curve's rows against its truth."""

    def near(row: Stage, truth: Truth) -> bool:
        return abs(row.midpoint - truth.t50) <= max(0.1 * truth.t50, truth.t90 - truth.t10)

    score.rows += len(rows)
    for group in grouped(curve.truths):
        own = [row for row in rows if any(near(row, truth) for truth in group)]
        rows = [row for row in rows if row not in own]
        if not any(truth.counts for truth in group):
            score.rows -= len(own)
            continue
        score.groups += 1
        score.hits += bool(own)
        score.good_rows += min(len(own), len(group))
        if own and len(group) == 1:
            truth, best = group[0], min(own, key=lambda row: abs(row.midpoint - group[0].t50))
            score.errors.append(abs(float(np.log(best.midpoint / truth.t50))))
            score.delays.append((own[0].alarm - truth.t10) / (truth.t90 - truth.t10))
            before, after = np.interp([truth.t10, truth.t90], curve.steps, curve.values)
            score.sizes.append(best.size / abs(after - before) * 0.8)


def main() -> None:
    """Prints the table of one half and, of the other, records it."""
    half = 0 if "--half" in sys.argv else 1
    scores: dict[str, Score] = {}
    for name, own, curve in systems():
        if own == half:
            add(scores.setdefault(name, Score()), curve, watch(curve)[0])
    whole = Score()
    for score in scores.values():
        for name in ("hits", "groups", "rows", "good_rows"):
            setattr(whole, name, getattr(whole, name) + getattr(score, name))
    further: dict[str, Score] = {}  # not part of the whole, whose mix of systems stays as it is
    for name, own, curve in more():
        if own == half:
            add(further.setdefault(name, Score()), curve, watch(curve)[0])
    results: dict[str, object] = {}
    print(f"{'system':18} {'groups':>6} {'P':>5} {'R':>5} {'F1':>5} {'midpoint error':>15} {'size':>6} {'delay':>6}")
    for name, score in {**scores, "all": whole, **further}.items():
        middle = [statistics.median(x) if x else float("nan") for x in (score.errors, score.sizes, score.delays)]
        print(
            f"{name:18} {score.groups:6} {score.precision:5.2f} {score.recall:5.2f} {score.f1:5.2f} "
            f"{middle[0]:15.3f} {middle[1]:6.2f} {middle[2]:6.2f}"
        )
        results[name] = {"precision": score.precision, "recall": score.recall, "transitions": score.groups}
    false: dict[str, list[int]] = {}
    for name, own, curve in nulls():
        if own == half:
            false.setdefault(name, []).append(len(watch(curve)[0]))
    total = sum(map(sum, false.values()))
    where = {name: sum(counts) for name, counts in false.items() if any(counts)}
    print(f"\nfalse rows on {sum(map(len, false.values()))} nulls: {total}", where)
    if half == 1:
        results["nulls"] = {"curves": sum(map(len, false.values())), "false rows": total}
        record("stages", results)


if __name__ == "__main__":
    main()
