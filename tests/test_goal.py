"""How far a run goes: draws until the error is met, a tenth of the localization beside, stronger pulls where needed."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import Quadratic, quadratic_loss
from torch import nn

import devinterp_fast as dif
from devinterp_fast.sampling import goal
from devinterp_fast.sampling import prepare as preparing
from devinterp_fast.sampling.prepare import prepare

DRAW = torch.Generator().manual_seed(0)
X = torch.randn(200, 3, generator=DRAW)
Y = X @ torch.tensor([[1.0], [-2.0], [0.5]]) + torch.randn(200, 1, generator=DRAW)
BEST = torch.linalg.lstsq(X, Y).solution.T.contiguous()  # once: its last bits depend on where its memory lies
OPEN = {"chains": 4, "burn_in": 50, "lr": 1e-3, "batch_size": 32, "progress": False, "seed": 2}


ESTIMATORS = {
    "estimate_waic": dif.estimate_waic,
    "variance_llc": dif.variance_llc,
    "loss_kernel": dif.loss_kernel,
    "posterior_covariance": lambda *args, **settings: dif.posterior_covariance(*args, k=2, **settings),
}


def regression():
    model = nn.Linear(3, 1, bias=False)
    model.weight.data = BEST.clone()
    return model


def estimate(**options):
    return dif.estimate_llc(regression(), nn.MSELoss(), (X, Y), **{**OPEN, **options})


@pytest.mark.parametrize(("backend", "thin"), [("native", 1), ("native", 2), ("torch", 1)])
def test_draws_go_on_until_the_error_is_met(backend, thin):
    asked = {"mcse": 0.025 if backend == "native" else 0.07, "thin": thin, "backend": backend}
    llc = estimate(**asked)
    draws = llc.trace.sizes["draw"]
    assert draws > 400
    assert llc.mcse <= asked["mcse"] * llc.value
    assert not any("limit of gradients" in sentence for sentence in llc.warnings)
    whole = estimate(backend=backend, thin=thin, draws=draws)  # one stretch has the bits of several
    for name in ("loss", "baseline"):
        np.testing.assert_array_equal(llc.trace[name], whole.trace[name])
    assert (llc.value, llc.mcse, llc.at_tenth) == (whole.value, whole.mcse, whole.at_tenth)


def test_the_limit_of_gradients_ends_it_and_says_so():
    llc = estimate(mcse=0.001, gradients=1200)
    assert OPEN["burn_in"] + llc.trace.sizes["draw"] <= 1200
    assert llc.trace.sizes["draw"] > 900
    (sentence,) = [s for s in llc.warnings if "limit of gradients" in s]
    assert sentence.endswith("not 0.1 %: the limit of gradients ended the run; raise gradients or take more chains")


def test_a_checkpointed_run_goes_as_far(tmp_path):
    file = tmp_path / "run.safetensors"
    plain, kept = estimate(mcse=0.04), estimate(mcse=0.04, checkpoint=file)
    again = estimate(mcse=0.04, checkpoint=file)
    for other in (kept, again):
        assert other.trace.equals(plain.trace)
        assert (other.value, other.at_tenth, other.at_tenth_mcse) == (plain.value, plain.at_tenth, plain.at_tenth_mcse)
    assert plain.trace.sizes["draw"] > 400


@pytest.mark.parametrize("name", ESTIMATORS)
def test_observers_see_a_run_that_went_on(name):
    def numbers(**options):
        found = ESTIMATORS[name](regression(), nn.MSELoss(), (X, Y), **{**OPEN, **options})
        value = found.value if hasattr(found, "value") else found.values
        return found.llc.trace.sizes["draw"], np.asarray(value), np.asarray(found.mcse)

    draws, value, mcse = numbers(mcse=0.05)
    assert draws > 400
    _, same, error = numbers(draws=draws)
    np.testing.assert_allclose(value, same, rtol=1e-6)  # sums of the same numbers, laid out otherwise
    np.testing.assert_allclose(mcse, error, rtol=1e-5)


def test_a_run_that_left_the_basin_does_not_go_on():
    llc = dif.estimate_llc(
        Quadratic([-1.0, 1.0]), quadratic_loss, torch.zeros(8, 2), nbeta=50.0, mcse=1e-4, **{**OPEN, "chains": 8}
    )
    assert llc.verdict == "not a local minimum at this temperature"
    assert llc.trace.sizes["draw"] == 400
    assert math.isnan(llc.at_tenth)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draws": 10, "mcse": 0.1}, "mcse: expected none where draws says how many, got 0.1 and draws=10"),
        ({"draws": 10, "gradients": 5}, "gradients: expected none where draws says how many"),
        ({"mcse": 0.0}, "mcse: expected a share of the value above 0, got 0.0"),
        ({"gradients": 0}, "gradients: expected an integer of at least 1, got 0"),
    ],
)
def test_goals_that_contradict(options, message):
    with pytest.raises(ValueError, match=message):
        estimate(**options)


# --- a tenth of the localization


def closed(h, pull, nbeta, lr):
    a = nbeta * np.array(h) + pull
    return float((0.5 * nbeta * np.array(h) / (a * (1 - lr * a / 4))).sum())


def test_the_value_at_a_tenth_has_its_closed_form():
    h, nbeta, lr = [0.1, 0.05, 0.02], 50.0, 0.2
    llc = dif.estimate_llc(
        Quadratic(h), quadratic_loss, torch.zeros(8, 3), nbeta=nbeta, lr=lr, chains=32, draws=1500, burn_in=200,
        progress=False,
    )  # fmt: skip
    assert llc.settings["localization"] == [1.0] * 32
    assert abs(llc.value - closed(h, 1.0, nbeta, lr)) < 4.4 * llc.mcse
    # 8 chains at a tenth know their error to a seventh; the value they are set beside has an error too
    assert abs(llc.at_tenth - closed(h, 0.1, nbeta, lr)) < 4.6 * math.hypot(llc.at_tenth_mcse, llc.mcse)
    assert any("the localization is part of the value: at 0.1 instead of 1 it is" in s for s in llc.warnings)
    assert f"({llc.at_tenth:.3f}"[:5] in str(llc)


def test_no_word_where_the_localization_does_not_matter():
    llc = dif.estimate_llc(regression(), nn.MSELoss(), (X, Y), nbeta=200.0, progress=False)
    assert abs(llc.at_tenth - llc.value) < 4.6 * math.hypot(llc.at_tenth_mcse, llc.mcse)
    assert llc.warnings == ()
    given = estimate(localization=1.0, draws=20)
    assert math.isnan(given.at_tenth)
    assert "tenth" not in str(given)


@pytest.mark.parametrize("chains", [1, 2, 8, 11])
def test_a_tenth_costs_a_quarter_at_most(chains):
    job = prepare(regression(), nn.MSELoss(), (X, Y), chains=chains, draws=100, burn_in=20, lr=1e-3, tenth=True, thin=2)
    trace = job.engine().run(lambda done, note: None)
    weaker = goal.at_a_tenth(job, trace)
    assert weaker is not None
    assert weaker.steps * weaker.chains <= job.settings.steps * chains / 4
    assert (weaker.localization == 0.1).all()


@pytest.mark.parametrize(("holds", "pull", "left"), [(1.0, 1.0, 0.0), (100.0, 100.0, 10.0), (math.inf, 1.0, 0.0)])
def test_the_weakest_localization_that_holds(monkeypatch, holds, pull, left):
    tried = []

    def warm(ready, curvature, stiff, sampler, budget):
        s = replace(ready.settings, draws=40, burn_in=10)
        tried.append((float(s.localization[0]), stiff))
        draws = np.random.default_rng(0).standard_normal((8, 100)) + (5 if s.localization[0] >= holds else -5)
        return replace(ready, settings=s), 10, draws

    monkeypatch.setattr(preparing, "_warm", warm)
    llc = dif.estimate_llc(regression(), nn.MSELoss(), (X, Y), mcse=1.0, progress=False)
    assert llc.settings["localization"] == [pull] * 8
    ladder = [1.0, 10.0, 100.0]
    assert [p for p, _ in tried] == ladder[: 1 + ladder.index(holds)] if holds < math.inf else ladder
    for p, stiff in tried:  # the stiffness that a warm-up starts from knows its pull
        assert stiff == pytest.approx(tried[0][1] + p - 1)
    if left:
        assert llc.verdict == "not a local minimum at this temperature"
        assert llc.warnings[0] == (
            f"not a local minimum at this temperature: at localization {left:g} the chains leave for lower loss, and "
            f"the value is that of what localization {pull:g} holds; train further"
        )
    else:
        assert llc.verdict == "local minimum"  # what the run itself saw
    tried.clear()
    dif.estimate_llc(regression(), nn.MSELoss(), (X, Y), mcse=1.0, localization=3.0, progress=False)
    assert [p for p, _ in tried] == [3.0]


# --- chains of several steps


def test_only_a_mean_is_read_off_from_two_steps():
    settings = {"sampler": "sgnht", "progress": False, "gradients": 6000}
    llc = dif.estimate_llc(regression(), nn.MSELoss(), (X, Y), **settings)
    found = dif.variance_llc(regression(), nn.MSELoss(), (X, Y), **settings)
    assert len(set(llc.settings["lr"])) == 2
    assert set(found.llc.settings["lr"]) == {min(llc.settings["lr"])}
    assert not any("do not count" in sentence for sentence in found.warnings)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_of_chains_of_several_steps_the_smallest_counts(name):
    def run(**options):
        settings = {**OPEN, "draws": 30, **options}
        found = ESTIMATORS[name](regression(), nn.MSELoss(), (X, Y), **settings)
        return found, np.asarray(found.value if hasattr(found, "value") else found.values)

    mixed, value = run(lr=[1e-3, 1e-3, 2e-3, 2e-3])
    _, alone = run(lr=1e-3, chains=2)
    if name == "posterior_covariance":  # its first pass takes every chain, and where it goes on from is no result
        np.testing.assert_allclose(value, alone, rtol=1e-3)
    else:
        np.testing.assert_array_equal(value, alone)
    assert mixed.warnings[-1].startswith("2 of 4 chains have another lr, localization or nbeta than those of the")
