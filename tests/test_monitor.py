"""The monitor: what is due, what is measured, what is said, what is kept, and that a killed run loses nothing."""

from __future__ import annotations

import json
import math
import os
import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from devinterp_fast import store
from devinterp_fast.changepoint.channel import Channel
from devinterp_fast.errors import RunFolderError
from devinterp_fast.monitor.checkpoints import Checkpoints
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
#
# A deep linear network of two layers W = A B on a full batch of the unit vectors, balanced and diagonal at the start:
# L = (1/3) sum_i (s_i - a_i)^2, and under gradient flow each a_i = A_ii B_ii follows da/dt = (4/3) a (s - a), a
# logistic law from a(0) = INIT^2.

STRENGTHS = (3.0, 1.0, 0.5)
INIT = 1e-3
LR = 0.01
EVERY = 20
STEPS = 2400
X, Y = torch.eye(3), torch.diag(torch.tensor(STRENGTHS))


def passage(s: float, share: float) -> float:
    """The step at which a / s = share, from the logistic law."""
    return math.log(share / (1 - share) * (s / INIT**2 - 1)) / (4 / 3 * s) / LR


class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(INIT * torch.eye(3))
        self.b = nn.Parameter(INIT * torch.eye(3))

    def forward(self, x):
        return x @ self.a @ self.b


def loss_fn(out, y):
    return (out - y).square().sum(1)


@torch.no_grad()
def train(model: Deep) -> None:
    error = (2 / 3) * (model.a @ model.b - Y)
    a, b = error @ model.b.T, model.a.T @ error
    model.a -= LR * a
    model.b -= LR * b


def modes(model: nn.Module) -> dict[str, float]:
    return {f"mode {i}": float(v) for i, v in enumerate((model.a @ model.b).diagonal().detach())}


def watched_modes() -> Observable:
    channels = {f"mode {i}": Channel("metric", scale=s) for i, s in enumerate(STRENGTHS)}
    return of_function(modes, channels, Schedule(0, EVERY))


def monitor(model, out=None, observables=("loss",), **settings):
    settings = {"schedule": Schedule(0, EVERY), "skip": 0.0} | settings
    return Monitor(model, loss_fn, (X, Y), observables=observables, out=out, **settings)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """One whole run: the monitor, its changes, its transitions after each step, and the states of the model."""
    torch.set_num_threads(1)
    model = Deep()
    watch = monitor(model, tmp_path_factory.mktemp("planted") / "run", ["loss", watched_modes()])
    changes, reads, states = {}, {}, {}
    for step in range(STEPS + 1):
        change = watch.update(step)
        if change is not None:
            changes[step] = change
        if step % EVERY == 0:
            reads[step] = watch.transitions
            states[step] = {name: value.clone() for name, value in model.state_dict().items()}
        train(model)
    return watch, changes, reads, states


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


CHEAP = {"chains": 2, "draws": 20, "burn_in": 5, "lr": 1e-3, "nbeta": 10.0}


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


# --- checkpoints -------------------------------------------------------------------------------------------


def files(folder):
    return {path.name for path in (folder / "checkpoints").iterdir()}


def test_listed_transitions_have_their_states(planted):
    watch, _, _, states = planted
    for row in watch.transitions:
        assert set(row.checkpoints) == {"before", "alarm", "after"}
        step = {which: int(name[-20:-12]) for which, name in row.checkpoints.items()}
        assert step["before"] < step["alarm"] <= step["after"]
        assert step["alarm"] == row.alarm
        # The state before is one of the plateau: at or before the onset of the earliest alarm.
        assert step["before"] <= min(stage.onset for stage in row.observables.values())
        for which, name in row.checkpoints.items():
            kept = load_file(watch.folder.path / name)
            assert set(kept) == {"a", "b"}
            assert all(torch.equal(kept[key], states[step[which]][key]) for key in kept)


