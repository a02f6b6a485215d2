import math

import numpy as np
import pytest
from changepoint_planted import named

from devinterp_fast.changepoint.detectors import Detector
from devinterp_fast.changepoint.localize import benjamini_hochberg, localize
from devinterp_fast.errors import DataError, ShapeError


def test_benjamini_hochberg_by_hand():
    # thresholds .02 .04 .06 .08 .10: the fourth passes, hence so do those before it
    assert benjamini_hochberg([0.079, 0.5, 0.001, np.nan, 0.07, 0.05], 0.1).tolist() == [2, 5, 4, 0]
    assert benjamini_hochberg([0.5, np.nan], 0.1).size == 0


@pytest.mark.parametrize(("model", "changed", "size"), [("mean", 40, 0.8), ("mean", 200, 0.4), ("kink", 40, 0.03)])
def test_false_share_of_channels_stays_below_its_level(model, changed, size):
    """A group of 400 alarms; the named channels' mean false share over 12 runs, nominal 0.1."""
    rng = np.random.default_rng(0)
    shares, found = zip(*(named(rng, model, changed, size) for _ in range(12)), strict=True)
    # the expected share is at most 0.1 times that of quiet channels; two standard errors of the mean of twelve
    assert np.mean(shares) <= 0.1 + 2 * np.std(shares) / math.sqrt(12)
    assert np.mean(found) > 0.1  # power is what the window's length gives


def test_p_values_of_quiet_channels_are_uniform():
    """With weights, gaps and a trend; 4,000 p-values, each decile within four standard errors of a tenth."""
    rng = np.random.default_rng(1)
    n, channels = 80, 4000
    t = np.sort(rng.uniform(0, 10, n))
    se = rng.uniform(0.5, 2, (n, channels))
    y = 3 + 0.7 * t[:, None] + se * rng.normal(size=(n, channels))
    y[rng.random(y.shape) < 0.1] = np.nan
    p = localize(t, y, 4.0, 6.0, se=se, model="kink").p
    counts = np.histogram(p, bins=10, range=(0, 1))[0] / channels
    assert np.abs(counts - 0.1).max() < 4 * math.sqrt(0.09 / channels)


@pytest.mark.parametrize(("model", "size"), [("mean", 1.0), ("mean", 2.0), ("kink", 0.05)])
def test_onset_intervals_cover(model, size):
    """Nominal 95 %, at least 93 %: alarms of 1,000 channels at their first change have a standard error of 0.7 %."""
    rng = np.random.default_rng(2)
    n, channels, at = 360, 1000, 200
    t = np.arange(n)
    change = size * (t >= at) if model == "mean" else size * np.clip(t - (at - 1), 0, None)
    det = Detector(channels, model=model, noise="unit", arl=1e8)
    alarms = {}
    for a in det.update(t, rng.normal(size=(n, channels)) + change[:, None]):
        alarms.setdefault(a.channel, a)
    first = [a for a in alarms.values() if a.step >= at]
    assert len(first) > 950
    covered = np.mean([a.interval[0] <= at - 1 <= a.interval[1] for a in first])
    assert covered >= 0.93


STAGES = {
    # ends and increments of the local learning coefficient, Hoogland et al. (2024)
    "language model": ([900, 6500, 8500, 17000, 50000], [26.4, 22.5, -1.57, 8.62, 1.77]),
    "regression transformer": ([1000, 40000, 126000, 320000, 500000], [21.4, 149, -12.3, -44.1, 3.56]),
}


@pytest.mark.parametrize("name", list(STAGES))
def test_published_stage_ends_are_found_online(name):
    """Piecewise lines in log step with those knots; 400 log-spaced values of standard error 0.3 % of the range."""
    knots, increments = STAGES[name]
    edges = np.log1p([10.0, *knots])
    levels = np.concatenate([[10.0], 10 + np.cumsum(increments)])
    steps = np.unique(np.round(np.geomspace(10, knots[-1], 400)))
    curve = np.interp(np.log1p(steps), edges, levels)
    se = 0.003 * np.ptp(levels)
    inner = knots[:-1]
    found, false, delays = np.zeros(len(inner)), 0, []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        det = Detector(1, x="log", noise="given", arl=1e5)
        for a in det.update(steps, (curve + se * rng.normal(size=steps.size))[:, None], se):
            near = [k for k, knot in enumerate(inner) if abs(math.log(a.onset / knot)) < 0.25]
            found[near] += 1
            false += not near
            delays += [a.step / inner[k] for k in near]
    assert (found >= 20).all()
    assert false == 0
    assert np.mean(delays) < 1.2  # known, on average, before a fifth more steps have passed


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (([0, 1], [0, 1], 0, 0), {}, ShapeError, "y: expected shape (2, channels), got (2,)"),
        (([0, 1], [[0], [1]], 0, 1), {}, DataError, "x: expected values up to 0 and beyond 1, got 1 and 0"),
        (([0, 1], [[0], [1]], 0, 0), {"level": 2}, ValueError, "level: expected a number between 0 and 1, got 2"),
        (([0, 1], [[0], [1]], 0, 0), {"model": "step"}, ValueError, "model: expected 'mean' or 'kink', got 'step'"),
        (([0, 1], [[0], [1]], 0, 0), {"se": [1, 1, 1]}, ShapeError,
         "se: expected shape (2, 1), (1,) or a number, got (3,)"),
    ],
)  # fmt: skip
def test_bad_input(arguments, options, error, message):
    with pytest.raises(error) as caught:
        localize(*arguments, **options)
    assert str(caught.value) == message
