"""devinterp 1.3's calls on our engines: its keys, its arguments, and values that formulas give."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from conftest import Quadratic
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import devinterp_fast as dif
from devinterp_fast.compat.devinterp import (
    SGLD,
    SGMCMC,
    SGNHT,
    LLCEstimator,
    MalaAcceptanceRate,
    OnlineLLCEstimator,
    OnlineWBICEstimator,
    SamplerCallback,
    default_nbeta,
    estimate_learning_coeff,
    estimate_learning_coeff_with_summary,
    evaluate_ce,
    evaluate_mse,
    make_evaluate,
    sample,
)
from devinterp_fast.errors import DataError, DeviceError, LossError, NumericalError

# A short run has doubts about itself, which it warns of: tests of doubts ask for them by name.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

DRAW = torch.Generator().manual_seed(0)
X = torch.randn(400, 3, generator=DRAW)
Y = (X @ torch.tensor([[1.0], [-2.0], [0.5]]) + torch.randn(400, 1, generator=DRAW)).detach()
LOADER = DataLoader(TensorDataset(X, Y), batch_size=50, shuffle=True)
BEST = torch.linalg.lstsq(X, Y).solution.T.contiguous()  # once: its last bits depend on where its memory lies
SETTINGS = {"lr": 1e-4, "localization": 5.0, "nbeta": 60.0}
SHORT = {"num_chains": 3, "num_draws": 12, "num_burnin_steps": 4, "seed": 0, "verbose": False}


def regression():
    model = nn.Linear(3, 1, bias=False)
    model.weight.data = BEST.clone()
    return model


def summary(**options):
    chosen = {"evaluate": evaluate_mse, "optimizer_kwargs": dict(SETTINGS), **SHORT, **options}
    return estimate_learning_coeff_with_summary(regression(), LOADER, **chosen)


def test_the_summary_has_the_keys_of_1_3():
    found = summary()
    assert set(found) == {"llc/mean", "llc/std", "llc-chain/0", "llc-chain/1", "llc-chain/2", "loss/trace"}
    assert found["loss/trace"].shape == (3, 12)
    assert found["loss/trace"].dtype == np.float32
    chains = [found[f"llc-chain/{i}"] for i in range(3)]
    assert found["llc/mean"] == pytest.approx(np.mean(chains))
    assert found["llc/std"] == pytest.approx(np.std(chains, ddof=1))
    online = summary(online=True)
    assert set(online) == {"init_loss", "llc/means", "llc/stds", "llc/trace", "loss/trace"}
    assert online["llc/means"].shape == online["llc/stds"].shape == (12,)
    np.testing.assert_allclose(online["llc/trace"].mean(1), chains, rtol=1e-5)
    np.testing.assert_allclose(online["llc/means"], online["llc/trace"].mean(0), rtol=1e-4, atol=1e-6)
    model = regression()
    assert online["init_loss"] == pytest.approx(F.mse_loss(model(X), Y).item(), rel=1e-6)
    number = estimate_learning_coeff(model, LOADER, evaluate=evaluate_mse, optimizer_kwargs=SETTINGS, **SHORT)
    assert number == found["llc/mean"]


def test_it_is_the_estimate_of_estimate_llc():
    mine = dif.estimate_llc(
        regression(), nn.MSELoss(), (X, Y), chains=3, draws=12, burn_in=4, lr=1e-4, localization=5.0, nbeta=60.0,
        batch_size=50, batches="epoch", seed=0, progress=False,
    )  # fmt: skip
    found = summary()
    np.testing.assert_array_equal(found["loss/trace"], mine.trace["loss"].to_numpy().astype(np.float32))
    assert found["llc/mean"] == pytest.approx(mine.value, rel=1e-12)
    twice = summary(grad_accum_steps=2)
    mine = dif.estimate_llc(
        regression(), nn.MSELoss(), (X, Y), chains=3, draws=12, burn_in=4, lr=1e-4, localization=5.0, nbeta=60.0,
        batch_size=100, batches="epoch", seed=0, progress=False,
    )  # fmt: skip
    assert twice["llc/mean"] == pytest.approx(mine.value, rel=1e-12)


def test_a_regression_has_the_value_of_the_formula():
    # Full batches: with A = nbeta H + gamma the stationary covariance of SGLD is A^-1 (1 - lr A / 4)^-1, and
    # llc = nbeta tr(H cov) / 2. The standard error is that of the mean over chains; 8 chains, Student's t: 1e-3 at 5.4.
    loader = DataLoader(TensorDataset(X, Y), batch_size=400)
    settings = {"lr": 1e-3, "localization": 5.0, "nbeta": 60.0}
    found = estimate_learning_coeff_with_summary(
        regression(), loader, evaluate=evaluate_mse, optimizer_kwargs=settings, num_chains=8, num_draws=2000,
        num_burnin_steps=200, seed=1, verbose=False,
    )  # fmt: skip
    h = 2 * (X.T @ X).double().numpy() / 400
    a = 60 * h + 5 * np.eye(3)
    exact = 60 * np.trace(h @ np.linalg.inv(a @ (np.eye(3) - 1e-3 * a / 4))) / 2
    assert abs(found["llc/mean"] - exact) < 5.4 * found["llc/std"] / math.sqrt(8)
    assert found["llc/std"] / math.sqrt(8) < 0.05 * exact


@pytest.mark.parametrize(
    "evaluate",
    [
        lambda model, data: F.mse_loss(model(data[0]), data[1]),
        lambda model, data: (F.mse_loss(model(data[0]), data[1]), {"output": 1}),
        lambda model, data: {"loss": F.mse_loss(model(data[0]), data[1]), "more": 2},
        lambda model, data: type("Outputs", (), {"loss": F.mse_loss(model(data[0]), data[1])})(),
    ],
    ids=["tensor", "tuple", "dict", "object"],
)
def test_evaluate_may_return_what_1_3_allowed(evaluate):
    # These run in the torch engine, which rounds as torch does.
    np.testing.assert_allclose(summary(evaluate=evaluate)["loss/trace"], summary()["loss/trace"], rtol=1e-4)


def test_without_evaluate_the_model_gives_its_loss():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = regression()

        def forward(self, data):
            return F.mse_loss(self.layer(data[0]), data[1])

    found = estimate_learning_coeff_with_summary(Own(), LOADER, optimizer_kwargs=SETTINGS, **SHORT)
    np.testing.assert_allclose(found["loss/trace"], summary()["loss/trace"], rtol=1e-4)
    with pytest.raises(LossError, match="evaluate: expected a loss tensor, a tuple that starts with it, or"):
        summary(evaluate=lambda model, data: "nothing")


def test_evaluate_ce_and_make_evaluate():
    labels = torch.randint(0, 2, (400,), generator=DRAW)
    loader = DataLoader(TensorDataset(X, labels), batch_size=50)
    model = nn.Linear(3, 2)
    found = [
        estimate_learning_coeff_with_summary(model, loader, evaluate=e, optimizer_kwargs=SETTINGS, **SHORT)
        for e in (evaluate_ce, make_evaluate(nn.CrossEntropyLoss()))
    ]
    np.testing.assert_array_equal(found[0]["loss/trace"], found[1]["loss/trace"])
    loss, extra = evaluate_ce(model, (X, labels))
    assert loss.item() == pytest.approx(F.cross_entropy(model(X), labels).item())
    assert torch.equal(extra["output"], model(X))


def test_init_loss_zero_counts_as_given():
    found = summary(init_loss=0.0)
    assert found["llc/mean"] == pytest.approx(60 * found["loss/trace"].mean(), rel=1e-5)
    one = summary(init_loss=1.0, online=True)
    assert one["init_loss"] == 1.0
    np.testing.assert_allclose(one["llc/trace"], 60 * (one["loss/trace"].astype(float) - 1), rtol=1e-4, atol=1e-3)


def test_seeds():
    assert summary(seed=3)["llc/mean"] == summary(seed=3)["llc/mean"] != summary(seed=4)["llc/mean"]
    torch.manual_seed(0)
    first = summary(seed=None)["llc/mean"]
    torch.manual_seed(0)
    assert summary(seed=None)["llc/mean"] != first  # fresh noise each time, whatever the global generator says
    listed = summary(seed=[7, 8, 9])
    for chain, seed in enumerate((7, 8, 9)):
        alone = summary(seed=seed, num_chains=1)
        assert listed[f"llc-chain/{chain}"] == alone["llc-chain/0"]
    with pytest.raises(ValueError, match="seed: expected one or 3 seeds, got 2"):
        summary(seed=[1, 2])


def test_callbacks_of_ours_and_of_others():
    class Norms(SamplerCallback):
        def __init__(self):
            super().__init__()
            self.seen, self.done = {}, False

        def __call__(self, chain, draw, loss, model, **rest):
            assert not torch.is_grad_enabled()
            self.seen[chain, draw] = float(loss), float(model.weight.norm())

        def finalize(self):
            self.done = True

        def get_results(self):
            return {"norms": self.seen}

    plain = []
    online, wbic = OnlineLLCEstimator(3, 12, None, nbeta=60.0), OnlineWBICEstimator(3, 12, n=400)
    norms = Norms()
    found = summary(callbacks=[norms, online, wbic, lambda **seen: plain.append(seen["draw"])])
    assert norms.done
    assert found["norms"] is norms.seen
    assert sorted(norms.seen) == [(c, k) for c in range(3) for k in range(12)]
    losses = np.array([[norms.seen[c, k][0] for k in range(12)] for c in range(3)])
    np.testing.assert_array_equal(losses.astype(np.float32), found["loss/trace"])
    assert len({norm for _, norm in norms.seen.values()}) == 36  # every draw of every chain has weights of its own
    assert sorted(plain) == sorted(list(range(12)) * 3)
    running = 400 * losses.cumsum(1) / np.arange(1, 13)
    np.testing.assert_allclose(found["wbic/trace"], running, rtol=1e-5)
    np.testing.assert_allclose(found["wbic/means"], running.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found["wbic/stds"], running.std(0, ddof=1), rtol=1e-3)
    np.testing.assert_allclose(found["llc/trace"].mean(1), [found[f"llc-chain/{i}"] for i in range(3)], rtol=1e-4)


def test_an_estimator_called_by_hand_is_the_same():
    class Mine(LLCEstimator):
        """Of a class of the user's, so each draw comes by a call."""

    by_call, filled = Mine(3, 12, None, nbeta=60.0), LLCEstimator(3, 12, None, nbeta=60.0)
    results = sample(
        regression(), LOADER, {"a": by_call, "b": filled}, evaluate_mse, optimizer_kwargs=SETTINGS, **SHORT
    )
    assert set(results) == {"a", "b"}
    assert results["a"]["llc/mean"] == pytest.approx(results["b"]["llc/mean"], rel=1e-12)
    np.testing.assert_array_equal(results["a"]["loss/trace"], results["b"]["loss/trace"])