def test_a_stage_that_goes_on_after_a_rest_has_its_last_state(tmp_path):
    """A fall that wavers: its row ends, becomes provisional again, and ends at a later state; it is announced once."""
    with np.load(Path(__file__).parents[1] / "benchmarks" / "results" / "stages_curves.npz") as file:
        steps, curve = file["more parity/28/step"].tolist(), file["more parity/28/task2"].tolist()
    values = dict(zip(map(int, steps), curve, strict=True))
    seen = Observable(lambda model, step: {"y": values[step]}, {"y": Channel("loss")}, Schedule(0, EVERY))
    watch = monitor(Deep(), tmp_path / "run", [seen])
    found, ended, history = [], [], []
    for step in values:
        change = watch.update(step)
        found += [] if change is None else [change]
        history.append([row.provisional for row in watch.transitions])
        if history[-1] == [False] != history[-2]:
            ended.append(step)
    assert [True] in history[history.index([False]) :]
    (row,) = watch.transitions
    (change,) = found
    assert row.alarm == change.step
    step = {which: int(name[-20:-12]) for which, name in row.checkpoints.items()}
    assert step["before"] < step["alarm"] < step["after"] == ended[-1] > ended[0]
    assert all((watch.folder.path / name).exists() for name in row.checkpoints.values())


def test_only_needed_states_are_kept(planted):
    """The three states of each stage that is listed, since stages may still regroup, and the trail."""
    watch = planted[0]
    pinned = {
        Checkpoints.name(step)
        for row in watch.transitions
        for name, stage in row.observables.items()
        for step in watch._around[name, int(stage.alarm)].values()
    }
    assert pinned >= {name for row in watch.transitions for name in row.checkpoints.values()}
    trail = {Checkpoints.name(step) for _, step in watch.checkpoints.saved}
    assert {f"checkpoints/{name}" for name in files(watch.folder.path)} == pinned | trail


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_the_trail_is_thin_and_reaches_back(keep):
    """Ages in [keep 2^(j-1), keep 2^j) hold the multiples of 2^(j-1), keep of them, and ages below keep all."""
    trail = Checkpoints(None, keep)
    for number in range(3000):
        trail.observed(number, 10 * number)
        kept = [old for old, _ in trail.saved]
        assert len(kept) <= keep * (math.ceil(math.log2(number / keep + 1)) + 2)
        assert kept[-1] == number
        assert kept[0] == 0  # the first is a multiple of everything
        for older, newer in pairwise(kept):  # gaps grow no faster than age
            assert newer - older <= max(1, 2 * (number - older) / keep)
    assert len(kept) < 10 * keep + 10


def test_pins_hold_and_are_let_go(tmp_path):
    trail = Checkpoints(store.RunFolder(tmp_path, {}), 1)
    model = nn.Linear(1, 1)
    for number in range(40):
        trail.write(model, number)
        trail.observed(number, number)
        trail.pin({3, 7, 99} if number < 30 else {7})
        here = {int(name[5:13]) for name in files(tmp_path)}
        assert here == trail._present()
        assert 7 in here or number < 7
        assert (3 in here) == (3 <= number < 30) or number > 30
    assert 3 not in here
    assert trail.before(7.5) == 7
    assert trail.before(-1) is None


def test_without_a_folder_there_are_no_files():
    model = Deep()
    watch = monitor(model)
    changes = []
    for step in range(700):
        changes.append(watch.update(step))
        train(model)
    (change,) = [change for change in changes if change is not None]
    assert change.checkpoint is None
    assert watch.transitions[0].checkpoints == {}


# --- a killed run ------------------------------------------------------------------------------------------


def run(folder, steps=1400):
    """The user's script: it starts from the beginning each time, the monitor goes on."""
    model = Deep()
    watch = monitor(model, folder, ["loss", watched_modes(), "llc"], llc=CHEAP, llc_schedule=Schedule(0, 200))
    changes = {}
    for step in range(steps + 1):
        change = watch.update(step)
        if change is not None:
            changes[step] = change
        train(model)
    return watch, changes


