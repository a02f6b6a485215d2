"""The many-channel detector: throughput, memory and delay, against exact FOCuS and, where installed, river's ADWIN.

Run with ``python -m pytest benchmarks/bench_changepoint.py -s``.
"""

import statistics
import time

import numpy as np
import pytest
from harness import record

from devinterp_fast.changepoint.detectors import Detector
from devinterp_fast.changepoint.focus import Focus

BARS = {("mean", 100_000): 10, ("kink", 100_000): 20, ("mean", 1_000_000): 12, ("kink", 1_000_000): 25}  # ns


def nanoseconds(model, channels, steps, block, missing=0.0):
    """Per channel-update over a whole run, and over blocks the median."""
    rng = np.random.default_rng(0)
    y = rng.standard_normal((block, channels), dtype=np.float32)
    if missing:
        y[rng.random(y.shape) < missing] = np.nan
    det = Detector(channels, model=model, arl=None, noise="unit")
    spent = []
    for start in range(0, steps, block):
        at = np.arange(start, start + block)
        begin = time.perf_counter()
        det.update(at, y)
        spent.append(time.perf_counter() - begin)
    return {
        "ns per channel-update": sum(spent) / len(spent) / block / channels * 1e9,
        "median block": statistics.median(spent) / block / channels * 1e9,
        "bytes per channel": det.nbytes / channels,
        "steps": len(spent) * block,
    }


@pytest.mark.parametrize(("model", "channels"), list(BARS))
def test_throughput(model, channels):
    steps = 10_016 if channels == 100_000 else 320
    rows = {
        f"block {b}": nanoseconds(model, channels, steps if b == 32 else 512 if channels < 1e6 else 64, b)
        for b in (32, 1)
    }
    print(model, channels, rows)
    record("changepoint", {f"{model}, {channels} channels": rows})
    assert rows["block 32"]["median block"] <= BARS[model, channels]


@pytest.mark.parametrize("model", ["mean", "kink", "jump+kink", "meanvar"])
def test_channels_of_their_own(model):
    """One value in fifty missing, so that every register of channels keeps its own weights; beside the shared path."""
    rows = {
        name: nanoseconds(model, 10_000, 1024, 32, missing)["median block"]
        for name, missing in (("shared", 0.0), ("missing values", 0.02))
    }
    print(model, rows)
    record("changepoint", {f"{model}, own weights": rows})


def test_memory_at_a_million_steps():
    det = Detector(16, arl=None, noise="unit")
    y = np.zeros((4096, 16), dtype=np.float32)
    for start in range(0, 1_000_000, 4096):
        det.update(np.arange(start, start + 4096), y)
    record("changepoint", {"bytes per channel, kink, a million steps": det.nbytes / 16})
    print("bytes", det.nbytes / 16)
    assert det.nbytes / 16 <= 1024


def delays(level, size, runs, exact):
    """Mean delay after a jump at 1,000, of runs without an early alarm; and the share of early alarms."""
    rng = np.random.default_rng(1)
    n, at = 2000, 1000
    y = rng.standard_normal((n, runs), dtype=np.float32)
    y[at:] += size
    if exact:
        first = [int(np.append(np.flatnonzero(Focus().run(y[:, c]).statistic >= level), n)[0]) for c in range(runs)]
    else:
        first = [n] * runs
        for a in Detector(runs, model="mean", noise="unit", threshold=level).update(np.arange(n), y):
            first[a.channel] = min(first[a.channel], int(a.step))
    late = [f + 1 - at for f in first if f >= at]
    return statistics.mean(late), 1 - len(late) / runs


def test_delay_against_exact():
    """Thresholds of equal early alarms: .181 of null runs of 2,000 steps."""
    rng = np.random.default_rng(0)
    null = rng.standard_normal((2000, 2000), dtype=np.float32)
    exact = float(np.quantile([Focus().run(null[:, c]).statistic.max() for c in range(2000)], 1 - 0.181))
    det, top = Detector(2000, model="mean", arl=None, noise="unit"), np.zeros(2000)
    for i in range(2000):
        det.update(i, null[i])
        top = np.maximum(top, det.statistic())
    grid = float(np.quantile(top, 1 - 0.181))
    rows = {"threshold exact": exact, "threshold grid": grid}
    for size in (0.5, 1.0, 2.0):
        ours, theirs = delays(grid, size, 1000, exact=False), delays(exact, size, 1000, exact=True)
        rows[f"shift {size}"] = {"grid": ours, "exact": theirs, "ratio": ours[0] / theirs[0]}
    print(rows)
    record("changepoint", {"delay": rows})
    assert all(rows[f"shift {s}"]["ratio"] <= 1.10 for s in (0.5, 1.0, 2.0))


def online(make, update, values):
    """Seconds per update of one object a channel in Python's loop, which is how these packages are used online."""
    peers = [make() for _ in range(values.shape[1])]
    rows = values.tolist()
    begin = time.perf_counter()
    for row in rows:
        for peer, value in zip(peers, row, strict=True):
            update(peer, value)
    return (time.perf_counter() - begin) / values.size


def race_with(name, make, update, values, least):
    """Five rounds in turn with our kink model, 1e5 channels in blocks of 128; the median of their ratios."""
    rounds = []
    for _ in range(5):
        ours = nanoseconds("kink", 100_000, 2048, 128)["median block"]
        rounds.append((online(make, update, values) * 1e9, ours))
    theirs, ours = (statistics.median(column) for column in zip(*rounds, strict=True))
    ratio = statistics.median(a / b for a, b in rounds)
    row = {"ns per channel-update": theirs, "kink, same run": ours, "over kink": ratio, "block": 128}
    print(name, row)
    record("changepoint", {name: row})
    assert ratio >= least


def test_adwin():
    drift = pytest.importorskip("river.drift", reason="river: not installed")
    y = np.random.default_rng(0).standard_normal((500, 100))
    race_with("river ADWIN", drift.ADWIN, lambda peer, value: peer.update(value), y, 20)


def test_focus_cpt():
    """A black box through its public calls; its statistic and ours are the same number."""
    peer = pytest.importorskip("focus_cpt", reason="focus_cpt: not installed (its build needs libqhull-dev)")

    def update(detector, value):
        detector.update(value)
        return detector.get_statistics(family="gaussian")["stat"]

    y = np.random.default_rng(0).standard_normal((500, 20))
    y[300:] += 1.0
    theirs, ours = peer.Detector("univariate"), Focus()
    differences = [
        abs(update(theirs, v) - ours.update(v)) / max(1.0, ours.statistic) for i, v in enumerate(y[:, 0].tolist()) if i
    ]
    record("changepoint", {"focus_cpt, largest difference of the statistic": max(differences)})
    race_with("focus_cpt", lambda: peer.Detector("univariate"), update, y, 600)