def test_mala_acceptance():
    rate = MalaAcceptanceRate(3, 12, learning_rate=1e-4, nbeta=60.0)
    found = summary(callbacks=[rate])
    assert found["mala_accept/trace"].shape == (3, 11)
    mine = dif.mala_acceptance(
        regression(), nn.MSELoss(), (X, Y), chains=3, draws=12, burn_in=4, lr=1e-4, localization=5.0, nbeta=60.0,
        batch_size=50, batches="epoch", progress=False,
    )  # fmt: skip
    np.testing.assert_allclose(found["mala_accept/trace"], mine.probabilities[:, 1:], rtol=1e-6)
    assert found["mala_accept/mean"] == pytest.approx(mine.probabilities[:, 1:].mean())
    assert found["mala_accept/std"] == pytest.approx(mine.probabilities[:, 1:].std())
    with pytest.raises(ValueError, match=r"learning_rate: expected that of the run, 0\.0001, got 0\.01 in Mala"):
        summary(callbacks=[MalaAcceptanceRate(3, 12, learning_rate=1e-2, nbeta=60.0)])


def test_restricted_parameters():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = regression(), nn.Parameter(torch.zeros(1))
            self.fixed = nn.Parameter(torch.zeros(1), requires_grad=False)

        def forward(self, x):
            return self.a(x) + self.b + self.fixed

    moved = []
    masks = {"a.weight": torch.tensor([[1, 0, 0]]), "b": torch.tensor([False]), "fixed": torch.tensor([True])}
    model = Two()
    estimate_learning_coeff_with_summary(
        model, LOADER, [lambda model, **rest: moved.append([p.clone() for p in model.parameters()])], evaluate_mse,
        optimizer_kwargs=SETTINGS, optimize_over_per_model_param=masks, **SHORT,
    )  # fmt: skip
    names = [name for name, _ in model.named_parameters()]
    for state in moved[1:]:
        now = dict(zip(names, state, strict=True))
        assert float(now["b"]) == float(now["fixed"]) == 0.0
        assert torch.equal(now["a.weight"][0, 1:], model.a.weight[0, 1:])
        assert now["a.weight"][0, 0] != model.a.weight[0, 0]


