"""Races: contestants take turns in one run, so that a machine's moods hit all alike; medians and ratios are quoted.

Answers are the caller's to check, before the clock starts. Results go to ``benchmarks/results/NAME.json`` with the
versions they were made with; tables and the README are drawn from there.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from devinterp_fast.store import environment

RESULTS = Path(__file__).parent / "results"


def race(
    contestants: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Runs all contestants in turn ``rounds`` times; returns the seconds of each run, by ``clock``."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(warmup + rounds):
        for name, run in contestants.items():
            start = clock()
            run()
            if turn >= warmup:
                seconds[name].append(clock() - start)
    return seconds


def ratios(seconds: Mapping[str, list[float]], ours: str) -> dict[str, float]:
    """Median over rounds of each contestant's time over ours in the same round."""
    return {
        name: statistics.median(t / o for t, o in zip(times, seconds[ours], strict=True))
        for name, times in seconds.items()
    }


def record(name: str, rows: Mapping[str, object]) -> None:
    """Adds rows to ``results/NAME.json``, with the environment of this run."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    known.update(rows)
    known["environment"] = environment()
    path.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """Median seconds of each contestant."""
    return {name: statistics.median(times) for name, times in seconds.items()}
