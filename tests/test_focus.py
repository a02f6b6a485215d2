"""Focus: equal to brute force in exact rational arithmetic, whatever the stream."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from devinterp_fast.changepoint import Focus
from devinterp_fast.errors import ShapeError


def brute_force(values, weights=None):
    """The largest statistic and all exact statistics {first index of the new segment: D^2 W / (W_j W')}."""
    weights = [1.0] * len(values) if weights is None else weights
    points, w, s = [], Fraction(0), Fraction(0)
    for i, (y, weight) in enumerate(zip(values, weights, strict=True)):
        if not math.isfinite(y):
            continue
        w += Fraction(weight)
        s += Fraction(weight) * Fraction(y)
        points.append((i + 1, w, s))
    exact = {j: (s_j - w_j * s / w) ** 2 * w / (w_j * (w - w_j)) for j, w_j, s_j in points[:-1]}
    return max(exact.values(), default=Fraction(0)), exact


def assert_exact(values, weights=None):
    """Statistic to 1e-9 relative after each value; the change point attains it to the same accuracy."""
    test = Focus()
    for i, y in enumerate(values):
        se = None if weights is None else weights[i] ** -0.5
        # the weight as the test itself rounds it
        got = test.update(y, se)
        seen = None if weights is None else [1 / (w**-0.5 * w**-0.5) for w in weights[: i + 1]]
        expected, exact = brute_force(values[: i + 1], seen)
        assert got == pytest.approx(float(expected), rel=1e-9, abs=0.0)
        assert test.statistic == got
        if expected == 0:
            continue
        assert float(exact[test.changepoint]) == pytest.approx(float(expected), rel=1e-9, abs=0.0)
        finite = [(j, Fraction(y)) for j, y in enumerate(values[: i + 1]) if math.isfinite(y)]
        before = [y for j, y in finite if j < test.changepoint]
        after = [y for j, y in finite if j >= test.changepoint]
        if weights is None:
            assert test.direction == (1 if sum(after) / len(after) > sum(before) / len(before) else -1)


# Multiples of 1/8 after scaling by powers of two: a difference that is zero is exactly zero in double too.
# Where a stream cancels by accident of rounding, 1e-9 relative of nothing could not be asked of any double
# arithmetic.
grid = st.integers(-80, 80).map(lambda k: k / 8)
streams = st.one_of(
    st.lists(grid, min_size=1, max_size=40),
    st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=40),
    st.lists(st.sampled_from([-3.0, -3.0, 2.5, 2.5, 0.0]), min_size=1, max_size=40),
    st.builds(lambda y, n: [y] * n, grid, st.integers(1, 40)),
    st.builds(lambda a, b, m, n: [a] * m + [b] * n, grid, grid, st.integers(1, 20), st.integers(1, 20)),
)
offsets = st.sampled_from([0.0, 1.0, -1e9, 2.0**40])
scales = st.sampled_from([1.0, 2.0**-300, 2.0**-40, 2.0**40, 2.0**300])


@settings(max_examples=150, deadline=None, derandomize=True)
@given(streams, offsets)
def test_statistic_is_exact_under_offsets(values, offset):
    assert_exact([y + offset for y in values])


@settings(max_examples=100, deadline=None, derandomize=True)
@given(streams, scales)
def test_statistic_is_exact_at_any_scale(values, scale):
    assert_exact([y * scale for y in values])


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.tuples(grid, st.sampled_from([0.25, 1.0, 4.0, 16.0, 2.0**-40])), min_size=1, max_size=30))
def test_weighted_statistic_is_exact(pairs):
    values, weights = zip(*pairs, strict=True)
    assert_exact(list(values), list(weights))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.one_of(grid, st.sampled_from([math.nan, math.inf, -math.inf])), min_size=1, max_size=40))
def test_missing_values_change_nothing_but_indices(values):
    assert_exact(values)


@pytest.mark.parametrize("seed", range(3))
def test_long_streams(seed):
    """Noise, a drift and a jump, n = 3000; brute force in double with centered sums, itself good to 1e-11."""
    rng = np.random.default_rng(seed)
    n = 3000
    streams = [
        rng.standard_normal(n),
        1e9 + rng.standard_normal(n),
        np.linspace(0, 5, n) + rng.standard_normal(n),
        rng.standard_normal(n) + (np.arange(n) > 2000),
        np.cumsum(rng.standard_normal(n)),
        rng.standard_cauchy(n),
    ]
    for y in streams:
        run = Focus().run(y)
        for i in (1, 2, 10, 500, 2500, n - 1):
            part = y[: i + 1] - np.median(y[: i + 1])
            s, j = np.cumsum(part), np.arange(1, i + 1)
            d = s[:-1] - j * (s[-1] / (i + 1))
            statistic = d * d * (i + 1) / (j * (i + 1 - j))
            assert run.statistic[i] == pytest.approx(statistic.max(), rel=1e-9)
            assert statistic[run.changepoint[i] - 1] == pytest.approx(statistic.max(), rel=1e-9)


