"""Gaussian priors with centers and precisions of their own, against the closed forms of Gaussian posteriors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import devinterp_fast as dif
from devinterp_fast.errors import ModelError, ShapeError

H = np.array([4.0, 1.0, 0.25, 0.05])
NBETA = 200.0
CENTER = torch.tensor([0.6, -0.4, 0.2, 0.8])


def half_squared(out, y):
    return 0.5 * ((out - y) ** 2).sum(1)


def quadratic():
    """Mean loss 1/2 sum h w^2, as a linear map of four samples, at its minimum."""
    model = nn.Linear(4, 1, bias=False)
    nn.init.zeros_(model.weight)
    return model, (torch.diag(torch.from_numpy(2 * np.sqrt(H)).float()), torch.zeros(4, 1))


def exact(precision, center, localization, lr):
    """E nbeta (L - L(0)) over SGLD's stationary law: mean m = precision center / a, variance 1 / (a (1 - lr a / 4))."""
    a = NBETA * H + localization + precision
    mean = precision * np.asarray(center) / a
    return float((0.5 * NBETA * H * (mean**2 + 1 / (a * (1 - lr * a / 4)))).sum())


def estimate(prior, **options):
    model, data = quadratic()
    settings = {
        "chains": 16, "draws": 1500, "burn_in": 500, "lr": 1e-3, "localization": 2.0, "nbeta": NBETA,
        "batches": "full", "seed": 3,
    }  # fmt: skip
    return dif.estimate_llc(model, half_squared, data, prior=prior, progress=False, **{**settings, **options})


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("sampler", ["sgld", "sghmc", "hmc"])
def test_a_center_of_its_own(backend, sampler):
    short = {"draws": 150, "burn_in": 50} if sampler == "hmc" else {}  # a trajectory is sixteen steps
    llc = estimate(dif.GaussianPrior(30.0, CENTER), backend=backend, sampler=sampler, **short)
    want = exact(30.0, CENTER, 2.0, 1e-3 if sampler == "sgld" else 0.0)
    # 4 standard errors; mcse of 16 chains is itself good to a tenth
    assert abs(llc.value - want) < 4.4 * llc.mcse
    assert llc.mcse < 0.06 * want
    assert abs(want - exact(0.0, CENTER, 2.0, 0.0)) > 10 * llc.mcse  # so a prior left out would show
    assert llc.engine.startswith(backend)


@pytest.mark.parametrize("sampler", ["sgld", "rmsprop_sgld", "sgnht", "mala"])
def test_a_precision_for_each_parameter(sampler):
    precision = torch.tensor([0.0, 10.0, 100.0, 5.0])
    llc = estimate(dif.GaussianPrior({"weight": precision[None]}, CENTER), sampler=sampler)
    assert llc.engine.startswith("torch")
    assert llc.engine_reason == "the prior has more than one precision"
    if sampler != "rmsprop_sgld":
        want = exact(precision.numpy(), CENTER, 2.0, 1e-3 if sampler == "sgld" else 0.0)
        assert abs(llc.value - want) < 4.4 * llc.mcse
    else:  # in its metric the step differs by coordinate: what it raises the value by is what step_bias says
        want = exact(precision.numpy(), CENTER, 2.0, 0.0)
        assert abs(llc.value - llc.step_bias - want) < 4.4 * llc.mcse + 0.1 * llc.step_bias


def test_a_prior_at_the_weights_is_a_localization():
    same = estimate(dif.GaussianPrior(5.0), draws=20, localization=1.0)
    plain = estimate(None, draws=20, localization=6.0)
    np.testing.assert_array_equal(same.trace["llc"], plain.trace["llc"])


def test_several_precisions_and_one_agree_bit_for_bit_where_they_are_one():
    one = estimate(dif.GaussianPrior(7.0, CENTER), draws=20, backend="torch")
    native = estimate(dif.GaussianPrior(7.0, CENTER), draws=20)
    np.testing.assert_allclose(one.trace["llc"], native.trace["llc"], rtol=1e-3, atol=1e-5)  # float32 along 520 steps


def test_the_step_bias_of_a_pulled_quadratic_is_exact():
    llc = estimate(dif.GaussianPrior(30.0, CENTER), lr=3e-3)
    want = exact(30.0, CENTER, 2.0, 3e-3) - exact(30.0, CENTER, 2.0, 0.0)
    # the mean energy's relative error is about that of the value: both are mean squares of the same draws
    assert llc.step_bias == pytest.approx(want, rel=0.2)


def test_everything_left_open_with_a_prior():
    llc = estimate(dif.GaussianPrior(30.0, CENTER), lr="auto", draws="auto", burn_in="auto", batches="auto", chains=8)
    assert abs(llc.value - exact(30.0, CENTER, 2.0, 0.0)) < 4.6 * llc.mcse  # of 8 chains: known to a seventh
    assert llc.settings["sampler"] == "hmc"


def test_acceptance_knows_the_prior():
    # At a tiny step a proposal is accepted whatever the energy, if energy and gradient belong together: 1 - O(lr^1.5).
    model, data = quadratic()
    found = dif.mala_acceptance(
        model, half_squared, data, prior=dif.GaussianPrior(400.0, CENTER), chains=2, draws=20, burn_in=0, lr=1e-6,
        nbeta=NBETA, batches="full", progress=False,
    )  # fmt: skip
    assert found.value > 1 - 1e-4


@pytest.mark.parametrize(
    ("prior", "options", "error", "message"),
    [
        (dif.GaussianPrior(-1.0), {}, ValueError, "precision: expected finite numbers of at least 0"),
        (dif.GaussianPrior(math.nan), {}, ValueError, "precision: expected finite numbers of at least 0"),
        (dif.GaussianPrior(1.0, math.inf), {}, ValueError, "center: expected finite numbers"),
        (dif.GaussianPrior(torch.ones(3)), {}, ShapeError, "precision: expected a number or"),
        (dif.GaussianPrior({"weight": torch.ones(3)}), {}, ShapeError, "precision: expected .1, 4. for weight"),
        (dif.GaussianPrior({"bias": 1.0}), {}, ValueError, "precision: expected names of parameters, got 'bias'"),
        (dif.GaussianPrior(torch.arange(4.0)), {"backend": "native"}, ModelError, "more than one precision"),
        (dif.GaussianPrior(1.0), {"sampler": dif.Sampler(box=1.0)}, ValueError, "box: expected none with a prior"),
    ],
)
def test_priors_that_do_not_fit(prior, options, error, message):
    with pytest.raises(error, match=message):
        estimate(prior, **options)
