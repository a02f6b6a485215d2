import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from devinterp_fast.changepoint.segmentation import _SHORTEST, _long_run_noise, _partition, _Series, segment
from devinterp_fast.errors import DataError, ShapeError


@pytest.mark.parametrize("model", ["mean", "line", "kink"])
def test_optimum_is_that_of_every_choice_of_boundaries(model):
    rng = np.random.default_rng(0)
    n, penalty = 12, 3.0
    for _ in range(8):
        x = np.sort(rng.uniform(0, 1, n))
        x -= x[0]
        series = _Series(x, np.cumsum(rng.normal(size=n)), rng.uniform(0.5, 2, n) * 5)
        costs = []
        for count in range(4 if model == "kink" else 6):
            for knots in itertools.combinations(range(1, n - (model == "kink")), count):
                lengths = np.diff([0, *knots, n])
                if model == "kink" or (lengths >= _SHORTEST[model]).all():
                    costs.append(series.squares(model, list(knots)) + penalty * count)
        got = _partition(series, model, penalty, shares=False)
        if len(got) < 4:
            assert series.squares(model, got) + penalty * len(got) == pytest.approx(min(costs), abs=1e-9)
        else:
            assert series.squares(model, got) + penalty * len(got) <= min(costs) + 1e-9


def curve(model, rng, n=300, noise=0.3):
    x = np.linspace(0, 10, n)
    truth = {
        "mean": np.where(x < 4, 0.0, np.where(x < 7, 1.0, -0.5)),
        "line": np.where(x < 4, 0.5 * x, np.where(x < 7, 5.0 - 0.2 * x, 0.8 * x - 4)),
        "kink": np.interp(x, [0, 4, 7, 10], [0, 0, 3, 2]),
    }[model]
    return x, truth, truth + noise * rng.normal(size=n)


@pytest.mark.parametrize("model", ["mean", "line", "kink"])
def test_auto_finds_the_model_and_its_boundaries(model):
    rng = np.random.default_rng(1)
    x, truth, y = curve(model, rng)
    for se in (None, 0.3):
        fit = segment(x, y, se)
        assert fit.model == model
        assert [round(b.x) for b in fit.boundaries] == [4, 7]
        assert np.sqrt(np.mean((fit.fitted - truth) ** 2)) < 0.1
        assert all(b.interval[0] <= b.x <= b.interval[1] and b.gain > 3 * math.log(300) for b in fit.boundaries)


@pytest.mark.parametrize("model", ["mean", "kink"])
def test_intervals_cover(model):
    """95 % nominal, jumps of 1.25 and 1.9 sd: up to 300 trials have a standard error of 1.3 %."""
    rng = np.random.default_rng(2)
    inside = trials = 0
    for _ in range(150 if model == "mean" else 40):
        noise = 0.8 if model == "mean" else 0.5
        x, _, y = curve(model, rng, n=100, noise=noise)
        fit = segment(x, y, noise, model=model)
        if len(fit.boundaries) != 2:
            continue
        spacing = x[1] - x[0]
        for b, at in zip(fit.boundaries, (4, 7), strict=True):
            # a jump lies anywhere between the last old and the first new observation
            inside += b.interval[0] - spacing <= at <= b.interval[1] + (0 if model == "mean" else spacing)
            trials += 1
    assert trials >= 60
    assert inside / trials >= 0.93 - 2 * math.sqrt(0.05 * 0.95 / trials)


def test_noise_alone_is_one_segment():
    """Penalties of 3 log n: fewer than one series in ten of white noise, or of AR(1) noise, is split."""
    rng = np.random.default_rng(3)
    split = {"white": 0, "ar1": 0}
    for _ in range(20):
        white = rng.normal(size=200)
        ar = np.empty(400)
        ar[0] = white[0]
        for i in range(1, 400):
            ar[i] = 0.5 * ar[i - 1] + math.sqrt(0.75) * rng.normal()
        split["white"] += len(segment(np.arange(200), white, model="mean").boundaries) > 0
        split["ar1"] += len(segment(np.arange(400), ar, model="mean").boundaries) > 0
    assert split["white"] <= 2
    assert split["ar1"] <= 2


def test_long_run_noise():
    rng = np.random.default_rng(4)
    white = rng.normal(size=4000)
    # the median of second differences knows sigma to about 3 % here; twice that on either side
    assert abs(_long_run_noise(2 * white + 0.01 * np.arange(4000)) / 2 - 1) < 0.06
    assert _long_run_noise(np.ones(50)) == 1.0


