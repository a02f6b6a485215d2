"""Score table of `Stages` on curves whose transitions are known in closed form.

Run: python benchmarks/stages_score.py

A deep linear network of two layers learns the singular value s of its task as a(t) = s / (1 + (s / a0 - 1)
exp(-2 s t)), and its loss is the sum of (s - a)^2 / 2: a staircase whose every step has a known 10, 50 and 90
% time. A row hits a transition if its midpoint lies within the larger of 10 % of the true one and the true
10-90 window. Transitions whose windows overlap form one group: one row hits it, and as many rows as it has
members are no error.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from devinterp_fast.changepoint import Alarm, Stage, Stages

Array = npt.NDArray[np.float64]

SPECTRA = (
    (4.0, 2.0, 1.0, 0.5),
    (3.0, 1.0, 0.3),
    (5.0, 2.0, 0.7),
    (4.0, 1.5, 0.6, 0.3),
    (2.0, 1.0, 0.4),
    (6.0, 2.5, 1.0),
)
RATE = 0.01  # training time of one step


@dataclass(frozen=True)
class Truth:
    """One transition: the steps at which 10, 50 and 90 % of it are done."""

    t10: float
    t50: float
    t90: float
    counts: bool = True  # a transition too small to be asked for neither counts nor harms


@dataclass(frozen=True)
class Curve:
    """What is observed, and what is true of it."""

    steps: Array
    values: Array
    truths: tuple[Truth, ...] = ()
    kind: str = "loss"
    se: Array | None = None


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


def mode_time(s: float, a0: float, a: float) -> float:
    """The step at which the mode of singular value s has grown from a0 to a."""
    return float(np.log((s / a0 - 1) / (s / a - 1)) / (2 * s * RATE))


def mode(s: float, a0: float, steps: Array) -> Array:
    return s / (1 + (s / a0 - 1) * np.exp(-2 * s * RATE * steps))


def clocks(last: float) -> dict[str, Array]:
    """Observed steps: log-spaced 200 and 400 points, linear 250."""
    log = {f"log{n}": np.unique(np.r_[0.0, np.round(np.geomspace(1, last, n))]) for n in (200, 400)}
    return {**log, "linear": np.linspace(0.0, last, 250)}


def staircase(spectrum: tuple[float, ...], a0: float, clock: str) -> Curve:
    """The loss of a deep linear network, with the times of each mode's share of it."""
    steps = clocks(1.5 * mode_time(min(spectrum), a0, 0.95 * min(spectrum)))[clock]
    values = np.sum([(s - mode(s, a0, steps)) ** 2 / 2 for s in spectrum], axis=0)
    whole = sum(s * s for s in spectrum)
    times = {s: [mode_time(s, a0, s * (1 - np.sqrt(1 - f))) for f in (0.1, 0.5, 0.9)] for s in spectrum}
    truths = tuple(Truth(*times[s], counts=s * s >= 0.01 * whole) for s in spectrum if times[s][0] >= 5)
    return Curve(steps, values, truths)


def llc_like(spectrum: tuple[float, ...], a0: float, clock: str, rng: np.random.Generator) -> Curve:
    """1 + one unit or two for each mode learned, read with a known standard error of 0.15 to 0.2."""
    steps = clocks(1.5 * mode_time(min(spectrum), a0, 0.95 * min(spectrum)))[clock]
    values = 1 + np.sum([(1 + i % 2) * mode(s, a0, steps) / s for i, s in enumerate(spectrum)], axis=0)
    se = rng.uniform(0.15, 0.2, len(steps))
    truths = tuple(Truth(*[mode_time(s, a0, f * s) for f in (0.1, 0.5, 0.9)]) for s in spectrum)
    return Curve(steps, values + se * rng.standard_normal(len(steps)), truths, "metric", se)


def ar1(phi: float, size: int, rng: np.random.Generator) -> Array:
    """Autoregressive noise of unit variance."""
    x = rng.standard_normal(size)
    for i in range(1, size):
        x[i] = phi * x[i - 1] + np.sqrt(1 - phi * phi) * x[i]
    return x