@pytest.mark.parametrize("method", [SGLD, SGMCMC.sgld, SGMCMC.rmsprop_sgld, SGNHT, SGMCMC.sgnht])
def test_sampling_methods(method):
    settings = {"lr": 1e-4, "nbeta": 60.0, "bounding_box_size": 0.5}
    found = summary(sampling_method=method, optimizer_kwargs=settings)
    assert np.isfinite(found["loss/trace"]).all()


def test_records_are_taken_and_other_settings_refused():
    noted = {**SETTINGS, "save_noise": True, "save_mala_vars": True, "metrics": ["noise_norm"], "noise_level": 1.0}
    assert summary(optimizer_kwargs=noted)["llc/mean"] == summary()["llc/mean"]
    old = {"lr": 1e-4, "localization": 5.0, "temperature": 60.0}
    assert summary(optimizer_kwargs=old)["llc/mean"] == summary()["llc/mean"]
    refusals = [
        (ValueError, {"temperature": 3.0}, "nbeta: expected nbeta or temperature, its old name, got both"),
        (
            ValueError,
            {"noise_level": 0.0},
            "noise_level: expected a number above 0, as nothing is sampled else, got 0.0",
        ),
        (ValueError, {"weight_decay": -0.1}, "weight_decay: expected a number of at least 0, got -0.1"),
        (
            ValueError,
            {"weight_decay": 0.1, "bounding_box_size": 1.0},
            "bounding_box_size: expected none with weight_decay, got 1.0",
        ),
        (TypeError, {"step": 1}, "optimizer_kwargs: expected settings of SGLD, got 'step'"),
    ]
    for kind, extra, text in refusals:
        with pytest.raises(kind) as caught:
            summary(optimizer_kwargs={**SETTINGS, **extra})
        assert str(caught.value) == text
    with pytest.raises(DeviceError, match="device: expected cpu, got cuda:0"):
        summary(device="cuda:0")
    with pytest.raises(DeviceError, match="device: expected cpu, got cpu and gpu_idxs"):
        summary(gpu_idxs=[0])
    with pytest.raises(DataError, match="loader: expected a DataLoader with a batch size, got list"):
        estimate_learning_coeff(regression(), [(X, Y)], optimizer_kwargs=SETTINGS)
    with pytest.raises(ValueError, match="nbeta: expected a number, got none"):
        LLCEstimator(2, 3, None)


