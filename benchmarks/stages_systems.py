"""Curves whose transitions are known: from closed forms, from small trained networks, and curves without any.

Each comes with its half: 0 is for choosing defaults, 1 for scoring them.

A deep linear network of two layers learns the singular value s of its task as a(t) = s / (1 + (s / a0 - 1)
exp(-2 s t)), and its loss is the sum of (s - a)^2 / 2: a staircase whose every step has a known 10, 50 and 90
% time. The trained runs are those of `stages_curves`; their truth is read from order parameters that the detector does
not see (column norms, singular values, accuracy), except where a task's own loss is its only one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from devinterp_fast.transitions.system import rise
from devinterp_fast.transitions.tms import plateaus

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
EARLY = 5  # steps: what has begun before has no plateau to be seen


@dataclass(frozen=True)
class Truth:
    """One transition: the steps at which 10, 50 and 90 % of it are done."""

    t10: float
    t50: float
    t90: float
    counts: bool = True  # a transition that need not be found neither counts nor harms


@dataclass(frozen=True)
class Curve:
    """What is observed, and what is true of it."""

    steps: Array
    values: Array
    truths: tuple[Truth, ...] = ()
    kind: str = "loss"
    se: Array | None = None
    scale: float | None = None


def mode_time(s: float, a0: float, a: float) -> float:
    """The step at which the mode of singular value s has grown from a0 to a."""
    return float(np.log((s / a0 - 1) / (s / a - 1)) / (2 * s * RATE))


def mode(s: float, a0: float, steps: Array) -> Array:
    """Strength of the mode of singular value s."""
    return np.asarray(s / (1 + (s / a0 - 1) * np.exp(-2 * s * RATE * steps)))


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
    truths = tuple(Truth(*times[s], counts=s * s >= 0.01 * whole) for s in spectrum if times[s][0] >= EARLY)
    return Curve(steps, values, truths)


def llc_like(spectrum: tuple[float, ...], a0: float, clock: str, rng: np.random.Generator) -> Curve:
    """What an LLC reads with a known standard error of 0.15 to 0.2 while the modes are learned.

    Half the dimension of the N x N matrices of rank r is r (2 N - r) / 2: mode r adds N - r + 1 / 2.
    """
    steps = clocks(1.5 * mode_time(min(spectrum), a0, 0.95 * min(spectrum)))[clock]
    rank = len(spectrum)
    values = np.sum([(rank - i - 0.5) * mode(s, a0, steps) / s for i, s in enumerate(spectrum)], axis=0)
    se = rng.uniform(0.15, 0.2, len(steps))
    truths = tuple(Truth(*[mode_time(s, a0, f * s) for f in (0.1, 0.5, 0.9)]) for s in spectrum)
    return Curve(steps, values + se * rng.standard_normal(len(steps)), truths, "metric", se)


def closed_forms(seed: int = 0) -> Iterator[tuple[str, int, Curve]]:
    """Deep linear networks, exact and noisy, and a rising metric with known errors: system, half, curve."""
    rng = np.random.default_rng(seed)
    for i, spectrum in enumerate(SPECTRA):
        for j, a0 in enumerate((1e-2, 1e-3, 1e-4)):
            half = (i + j) % 2
            for k, clock in enumerate(("log200", "log400", "linear")):
                clean = staircase(spectrum, a0, clock)
                yield "dln", half, clean
                if k != (i + 2 * j) % 3:  # the noisy ones have one clock each: a third as many
                    continue
                for level in (0.02, 0.05):
                    noise = 1 + level * rng.standard_normal(len(clean.steps))
                    yield f"dln, noise {level:.0%}", half, Curve(clean.steps, clean.values * noise, clean.truths)
                yield "llc-like", half, llc_like(spectrum, a0, clock, rng)


class Run:
    """One trained run: its curves, and transitions read from them."""

    def __init__(self, table: dict[str, Array]) -> None:
        self.table, self.steps = table, table["step"]

    def truth(self, share: Array, *, counts: bool = True, start: int = 0) -> tuple[Truth, ...]:
        """Where a share of something passes 10, 50, 90 %; nothing if it has begun too early.

        What is under way when the run ends neither counts nor harms, from a tenth of what it has come to.
        """
        times = rise(self.steps, share, start)
        last = float(np.median(share[-5:]))
        if times is None and 0.1 < last < 0.9:
            begun = float(self.steps[np.flatnonzero(share < 0.1 * last)[-1]])
            return (Truth(begun, float(self.steps[-1]), float(self.steps[-1]), counts=False),)
        return (Truth(*times, counts=counts),) if times is not None and times[0] >= EARLY else ()

    def final(self, name: str) -> float:
        """Median of the last tenth of a curve."""
        return float(np.median(self.table[name][-max(1, len(self.steps) // 10) :]))

    def grown(self, names: list[str], least: float, power: int = 1) -> tuple[Truth, ...]:
        """One transition for each order parameter that ends above ``least``."""
        alive = [name for name in names if self.final(name) > least]
        return sum((self.truth((self.table[name] / self.final(name)) ** power) for name in alive), ())

    def curve(self, name: str, truths: tuple[Truth, ...], kind: str = "loss", scale: float | None = None) -> Curve:
        """One of the curves, with its truth."""
        return Curve(self.steps, self.table[name], truths, kind, None, scale)


def _tms_cascade(run: Run) -> Iterator[tuple[str, Curve]]:
    truths = run.grown([f"norm{j}" for j in range(6)], 0.5, power=2)
    yield "tms cascade", run.curve("loss", truths)
    yield "tms, noisy", run.curve("sampled", truths)


def _tms_late(run: Run) -> Iterator[tuple[str, Curve]]:
    """The fall from 4++ to 5+ of runs that wait at 4++; the cascade before it need not be found."""
    norms = np.stack([run.table[f"norm{j}"] for j in range(6)])
    waits = plateaus(run.steps, run.table["loss"], (norms > 0.5).sum(0))
    names = [level.name for _, _, level in waits]
    if "4++" not in names or "5+" not in names[names.index("4++") :]:
        return
    start = waits[names.index("4++")][0]
    late = run.truth((7 / 72 - run.table["loss"]) / (7 / 72 - waits[names.index("5+")][2].loss), start=start)
    early = tuple(
        Truth(t.t10, t.t50, t.t90, counts=False)
        for t in run.grown([f"norm{j}" for j in range(6)], 0.5, power=2)
        if late and t.t50 < late[0].t10
    )
    yield "tms 4++ -> 5+", run.curve("loss", early + late)
    yield "tms, noisy", run.curve("sampled", early + late)


def _barlow(run: Run) -> Iterator[tuple[str, Curve]]:
    truths = sum((run.truth(1 - (1 - run.table[f"mode{j}"]) ** 2) for j in range(6)), ())
    yield "barlow", run.curve("loss", truths)


def _parity(run: Run) -> Iterator[tuple[str, Curve]]:
    every: tuple[Truth, ...] = ()
    for name in (name for name in run.table if name.startswith("task")):
        own = run.truth(1 - run.table[name] / math.log(2))
        every += own
        yield "parity, one task", run.curve(name, own)
    yield "parity, total", run.curve("total", every)


def _digits(run: Run) -> Iterator[tuple[str, Curve]]:
    yield "digits", run.curve("loss", run.grown([f"mode{j}" for j in range(1, 11)], 0.15))


def _addition(run: Run) -> Iterator[tuple[str, Curve]]:
    for name in ("train", "test"):
        y = run.table[name]
        top = int(y.argmax())
        yield "addition", run.curve(name, run.truth((y[top] - y) / (y[top] - run.final(name)), start=top))
    yield "addition", run.curve("accuracy", run.grown(["accuracy"], 0.5), "metric", 1.0)


def _induction(run: Run) -> Iterator[tuple[str, Curve]]:
    """Bigrams are learned from the first step on: a stage end, but no plateau is left, so no row is asked for."""
    heads = run.grown(["accuracy"], 0.5)
    kl = run.table["bigram"]
    bottom = int(kl.argmin())
    times = rise(run.steps, (kl[0] - kl) / (kl[0] - kl[bottom]))
    bigrams = (Truth(*times, counts=False),) if times is not None else ()
    yield "induction", run.curve("loss", bigrams + heads)
    yield "induction", run.curve("batch", bigrams + heads)
    yield "induction", run.curve("prefix", run.grown(["prefix"], 0.3), "metric", 1.0)
    yield "induction", run.curve("accuracy", heads, "metric", 1.0)
    rising = run.truth((kl - kl[bottom]) / (np.median(kl[-13:]) - kl[bottom]), counts=False, start=bottom)
    yield "induction", run.curve("bigram", bigrams + rising)


READERS = {
    "tms cascade": _tms_cascade,
    "tms late": _tms_late,
    "barlow planted": _barlow,
    "barlow digits": _barlow,
    "parity": _parity,
    "digits": _digits,
    "addition": _addition,
    "induction": _induction,
}
MORE = {"more parity": _parity, "more digits": _digits}


@cache
def runs() -> dict[tuple[str, int], Run]:
    """The trained runs by system and seed."""
    tables: dict[tuple[str, int], dict[str, Array]] = {}
    with np.load(Path(__file__).parent / "results" / "stages_curves.npz") as file:
        for key in file.files:
            system, seed, curve = key.split("/")
            tables.setdefault((system, int(seed)), {})[curve] = file[key].astype(np.float64)
    return {key: Run(table) for key, table in tables.items()}


def trained() -> Iterator[tuple[str, int, Curve]]:
    """Curves of the trained networks: system, half, curve."""
    for (system, seed), run in runs().items():
        if system not in MORE:
            for name, curve in READERS[system](run):
                yield name, seed % 2, curve


def more() -> Iterator[tuple[str, int, Curve]]:
    """Further runs, on which neighboring rows were studied, scored apart from the others: system, half, curve."""
    for (system, seed), run in runs().items():
        if system in MORE:
            yield from ((system, seed % 2, curve) for name, curve in MORE[system](run) if name != "parity, total")


def systems(seed: int = 0) -> Iterator[tuple[str, int, Curve]]:
    """All curves with known transitions."""
    yield from closed_forms(seed)
    yield from trained()


def ar1(phi: float, size: int, rng: np.random.Generator) -> Array:
    """Autoregressive noise of unit variance."""
    x = rng.standard_normal(size)
    for i in range(1, size):
        x[i] = phi * x[i - 1] + np.sqrt(1 - phi * phi) * x[i]
    return x


def descent(momentum: float, steps: int, rng: np.random.Generator, batch: int | None = None) -> Array:
    """Least squares by (stochastic) gradient descent, from zero; the Hessian's eigenvalues fall as a power law."""
    curvature, target = np.arange(1, 41.0) ** -1.5, rng.standard_normal(40)
    rate = 0.9 * (1 - np.sqrt(momentum)) ** 2  # no mode oscillates: an oscillating loss does bend down
    w, v, loss = np.zeros(40), np.zeros(40), np.empty(steps)
    for i in range(steps):
        loss[i] = 0.05 + 0.5 * np.sum(curvature * (w - target) ** 2)
        gradient = curvature * (w - target)
        if batch is not None:
            x = rng.standard_normal((batch, 40)) * np.sqrt(curvature)
            gradient = x.T @ (x @ (w - target) + 0.2 * rng.standard_normal(batch)) / batch
        v = momentum * v - rate * (0.1 if batch else 1) * gradient
        w = w + v
    return loss


