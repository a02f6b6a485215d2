"""Stages: equal to the plain reference, silent on relaxations, and right about staircases of known times."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
import stages_score as score_of
import stages_systems as curves
from reference_stages import ReferenceStages

from devinterp_fast import changepoint
from devinterp_fast.changepoint import Alarm, Stage, Stages, join
from devinterp_fast.errors import ShapeError

SMOOTH = ("power law", "exponential", "mixture", "rising metric", "least squares")


def observe(stages: Stages, steps, values, se=None) -> list[Alarm]:
    errors = [None] * len(steps) if se is None else se
    found = [stages.update(t, y, e) for t, y, e in zip(steps, values, errors, strict=True)]
    return [alarm for alarm in found if alarm is not None]


def assert_equals_reference(steps, values, kind="loss", se=None, **settings) -> int:
    """Same alarms, same rows at every tenth observation; returns the number of alarms."""
    fast, slow = Stages(kind, **settings), ReferenceStages(kind, **settings)
    alarms = 0
    for i, (t, y) in enumerate(zip(np.asarray(steps).tolist(), np.asarray(values).tolist(), strict=True)):
        error = None if se is None else float(se[i])
        one, two = fast.update(t, y, error), slow.update(t, y, error)
        pairs = [(one, two)] if one or two else []
        alarms += len(pairs)
        if i % 10 == 0 or i == len(steps) - 1:
            assert len(fast.rows()) == len(slow.rows())
            pairs += zip(fast.rows(), slow.rows(), strict=True)
        for got, expected in pairs:
            assert got is not None
            assert expected is not None
            for name, number in expected.items():
                # both take exact means to rounding; crossings divide by the local slope, which is what the
                # margin is for
                assert getattr(got, name) == pytest.approx(number, rel=1e-8, abs=1e-11), name
    return alarms


SETTINGS = {
    "default": {},
    "sensitive": {"z": 4.0, "delta": 0.02, "size": 0.0},
    "long stages": {"kappa": 0.2},
    "late": {"skip": 150.0, "eps": 0.1},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_equals_the_reference(settings):
    cases = [curve for *_, curve in curves.closed_forms()][:: 30 if settings else 12]
    cases += [curve for *_, curve in curves.trained()][:: 60 if settings else 25]
    cases += [curve for *_, curve in curves.nulls(1)][:10]
    alarms = sum(assert_equals_reference(c.steps, c.values, c.kind, c.se, **settings) for c in cases)
    assert alarms > 3


@pytest.mark.parametrize("seed", range(6))
def test_equals_the_reference_on_wild_curves(seed):
    rng = np.random.default_rng(seed)
    steps = np.cumsum(rng.exponential(5.0, 300))
    walk = np.cumsum(rng.standard_t(2, 300)) + 40 * (steps > steps[150])
    walk[rng.random(300) < 0.1] = np.nan
    se = rng.uniform(0, 0.5, 300)
    alarms = assert_equals_reference(steps, walk, "metric", z=3.0)
    alarms += assert_equals_reference(steps, walk, "metric", scale=20.0, se=se)
    alarms += assert_equals_reference(steps, np.abs(walk), z=3.0)
    alarms += assert_equals_reference(steps, np.exp(walk / 20), se=se / 10)
    assert alarms > 5


@pytest.mark.parametrize("name", SMOOTH)
def test_relaxations_never_alarm(name):
    """Convex curves cannot: not one alarm, listed or withdrawn, whatever the clock."""
    cases = [curve for label, _, curve in curves.nulls(20) if label == name]
    assert len(cases) >= 20
    assert sum(len(score_of.watch(curve)[1]) for curve in cases) == 0


@pytest.mark.parametrize("spacing", ["every step", "log", "random"])
@pytest.mark.parametrize("known", [True, False], ids=["exact", "noise unknown"])
def test_no_convex_curve_alarms(spacing, known):
    """Random convex polygons and mixtures of exponentials, at a floor near zero and no share for noise."""
    for seed in range(30):
        rng = np.random.default_rng(seed)
        steps = {
            "every step": np.arange(400.0),
            "log": np.unique(np.round(np.geomspace(1, 1e5, 300))),
            "random": np.cumsum(rng.exponential(3.0, 300)),
        }[spacing]
        slopes = -np.sort(rng.pareto(1.0, len(steps) - 1))[::-1]
        polygon = np.concatenate([[0.0], np.cumsum(slopes * np.diff(steps))])
        rates = 10 ** rng.uniform(-5, 0, (8, 1))
        mixture = np.sum(rng.uniform(0, 1, (8, 1)) * np.exp(-rates * steps), axis=0)
        se = np.zeros(len(steps)) if known else None
        falling = Stages("metric", delta=1e-6, z=0.0)
        assert [a for a in falling.extend(steps, polygon, se) if a.direction < 0] == []
        assert Stages("loss", delta=1e-6, z=0.0, eps=1e-4).extend(steps, mixture, se) == []


def test_noise_about_a_constant_rarely_alarms():
    """False rows on 150 curves each: nearly none for white noise, few for AR .5, none if se is given."""
    rows = {0.0: 0, 0.5: 0, "given": 0}
    for seed in range(150):
        rng = np.random.default_rng(seed)
        steps = list(curves.clocks(3000.0).values())[seed % 3]
        kind = ("loss", "metric")[seed % 2]
        for phi in (0.0, 0.5):
            noise = 0.1 * curves.ar1(phi, len(steps), rng)
            rows[phi] += len(score_of.watch(curves.Curve(steps, 1 + noise, kind=kind))[0])
        se = rng.uniform(0.1, 0.2, len(steps))
        given = curves.Curve(steps, 1 + se * rng.standard_normal(len(steps)), kind=kind, se=se)
        rows["given"] += len(score_of.watch(given)[0])
    # z = 5 with true errors: 40 contrasts x 255 observations x 6e-7 is below 0.01 a curve, and the floor
    # comes on top
    assert rows["given"] <= 1
    # at z = 8 the rest is the error of the estimated noise: under 1 % of white and 4 % of AR .5 curves on
    # other seeds
    assert rows[0.0] <= 3
    assert rows[0.5] <= 8


def scored(system: str):
    score = score_of.Score()
    for name, _, curve in curves.closed_forms():
        if name == system:
            score_of.add(score, curve, score_of.watch(curve)[0])
    return score


def test_finds_the_steps_of_a_staircase():
    """Deep linear networks, 18 spectra and starts x 3 clocks; missed are last modes near 1 % of the range."""
    score = scored("dln")
    assert score.groups > 100
    assert score.precision == 1.0
    assert score.recall >= 0.95
    # an interpolated crossing is known to a fraction of the gap of observations, 2.5 to 5 % of the step here
    assert np.median(score.errors) <= 0.0125
    assert np.max(score.errors) <= 0.2
    # rows end at .3 of the peak speed, or where the next begins
    assert 0.88 <= np.median(score.sizes) <= 1.05
    assert np.median(score.delays) <= 0.5


@pytest.mark.parametrize(("system", "recall"), [("dln, noise 2%", 0.85), ("dln, noise 5%", 0.6), ("llc-like", 0.4)])
def test_finds_steps_in_noise(system, recall):
    score = scored(system)
    assert score.precision >= 0.95
    assert score.recall >= recall
    assert np.median(score.errors) <= 0.1


@pytest.mark.parametrize("sign", [1, -1])
def test_metric_rises_and_falls(sign):
    t = np.arange(0.0, 1000.0, 4)
    stages = Stages("metric", scale=1.0)
    alarms = observe(stages, t, 5 + sign / (1 + np.exp(-(t - 500) / 20)))
    (row,) = stages.rows()
    assert [alarm.direction for alarm in alarms] == [sign] == [row.direction]
    # a logistic of width 20: 10 and 90 % at 500 -+ 20 log 9. The row ends at .3 of the peak speed, at 92 %
    # of the rise, so its midpoint is where 46 % is done, 20 x 0.16 early; its observation gap is 4.
    assert row.midpoint == pytest.approx(500 - 20 * 0.16, abs=4)
    assert row.onset == pytest.approx(500 - 20 * math.log(9), abs=10)
    assert row.onset <= alarms[0].step <= 500
    assert not row.provisional


def test_rise_of_a_loss_is_not_a_stage():
    t = np.arange(0.0, 1000.0, 4)
    assert Stages("loss").extend(t, 1 + 5 / (1 + np.exp(-(t - 500) / 20))) == []


def drop(t, at=500.0, width=20.0):
    return 1 + 2 / (1 + np.exp((t - at) / width))


def test_an_open_row_is_provisional():
    t = np.arange(0.0, 1000.0, 4)
    stages, seen = Stages(), []
    for step, value in zip(t, drop(t), strict=True):
        stages.update(step, value)
        seen.append([row.provisional for row in stages.rows()])
    assert seen[0] == []
    assert [True] in seen
    assert seen[-1] == [False]
    assert seen == sorted(seen, key=lambda s: [[], [True], [False]].index(s))


def test_skip_hides_the_start():
    t = np.arange(0.0, 400.0, 2)
    curve = drop(t, at=60.0, width=5.0)
    assert len(Stages(skip=10.0).extend(t, curve)) == 1
    assert Stages(skip=200.0).extend(t, curve) == []


def test_known_range_of_a_metric():
    """A tenth of the known range is listed, a hundredth is not, although it is the whole range so far."""
    t = np.arange(0.0, 1000.0, 4)
    rise = 1 / (1 + np.exp(-(t - 500) / 20))
    for height, rows in ((0.1, 1), (0.01, 0)):
        stages = Stages("metric", scale=1.0)
        stages.extend(t, height * rise)
        assert len(stages.rows()) == rows
        stages = Stages("metric")
        stages.extend(t, height * rise)
        assert len(stages.rows()) == 1


def noisy_staircase():
    *_, curve = [c for c in curves.closed_forms() if c[0] == "dln, noise 2%"][4]
    return curve.steps, curve.values


@pytest.mark.parametrize("given", [False, True])
def test_resumes_bit_for_bit_anywhere(given):
    steps, values = noisy_staircase()
    se = 0.02 * values if given else [None] * len(steps)
    whole = Stages()
    history = []
    for t, y, e in zip(steps, values, se, strict=True):
        history.append((whole.update(t, y, e), whole.rows()))
    assert any(alarm for alarm, _ in history)
    current = Stages()
    for i, (t, y, e) in enumerate(zip(steps, values, se, strict=True)):
        state = current.state_dict()
        assert all(isinstance(v, (str, float, np.ndarray)) for v in state.values())
        current = Stages()
        current.load_state_dict(state)
        assert (current.update(t, y, e), current.rows()) == history[i]


def test_state_of_other_settings_is_refused():
    state = Stages(delta=0.1).state_dict()
    with pytest.raises(ValueError, match=r"^state: expected delta 0.05 as in this object, got 0.1$"):
        Stages().load_state_dict(state)
    with pytest.raises(ValueError, match=r"^state: expected one of Stages\.state_dict\(\), got keys kind$"):
        Stages().load_state_dict({"kind": "loss"})
    damaged = {**Stages().state_dict(), "step": np.arange(3.0)}
    with pytest.raises(ValueError, match=r"^values: expected as many as steps"):
        Stages().load_state_dict(damaged)


def test_extend_equals_update():
    steps, values = noisy_staircase()
    one, two = Stages(), Stages()
    assert observe(one, steps, values) == two.extend(steps, values) != []
    assert one.rows() == two.rows() != []
    one, two = Stages(), Stages()
    assert observe(one, steps, values, [0.01] * len(steps)) == two.extend(steps, values, 0.01)


@pytest.mark.parametrize("factor", [1e-30, 1e-3, 1024.0, 1e30])
def test_a_loss_may_have_any_scale(factor):
    steps, values = noisy_staircase()
    plain, scaled = Stages(), Stages()
    alarms, same = plain.extend(steps, values), scaled.extend(steps, factor * values)
    assert [a.step for a in alarms] == [a.step for a in same] != []
    for one, two in zip(plain.rows(), scaled.rows(), strict=True):
        assert two.midpoint == pytest.approx(one.midpoint, rel=1e-9)
        assert two.size == pytest.approx(factor * one.size, rel=1e-9)


@pytest.mark.parametrize("offset", [-7.0, 2.0**30, -(2.0**40)])
def test_a_metric_may_have_any_offset(offset):
    """Values in multiples of 2^-12 below 2^41 are exact, so the differences are the same to the bit."""
    rng = np.random.default_rng(0)
    t = np.arange(0.0, 1000.0, 4)
    values = np.round((drop(t) + 0.02 * rng.standard_normal(len(t))) * 4096) / 4096
    plain, shifted = Stages("metric"), Stages("metric")
    assert plain.extend(t, values) == shifted.extend(t, values + offset) != []
    for one, two in zip(plain.rows(), shifted.rows(), strict=True):
        # the levels themselves are rounded to 2^-12 of a drop of 2 at most
        assert two.midpoint == pytest.approx(one.midpoint, abs=0.1)


def test_steps_may_have_any_offset():
    t = np.arange(0.0, 1000.0, 4)
    plain, shifted = Stages(), Stages()
    alarms, same = plain.extend(t, drop(t)), shifted.extend(t + 2.0**33, drop(t))
    assert [a.step + 2.0**33 for a in alarms] == [a.step for a in same] != []


def test_missing_observations_are_as_if_never_made():
    steps, values = noisy_staircase()
    rng = np.random.default_rng(0)
    missing = rng.random(len(steps)) < 0.2
    missing[60:75] = True
    holes = np.where(missing, rng.choice([np.nan, np.inf, -np.inf], len(steps)), values)
    one, two = Stages(), Stages()
    assert one.extend(steps, holes) == two.extend(steps[~missing], values[~missing]) != []
    assert one.rows() == two.rows() != []


@pytest.mark.parametrize("kind", ["loss", "metric"])
@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 1e300, 1e-300])
def test_a_constant_is_quiet(kind, value):
    for se in (None, 0.0):
        stages = Stages(kind)
        assert stages.extend(np.arange(300.0), np.full(300, value), se) == []
        assert stages.rows() == []


def test_a_single_jump_is_one_row():
    t = np.arange(0.0, 300.0)
    stages = Stages()
    stages.extend(t, np.where(t < 150, 3.0, 1.0))
    (row,) = stages.rows()
    assert 149 <= row.onset <= row.midpoint <= row.end <= 150
    assert row.before == 3.0
    assert row.after == 1.0


def at_speeds(*speeds, each=30):
    """A metric that rises at these speeds, each kept for as many observations; it rests before and after."""
    return np.cumsum(np.repeat([0.0, *speeds, 0.0], each))


@pytest.mark.parametrize(("second", "rows"), [(0.55, 1), (0.65, 1), (0.8, 2), (1.0, 2)])
@pytest.mark.parametrize("known", [True, False], ids=["exact", "noise unknown"])
def test_neighbors_part_where_the_speed_fell_below_both_peaks(second, rows, known):
    """From 1 to .5, a stage's end, and up again: .5 is under .7 of .8 and 1, and above .7 of .55 and .65."""
    y = at_speeds(1.0, 0.5, second)
    stages = Stages("metric", scale=y[-1], delta=0.02)
    alarms = stages.extend(np.arange(float(len(y))), y, 0.0 if known else None)
    assert len(alarms) == 2  # so two rows without the rule
    found = stages.rows()
    assert len(found) == rows
    assert (found[0].before, found[-1].after) == (0.0, y[-1])
    assert found[0].alarm == alarms[0].step
    if rows == 1:  # half of the whole is done in the row's middle
        assert found[0].midpoint == pytest.approx(np.interp(y[-1] / 2, y, np.arange(len(y))), abs=0.5)