def test_error_that_is_nan_or_infinite_is_a_missing_value():
    one, two = Focus(), Focus()
    run = one.run([0.0, 7.0, 1.0, -9.0, 2.0], [1.0, np.nan, 2.0, np.inf, 1.0])
    two.run([0.0, np.nan, 1.0, np.nan, 2.0], [1.0, 1.0, 2.0, 1.0, 1.0])
    assert run.statistic[-1] == two.statistic > 0
    assert one.update(5.0, math.nan) == run.statistic[-1]


def test_constant_stream_has_no_change():
    for value in (0.0, 0.1, -1e300, 1e-300):
        run = Focus().run(np.full(1000, value))
        assert np.all(run.statistic == 0)
        assert np.all(run.changepoint == -1)
        assert np.all(run.direction == 0)


def test_null_has_the_chi_square_law():
    """At n = 2 there is one candidate, hence chi-square with one degree of freedom: mean 1, variance 2."""
    rng = np.random.default_rng(0)
    se = rng.uniform(0.1, 3.0, (4000, 2))
    values = se * rng.standard_normal((4000, 2))
    final = np.array([Focus().run(y, s).statistic[1] for y, s in zip(values, se, strict=True)])
    # 4 standard errors of the mean
    assert final.mean() == pytest.approx(1.0, abs=4 * math.sqrt(2 / 4000))


def test_finds_a_jump():
    rng = np.random.default_rng(1)
    y = rng.standard_normal(400) - 2.0 * (np.arange(400) >= 250)
    test = Focus()
    test.run(y)
    # a jump of two deviations is located within 5 with probability above 1 - 1e-5
    assert test.changepoint == pytest.approx(250, abs=5)
    assert test.direction == -1
    assert test.statistic > 100


def test_threshold_alarms_and_starts_anew():
    rng = np.random.default_rng(2)
    y = np.repeat([0.0, 4.0, -3.0], 100) + rng.standard_normal(300)
    test, alarms = Focus(threshold=30.0), []
    for i, value in enumerate(y):
        test.update(value)
        if test.alarm:
            alarms.append((i, test.changepoint, test.direction))
    assert [(change, way) for _, change, way in alarms] == [(100, 1), (200, -1)]
    assert all(change <= i < change + 10 for i, change, _ in alarms)
    run = Focus(threshold=30.0).run(y)
    assert run.alarms.tolist() == [i for i, _, _ in alarms]
    assert [run.changepoint[i] for i in run.alarms] == [100, 200]


def test_run_equals_update_in_any_pieces():
    rng = np.random.default_rng(3)
    y = np.repeat([0.0, 5.0, 0.0], 40) + rng.standard_normal(120)
    y[rng.random(120) < 0.1] = np.nan
    se = rng.uniform(0.5, 2.0, 120)
    one = Focus(threshold=20.0)
    expected = [(one.update(v, e), one.changepoint, one.direction, one.alarm) for v, e in zip(y, se, strict=True)]
    assert sum(alarm for *_, alarm in expected) >= 2
    two, at = Focus(threshold=20.0), 0
    for length in (1, 0, 50, 7, 62):
        run = two.run(y[at : at + length], se[at : at + length])
        for i in range(length):
            statistic, change, direction, alarm = expected[at + i]
            assert run.statistic[i] == statistic
            assert run.changepoint[i] == (-1 if change is None else change)
            assert run.direction[i] == direction
            assert (at + i in run.alarms) == alarm
        at += length
        assert two.alarm == expected[at - 1][3]


def test_resumes_bit_for_bit_anywhere():
    rng = np.random.default_rng(4)
    y = np.repeat([1e3, 1e3 + 5, 1e3], 30) + rng.standard_normal(90)
    whole = Focus(threshold=25.0)
    history = [(whole.update(v), whole.changepoint, whole.direction, whole.alarm) for v in y]
    current = Focus(threshold=25.0)
    for i, value in enumerate(y):
        state = current.state_dict()
        current = Focus(threshold=25.0)
        current.load_state_dict(state)
        assert (current.update(value), current.changepoint, current.direction, current.alarm) == history[i]


