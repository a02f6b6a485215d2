"""The monitor: what is due, what is measured, and what is said."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest
import torch
from planted_run import CHEAP, EVERY, STEPS, STRENGTHS, Deep, loss_fn, monitor, passage, train
from safetensors.torch import load_file
from torch import nn

from devinterp_fast.changepoint.channel import Channel
from devinterp_fast.monitor.monitor import Monitor
from devinterp_fast.monitor.observables import Observable, of_function
from devinterp_fast.monitor.schedule import Schedule

# --- the schedule ------------------------------------------------------------------------------------------


def test_even_schedule():
    due = [step for step in range(100) if Schedule(per_decade=0, every=7).due(step)]
    assert due == list(range(0, 100, 7))


@pytest.mark.parametrize("per_decade", [1, 3, 20, 40])
def test_log_schedule(per_decade):
    """Step s is due if a point 10^(k / per_decade) lies in (s - 1, s]: checked in integers, s^p >= 10^k."""
    rule = Schedule(per_decade=per_decade, every=0)
    points = range(4 * per_decade + 1)
    expected = {0}
    for k in points:  # the least s with s^p >= 10^k
        s = max(1, math.floor(10 ** (k / per_decade)) - 1)
        while s**per_decade < 10**k:
            s += 1
        expected.add(s)
    assert {step for step in range(10_001) if rule.due(step)} == expected
    # in the last decade no two points share a step (neighbors are at least 1000 (10^(1/40) - 1) = 59 apart)
    assert sum(rule.due(step) for step in range(1001, 10_001)) == per_decade


def test_schedules_add_up():
    both, log, even = Schedule(30, 25), Schedule(30, 0), Schedule(0, 25)
    for step in range(2000):
        assert both.due(step) == (log.due(step) or even.due(step))


@pytest.mark.parametrize(("per_decade", "every"), [(0, 0), (-1, 5), (5, -1)])
def test_bad_schedule(per_decade, every):
    message = rf"^schedule: expected .* got per_decade={per_decade}, every={every}$"
    with pytest.raises(ValueError, match=message):
        Schedule(per_decade, every)


# --- a planted run -----------------------------------------------------------------------------------------


def test_the_planted_modes_are_the_transitions(planted):
    rows = planted[0].transitions
    assert len(rows) == len(STRENGTHS)
    for i, (row, s) in enumerate(zip(rows, STRENGTHS, strict=True)):
        # The loss is halfway where (1 - a/s)^2 = 1/2, the mode where a/s = 1/2; a row is closed while its curve still
        # moves, at .6 of its peak speed, so it reads early by up to the time from there to rest. Both lie inside the
        # 10-90 % window of the logistic law, as the medians over the two curves must.
        assert passage(s, 0.1) < row.midpoint < passage(s, 0.9)
        assert {"loss", f"mode {i}"} == set(row.observables)
        assert not row.provisional
        assert row.onset < row.midpoint < row.end
        stages = row.observables.values()
        assert row.interval == (min(x.onset for x in stages), max(x.end for x in stages))
        assert row.alarm == min(x.alarm for x in stages)


def test_transitions_are_current_and_provisional_while_open(planted):
    _, changes, reads, _ = planted
    for step, change in changes.items():
        known = {(name, stage.alarm) for row in reads[step] for name, stage in row.observables.items()}
        assert {(name, alarm.step) for name, alarm in change.alarms.items()} <= known
        assert any(row.provisional for row in reads[step])
    open_steps = 0
    for step, rows in reads.items():
        for i, row in enumerate(rows):
            assert row.alarm <= step
            assert row.end <= step
            open_steps += row.provisional
            if not row.provisional:  # closed in all its curves: final
                assert all(later[i] == row for at, later in reads.items() if at > step)
    assert open_steps > len(STRENGTHS)  # the promise was tried


def test_new_opens_a_transition_and_only_once(planted):
    watch, changes, *_ = planted
    new = [change for change in changes.values() if change.new]
    assert [change.step for change in new] == [row.alarm for row in watch.transitions]
    others = [change for change in changes.values() if not change.new]
    said = {name for change in changes.values() for name in change.alarms}
    assert said == {"loss", "mode 0", "mode 1", "mode 2"}
    assert str(new[0]) == f"step {new[0].step}: a transition begins ({', '.join(new[0].alarms)})"
    assert all("goes on" in str(change) for change in others)
    assert all((watch.folder.path / change.checkpoint).exists() for change in changes.values())


def test_a_stage_too_small_to_list_is_not_announced():
    """A loss falls from 1 to .5, then from .5 to .47 and back up in a wave: with size=.2 only the first is a row."""
    curve = iter([])

    def measure(model, step):
        return {"y": next(curve)}

    def says(size):
        nonlocal curve
        t = np.arange(400.0)
        curve = iter(1 - 0.5 / (1 + np.exp(-(t - 100) / 8)) - 0.08 / (1 + np.exp(-(t - 300) / 4)))
        watch = monitor(Deep(), observables=[Observable(measure, {"y": Channel("loss", size=size)}, Schedule(0, 1))])
        found = [change for step in range(400) if (change := watch.update(step)) is not None]
        return watch, found

    watch, found = says(0.01)
    assert len(watch.transitions) == len(found) == 2
    watch, found = says(0.2)  # the second alarm fires as before, but .08 of .58 is less than a fifth
    assert len(watch.transitions) == len(found) == 1


def test_a_stage_is_announced_when_it_has_grown_enough():
    """Listed from a third of the range on: the second fall of an equal height fires long before."""
    t = np.arange(600.0)
    curve = 2 - 0.9 / (1 + np.exp(-(t - 100) / 8)) - 0.9 / (1 + np.exp(-(t - 400) / 30))

    def run(size):
        channels = {"y": Channel("loss", size=size)}
        watch = monitor(
            Deep(), observables=[Observable(lambda model, step: {"y": curve[step]}, channels, Schedule(0, 1))]
        )
        return watch, [change for step in range(600) if (change := watch.update(step)) is not None]

    early, late = run(0.01)[1][-1], run(0.3)[1][-1]
    assert late.alarms["y"] == early.alarms["y"]  # the same alarm
    assert late.step > early.step == early.alarms["y"].step  # said later
    assert early.new
    assert late.new


def test_one_transition_in_several_curves_is_one_row(planted):
    watch = planted[0]
    assert sum(len(row.observables) for row in watch.transitions) == 2 * len(watch.transitions)
    assert str(watch.transitions[0]).endswith("loss, mode 0")
    # JSON and back: nothing in it is a tensor or an array
    assert json.loads(json.dumps(watch.transitions[0].as_dict()))["observables"]["loss"]["direction"] == -1


def test_trace_holds_what_was_measured(planted):
    watch, _, _, states = planted
    trace = watch.trace
    assert trace["step"].values.tolist() == sorted(states) == watch.steps
    assert set(trace.data_vars) == {"loss", "mode 0", "mode 1", "mode 2"}
    for step, state in states.items():
        assert float(trace["mode 1"].sel(step=step)) == float((state["a"] @ state["b"])[1, 1])
        assert watch.observed(step)
    assert not watch.observed(1)


# --- what update() does and does not do --------------------------------------------------------------------


def test_only_due_steps_are_measured():
    seen = []

    def count(model):
        seen.append(1)
        return 0.0

    watch = monitor(Deep(), observables=[count])
    for step in range(100):
        watch.update(step)
        assert len(seen) == step // EVERY + 1
    assert watch.steps == [0, 20, 40, 60, 80]
    for step in range(100):  # all old: nothing is measured again
        watch.update(step)
    assert len(seen) == 5


def test_update_on_an_old_step_says_the_same(planted):
    watch, changes, *_ = planted
    for step in range(0, STEPS + 1, 5):
        assert watch.update(step) is changes.get(step)


def test_negative_step():
    with pytest.raises(ValueError, match=r"^step: expected at least 0, got -1$"):
        monitor(Deep()).update(-1)


class Restless(nn.Module):
    """Dropout and batch norm in train mode, one frozen part in eval mode."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3))
        self.frozen = nn.BatchNorm1d(3)
        self.frozen.eval()

    def forward(self, x):
        return self.frozen(self.inner(x))


