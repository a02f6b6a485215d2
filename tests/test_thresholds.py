import itertools
import math

import numpy as np
import pytest

from devinterp_fast.changepoint import thresholds
from devinterp_fast.changepoint.detectors import Detector
from devinterp_fast.changepoint.thresholds import inflated, threshold

BLOCK = 32


def realised(draw, *, channels, arl, updates, steps=None, se=None, **arguments):
    """Mean number of updates to a first alarm over the request, from the rate of first alarms of all channels."""
    det = Detector(channels, arl=arl, **arguments)
    quiet, exposure, first = channels, 0, 0
    fired = np.zeros(channels, dtype=bool)
    for start in range(0, updates, BLOCK):
        at = np.arange(start, start + BLOCK) if steps is None else steps[start : start + BLOCK]
        alarms = det.update(at, draw(len(at), channels), None if se is None else se[start : start + BLOCK])
        exposure += quiet * len(at) if np.isfinite(det.threshold) else 0
        for a in alarms:
            first += not fired[a.channel]
            fired[a.channel] = True
        quiet = channels - fired.sum()
    assert first >= 60
    return exposure / first / channels / arl, first


def check(value_and_count):
    """Within 20 % of the request, plus two standard errors of a Poisson count."""
    value, count = value_and_count
    assert abs(math.log(value)) < math.log(1.2) + 2 / math.sqrt(count)


def white(seed):
    rng = np.random.default_rng(seed)
    return lambda n, m: rng.standard_normal((n, m), dtype=np.float32)


@pytest.mark.parametrize("model", ["mean", "kink", "jump+kink"])
def test_white_noise(model):
    check(realised(white(0), channels=1000, arl=50.0, updates=8192, model=model, noise="unit"))


@pytest.mark.parametrize("model", ["mean", "kink"])
def test_one_side(model):
    check(realised(white(1), channels=1000, arl=50.0, updates=8192, model=model, noise="unit", side="rise"))


def test_mean_and_variance():
    check(realised(white(2), channels=160, arl=50.0, updates=4096, model="meanvar", noise="unit"))


def test_one_channel():
    """Runs of one channel until their first alarm; 400 runs have a mean known to 5 %."""
    level = Detector(1, noise="unit", arl=500.0)._level()
    many = Detector(400, noise="unit", threshold=level)
    draw = white(3)
    first = {}
    for start in range(0, 8192, BLOCK):
        for a in many.update(np.arange(start, start + BLOCK), draw(BLOCK, 400)):
            first.setdefault(a.channel, a.step + 1)
    runs = np.array([first.get(c, 8192) for c in range(400)])
    assert abs(runs.mean() / 500 - 1) < 0.2 + 2 / math.sqrt(400)


def test_a_hundred_thousand_channels():
    check(realised(white(4), channels=100_000, arl=5.0, updates=512, noise="unit"))


def test_log_spaced_steps():
    steps = np.unique(np.round(np.logspace(0, 7, 5000))).astype(float)
    steps = steps[: len(steps) // BLOCK * BLOCK]
    for x in ("step", "log"):
        check(realised(white(5), channels=1000, arl=30.0, updates=len(steps), steps=steps, x=x, noise="unit"))


def test_known_unequal_errors():
    rng = np.random.default_rng(6)
    se = np.exp(0.5 * rng.normal(size=4096))
    at = iter(range(0, 4096, BLOCK))

    def draw(n, m):
        low = next(at)
        return (se[low : low + n, None] * rng.standard_normal((n, m))).astype(np.float32)

    check(realised(draw, channels=1000, arl=50.0, updates=4096, se=se, noise="given"))


def autocorrelated(seed, phi):
    rng = np.random.default_rng(seed)
    last = None

    def draw(n, m):
        nonlocal last
        out = np.empty((n, m))
        for i in range(n):
            e = rng.standard_normal(m)
            last = e if last is None else phi * last + math.sqrt(1 - phi * phi) * e
            out[i] = last
        return out

    return draw


@pytest.mark.parametrize("model", ["mean", "kink"])
def test_autocorrelated_noise_of_estimated_phi(model):
    check(realised(autocorrelated(7, 0.5), channels=1000, arl=50.0, updates=6144, model=model, noise="ar1"))


def test_estimated_scale():
    check(realised(white(8), channels=1000, arl=50.0, updates=6144, noise="mad"))


@pytest.mark.parametrize("model", thresholds.MODELS)
def test_groups_are_on_the_safe_side(model):
    """Three dependent statistics a group, one of them a bound: fewer alarms than asked, but not half as many."""
    rng = np.random.default_rng(9)
    det = Detector(400, model=model, noise="unit", arl=25.0, groups=np.repeat(np.arange(40), 10))
    fired, exposure = set(), 0
    for i in range(1200):
        exposure += 40 - len(fired)
        fired |= {a.group for a in det.update(i, rng.standard_normal(400, dtype=np.float32))}
    assert len(fired) >= 15
    value = exposure / len(fired) / 40 / 25.0
    slack = 2 / math.sqrt(len(fired))
    assert math.log(0.8) - slack < math.log(value) < math.log(2) + slack


def test_rises_with_request_and_channels_without_end():
    levels = [threshold(10.0**k, model=m) for m in thresholds.MODELS for k in range(2, 20)]
    for k in range(0, len(levels), 18):
        assert all(b > a for a, b in itertools.pairwise(levels[k : k + 18]))
    # a tail exp(-h / 2): another thousandfold adds 2 log 1000
    assert threshold(1e15) - threshold(1e12) == pytest.approx(2 * math.log(1000))
    assert threshold(1e5, channels=1000) == pytest.approx(threshold(1e8))


def test_inflation_solves_its_equation():
    h = inflated(25.0, 0.02)
    assert h - h * h * 0.02 / 4 == pytest.approx(25.0)
    assert inflated(25.0, 0.0) == 25.0
    assert inflated(25.0, 0.1) == 50.0


def test_table_is_what_the_command_makes():
    level, rate = thresholds.simulate("mean", "both", rounds=1, seed=0)
    shipped = thresholds._table()["mean"]
    common = [r for r in rate if r in shipped["log_rate"] and r >= math.log(1e-5)]
    assert len(common) >= 8
    # 8,192 streams of 2,048 steps: at 1e-5 a step 166 of them reach the level, 8 % of its rate, 0.16 of the level
    for r in common:
        assert abs(level[rate.index(r)] - shipped["level"][shipped["log_rate"].index(r)]) < 4 * 0.16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.5,), "arl: expected a finite number above 1, got 0.5"),
        ((math.inf,), "arl: expected a finite number above 1, got inf"),
    ],
)
def test_bad_requests(arguments, message):
    with pytest.raises(ValueError) as caught:
        threshold(*arguments)
    assert str(caught.value) == message