@pytest.mark.parametrize("given", [True, False])
def test_noise_does_not_join_what_a_plateau_parts(given):
    """Two drops, 16 widths apart: a plateau four times as long as a third of the way, so its speed is known."""
    t = np.arange(0.0, 1000.0, 4)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        y = 1 + drop(t, at=300.0) + drop(t, at=620.0) + 0.05 * rng.standard_normal(len(t))
        stages = Stages()
        stages.extend(t, y, 0.05 if given else None)
        assert [round(row.midpoint / 100) for row in stages.rows()] == [3, 6], seed


# Falls of one task's loss that waver under SGD: as many alarms as given here, and each alarm was a row.
WAVERING = {(8, "task4"): 2, (10, "task1"): 2, (24, "task2"): 2, (20, "task4"): 2, (10, "task4"): 2}


@pytest.mark.parametrize(("run", "alarms"), WAVERING.items(), ids=str)
def test_a_wavering_fall_is_one_row(run, alarms):
    seed, task = run
    table = curves.runs()["more parity", seed]
    assert assert_equals_reference(table.steps, table.table[task]) >= alarms
    stages = Stages()
    found = stages.extend(table.steps, table.table[task])
    (row,) = stages.rows()
    (truth,) = table.truth(1 - table.table[task] / math.log(2))
    assert truth.t10 <= row.midpoint <= truth.t90
    assert row.alarm == found[0].step
    again = Stages()
    again.load_state_dict(stages.state_dict())
    assert again.rows() == [row]