def descent(momentum: float, steps: int, rng: np.random.Generator) -> Array:
    """Least squares by gradient descent, from zero; the Hessian's eigenvalues fall as a power law."""
    curvature, target = np.arange(1, 41.0) ** -1.5, rng.standard_normal(40)
    rate = 0.9 * (1 - np.sqrt(momentum)) ** 2  # no mode oscillates: an oscillating loss does bend down
    w, v, loss = np.zeros(40), np.zeros(40), np.empty(steps)
    for i in range(steps):
        loss[i] = 0.05 + 0.5 * np.sum(curvature * (w - target) ** 2)
        v = momentum * v - rate * curvature * (w - target)
        w = w + v
    return loss


def nulls(seeds: int = 8) -> Iterator[tuple[str, Curve]]:
    """Curves without a transition: relaxations, noise about a constant, and least squares."""
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        steps = list(clocks(3000.0).values())[seed % 3]
        n = len(steps)
        yield "power law", Curve(steps, 0.3 + 2 * (1 + steps / rng.uniform(1, 100)) ** -rng.uniform(0.1, 2))
        yield "exponential", Curve(steps, 3 * np.exp(-steps / rng.uniform(20, 800)))
        yield "exponential", Curve(steps, 0.5 + 3 * np.exp(-steps / rng.uniform(20, 800)))
        rates = 10 ** rng.uniform(-4, -0.5, (6, 1))
        yield "mixture", Curve(steps, np.sum(rng.uniform(0, 1, (6, 1)) * np.exp(-rates * steps), axis=0))
        rise = 1 - np.exp(-steps / rng.uniform(20, 800))
        yield "rising metric", Curve(steps, rise, kind="metric")
        yield "noisy relaxation", Curve(steps, 0.5 + (1 + steps / 30) ** -0.7 + 0.02 * rng.standard_normal(n))
        se = rng.uniform(0.1, 0.2, n)
        yield "noise, se given", Curve(steps, 1 + se * rng.standard_normal(n), (), "metric", se)
        for phi, name in ((0.0, "white noise"), (0.5, "AR .5 noise"), (0.9, "AR .9 noise")):
            noise = 0.1 * ar1(phi, n, rng)
            yield name, Curve(steps, 1 + noise, kind="loss" if seed % 2 else "metric")
        for momentum in (0.0, 0.9):
            yield "least squares", Curve(np.arange(600.0), descent(momentum, 600, rng))


def systems(seed: int = 0) -> Iterator[tuple[str, Curve]]:
    """Curves with known transitions; even and odd seeds give other noise."""
    rng = np.random.default_rng(seed)
    for spectrum in SPECTRA:
        for a0 in (1e-2, 1e-3, 1e-4):
            for clock in ("log200", "log400", "linear"):
                clean = staircase(spectrum, a0, clock)
                yield "dln", clean
                for level in (0.02, 0.05):
                    noise = 1 + level * rng.standard_normal(len(clean.steps))
                    noisy = Curve(clean.steps, clean.values * noise, clean.truths)
                    yield f"dln, noise {level:.0%}", noisy
                yield "llc-like", llc_like(spectrum, a0, clock, rng)


def watch(curve: Curve, **settings: float) -> tuple[list[Stage], list[Alarm]]:
    stages = Stages(curve.kind, **settings)  # type: ignore[arg-type]
    alarms = stages.extend(curve.steps, curve.values, curve.se)
    return stages.rows(), alarms


def grouped(truths: tuple[Truth, ...]) -> list[list[Truth]]:
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
    scores: dict[str, Score] = {}
    for name, curve in systems():
        add(scores.setdefault(name, Score()), curve, watch(curve)[0])
    print(f"{'system':16} {'P':>5} {'R':>5} {'F1':>5} {'midpoint error':>15} {'size':>6} {'delay':>6}")
    for name, score in scores.items():
        middle = [statistics.median(x) for x in (score.errors, score.sizes, score.delays)]
        print(
            f"{name:16} {score.precision:5.2f} {score.recall:5.2f} {score.f1:5.2f} "
            f"{middle[0]:15.3f} {middle[1]:6.2f} {middle[2]:6.2f}"
        )
    false: dict[str, list[int]] = {}
    for name, curve in nulls():
        false.setdefault(name, []).append(len(watch(curve)[0]))
    print(f"\n{'null':16} curves  false rows")
    for name, counts in false.items():
        print(f"{name:16} {len(counts):6} {sum(counts):11}")


if __name__ == "__main__":
    main()
