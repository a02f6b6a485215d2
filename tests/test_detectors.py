import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from devinterp_fast import _cpu
from devinterp_fast.changepoint.detectors import Detector
from devinterp_fast.changepoint.noise import Noise, ar1, robust_scale
from devinterp_fast.errors import DTypeError, ShapeError

MODELS = ("mean", "kink", "jump+kink", "meanvar")


def brute_force(model, x, y, w, taus):
    """Falls of the weighted residual squares by least squares in float64."""
    n = len(x)
    seen = w > 0
    if model == "meanvar":
        return np.array([_two_variances(y, w, seen, t) for t in taus])
    centered = (x - x.mean()) / (np.ptp(x) or 1.0)
    base = np.ones((n, 1)) if model == "mean" else np.c_[np.ones(n), centered]

    def squares(design):
        root = np.sqrt(w)[:, None]
        fit = np.linalg.lstsq(design * root, y * root[:, 0], rcond=None)[0]
        return np.sum(w * (y - design @ fit) ** 2)

    out = []
    for t in taus:
        jump, hinge = (np.arange(n) >= t).astype(float), np.clip((x - x[t - 1]) / (np.ptp(x) or 1.0), 0, None)
        added = {"mean": [jump], "kink": [hinge], "jump+kink": [jump, hinge]}[model]
        out.append(squares(base) - squares(np.column_stack([base, *added])))
    return np.array(out)


def _two_variances(y, w, seen, t):
    after = np.arange(len(y)) >= t
    if min(seen[after].sum(), seen[~after].sum()) < 5:
        return 0.0

    def cost(part):
        part = part & seen
        mean = np.sum(w[part] * y[part]) / w[part].sum()
        return part.sum() * np.log(np.sum(w[part] * (y[part] - mean) ** 2) / part.sum())

    return cost(seen) - cost(after) - cost(~after)


@pytest.fixture(params=_cpu.isa_available())
def isa(request):
    _cpu.use_isa(request.param)
    yield request.param
    _cpu.use_isa("")


@pytest.mark.parametrize("kind", ["plain", "shared weights", "missing", "own weights"])
@pytest.mark.parametrize("model", MODELS)
def test_statistics_equal_least_squares(isa, model, kind):
    """Every candidate of every channel, at several times, on unequal steps and a trend."""
    rng = np.random.default_rng(0)
    n, channels = 200, 19  # one full block of sixteen lanes and one of three
    x = np.cumsum(rng.uniform(0.5, 2, n))
    y = (rng.normal(size=(n, channels)) + (0 if model in ("mean", "meanvar") else 0.05) * x[:, None] + 3).astype("f4")
    se = np.ones((n, channels))
    if kind == "shared weights":
        se = np.broadcast_to(rng.uniform(0.5, 2, (n, 1)), (n, channels))
    if kind == "own weights":
        se = rng.uniform(0.5, 2, (n, channels))
    if kind == "missing":
        y[rng.random((n, channels)) < 0.1] = np.nan
    det = Detector(channels, model=model, arl=None, noise="given")
    for i in range(n):
        det.update(x[i], y[i], se[i, 0] if kind == "shared weights" else se[i] if kind == "own weights" else 1.0)
        if i not in (11, 63, 64, 150, 199):
            continue
        for c in (0, 15, 16, 18):
            seen = np.isfinite(y[: i + 1, c])
            w = np.where(seen, (se[0, c] / se[: i + 1, c]) ** 2, 0.0)
            got = det.profile(c)
            tau = got[:, 0].astype(int)
            want = brute_force(model, x[: i + 1], np.where(seen, y[: i + 1, c], 0).astype(float) / se[0, c], w, tau)
            if model == "jump+kink":  # one degree of freedom alone is left where a side has but one point
                kept = np.array([min(seen[:t].sum(), seen[t:].sum()) > 1 for t in tau])
                got, want = got[kept], want[kept]
            # float32 sums of noise of unit scale: 6e-8 times the sums' condition, below 1e3 for twenty points a side
            np.testing.assert_allclose(got[:, 2], want, rtol=1e-4, atol=1e-4)
            assert det.statistic()[c] <= max(want.max(initial=0.0), got[:, 2].max(initial=0.0)) * (1 + 1e-4) + 1e-4