def test_a_relaxation_between_two_drops_is_not_part_of_one():
    """Most of the fall lies between the drops at 150 and 600, at about the speed of the later one in this noise."""
    t = np.arange(0.0, 1000.0, 5)
    relaxed = 0.3 / (1 + np.exp((t - 150) / 8)) + 0.7 * np.exp(-np.maximum(t - 150, 0) / 300)
    y = relaxed * (1 - 0.12 / (1 + np.exp((600 - t) / 8))) * np.exp(0.03 * np.random.default_rng(1).normal(size=200))
    assert assert_equals_reference(t, y) == 2
    stages = Stages()
    stages.extend(t, y)
    first, second = stages.rows()
    assert first.end < 250
    assert second.onset > 350


def test_most_rows_of_parity_are_transitions():
    """The runs that the rule was set on: of 76 rows without it 52 were transitions."""
    score = score_of.Score()
    for system, half, curve in curves.more():
        if system == "more parity" and half == 0:
            score_of.add(score, curve, score_of.watch(curve)[0])
    assert score.groups > 40
    assert score.precision >= 0.8
    assert score.recall == 1.0


def test_a_hundred_thousand_observations():
    """A drop is dated as well after 8e4 observations as after 80, on top of 1e9."""
    t = np.arange(1e5)
    rng = np.random.default_rng(0)
    stages = Stages("metric")
    alarms = stages.extend(t, 1e9 + drop(t, at=8e4, width=100.0) + 1e-3 * rng.standard_normal(len(t)))
    (row,) = stages.rows()
    # blocks of 128 at most: a tenth of the width of the drop, 440 from 10 to 90 %
    assert row.midpoint == pytest.approx(8e4, abs=128)
    assert alarms[0].step == row.alarm < 8e4