def nulls(seeds: int = 12) -> Iterator[tuple[str, int, Curve]]:
    """Curves without a transition, twelve a seed: relaxations, noise about a constant, least squares."""
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        half, steps = seed % 2, list(clocks(3000.0).values())[seed % 3]
        n, kind = len(steps), ("loss", "metric")[seed // 2 % 2]
        yield "power law", half, Curve(steps, 0.3 + 2 * (1 + steps / rng.uniform(1, 100)) ** -rng.uniform(0.1, 2))
        floor = 0.5 * (seed // 2 % 2)
        yield "exponential", half, Curve(steps, floor + 3 * np.exp(-steps / rng.uniform(20, 800)))
        rates = 10 ** rng.uniform(-4, -0.5, (6, 1))
        yield "mixture", half, Curve(steps, np.sum(rng.uniform(0, 1, (6, 1)) * np.exp(-rates * steps), axis=0))
        rise = 1 - np.exp(-steps / rng.uniform(20, 800))
        yield "rising metric", half, Curve(steps, rise, kind="metric")
        relaxed = 0.5 + (1 + steps / 30) ** -0.7 + 0.02 * ar1(0.5 * (seed // 2 % 2), n, rng)
        yield "noisy relaxation", half, Curve(steps, relaxed)
        se = rng.uniform(0.1, 0.2, n)
        yield "noise, se given", half, Curve(steps, 1 + se * rng.standard_normal(n), (), "metric", se)
        for phi, name in ((0.0, "white noise"), (0.5, "AR .5 noise"), (0.9, "AR .9 noise")):
            yield name, half, Curve(steps, 1 + 0.1 * ar1(phi, n, rng), kind=kind)
        spectrum = SPECTRA[seed % 6]
        late = np.linspace(mode_time(min(spectrum), 1e-3, 0.9 * min(spectrum)), 3000.0, n)
        tail = np.sum([(s - mode(s, 1e-3, late)) ** 2 / 2 for s in spectrum], axis=0)
        yield "after the last mode", half, Curve(late, 0.01 + tail)
        yield "least squares", half, Curve(np.arange(600.0), descent((0.0, 0.9)[seed // 2 % 2], 600, rng))
        yield "least squares, SGD", half, Curve(np.arange(600.0), descent(0.0, 600, rng, batch=16))