def test_few_candidates_are_kept():
    """About log n vertices on each side of white noise; every one of n values would be 10^4."""
    test = Focus()
    test.run(np.random.default_rng(5).standard_normal(10_000))
    state = test.state_dict()
    assert state["lower"].shape[1] + state["upper"].shape[1] < 80


def test_bad_input():
    cases = [
        (lambda: Focus(threshold=0.0), ValueError, "threshold: expected a positive number or None, got 0.0"),
        (lambda: Focus().update(1.0, 0.0), ValueError, "se: expected a number of at least 1e-150, got 0.0"),
        (
            lambda: Focus().run([1.0, 2.0], [1.0, -1.0]),
            ValueError,
            "se: expected numbers of at least 1e-150, got -1.0",
        ),
        (lambda: Focus().run([[1.0]]), ShapeError, "values: expected one dimension, got shape (1, 1)"),
        (
            lambda: Focus().run([1.0], [1.0, 1.0]),
            ShapeError,
            "se: expected shape (1,) or a number, got shape (2,)",
        ),
        (
            lambda: Focus().load_state_dict({}),
            ValueError,
            "state: expected keys alarm, lower, scalars, upper, got none",
        ),
    ]
    for call, kind, message in cases:
        with pytest.raises(kind) as error:
            call()
        assert type(error.value) is kind
        assert str(error.value) == message


def test_empty_and_string():
    run = Focus().run([])
    assert run.statistic.shape == run.changepoint.shape == run.direction.shape == (0,)
    assert "\n" not in str(run)
    assert "1 alarms" in str(Focus(threshold=1.0).run([0.0, 0.0, 9.0]))


LOG_LIKELIHOOD = {
    # n times the largest mean log-likelihood of n values of this mean, without what depends on the values alone
    "bernoulli": lambda n, m: n * (special.xlogy(m, m) + special.xlogy(1 - m, 1 - m)),
    "poisson": lambda n, m: n * (special.xlogy(m, m) - m),
    "exponential": lambda n, m: -n * np.log(m),
}
DRAW = {
    "bernoulli": lambda rng, mean: rng.random() < mean,
    "poisson": lambda rng, mean: rng.poisson(4 * mean),
    "exponential": lambda rng, mean: rng.exponential(mean) + 1e-12,
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("family", LOG_LIKELIHOOD)
def test_other_families_equal_brute_force(family, seed):
    """After each value, to 1e-9: sums of some 300 terms of order one, whose rounding is below 1e-12."""
    rng = np.random.default_rng(seed)
    y = np.array([float(DRAW[family](rng, 0.2 if i < 150 else 0.6)) for i in range(300)])
    y[rng.random(300) < 0.05] = np.nan
    seen = np.isfinite(y)
    got = Focus(family=family).run(y)
    for n in range(2, 301, 7):
        z, where = y[:n][seen[:n]], np.flatnonzero(seen[:n])
        k = np.arange(1, z.size)
        before = np.cumsum(z)[:-1]
        after = z.sum() - before
        L = LOG_LIKELIHOOD[family]
        values = 2 * (L(k, before / k) + L(z.size - k, after / (z.size - k)) - L(z.size, z.mean()))
        assert got.statistic[n - 1] == pytest.approx(max(values.max(), 0.0), rel=1e-9, abs=1e-9)
        if values.max() > 1:
            assert got.changepoint[n - 1] in where[k[values >= values.max() - 1e-9] - 1] + 1
    assert got.direction[-1] == 1
    one = Focus(family=family)
    assert [one.update(v) for v in y] == got.statistic.tolist()
    two = Focus(family=family)
    two.run(y[:100])
    three = Focus(family=family)
    three.load_state_dict(two.state_dict())
    assert np.array_equal(three.run(y[100:]).statistic, got.statistic[100:])


@pytest.mark.parametrize(
    ("family", "values", "message"),
    [
        ("bernoulli", [0.0, 1.5], "y: expected values from 0 to 1, got 0 to 1.5"),
        ("poisson", [-1.0, 2.0], "y: expected values >= 0, got -1 to 2"),
        ("exponential", [0.0, 1.0], "y: expected values > 0, got 0 to 1"),
    ],
)
def test_values_outside_the_family_are_refused(family, values, message):
    test = Focus(family=family)
    with pytest.raises(ValueError) as caught:
        test.run(values)
    assert str(caught.value) == message
    with pytest.raises(ValueError, match="se: expected None with family"):
        test.update(0.5, 1.0)
    with pytest.raises(ValueError, match=r"family: expected one of .*, got gamma"):
        Focus(family="gamma")