def test_first_observation_decides_about_errors():
    """A later observation without an error repeats the last; one with an error is taken without it."""
    steps, values = noisy_staircase()
    one, two = Stages(), Stages()
    observe(one, steps, values, [0.05] * len(steps))
    observe(two, steps, values, [None if i % 3 else 0.05 for i in range(len(steps))])
    assert one.rows() == two.rows()
    one, two = Stages(), Stages()
    observe(one, steps, values)
    observe(two, steps, values, [None] + [0.05] * (len(steps) - 1))
    assert one.rows() == two.rows()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "Loss"}, "kind: expected 'loss' or 'metric', got 'Loss'"),
        ({"delta": 0.0}, "delta: expected a positive number, got 0.0"),
        ({"eps": math.nan}, "eps: expected a positive number, got nan"),
        ({"kind": "metric", "scale": -1.0}, "scale: expected a positive number, got -1.0"),
        ({"scale": 1.0}, "scale: expected None for a loss, got 1.0"),
        ({"z": -1.0}, "z: expected a number >= 0, got -1.0"),
        ({"kappa": 1.0}, "kappa: expected a number between 0 and 1, got 1.0"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError) as error:
        Stages(**settings)
    assert str(error.value) == message


def test_bad_observations():
    stages = Stages()
    stages.update(3.0, 1.0)
    for step in (3.0, 2.0):
        with pytest.raises(ValueError) as error:
            stages.update(step, 1.0)
        assert str(error.value) == f"step: expected a finite number above 3, got {step:g}"
    for step in (math.nan, -1.0, math.inf):
        with pytest.raises(ValueError) as error:
            Stages().update(step, 1.0)
        assert str(error.value) == f"step: expected a finite number >= 0, got {step:g}"
    with pytest.raises(ValueError, match=r"^se: expected a finite number >= 0, got -1$"):
        stages.update(4.0, 1.0, -1.0)
    with pytest.raises(ShapeError, match=r"^values: expected shape of steps \(3,\)"):
        stages.extend([4.0, 5.0, 6.0], [1.0])
    with pytest.raises(ShapeError, match=r"^se: expected shape \(2,\) or a number, got shape \(3,\)$"):
        stages.extend([4.0, 5.0], [1.0, 1.0], [0.1, 0.1, 0.1])
    assert stages.update(4.0, 1.0) is None