def test_grid_is_four_an_octave_of_age():
    det = Detector(1, arl=None, noise="unit")
    n = 5000
    det.update(np.arange(n), np.zeros((n, 1), dtype="f4"))
    tau = np.arange(n - 1, 0, -1)
    level = np.floor(np.log2(np.maximum((n - tau) // 4, 1))).astype(int)
    np.testing.assert_array_equal(det.profile(0)[:, 0], tau[tau % 2**level == 0])
    assert det.nbytes <= 1024 * 16  # one channel takes a block of sixteen


@pytest.mark.parametrize("model", MODELS)
def test_blocks_of_steps_threads_and_instruction_sets_give_the_same_bits(model):
    rng = np.random.default_rng(1)
    y = rng.normal(size=(300, 50)).astype("f4")
    y[200:, 7] += 4
    y[100, 3] = np.nan
    results = []
    for isa, block, threads in ((name, b, t) for name in _cpu.isa_available() for b, t in ((1, 1), (300, 2), (37, 1))):
        _cpu.use_isa(isa)
        det = Detector(50, model=model, noise="unit", arl=1e4, threads=threads)
        alarms = [a for i in range(0, 300, block) for a in det.update(np.arange(300)[i : i + block], y[i : i + block])]
        results.append((alarms, det.statistic().tobytes()))
    _cpu.use_isa("")
    assert results[0][0]
    assert all(r == results[0] for r in results)


@pytest.mark.parametrize("noise", ["mad", "ar1", "given"])
def test_blocks_of_steps_give_the_same_alarms_whatever_the_noise(noise):
    rng = np.random.default_rng(12)
    y = rng.normal(size=(200, 20))
    y[150:, 4] += 6
    y[30, 2] = np.nan
    results = []
    for block in (1, 64, 200):
        det = Detector(20, noise=noise, arl=1e3, burn_in=50, clip=4.0)
        blocks = [slice(i, i + block) for i in range(0, 200, block)]
        results.append(
            [a for b in blocks for a in det.update(np.arange(200)[b], y[b], 1.0 if noise == "given" else None)]
        )
    assert any(a.channel == 4 for a in results[0])
    assert results[1] == results[0]
    assert results[2] == results[0]


def test_a_channel_alone_equals_itself_among_many():
    rng = np.random.default_rng(2)
    y = rng.normal(size=(150, 40)).astype("f4")
    many, one = Detector(40, arl=None, noise="unit"), Detector(1, arl=None, noise="unit")
    many.update(np.arange(150), y)
    one.update(np.arange(150), y[:, 21:22])
    assert one.statistic()[0] == many.statistic()[21]


@pytest.mark.parametrize(("model", "shape"), [("mean", "jump"), ("kink", "kink"), ("jump+kink", "jump")])
def test_one_change_gives_one_alarm(model, shape):
    rng = np.random.default_rng(3)
    n, channels = 600, 64
    t = np.arange(n)
    change = {"jump": 3.0 * (t >= 300), "kink": 0.1 * np.clip(t - 299, 0, None)}[shape]
    det = Detector(channels, model=model, noise="unit", arl=1e6)
    alarms = det.update(t, (rng.normal(size=(n, channels)) + change[:, None]).astype("f4"))
    by_channel = np.bincount([a.channel for a in alarms], minlength=channels)
    assert (by_channel >= 1).all()
    # a coarse onset leaves a little of the change behind, which now and then alarms again
    assert (by_channel == 1).mean() >= 0.8
    first = [next(a for a in alarms if a.channel == c) for c in range(channels)]
    assert all(a.direction == 1 and 300 <= a.step <= 345 for a in first)
    assert np.median([abs(a.index - 300) for a in first]) <= 8


def test_a_side_is_deaf_to_the_other():
    y = np.concatenate([np.zeros(50), -5 * np.ones(50)])[:, None]
    fall, rise = (Detector(1, model="mean", noise="unit", arl=1e4, side=s) for s in ("fall", "rise"))
    assert [a.direction for a in fall.update(range(100), y)] == [-1]
    assert rise.update(range(100), y) == []


def test_trends_are_no_change_to_the_kink_model_and_doubling_is_found():
    """Slope 0.01 sd a step: nominal share .181 in 2,000 steps +- .05; a doubling of it is found in 90 steps."""
    rng = np.random.default_rng(4)
    channels, n = 512, 3000
    trend = 0.01 * np.arange(n)[:, None]
    noise = rng.standard_normal((n, channels), dtype="f4")
    det = Detector(channels, noise="unit", threshold=Detector(1, noise="unit", arl=1e4)._level())
    quiet = det.update(np.arange(2000), (trend + noise)[:2000])
    share = len({a.channel for a in quiet}) / channels
    assert abs(share - 0.181) < 0.05 + 2 * np.sqrt(0.181 * 0.819 / channels)
    bend = trend + 0.01 * np.clip(np.arange(n) - 1000, 0, None)[:, None]
    det = Detector(channels, noise="unit", threshold=det.threshold)
    alarms = det.update(np.arange(n), (bend + noise).astype("f4"))
    first = {}
    for a in alarms:
        first.setdefault(a.channel, a.step)
    late = np.array([s - 1000 for s in first.values() if s > 1000])
    assert late.mean() <= 90


@pytest.mark.parametrize("model", MODELS)
def test_state_continues_bit_for_bit(model):
    rng = np.random.default_rng(5)
    y = rng.normal(size=(240, 20)).astype("f4")
    y[90, 2] = np.nan
    for noise, se in (("unit", None), ("mad", None), ("ar1", None), ("given", np.ones(240))):
        whole = Detector(20, model=model, noise=noise, arl=100.0, burn_in=100)
        part = Detector(20, model=model, noise=noise, arl=100.0, burn_in=100)
        for stop in (50, 130):
            start = 0 if stop == 50 else 50
            part.update(np.arange(start, stop), y[start:stop], None if se is None else se[start:stop])
            other = Detector(20, model=model, noise=noise, arl=100.0, burn_in=100)
            other.load_state_dict(pickle.loads(pickle.dumps(part.state_dict())))
            part = other
        early = whole.update(np.arange(130), y[:130], None if se is None else se[:130])
        assert isinstance(early, list)
        rest = (np.arange(130, 240), y[130:], None if se is None else se[130:])
        assert part.update(*rest) == whole.update(*rest)
        assert part.statistic().tobytes() == whole.statistic().tobytes()
        assert part.statistic().any()


def test_torch_and_strided_rows_are_read_as_they_are():
    wide = torch.randn(64, 48, generator=torch.Generator().manual_seed(0))
    a, b, c = (Detector(32, arl=None, noise="unit") for _ in range(3))
    a.update(torch.arange(64), wide[:, :32])
    b.update(np.arange(64), wide[:, :32].numpy().copy())
    c.update(np.arange(64), wide[:, :32].double())
    assert a.statistic().tobytes() == b.statistic().tobytes()
    np.testing.assert_allclose(c.statistic(), a.statistic(), rtol=1e-4, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(MODELS),
    st.integers(0, 2**32 - 1),
    st.floats(-1e6, 1e6),
    st.sampled_from([0.0, 1e-40, 1.0]),
    st.booleans(),
)
def test_streams_that_break_others(model, seed, offset, scale, holes):
    """Constants, huge offsets, denormals, bursts of NaN and infinity: finite statistics, and life after a burst."""
    rng = np.random.default_rng(seed)
    y = offset + scale * rng.normal(size=(120, 17))
    if holes:
        y[40:60, ::2] = np.nan
        y[70] = np.inf
    det = Detector(17, model=model, noise="unit", threshold=25.0)
    det.update(np.arange(120), y)
    assert np.isfinite(det.statistic()).all()
    if model != "meanvar":
        later = det.update(
            np.arange(120, 240), offset + 50.0 * np.linspace(0, 1, 120)[:, None] ** 3 + np.zeros((1, 17))
        )
        assert {a.channel for a in later} == set(range(17))


def test_invariant_to_offset_and_scale():
    rng = np.random.default_rng(6)
    y = rng.normal(size=(300, 16))
    a, b = (Detector(16, arl=None, noise="mad", burn_in=50) for _ in range(2))
    a.update(np.arange(300), y)
    b.update(np.arange(300), 1000 + 7 * y)
    np.testing.assert_allclose(a.statistic(), b.statistic(), rtol=1e-3, atol=1e-3)  # float32 sums


def test_a_long_steep_trend_keeps_its_digits():
    """A line of 1 sd a step over 65,536 steps: the statistic stays that of the noise."""
    rng = np.random.default_rng(7)
    n = 65536
    noise = rng.normal(size=(n, 1))
    flat, steep = (Detector(1, arl=None, noise="unit") for _ in range(2))
    for i in range(0, n, 512):
        t = np.arange(i, i + 512)
        flat.update(t, noise[i : i + 512])
        steep.update(t, (noise[i : i + 512] + t[:, None]))
    # y itself is rounded to float32 on entry: 65536 x 6e-8 = 4e-3 of the noise, at random
    np.testing.assert_allclose(steep.profile(0)[:, 2], flat.profile(0)[:, 2], atol=0.05)


def test_noise_estimates():
    rng = np.random.default_rng(8)
    n = 4000
    y = np.empty((n, 3))
    y[0] = rng.normal(size=3)
    for i in range(1, n):
        y[i] = 0.5 * y[i - 1] + np.sqrt(0.75) * rng.normal(size=3)
    phi, sigma = ar1(np.arange(n, dtype=float), 2 * y + 0.01 * np.arange(n)[:, None])
    assert np.abs(phi - 0.5).max() < 4 * np.sqrt(0.75 / n)
    assert np.abs(sigma - 2).max() < 4 * 2 * np.sqrt(5 / 3 / 2 / n)  # var(s^2) = 2 (1 + phi^2)/(1 - phi^2) / n
    white = rng.normal(size=(n, 3))
    white[5] = np.nan
    assert np.abs(robust_scale(3 * white) - 3).max() < 4 * 3 * np.sqrt(6.8 / 4 / n)


def test_unequal_gaps_are_whitened_with_their_regressors():
    """An exact line plus AR(1) noise of known phi: the statistics are those of generalized least squares."""
    rng = np.random.default_rng(9)
    n, phi = 60, 0.6
    step = np.cumsum(rng.integers(1, 4, n)).astype(float)
    cov = phi ** np.abs(step[:, None] - step[None, :])
    y = (np.linalg.cholesky(cov) @ rng.normal(size=n) + 5 + 0.2 * step)[:, None]
    noise = Noise("ar1", 1, n)
    noise.scale, noise.phi, noise.gap = np.ones(1), np.array([phi]), 1.0
    white = noise.whiten(step, step, y, None)
    test = _cpu.GlrDetector(1, 1, 4, 0, np.inf, 7.0, True)
    for i in range(n):
        own = None if white.own_x is None else np.ascontiguousarray(white.own_x[i : i + 1])
        weight = None if white.weight is None else np.ascontiguousarray(white.weight[i : i + 1])
        test.update(white.x[i : i + 1], white.y[i : i + 1], weight, own, 1)
    got = test.profile(0)
    inverse = np.linalg.inv(cov[1:, 1:] - np.outer(cov[1:, 0], cov[0, 1:]))  # given the first value

    def squares(design):
        given_first = design[1:] - cov[1:, :1] * design[:1]
        target = y[1:, 0] - cov[1:, 0] * y[0, 0]
        root = np.linalg.cholesky(inverse).T
        fit = np.linalg.lstsq(root @ given_first, root @ target, rcond=None)[0]
        return np.sum((root @ (target - given_first @ fit)) ** 2)

    base = np.c_[np.ones(n), step]
    for tau, _, statistic, _ in got[got[:, 0] > 3]:
        # whitened x are shifted by phi / (1 - phi) = 1.5 steps of the usual gap: the hinge bends that much earlier
        hinge = np.clip(step - step[int(tau) - 1], 0, None)
        shifted = np.clip(step - step[int(tau) - 1] + phi / (1 - phi), 0, None)
        near = [squares(base) - squares(np.c_[base, h]) for h in (hinge, shifted)]
        assert min(near) - 1.0 <= statistic <= max(near) + 1.0


def test_clipping_holds_single_outliers():
    rng = np.random.default_rng(10)
    y = rng.normal(size=(400, 1))
    y[200] += 30
    plain, robust = (Detector(1, model="mean", noise="unit", arl=1e5, clip=c) for c in (None, 3.0))
    assert plain.update(range(400), y)
    assert robust.update(range(400), y) == []


def test_groups_find_what_no_channel_shows():
    rng = np.random.default_rng(11)
    y = rng.normal(size=(300, 200))
    y[150:, :100] += 0.6
    det = Detector(200, model="mean", noise="unit", arl=1e5, groups=np.repeat([0, 1], 100))
    alarms = det.update(range(300), y)
    assert [a.group for a in alarms] == [0]
    assert abs(alarms[0].index - 150) <= 5
    assert 150 <= alarms[0].step <= 170


def test_a_tree_names_the_node_that_changed():
    """Weights in heads, heads in layers, layers in a model: the change of one head is that head's alarm."""
    rng = np.random.default_rng(13)
    head = np.arange(128) // 8
    tree = np.stack([head, head // 4, np.zeros(128, dtype=int)])
    for changed, level, group in ((head == 5, 0, 5), (head // 4 == 2, 1, 2), (head >= 0, 2, 0)):
        y = rng.normal(size=(300, 128))
        y[150:, changed] += 0.9
        alarms = Detector(128, model="mean", noise="unit", arl=1e6, groups=tree).update(range(300), y)
        assert (alarms[0].level, alarms[0].group) == (level, group)
        assert abs(alarms[0].index - 150) <= 5
        assert len(alarms) == 1  # the nodes above and below it judge what the restart left
        assert str(alarms[0]).startswith(f"group {group} of level {level}   change after ")


@pytest.mark.parametrize(("model", "change"), [("jump+kink", "jump"), ("meanvar", "sd")])
def test_groups_of_two_degrees_of_freedom(model, change):
    rng = np.random.default_rng(14)
    y = rng.normal(size=(300, 60))
    if change == "jump":
        y[150:, :30] += 1.0
    else:
        y[150:, :30] *= 1.6
    alarms = Detector(60, model=model, noise="unit", arl=1e5, groups=np.repeat([0, 1], 30)).update(range(300), y)
    assert [a.group for a in alarms] == [0]
    assert abs(alarms[0].index - 150) <= 5


def test_a_million_steps():
    """Nothing drifts: the statistics at the end are those of noise, and a change after it is found."""
    rng = np.random.default_rng(15)
    det, block = Detector(16, arl=None, noise="unit"), 4096
    noise = rng.normal(size=(block, 16)).astype("f4")
    for start in range(0, 1_000_000, block):
        det.update(np.arange(start, start + block), np.roll(noise, start // block, axis=0) + np.float32(1e3))
    # the largest of 30 or so correlated chi-squares of one degree; 60 has a p of 1e-14
    assert det.profile(0)[:, 2].min() >= 0
    assert max(det.profile(c)[:, 2].max() for c in range(16)) < 60
    at = start + block
    det.update(np.arange(at, at + 100), (1e3 + 0.2 * np.arange(100)[:, None] + noise[:100]).astype("f4"))
    for c in range(16):
        points = det.profile(c)
        best = points[points[:, 2].argmax()]
        assert best[2] > 100
        assert abs(best[0] - at) <= 32


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"channels": 0}, ValueError, "channels: expected an integer of at least 1, got 0"),
        ({"model": "step"}, ValueError, "model: expected one of mean, kink, jump+kink, meanvar, got step"),
        ({"side": "up"}, ValueError, "side: expected one of both, rise, fall, got up"),
        ({"side": "rise", "model": "meanvar"}, ValueError, "side: expected both for meanvar, got rise"),
        ({"per_octave": 2}, ValueError, "per_octave: expected 4 without a threshold, got 2"),
        ({"threshold": -1.0}, ValueError, "threshold: expected a positive number or None, got -1.0"),
        ({"clip": 0.0}, ValueError, "clip: expected a positive number or None, got 0.0"),
        ({"groups": [0, 2, 2]}, ValueError, "groups: expected integers from 0 to 2, each in use, got others"),
        ({"groups": [0.0, 1.0, 2.0]}, ValueError, "groups: expected integers, got float64"),
        ({"groups": [0]}, ShapeError, "groups: expected shape (3,) or (levels, 3), got (1,)"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error) as caught:
        Detector(**{"channels": 3, **arguments})
    assert str(caught.value) == message


def test_bad_updates():
    det = Detector(3, noise="unit")
    det.update(5, [0.0, 1.0, 2.0])
    for step in (5, 4, np.nan, np.inf):
        with pytest.raises(ValueError, match="step: expected finite numbers rising above 5"):
            det.update(step, [0.0, 1.0, 2.0])
    with pytest.raises(ShapeError, match=r"y: expected shape \(1, 3\), got \(1, 2\)"):
        det.update(6, [0.0, 1.0])
    with pytest.raises(DTypeError, match="y: expected real numbers, got complex128"):
        det.update(6, [0j, 0j, 0j])
    with pytest.raises(ValueError, match="se: expected None with noise unit, got values"):
        det.update(6, [0.0, 1.0, 2.0], se=1.0)
    with pytest.raises(ValueError, match="state: expected keys"):
        det.load_state_dict({})
    given_errors = Detector(3, noise="given")
    with pytest.raises(ValueError, match="se: expected standard errors at every update, got None"):
        given_errors.update(0, [0.0, 1.0, 2.0])
