"""devinterp 1.3's own calls, there and here; and what each estimator adds to the run it watches.

Run with ``python -m pytest benchmarks/bench_estimators.py`` after ``pip install 'devinterp-fast[bench]'``.
"""

import math

import numpy as np
import pytest
import torch
import workloads
from harness import medians, race, ratios, record
from torch.utils.data import DataLoader, TensorDataset

import devinterp_fast as dif
from devinterp_fast.compat import devinterp as compat

CHAINS = 8


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [workloads.w1, workloads.w3, workloads.regression], ids=["W1", "W3", "regression"])
def test_the_same_call_has_the_same_answer(make):
    """Only the import differs. Means of CHAINS chains agree within 4 of their joint standard errors."""
    theirs = pytest.importorskip("devinterp.slt.sampler", reason="devinterp 1.3.2 is not installed")
    optimizer = pytest.importorskip("devinterp.optim.sgld")
    utils = pytest.importorskip("devinterp.utils")
    torch.set_num_threads(1)
    w = make()
    loader = DataLoader(TensorDataset(w.x, w.y), batch_size=w.batch, shuffle=True)
    with torch.no_grad():
        init_loss = float(w.loss(w.model(w.x), w.y))
    common = {
        "model": w.model, "loader": loader, "num_chains": CHAINS, "num_burnin_steps": w.draws, "init_loss": init_loss,
        "device": "cpu", "seed": 0, "verbose": False,
    }  # fmt: skip

    def run(module, method, evaluate, draws):
        return module.estimate_learning_coeff_with_summary(
            evaluate=evaluate, sampling_method=method, optimizer_kwargs=dict(w.settings), num_draws=draws, **common
        )

    def here(draws):
        return run(compat, compat.SGLD, compat.make_evaluate(w.loss), draws)

    def there(draws):
        return run(theirs, optimizer.SGLD, utils.make_evaluate(w.loss), draws)

    mine, other = here(w.check_draws), there(w.check_draws)
    assert mine.keys() == other.keys()
    assert mine["loss/trace"].shape == other["loss/trace"].shape
    error = math.hypot(mine["llc/std"], other["llc/std"]) / math.sqrt(CHAINS)
    assert abs(mine["llc/mean"] - other["llc/mean"]) < 4 * error, (mine["llc/mean"], other["llc/mean"], error)
    seconds = race({"devinterp_fast": lambda: here(w.draws), "devinterp 1.3.2": lambda: there(w.draws)}, rounds=3)
    row = {
        "llc": {"devinterp_fast": mine["llc/mean"], "devinterp 1.3.2": other["llc/mean"], "joint error": error},
        "std over chains": {"devinterp_fast": mine["llc/std"], "devinterp 1.3.2": other["llc/std"]},
        "seconds": medians(seconds),
        "devinterp over devinterp_fast": ratios(seconds, "devinterp_fast")["devinterp 1.3.2"],
        "draws": w.draws,
    }
    record("estimators", {f"same call, {w.name}": row})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [workloads.w1, workloads.w3], ids=["W1", "W3"])
def test_what_an_estimator_costs(make):
    """Seconds over those of ``estimate_llc`` with the same chains, one thread; every draw is observed."""
    torch.set_num_threads(1)
    w = make()
    settings = {
        **w.settings, "chains": CHAINS, "draws": 50, "burn_in": 50, "batch_size": w.batch, "batches": "independent",
        "sampler": "sgld", "progress": False,
    }  # fmt: skip
    few = slice(0, 200)
    probe = (w.x[few], w.y[few])
    dim = sum(p.numel() for p in w.model.parameters())
    half = torch.arange(dim) < dim // 2
    contestants = {
        "estimate_llc": lambda: dif.estimate_llc(w.model, w.loss, (w.x, w.y), **settings),
        "estimate_waic": lambda: dif.estimate_waic(w.model, w.loss, (w.x, w.y), **settings),
        "estimate_wbic": lambda: dif.estimate_wbic(
            w.model, w.loss, (w.x, w.y), **{key: value for key, value in settings.items() if key != "nbeta"}
        ),
        "variance_llc": lambda: dif.variance_llc(w.model, w.loss, (w.x, w.y), **settings),
        "two_temperature_llc": lambda: dif.two_temperature_llc(w.model, w.loss, (w.x, w.y), **settings),
        "susceptibilities, 2 components": lambda: dif.susceptibilities(
            w.model, w.loss, (w.x, w.y), {"first half": half, "second half": ~half}, probe=probe, **settings
        ),
        "influence, all on 200": lambda: dif.influence(w.model, w.loss, (w.x, w.y), probe, **settings),
        "loss_kernel, 200": lambda: dif.loss_kernel(w.model, w.loss, (w.x, w.y), samples=probe, **settings),
        "posterior_covariance, 5": lambda: dif.posterior_covariance(w.model, w.loss, (w.x, w.y), **settings),
        "mala_acceptance": lambda: dif.mala_acceptance(w.model, w.loss, (w.x, w.y), **settings),
    }
    alone = contestants["estimate_llc"]()
    for name, run in contestants.items():
        found = run()
        if hasattr(found, "llc") and name != "estimate_wbic":  # at its own temperature
            assert np.array_equal(found.llc.trace["loss"], alone.trace["loss"]), name
    seconds = race(contestants, rounds=3)
    row = {
        "over estimate_llc": ratios(seconds, "estimate_llc"),
        "seconds": medians(seconds),
        "samples": len(w.x),
        "parameters": dim,
        "engine": alone.engine,
    }
    record("estimators", {f"cost, {w.name}": row})