def test_the_default_temperature_is_of_the_batch_size():
    assert default_nbeta(LOADER) == 50 / math.log(50)
    assert default_nbeta(LOADER, 2) == default_nbeta(100) == 100 / math.log(100)
    with pytest.warns(UserWarning, match="nbeta is 1, as b / ln b is undefined for one sample a batch"):
        assert default_nbeta(1) == 1.0
    with pytest.raises(NotImplementedError):
        default_nbeta("loader")
    found = summary(optimizer_kwargs={"lr": 1e-4}, online=True)
    gain = (found["llc/trace"] / found["loss/trace"]).max()
    assert np.isfinite(gain)
    explicit = summary(optimizer_kwargs={"lr": 1e-4, "nbeta": 50 / math.log(50)}, online=True)
    np.testing.assert_array_equal(found["llc/trace"], explicit["llc/trace"])


def test_doubts_are_warnings_and_a_diverged_chain_leaves_the_mean():
    with pytest.warns(UserWarning, match="no standard error: it takes at least 4 draws, got 3"):
        summary(num_draws=3)

    class Bowl(nn.Module):
        def __init__(self):
            super().__init__()
            self.bowl = Quadratic([1.0])

    def cliff(model, batch):
        # Nothing stops a chain that passes 1, and few do.
        w = model.bowl.w[0]
        return 0.5 * w**2 + torch.where(w > 1.0, float("inf"), 0.0) + 0 * batch[0].sum()

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = estimate_learning_coeff_with_summary(
            Bowl(), DataLoader(TensorDataset(torch.zeros(4, 1)), batch_size=4), evaluate=cliff,
            optimizer_kwargs={"lr": 0.2, "nbeta": 2.0}, num_chains=8, num_draws=30, seed=0, verbose=False,
        )  # fmt: skip
    lost = [i for i in range(8) if np.isnan(found[f"llc-chain/{i}"])]
    assert 0 < len(lost) < 8
    assert any(f"chain {lost[0]} diverged at step " in str(w.message) for w in told)
    kept = [found[f"llc-chain/{i}"] for i in range(8) if i not in lost]
    assert found["llc/mean"] == pytest.approx(np.mean(kept))
    with pytest.raises(NumericalError, match="all 3 chains diverged, chain 0 at step "):
        summary(optimizer_kwargs={**SETTINGS, "lr": 1e9}, seed=[1, 2, 3])