def row(onset, midpoint, end, alarm=0.0, provisional=False):
    return Stage(onset, midpoint, end, alarm, end, 1.0, 0.5, 0.7, -1, provisional)


def test_one_transition_is_one_row():
    joint = join(
        {
            "loss": [row(80, 100, 120, 95), row(290, 300, 310, 295)],
            "accuracy": [row(90, 104, 125, 92)],
            "prefix": [row(60, 90, 130, 70), row(280, 310, 350, 305, True)],
        }
    )
    assert [sorted(j.channels) for j in joint] == [["accuracy", "loss", "prefix"], ["loss", "prefix"]]
    first, second = joint
    assert (first.onset, first.midpoint, first.end, first.alarm) == (80, 100, 125, 70)
    assert (second.onset, second.midpoint, second.end, second.alarm) == (285, 305, 330, 295)
    assert (first.provisional, second.provisional) == (False, True)


def test_a_channel_enters_a_group_once():
    """A metric with a long window does not swallow two stages of a loss."""
    joint = join({"loss": [row(80, 100, 120), row(180, 200, 220)], "slow": [row(50, 150, 260)]})
    assert [sorted(j.channels) for j in joint] == [["loss"], ["loss", "slow"]] or [
        sorted(j.channels) for j in joint
    ] == [["loss"], ["slow"], ["loss"]]
    assert sum("loss" in j.channels for j in joint) == 2


