"""Whole chains: moments of the draws, and threads that share a batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_engine import CASES, build, same, start
from torch import nn

from devinterp_fast.sampling.native import NativeRun, capture

# ---- moments


@pytest.mark.parametrize(("case", "mode"), CASES)
def test_moments_are_those_of_the_draws(case, mode):
    draws = []
    run = build(case, batches=mode, moments=True).finish(see=lambda k, w: draws.append(w.double().numpy().copy()))
    every = np.stack(draws)
    # Welford's update rounds each of the six draws to 2^-53.
    np.testing.assert_allclose(run.mean, every.mean(0), rtol=0, atol=1e-14 * np.abs(every).max())
    np.testing.assert_allclose(run.variance, every.var(0, ddof=1), rtol=1e-9, atol=1e-15 * np.abs(every).max())
    whole = build(case, batches=mode, moments=True, program=run.program).finish()
    np.testing.assert_array_equal(whole.mean, run.mean)
    np.testing.assert_array_equal(whole.variance, run.variance)
    assert build(case, batches=mode, program=run.program).finish().mean.shape == (0, run.program.dim)


def test_moments_of_a_gaussian_posterior():
    """Losses |x_i|^2 (w_i - w0_i)^2 on one-hot x make a diagonal Gaussian whose SGLD moments are exact.

    h = 2 x^2 / n, a = nbeta h + localization, r = 1 - lr a / 2, var = 1 / (a (1 - lr a / 4)). After the burn-in r^steps
    is below rounding. The variance over T draws has expectation var (1 - about (1 + r) / (1 - r) / T) and, by the
    autocorrelation r^2 of squares, variance 2 var^2 (1 + r^2) / (1 - r^2) / T; bounds are five standard errors over
    all chains.
    """
    dim, chains, draws, nbeta, lr, localization = 5, 64, 4000, 40.0, 2e-2, 3.0
    size = torch.linspace(0.5, 2.0, dim)
    x, model = torch.diag(size), nn.Linear(dim, 1, bias=False)
    y = (x @ model.weight.detach().T).contiguous()
    run = NativeRun(
        capture(model, nn.MSELoss(), x, y), draws=draws, burn_in=2000, thin=1, lr=np.full(chains, lr),
        localization=np.full(chains, localization), nbeta=np.full(chains, nbeta), center=start(model), batches="full",
        seed=1, moments=True,
    ).finish()  # fmt: skip
    a = nbeta * 2 * size.double().numpy() ** 2 / dim + localization
    r, var = 1 - lr * a / 2, 1 / (a * (1 - lr * a / 4))
    assert (np.abs(r) < 0.98).all()
    spread = var * (1 + r) / (1 - r) / draws
    error = np.sqrt(spread / chains)
    assert (np.abs(run.mean.mean(0) - start(model).double().numpy()) < 5 * error).all()
    error = var * np.sqrt(2 * (1 + r**2) / (1 - r**2) / (chains * draws))
    assert (np.abs(run.variance.mean(0) - (var - spread)) < 5 * error).all()


# ---- threads that share a batch


def broad():
    """Two parts of a batch of 512."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    return model, nn.CrossEntropyLoss(), torch.randn(600, 64), torch.randint(0, 10, (600,))


def many():
    """A narrow model on more samples than one part holds."""
    torch.manual_seed(0)
    x = torch.rand(150_001, 6)
    return nn.Sequential(nn.Linear(6, 3, bias=False), nn.ReLU(), nn.Linear(3, 6)), nn.MSELoss(), x, x


@pytest.mark.parametrize(("case", "mode"), [(broad, "independent"), (broad, "epoch"), (many, "full")])
def test_threads_that_share_a_batch_do_not_show(case, mode):
    fields = {"chains": 1, "batches": mode, "batch_size": 512, "draws": 2, "burn_in": 1}
    alone = build(case, **fields).finish()
    for threads in (2, 3, 5):
        same(build(case, program=alone.program, threads=threads, **fields).finish(), alone)
    two = build(case, program=alone.program, threads=4, **{**fields, "chains": 2}, lr=np.full(2, alone.lr[0]),
                nbeta=np.full(2, alone.nbeta[0])).finish()  # fmt: skip
    np.testing.assert_array_equal(two.loss[0], alone.loss[0])
    assert torch.equal(two.w[0], alone.w[0])


def test_parts_of_a_batch_add_up_to_its_gradient():
    """One step without noise from the center: w moves by -(lr / 2) nbeta g, to the rounding of w itself."""
    run = build(broad, chains=1, batches="full", batch_size=600, draws=1, burn_in=0, lr=np.array([1e-30]), threads=2)
    run.finish()
    losses, g = run.program.gradient(run.center)
    assert float(run.loss[0, 0]) == pytest.approx(float(losses.mean()), rel=1e-6)
    energy = float((run.nbeta[0] * g.double()).square().sum())
    # Sums of float32 terms in another order: relative error about the root of their number times 2^-24.
    assert float(run.energy[0, 0]) == pytest.approx(energy, rel=1e-4)