@pytest.mark.parametrize("method", [SGLD, SGMCMC.sgld])
@pytest.mark.parametrize("noise", [1.0, 0.5])
@pytest.mark.parametrize("decay", [0.0, 40.0])
def test_weight_decay_and_noise_have_their_closed_form(method, noise, decay):
    # drift / 2 of d = nbeta H (w - w0) + gamma (w - w0) + decay w = A (w - w0) + decay w0 about w0 - A^-1 decay w0;
    # noise of level s: covariance s^2 A^-1 (1 - lr A / 4)^-1. llc = nbeta tr(H (cov + m m')) / 2.
    loader = DataLoader(TensorDataset(X, Y), batch_size=400)
    settings = {"lr": 1e-3, "localization": 5.0, "nbeta": 60.0, "noise_level": noise, "weight_decay": decay}
    found = estimate_learning_coeff_with_summary(
        regression(), loader, evaluate=evaluate_mse, optimizer_kwargs=settings, num_chains=8, num_draws=3000,
        num_burnin_steps=200, seed=1, verbose=False, sampling_method=method,
    )  # fmt: skip
    h = 2 * (X.T @ X).double().numpy() / 400
    a = 60 * h + (5 + decay) * np.eye(3)
    m = -np.linalg.solve(a, decay * BEST.double().numpy()[0])
    cov = noise**2 * np.linalg.inv(a @ (np.eye(3) - 1e-3 * a / 4))
    exact = 60 * np.trace(h @ (cov + np.outer(m, m))) / 2
    # 8 chains, Student's t: 1e-3 at 5.4
    assert abs(found["llc/mean"] - exact) < 5.4 * found["llc/std"] / math.sqrt(8)
    assert found["llc/std"] / math.sqrt(8) < 0.05 * exact


# --- as optimizers


@pytest.mark.parametrize(
    ("method", "settings", "exact"),
    [
        # SGLD: variance 1 / (a (1 - lr a / 4)), a = nbeta h + localization.
        (SGLD, {"lr": 0.04, "nbeta": 10.0, "localization": 5.0}, 1 / (15 * (1 - 0.04 * 15 / 4))),
        (
            SGLD,
            {"lr": 0.04, "nbeta": 10.0, "localization": 3.0, "weight_decay": 2.0, "noise_level": 0.5},
            0.25 / (15 * (1 - 0.04 * 15 / 4)),
        ),
        # The thermostat holds the mean of m^2 at lr, and so E[w^2] = 1 / (nbeta h), up to terms of the step.
        (SGNHT, {"lr": 0.002, "nbeta": 10.0, "diffusion_factor": 0.1}, 1 / 10),
    ],
)
def test_steps_have_the_stationary_variance(method, settings, exact):
    torch.manual_seed(0)
    p = nn.Parameter(torch.zeros(20_000))
    optimizer = method([p], **settings)
    for _ in range(600):
        p.grad = p.detach().clone()
        optimizer.step()
    # 20,000 independent coordinates: the variance is known to sqrt(2 / 20,000) = 1 %, asked to 4 of these; SGNHT adds
    # up to nbeta lr / 2 = 1 % for its step.
    assert p.var().item() == pytest.approx(exact, rel=0.05)
    assert abs(p.mean().item()) < 4 * math.sqrt(exact / 20_000)


def test_steps_respect_masks_boxes_and_centers():
    torch.manual_seed(0)
    p, q = nn.Parameter(torch.ones(100)), nn.Parameter(torch.ones(100))
    half = torch.arange(100) < 50
    for method in (SGLD, SGMCMC.rmsprop_sgld):
        groups = [{"params": [p], "optimize_over": half}, {"params": [q]}]
        optimizer = method(groups, lr=0.1, nbeta=1.0, bounding_box_size=0.2, localization=2.0)
        start = p.detach().clone(), q.detach().clone()
        for _ in range(5):
            p.grad = q.grad = None
            optimizer.step()
        assert torch.equal(p.detach()[50:], start[0][50:])
        assert (p.detach()[:50] != start[0][:50]).all()
        assert (q.detach() - start[1]).abs().max() <= 0.2 + 1e-6
        assert (q.detach() - start[1]).abs().max() > 0.19