def test_nothing_of_the_users_changes():
    torch.manual_seed(3)
    model = Restless()
    x, y = torch.randn(32, 3), torch.randn(32, 3)
    loss_fn(model(x), y).mean().backward()

    def greedy(model):
        assert not model.training  # measured as it will be used
        return float(torch.rand(())) + random.random() + float(np.random.rand())  # noqa: NPY002 (the global state)

    watch = Monitor(
        model, loss_fn, (x, y), observables=["loss", "llc", greedy],
        llc={"chains": 2, "draws": 5, "burn_in": 1, "lr": 1e-4, "batch_size": 8}, llc_schedule=Schedule(0, 1),
    )  # fmt: skip
    torch.set_num_threads(2)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = {name: value.grad.clone() for name, value in model.named_parameters()}
    modes = [module.training for module in model.modules()]
    generators = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    pointers = [value.data_ptr() for value in model.parameters()]
    watch.update(0)
    assert np.isfinite(watch.values["llc"][0])
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(value.grad, gradients[name]) for name, value in model.named_parameters())
    assert [module.training for module in model.modules()] == modes
    assert True in modes
    assert modes[-1] is False
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert random.getstate() == generators[1]
    assert np.random.get_state()[1].tolist() == generators[2]  # noqa: NPY002
    assert torch.get_num_threads() == 2
    assert [value.data_ptr() for value in model.parameters()] == pointers
    assert torch.is_grad_enabled()