def test_far_rows_stay_apart():
    assert len(join({"a": [row(10, 20, 30)], "b": [row(40, 50, 60)]})) == 2
    assert join({}) == []
    assert join({"a": []}) == []


def test_join_of_two_views_of_one_network():
    """Loss and learned singular values of one staircase: one joint row for each mode, seen twice."""
    spectrum, a0 = (4.0, 1.0), 1e-3
    steps = np.arange(0.0, 1000.0, 4)
    modes = [curves.mode(s, a0, steps) for s in spectrum]
    loss, learned = Stages("loss"), Stages("metric", scale=2.0)
    loss.extend(steps, sum((s - a) ** 2 / 2 for s, a in zip(spectrum, modes, strict=True)))
    learned.extend(steps, sum(a / s for s, a in zip(spectrum, modes, strict=True)))
    joint = join({"loss": loss.rows(), "learned": learned.rows()})
    assert [sorted(j.channels) for j in joint] == [["learned", "loss"]] * 2
    for j, s in zip(joint, spectrum, strict=True):
        # loss share and strength of one mode reach a half at a = .29 s and .5 s, which frames the joint
        # midpoint
        low, high = (curves.mode_time(s, a0, f * s) for f in (0.2, 0.6))
        assert low <= j.midpoint <= high


@pytest.mark.parametrize("module", [changepoint.stages, changepoint.focus])
def test_documented_examples(module):
    assert doctest.testmod(module, raise_on_error=False).failed == 0


def test_one_line_strings():
    t = np.arange(0.0, 1000.0, 4)
    stages = Stages()
    (alarm,) = stages.extend(t, drop(t))
    rows = stages.rows()
    (joint,) = join({"loss": rows})
    for thing in (alarm, rows[0], joint):
        assert "\n" not in str(thing)
        assert f"{rows[0].alarm:g}" in str(thing)
