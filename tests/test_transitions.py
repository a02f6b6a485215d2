"""The transition library: runs whose stages are known."""

import math
import random
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch.func import functional_call, vmap

from devinterp_fast.errors import DTypeError, ShapeError
from devinterp_fast.transitions import Channel, Marker, systems
from devinterp_fast.transitions.system import rise

NAMES = sorted(systems())


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_names():
    assert NAMES == ["digits", "tms"]


@pytest.mark.parametrize("name", NAMES)
def test_fields(name):
    system = systems()[name](steps=7)
    assert (system.name, system.steps) == (name, 7)
    assert systems()[name]().steps > 1000
    assert system.title
    assert system.skip >= 0
    assert all(isinstance(channel, Channel) for channel in system.channels.values())
    assert system.channels["loss"] == Channel("loss")
    assert {"lr", "localization", "draws", "burn_in", "chains", "batch_size"} < set(system.llc)
    assert ("n" in system.llc) != ("nbeta" in system.llc)
    assert system.llc["batch_size"] <= len(system.probe[0])


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_bits(name):
    runs = [systems()[name](seed=seed) for seed in (3, 3, 4)]
    for run in runs:
        for step in range(5):
            run.train_step(step)
    states = [run.state_dict() for run in runs]
    assert same(states[0], states[1])
    assert not same(states[0], states[2])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("cut", [0, 1, 7])
def test_continues_to_the_same_bits(name, cut):
    whole = systems()[name](seed=1)
    state = None
    for step in range(10):
        if step == cut:
            state = load(save(whole.state_dict()))  # through a checkpoint file
        whole.train_step(step)
    rest = systems()[name](seed=1)
    rest.train_step(0)  # whatever it did before
    rest.load_state_dict(state)
    for step in range(cut, 10):
        rest.train_step(step)
    assert same(whole.state_dict(), rest.state_dict())
    assert whole.observe(whole.model) == rest.observe(rest.model)


@pytest.mark.parametrize("name", NAMES)
def test_state_is_a_copy_of_separate_tensors(name):
    system = systems()[name]()
    state = system.state_dict()
    assert all(t.is_contiguous() for t in state.values())
    places = {t.untyped_storage().data_ptr() for t in state.values()}
    assert len(places) == len(state)
    before = {key: t.clone() for key, t in state.items()}
    system.train_step(0)
    assert same(state, before)
    assert not same(state, system.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_global_state_is_untouched(name):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    python_state, grad = random.getstate(), torch.is_grad_enabled()
    system = systems()[name](seed=2)
    system.train_step(0)
    system.observe(system.model)
    system.load_state_dict(system.state_dict())
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert random.getstate() == python_state
    assert torch.is_grad_enabled() == grad


@pytest.mark.parametrize("name", NAMES)
def test_trains_the_same_without_grad_mode(name):
    a, b = systems()[name](), systems()[name]()
    a.train_step(0)
    with torch.no_grad():
        b.train_step(0)
    assert same(a.state_dict(), b.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_the_default_dtype_is_not_followed(name):
    runs = []
    for dtype in (torch.float32, torch.float64):
        torch.set_default_dtype(dtype)
        try:
            run = systems()[name](seed=1)
            run.train_step(0)
            runs.append((run.state_dict(), run.observe(run.model), run.probe))
        finally:
            torch.set_default_dtype(torch.float32)
    assert same(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]
    assert all(torch.equal(a, b) for a, b in zip(runs[0][2], runs[1][2], strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_observe_has_no_side_effects(name):
    system = systems()[name]()
    state = system.state_dict()
    first = system.observe(system.model)
    assert first == system.observe(system.model)
    assert set(first) == set(system.channels)
    assert all(type(value) is float and math.isfinite(value) for value in first.values())
    assert same(state, system.state_dict())
    assert all(p.grad is None and p.requires_grad for p in system.model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_probe_loss_is_a_mean_over_samples_and_vmaps(name):
    system = systems()[name]()
    x, y = (t[:6] for t in system.probe)
    single = torch.stack([system.loss_fn(system.model(x[i : i + 1]), y[i : i + 1]) for i in range(6)])
    # float32: six terms and the layers' sums of up to 256 products, each rounded to 2^-24 of its size
    torch.testing.assert_close(system.loss_fn(system.model(x), y), single.mean(), rtol=256 * 2**-24, atol=1e-7)
    chains = {key: torch.stack([p.detach(), 2 * p.detach()]) for key, p in system.model.named_parameters()}
    losses = vmap(lambda p: system.loss_fn(functional_call(system.model, p, (x,)), y))(chains)
    torch.testing.assert_close(losses[0], single.mean().detach(), rtol=256 * 2**-24, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": -1}, "seed: expected an integer from 0 to 2**63 - 1, got -1"),
        ({"seed": 1.5}, "seed: expected an integer from 0 to 2**63 - 1, got 1.5"),
        ({"seed": 2**63}, "seed: expected an integer from 0 to 2**63 - 1, got 9223372036854775808"),
        ({"seed": True}, "seed: expected an integer from 0 to 2**63 - 1, got True"),
        ({"steps": 0}, "steps: expected an integer >= 1, got 0"),
    ],
)
def test_bad_settings(name, settings, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        systems()[name](**settings)


@pytest.mark.parametrize("name", NAMES)
def test_bad_state(name):
    system = systems()[name]()
    state = system.state_dict()
    key = min(state)
    before = system.state_dict()
    with pytest.raises(ValueError, match=r"^state: expected the tensors \[.*\], got \['x'\]$"):
        system.load_state_dict({"x": torch.zeros(1)})
    with pytest.raises(ShapeError, match=r"^state\[.*\]: expected shape \(.*\), got \(1,\)$"):
        system.load_state_dict(state | {key: torch.zeros(1)})
    with pytest.raises(DTypeError, match=r"^state\[.*\]: expected torch\..*, got torch.float64$"):
        system.load_state_dict(state | {key: state[key].double()})
    assert same(before, system.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_bad_curves(name):
    system = systems()[name]()
    with pytest.raises(ValueError, match=r"^curves: expected the curves \[.*\], got none for \[.*\]$"):
        system.truth([0, 1], {})
    curves = {channel: np.zeros(3) for channel in system.channels}
    with pytest.raises(ShapeError, match=r"^curves\['.*'\]: expected shape \(2,\), got \(3,\)$"):
        system.truth([0, 1], curves)
    assert system.truth([0, 1, 2], curves) == []
    assert system.truth([], {channel: [] for channel in system.channels}) == []


def test_rise_of_a_logistic():
    x = np.linspace(0, 100, 401)
    share = 1 / (1 + np.exp(-(x - 40) / 5))
    # sigmoid = .1, .5, .9 at 40 and 40 ± 5 ln 9; chords of h = .25 err by at most (h²/8) max|y''| / y' =
    # (h²/8) (.0962/25) / (.09/5) < .002
    assert rise(x, share) == pytest.approx((40 - 5 * math.log(9), 40, 40 + 5 * math.log(9)), abs=0.002)
    assert rise(x, 0.4 * share) is None  # never halfway
    assert rise(x, 0.8 * share) is None  # never at 90 %
    assert rise(x, 0.2 + 0.8 * share) is None  # the beginning was not seen


def test_marker_prints_one_line():
    assert str(Marker("4++ -> 5+", 940.2, 1141.0, 1327.4)) == "4++ -> 5+: 940 - 1141 - 1327"