def test_the_mode_is_put_back_after_an_error():
    model = Restless()

    def broken(model):
        raise ZeroDivisionError

    watch = monitor(model, observables=[broken])
    with pytest.raises(ZeroDivisionError):
        watch.update(0)
    assert model.training
    assert not model.frozen.training
    assert watch.steps == []  # not half an observation


# --- observables -------------------------------------------------------------------------------------------


class Sharpness:
    """A callable object: its class gives the name."""

    def __call__(self, model):
        return model.a.norm()  # with a graph: must neither warn nor keep it


def test_names_of_channels():
    def named(model):
        return 1

    channels = {"left": Channel("metric"), "right": Channel("marker")}
    pair = Observable(lambda model, step: {"left": step, "right": (2.0, 0.5)}, channels, Schedule(0, 40))
    watch = monitor(Deep(), observables=["loss", named, Sharpness(), lambda model: np.float32(2), pair])
    for step in range(41):
        watch.update(step)
    assert list(watch.channels) == ["loss", "named", "Sharpness", "<lambda>", "left", "right"]
    assert watch.values["named"] == [1.0, 1.0, 1.0]
    assert watch.values["left"][0] == 0.0
    assert math.isnan(watch.values["left"][1])  # not due at 20
    assert watch.errors["right"][2] == 0.5
    assert set(watch.detectors) == {"loss", "named", "Sharpness", "<lambda>", "left"}  # a marker is never tested
    assert "right_se" in watch.trace
    assert "left_se" not in watch.trace
    assert watch.channels["named"].kind == "metric"
    # 3 samples, L = |Y|^2 / 3 up to a = 1e-6
    assert watch.values["loss"][0] == pytest.approx(sum(s * s for s in STRENGTHS) / 3, rel=1e-5)


BAD_OBSERVABLES = [
    (
        ["lloss"],
        ValueError,
        r"^observables: expected one of \('loss', 'llc', .*\) or a function of the model, got 'lloss'$",
    ),
    ([3], TypeError, r"^observables: expected names, functions or Observables, got int$"),
    (["loss", "loss"], ValueError, r"^observables: expected each channel once, got 'loss' twice$"),
    ([lambda m: 0, lambda m: 1], ValueError, r"^observables: expected each channel once, got '<lambda>' twice$"),
]


@pytest.mark.parametrize(("observables", "kind", "message"), BAD_OBSERVABLES)
def test_bad_observables(observables, kind, message):
    with pytest.raises(kind, match=message):
        monitor(Deep(), observables=observables)