def content(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    watch, changes = run(folder)
    return content(folder), changes, watch.transitions


class Killed(BaseException):
    """Not an Exception: nothing may catch it."""


def deadly(function, at, after):
    """The function, but its ``at``-th call kills, before or after the work is done."""
    calls = 0

    def wrapper(*args, **settings):
        nonlocal calls
        calls += 1
        if calls == at and not after:
            raise Killed
        result = function(*args, **settings)
        if calls == at:
            raise Killed
        return result

    return wrapper


def whole_files(folder):
    """Every file that has its own name can be read; a partial one is called so."""
    for path in folder.rglob("*.safetensors"):
        load_file(path)
    for path in folder.rglob("*.json"):
        json.loads(path.read_text())


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("call", ["fsync", "replace", "unlink"])
def test_killed_at_any_point_goes_on_to_the_same_bytes(tmp_path, monkeypatch, whole, call, after):
    """The run is killed again and again in the same folder, each life longer than the last, then allowed to end.

    Some 150 files are written (settings, 71 states, 71 records, 8 draws) and 60 removed; 85 calls are lived through.
    """
    target = Path if call == "unlink" else os
    deaths = 0
    for at in (1, 2, 3, 4, 7, 11, 20, 37):
        with monkeypatch.context() as patch:
            patch.setattr(target, call, deadly(getattr(target, call), at, after))
            try:
                run(tmp_path / "run")
            except Killed:
                deaths += 1
        whole_files(tmp_path / "run")
    assert deaths >= 5
    watch, changes = run(tmp_path / "run")
    found = {name: data for name, data in content(tmp_path / "run").items() if not name.endswith(".partial")}
    assert found == whole[0]
    assert changes == whole[1]
    assert watch.transitions == whole[2]


def test_the_run_that_is_killed_is_worth_killing(whole):
    """It has transitions, estimates and removed states, else the tests above prove little."""
    assert len(whole[2]) == 2
    assert sum(name.startswith("llc/") for name in whole[0]) == 8
    assert 10 < sum(name.startswith("checkpoints/") for name in whole[0]) < 71


def test_leftover_partial_files_harm_nothing(tmp_path, whole):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json.partial").write_bytes(b"half a fi")
    run(folder, 40)
    halves = [folder / f"{name}.partial" for name in ("run.json", "observations.safetensors", "transitions.json")]
    halves += [folder / "checkpoints" / f"step-{step:08d}.safetensors.partial" for step in (20, 60, 61)]
    for half in halves:
        half.write_bytes(b"half a fi")
    run(folder)
    assert {name: data for name, data in content(folder).items() if not name.endswith(".partial")} == whole[0]


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    def full(fd):
        raise OSError(28, "No space left on device")

    model = Deep()
    watch = monitor(model, tmp_path / "run")
    watch.update(0)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFolderError, match=r"^out: expected a folder that can be written, got .*No space left"):
        watch.update(20)
    monkeypatch.undo()
    again = monitor(model, tmp_path / "run")
    assert again.steps == [0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": 1}, "expected a run with seed = 1, got .* with seed = 0; choose another folder"),
        ({"keep": 3}, "expected a run with keep = 3, got .* with keep = 2; choose another folder"),
        ({"run": {"a": 1}}, r"expected a run with run = \{\"a\": 1\}, got .* with run = \{\}; choose another folder"),
        ({"observables": [modes]}, "expected a run with channels = .*; choose another folder"),
        ({"llc": {"chains": 2}}, "expected a run with llc = .*; choose another folder"),
    ],
)
def test_another_run_is_refused(tmp_path, settings, message):
    monitor(Deep(), tmp_path / "run").update(0)
    before = content(tmp_path / "run")
    with pytest.raises(RunFolderError, match=f"^out: {message}$"):
        monitor(Deep(), tmp_path / "run", **settings)
    assert content(tmp_path / "run") == before


def test_settings_that_json_cannot_hold(tmp_path):
    llc = {"mask": torch.zeros(18, dtype=torch.bool)}
    with pytest.raises(RunFolderError, match=r"^out: expected settings that JSON can hold .* Tensor is not JSON"):
        monitor(Deep(), tmp_path / "run", llc=llc)
    monitor(Deep(), llc=llc)  # without a folder nothing is written


def test_a_damaged_record_is_one_sentence(tmp_path):
    folder = tmp_path / "run"
    monitor(Deep(), folder).update(0)
    record = folder / "observations.safetensors"
    good = record.read_bytes()
    for bad in (b"", good[: len(good) // 2], b"\xff" * 100):
        record.write_bytes(bad)
        with pytest.raises(RunFolderError, match=r"observations.safetensors: expected whole safetensors, got "):
            monitor(Deep(), folder)
    store.RunFolder.write_tensors(monitor_folder(folder), "observations.safetensors", {"step": torch.zeros(1)})
    with pytest.raises(
        RunFolderError, match=r"observations.safetensors: expected curves of \['loss'\], got \['step'\]$"
    ):
        monitor(Deep(), folder)


def monitor_folder(path):
    """The folder of a run without reading its record."""
    settings = json.loads((path / "run.json").read_text())
    settings.pop("format")
    return store.RunFolder(path, settings)