def test_plateaus_and_critical_points():
    rng = np.random.default_rng(5)
    x = np.linspace(0, 12, 400)
    y = np.interp(x, [0, 3, 5, 8, 12], [0, 4, 4, 1, 3]) + 0.05 * rng.normal(size=400)
    fit = segment(x, y, 0.05, model="kink")
    ((low, high),) = fit.plateaus()
    assert (round(low), round(high)) == (3, 5)
    assert 8 in [round(c) for c in fit.critical_points()]
    np.testing.assert_allclose(fit.slopes, [4 / 3, 0, -1, 0.5], atol=0.05)


def test_invariant_to_offset_and_scale_and_missing_values():
    rng = np.random.default_rng(6)
    x, _, y = curve("kink", rng)
    holes = y.copy()
    holes[50:60] = np.nan
    base = segment(x, y)
    moved = segment(3 + 5 * x, 1e5 - 20 * y)
    assert [b.index for b in moved.boundaries] == [b.index for b in base.boundaries]
    np.testing.assert_allclose(moved.slopes, -4 * base.slopes, rtol=1e-6)
    assert len(segment(x, holes).boundaries) == 2


def test_many_channels_are_each_alone():
    rng = np.random.default_rng(7)
    x, _, a = curve("mean", rng)
    _, _, b = curve("kink", rng)
    both = segment(x, np.stack([a, b], axis=1), np.array(0.3))
    for fit, y in zip(both, (a, b), strict=True):
        alone = segment(x, y, 0.3)
        assert fit.boundaries == alone.boundaries
        assert str(fit) == str(alone)


def test_torch_tensors_are_read_in_place():
    """As they are, also strided and asking for gradients; nothing is written to them."""
    rng = np.random.default_rng(8)
    x, _, a = curve("kink", rng)
    wide = torch.tensor(np.stack([a, a[::-1].copy(), a], axis=1), requires_grad=True)
    before = wide.detach().clone()
    got = segment(torch.tensor(x), wide[:, :2], torch.tensor(0.3, dtype=torch.float64))
    for fit, y in zip(got, (a, a[::-1]), strict=True):
        assert fit.boundaries == segment(x, y, 0.3).boundaries
    assert torch.equal(wide, before)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["mean", "line", "kink"]),
    st.integers(0, 2**32 - 1),
    st.floats(-1e6, 1e6),
    st.sampled_from([0.0, 1e-12, 1.0, 1e6]),
    st.booleans(),
)
@example(
    model="mean", seed=0, offset=1.2165593041578852e-144, scale=0.0, holes=False
)  # the mean of a constant is rounded
@example(model="kink", seed=0, offset=2.1683537527233002e-306, scale=0.0, holes=True)
def test_any_series_is_fitted(model, seed, offset, scale, holes):
    """Constants, huge offsets, tiny and huge scales, bursts of NaN: finite fits, and intervals around boundaries."""
    rng = np.random.default_rng(seed)
    y = offset + scale * rng.normal(size=40)
    if holes:
        y[10:18] = np.nan
        y[30] = np.inf
    fit = segment(np.cumsum(rng.uniform(0.1, 2, 40)), y, model=model)
    assert np.isfinite(fit.fitted).all()
    assert np.isfinite(fit.slopes).all()
    assert all(b.interval[0] <= b.x <= b.interval[1] for b in fit.boundaries)


@pytest.mark.parametrize("model", ["auto", "mean", "line", "kink"])
def test_a_constant_has_no_boundary(model):
    assert segment(np.arange(20), np.full(20, 3.0), model=model).boundaries == ()


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (([0, 1], [0]), {}, ShapeError, "y: expected shape (2,) or (2, channels), got (1,)"),
        (([[0]], [0]), {}, ShapeError, "x: expected one dimension, got shape (1, 1)"),
        (([0, 0, 1], [0, 0, 0]), {}, DataError, "x: expected finite numbers that rise, got others"),
        (([0, 1, 2], [0, np.nan, 0]), {}, DataError, "y: expected at least 3 finite values, got 2"),
        (([0, 1], [0, 1], [1, 1, 1]), {}, ShapeError, "se: expected shape (2,), (2,) or a number, got (3,)"),
        (([0, 1], [0, 1]), {"model": "cubic"}, ValueError, "model: expected one of auto, mean, line, kink, got cubic"),
        (([0, 1], [0, 1]), {"penalty": -1.0}, ValueError, "penalty: expected a number >= 0 or None, got -1.0"),
    ],
)
def test_bad_input(arguments, options, error, message):
    with pytest.raises(error) as caught:
        segment(*arguments, **options)
    assert str(caught.value) == message