@pytest.mark.parametrize("names", [["step"], ["y", "y_se"]])
def test_names_that_the_trace_uses(names):
    channels = {name: Channel("marker") for name in names}
    with pytest.raises(ValueError, match=rf"^observables: expected names that the trace .*, got '{names[-1]}'$"):
        monitor(Deep(), observables=[Observable(lambda model, step: {}, channels, Schedule())])


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({"b": 1.0}, ValueError, r"^observables: expected values for \['a'\], got \['b'\]$"),
        ({}, ValueError, r"^observables: expected values for \['a'\], got \[\]$"),
        ({"a": 1.0, "b": 1.0}, ValueError, r"^observables: expected values for \['a'\], got \['a', 'b'\]$"),
        ({"a": "high"}, TypeError, r"^observables: expected a number, .* for 'a', got 'high'$"),
        ({"a": torch.zeros(2)}, TypeError, r"^observables: expected a number, .* for 'a', got tensor\(\[0., 0.\]\)$"),
        ({"a": (1.0, 2.0, 3.0)}, TypeError, r"^observables: expected a number, .* for 'a', got \(1.0, 2.0, 3.0\)$"),
        ({"a": None}, TypeError, r"^observables: expected a number, .* for 'a', got None$"),
    ],
)
def test_a_function_that_gives_something_else(given, kind, message):
    channels = {"a": Channel("metric")}
    for observable in (
        of_function(lambda model: given, channels, Schedule()),
        Observable(lambda model, step: given, channels, Schedule()),
    ):
        watch = monitor(Deep(), observables=[observable])
        with pytest.raises(kind, match=message):
            watch.update(0)
        assert watch.steps == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": -1}, r"^seed: expected an integer of at least 0, got -1$"),
        ({"seed": 1.5}, r"^seed: expected an integer of at least 0, got 1.5$"),
        ({"keep": 0}, r"^keep: expected an integer of at least 1, got 0$"),
        ({"skip": -1.0}, r"^skip: expected a number >= 0, got -1.0$"),
        ({"llc": {"chain": 4}}, r"^llc: expected settings of estimate_llc, got 'chain'$"),
        ({"llc": {"seed": 4}}, r"^llc: expected settings of estimate_llc, got 'seed'$"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        monitor(Deep(), **settings)


def test_a_diverged_estimate_is_a_gap(tmp_path):
    """lr 0.5 with nbeta 1e6 multiplies the distance by more than 1e5 a step: every chain leaves float32."""
    model = Deep()
    llc = CHEAP | {"lr": 0.5, "nbeta": 1e6}
    watch = monitor(model, tmp_path / "run", ["loss", "llc"], llc=llc, llc_schedule=Schedule(0, 40))
    for step in range(100):
        watch.update(step)
        train(model)
    assert np.isnan(watch.values["llc"]).all()
    assert np.isnan(watch.values["llc_escaped"]).all()
    assert np.isfinite(watch.values["loss"]).all()
    assert watch.steps == [0, 20, 40, 60, 80]
    assert not (tmp_path / "run" / "llc").exists()  # no draws of an estimate that is none
    again = monitor(Deep(), tmp_path / "run", ["loss", "llc"], llc=llc, llc_schedule=Schedule(0, 40))
    assert again.steps == watch.steps


def test_llc_values_errors_draws_and_escapes(tmp_path):
    """At the saddle near zero the chains find lower losses, and the estimate says so; at the minimum they do not."""
    model = Deep()
    llc = CHEAP | {"nbeta": 1000.0, "lr": 1e-4, "localization": 1.0, "draws": 100}
    watch = monitor(model, tmp_path / "run", ["llc"], llc=llc, llc_schedule=Schedule(0, 1000))
    for step in range(3001):
        watch.update(step)
        train(model)
    assert watch.steps == [0, 1000, 2000, 3000]
    values, escaped = watch.values["llc"], watch.values["llc_escaped"]
    assert escaped[0] == 1.0
    assert values[0] < 0  # said, not hidden
    assert escaped[-1] == 0.0
    assert values[-1] > 0
    seen = watch.detectors["llc"].state_dict()
    assert list(seen["step"]) == [s for s, e in zip(watch.steps, escaped, strict=True) if e == 0.0]
    assert all(error > 0 for error in watch.errors["llc"])
    draws = load_file(tmp_path / "run" / "llc" / "step-00003000.safetensors")
    assert {name: tuple(value.shape) for name, value in draws.items()} == {"loss": (2, 100), "baseline": (2, 100)}
    # The value is the mean of the draws: lr is a number, so no bias is taken off. float64 sums in two orders.
    plain = 1000.0 * float((draws["loss"] - draws["baseline"]).mean())
    assert values[-1] == pytest.approx(plain, rel=1e-10)
