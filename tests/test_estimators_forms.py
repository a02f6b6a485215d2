"""Estimators on checkpoints, interrupted, in doubt, against brute force, and what they print."""

from __future__ import annotations

import os
import signal
import threading

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import devinterp_fast as dif
from devinterp_fast import _native
from devinterp_fast.errors import DataError, DeviceError, LossError, ModelError
from devinterp_fast.estimators.draws import jackknife
from devinterp_fast.sampling import jobs
from devinterp_fast.sampling.prepare import prepare

DRAW = torch.Generator().manual_seed(0)
X = torch.randn(40, 3, generator=DRAW)
Y = torch.randint(0, 2, (40,), generator=DRAW)
LOSS = nn.CrossEntropyLoss()
QUICK = {"chains": 3, "draws": 10, "burn_in": 4, "lr": 1e-3, "batch_size": 8, "progress": False}
ENGINES = pytest.mark.parametrize("backend", ["native", "torch"])


def network(seed=3):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).eval()


def everything(models):
    first = models if isinstance(models, nn.Module) else models[0]
    return torch.ones(sum(p.numel() for p in first.parameters())) > 0


ROW = [network(seed) for seed in range(3)]
EVERY = {
    "estimate_llc": dif.estimate_llc,
    "estimate_waic": dif.estimate_waic,
    "estimate_wbic": dif.estimate_wbic,
    "variance_llc": dif.variance_llc,
    "two_temperature_llc": dif.two_temperature_llc,
    "susceptibilities": lambda m, f, d, **s: dif.susceptibilities(m, f, d, {"all": everything(m)}, **s),
    "influence": lambda m, f, d, **s: dif.influence(m, f, d, (X[:2], Y[:2]), **s),
    "loss_kernel": dif.loss_kernel,
    "posterior_covariance": lambda m, f, d, **s: dif.posterior_covariance(m, f, d, k=2, **s),
    "mala_acceptance": dif.mala_acceptance,
}
ALL = pytest.mark.parametrize("estimate", EVERY.values(), ids=EVERY)


def numbers(result):
    """All numbers of a result but its wall time, in a flat dict."""
    found = {}
    for name, value in vars(result).items():
        if isinstance(value, dif.LLC):
            found |= {f"{name}.{key}": x for key, x in numbers(value).items()}
        elif name == "llcs":
            for part, llc in value.items():
                found |= {f"{part}.{key}": x for key, x in numbers(llc).items()}
        elif name in ("trace", "values") and hasattr(value, "data_vars"):
            found |= {f"{name}.{key}": value[key].to_numpy() for key in value.data_vars}
        elif isinstance(value, float | np.ndarray) and name != "seconds":
            found[name] = np.asarray(value)
    return found


def same(a, b):
    a, b = numbers(a), numbers(b)
    assert a.keys() == b.keys()
    assert len(a) > 3
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)


# --- checkpoints


@ALL
def test_a_row_of_checkpoints_gives_the_bits_of_each_alone(estimate):
    row = estimate(ROW, LOSS, (X, Y), **QUICK)
    assert len(row) == 3
    for model, found in zip(ROW, row, strict=True):
        same(found, estimate(model, LOSS, (X, Y), **QUICK))
    assert len(estimate(ROW[:1], LOSS, (X, Y), **QUICK)) == 1


def test_checkpoints_run_on_many_threads():
    want = dif.estimate_llc(ROW, LOSS, (X, Y), **{**QUICK, "chains": 1, "backend": "native"})
    torch.set_num_threads(3)
    for a, b in zip(want, dif.estimate_llc(ROW, LOSS, (X, Y), **{**QUICK, "chains": 1}), strict=True):
        same(a, b)


def test_checkpoints_come_from_state_dicts_and_files(tmp_path):
    model, states = network(9), [m.state_dict() for m in ROW]
    save_file(states[2], tmp_path / "last.safetensors")
    row = dif.Checkpoints(model, [*states[:2], tmp_path / "last.safetensors"])
    assert len(row) == 3
    assert len(row[1:]) == 2
    before = [p.clone() for p in model.parameters()]
    for a, b in zip(dif.estimate_llc(row, LOSS, (X, Y), **QUICK), ROW, strict=True):
        same(a, dif.estimate_llc(b, LOSS, (X, Y), **QUICK))
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))
    assert isinstance(row[-1], nn.Sequential)
    with pytest.raises(IndexError):
        row[3]


def test_a_loader_is_read_once_for_all_checkpoints():
    class Noisy(torch.utils.data.Dataset):
        """Other numbers each time it is read."""

        def __len__(self):
            return 20

        def __getitem__(self, i):
            return torch.randn(3), Y[i]

    torch.manual_seed(0)
    twice = dif.estimate_llc([ROW[0], ROW[0]], LOSS, Noisy(), **QUICK)
    same(*twice)


def refused(kind, text, call):
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    assert str(caught.value).startswith(text)


def test_bad_rows():
    def run(row):
        return lambda: dif.estimate_llc(row, LOSS, (X, Y), **QUICK)

    refused(ModelError, "model: expected a module or a sequence of at least one, got none", run([]))
    refused(
        ModelError,
        "model: expected a module or a sequence of modules, got OrderedDict; state dicts become modules by Checkpoints",
        run([ROW[0].state_dict()]),
    )
    refused(
        DataError, "states: expected at least one state dict or file, got none", lambda: dif.Checkpoints(ROW[0], [])
    )
    refused(
        DataError,
        "states[0]: expected a state that fits the model, got ",
        run(dif.Checkpoints(nn.Linear(2, 2), [ROW[0].state_dict()])),
    )
    refused(
        DataError, "states[0]: expected a state that fits the model, got ", run(dif.Checkpoints(ROW[0], ["nowhere"]))
    )


# --- Ctrl-C


@pytest.fixture
def pressed(monkeypatch):
    """Presses Ctrl-C when the chains of a run have taken so many updates."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def at(updates):
        def update(self, done, note=""):
            if done >= updates:
                os.kill(os.getpid(), signal.SIGINT)
                monkeypatch.setattr(jobs.ProgressBar, "update", lambda self, done, note="": None)

        monkeypatch.setattr(jobs.ProgressBar, "update", update)
        monkeypatch.setattr("devinterp_fast.sampling.native._CALL", 1)  # one step a call

    yield at
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_returns_what_there_is(pressed):
    whole = dif.estimate_llc(ROW[0], LOSS, (X, Y), **QUICK)
    assert not whole.interrupted
    pressed(3 * (4 + 6))
    llc = dif.estimate_llc(ROW[0], LOSS, (X, Y), **QUICK)
    assert llc.interrupted
    assert llc.warnings[0] == "interrupted: 3 of 3 chains and 6 of 10 draws were kept; run it again for the rest"
    assert dict(llc.trace.sizes) == {"chain": 3, "draw": 6}
    assert np.array_equal(llc.trace["loss"], whole.trace["loss"][:, :6])
    assert "! interrupted: 3 of 3 chains" in str(llc)


def test_ctrl_c_in_a_row_of_checkpoints(pressed):
    pressed(3 * 14 + 14 * 3 // 4 + 3 * (4 + 2))  # a quarter more at a tenth of the localization, and into the second
    row = dif.estimate_llc(ROW, LOSS, (X, Y), **QUICK)
    assert [llc.interrupted for llc in row] == [False, True]
    assert row[1].trace.sizes["draw"] == 2


@pytest.mark.parametrize("name", ["estimate_waic", "mala_acceptance", "susceptibilities", "influence", "variance_llc"])
def test_ctrl_c_leaves_every_estimator_with_a_value(pressed, name):
    pressed(3 * (4 + 5))
    found = EVERY[name](ROW[0], LOSS, (X, Y), **QUICK)
    assert any("interrupted" in warning for warning in found.warnings)
    # The same as a run of five draws.
    short = numbers(EVERY[name](ROW[0], LOSS, (X, Y), **{**QUICK, "draws": 5}))
    for key, value in numbers(found).items():
        if key != "probabilities":
            np.testing.assert_array_equal(value, short[key], err_msg=key)


def test_ctrl_c_before_the_first_draw_interrupts(pressed):
    pressed(3)
    with pytest.raises(KeyboardInterrupt):
        dif.estimate_llc(ROW[0], LOSS, (X, Y), **QUICK)


def test_ctrl_c_between_passes_interrupts(pressed):
    pressed(3 * 8)
    with pytest.raises(KeyboardInterrupt):
        dif.posterior_covariance(ROW[0], LOSS, (X, Y), k=2, **QUICK)


# --- against brute force


@ENGINES
def test_posterior_covariance_is_that_of_the_draws(backend):
    class Keep:
        def __init__(self):
            self.w = np.zeros((3, 60, 26))

        def see(self, draw):
            self.w[draw.chains, draw.number] = draw.w

    settings = {**QUICK, "draws": 60, "lr": 0.02, "localization": 5.0, "burn_in": 20}
    mask = {name: torch.ones_like(p) > 0 for name, p in ROW[0].named_parameters() if "2" in name}
    for chosen in (None, mask) if backend == "native" else (mask,):
        found = dif.posterior_covariance(
            ROW[0], LOSS, (X, Y), k=3, passes=8 if chosen is None else 2, mask=chosen, backend=backend, **settings
        )  # fmt: skip
        keep, options = Keep(), {k: v for k, v in settings.items() if k != "progress"}
        job = prepare(ROW[0], LOSS, (X, Y), mask=chosen, backend=backend, **options)
        jobs.run([job], "", progress=False, observers=[[keep]])
        draws = keep.w.reshape(-1, 26)
        values, vectors = np.linalg.eigh(np.cov(draws.T, bias=True))
        assert found.residuals.max() < 0.05
        # Each value is wrong by at most the square of its residual over its gap, and by less than the residual.
        np.testing.assert_allclose(found.values, values[::-1][:3], rtol=0.01)
        assert abs(found.vectors[:, 0] @ vectors[:, -1]) > 0.99
        np.testing.assert_allclose(found.mean, (draws - job.center.double().numpy()).mean(0), rtol=0, atol=1e-9)
        along = ((draws - draws.mean(0)) @ found.vectors).reshape(3, 60, 3)
        without = [np.delete(along, c, 0).var((0, 1)) for c in range(3)]
        np.testing.assert_allclose(found.mcse, np.sqrt(2 / 3 * 3 * np.var(without, 0)), rtol=1e-6)


def test_essential_dynamics_is_the_singular_value_decomposition():
    found = dif.essential_dynamics(ROW, X, k=2)
    with torch.no_grad():
        rows = np.stack([m(X).double().numpy().ravel() for m in ROW])
    away = rows - rows.mean(0)
    size = np.linalg.svd(away, compute_uv=False)
    np.testing.assert_allclose(found.explained, (size**2 / (size**2).sum())[:2], rtol=1e-9)
    np.testing.assert_allclose(found.scores @ found.components, away, atol=1e-9)  # rank 2: all of it
    np.testing.assert_allclose(found.mean, rows.mean(0))
    assert (np.take_along_axis(found.components, np.abs(found.components).argmax(1)[:, None], 1) > 0).all()
    assert (found.mcse > 0).all()
    assert str(found).startswith("essential dynamics of 3 checkpoints: ")
    # On a straight line through function space one component is everything, to the last digit.
    line = [nn.Linear(3, 2) for _ in range(4)]
    for t, model in enumerate(line):
        for p in model.parameters():
            p.data.fill_(float(t))
    straight = dif.essential_dynamics(line, (X, Y), k=1)
    assert straight.explained[0] == pytest.approx(1.0)
    assert np.all(np.diff(straight.scores[:, 0]) > 0) or np.all(np.diff(straight.scores[:, 0]) < 0)
    own = dif.essential_dynamics(line, (X, Y), k=1, function=lambda model, batch: model(batch[0]))
    np.testing.assert_array_equal(own.scores, straight.scores)


def test_bad_essential_dynamics():
    for k in (0, 3, True, 1.5):
        refused(
            ValueError,
            f"k: expected an integer from 1 to 2 (checkpoints - 1), got {k!r}",
            lambda k=k: dif.essential_dynamics(ROW, X, k=k),
        )
    refused(
        ModelError,
        "models[1]: expected finite outputs, got NaN or infinity",
        lambda: dif.essential_dynamics(ROW, X, k=1, function=lambda m, b: b / (0.0 if m is ROW[1] else 1.0)),
    )


@ENGINES
def test_acceptance_is_metropolis(backend):
    # By hand in float64 from the same draws and the same noise: agreement up to float32 losses times nbeta.
    kept = {}

    class Keep:
        def see(self, draw):
            for i, c in enumerate(range(draw.chains.start, draw.chains.stop)):
                kept[c, draw.number] = draw.w[i].double().clone()

    settings = {**QUICK, "lr": [1e-3, 0.03, 0.06], "draws": 3, "nbeta": 30.0}
    mask = torch.arange(26) > 3
    found = dif.mala_acceptance(ROW[0], LOSS, (X, Y), backend=backend, mask=mask, **settings)
    options = {k: v for k, v in settings.items() if k != "progress"}
    job = prepare(ROW[0], LOSS, (X, Y), backend=backend, mask=mask, **options)
    jobs.run([job], "", progress=False, observers=[[Keep()]])
    model = network(0).double()

    def energy(w):
        leaf = w.clone().requires_grad_()
        at = torch.nn.utils.parameters_to_vector(model.parameters()).numel()
        assert at == 26
        parts = dict(zip([n for n, _ in model.named_parameters()], job.where.views(leaf), strict=True))
        loss = LOSS(torch.func.functional_call(model, parts, (X.double(),)), Y)
        u = 30.0 * loss + 0.5 * ((leaf - job.center.double()) ** 2).sum()
        return float(u.detach()), torch.autograd.grad(u, leaf)[0] * mask

    for (c, k), w in kept.items():
        lr = settings["lr"][c]
        xi = torch.empty(1, 26)
        _native.normals_(xi, seed=0, step=k, first_chain=c, stream=_native.MOMENTA)
        u, g = energy(w)
        to = (w + mask * (lr**0.5 * xi[0].double() - lr / 2 * g)).float().double()
        v, h = energy(to)
        log = u - v + float((((to - w + lr / 2 * g) ** 2 - (w - to + lr / 2 * h) ** 2) * mask).sum()) / (2 * lr)
        assert found.probabilities[c, k] == pytest.approx(min(1.0, np.exp(log)), abs=2e-3)
    assert found.per_chain[0] > 0.99 > found.per_chain[2]
    np.testing.assert_allclose(found.per_chain, found.probabilities.mean(1))


def test_the_running_estimate_ends_at_the_value():
    llc = dif.estimate_llc(ROW[0], LOSS, (X, Y), **{**QUICK, "nbeta": [10.0, 20.0, 30.0]})
    assert llc.running.dims == ("chain", "draw")
    np.testing.assert_allclose(llc.running[:, -1], llc.per_chain, rtol=1e-12)
    first = np.array([10.0, 20.0, 30.0]) * (llc.trace["loss"] - llc.trace["baseline"])[:, 0]
    np.testing.assert_allclose(llc.running[:, 0], first, rtol=1e-12)


def test_the_jackknife_of_a_mean_is_its_standard_error():
    x = np.random.default_rng(0).normal(size=12)
    value, error = jackknife(lambda chains: np.asarray(x[chains].mean()), np.arange(12))
    assert value == pytest.approx(x.mean())
    assert error == pytest.approx(x.std(ddof=1) / np.sqrt(12))
    value, error = jackknife(lambda chains: np.asarray(x[chains].var()), np.arange(12))
    assert value == pytest.approx(x.var(ddof=1))  # the bias is gone, exactly
    value, error = jackknife(lambda chains: np.asarray(x[chains].mean()), np.array([3]))
    assert (value, np.isnan(error)) == (x[3], True)


# --- in doubt


@ALL
def test_one_chain_has_no_error_from_others_and_says_nothing_false(estimate):
    found = estimate(ROW[0], LOSS, (X, Y), **{**QUICK, "chains": 1})
    assert str(found)


@ALL
def test_a_diverged_chain_is_left_out_of_everything(estimate):
    def numbers_of(lr):
        return numbers(estimate(ROW[0], LOSS, (X, Y), **{**QUICK, "chains": len(lr), "lr": lr, "backend": "native"}))

    good, with_bad = numbers_of([1e-3, 2e-3]), numbers_of([1e-3, 2e-3, 1e30])
    for key, value in good.items():
        other = with_bad[key]
        if other.shape == value.shape:
            np.testing.assert_allclose(other, value, rtol=1e-6, atol=1e-9, err_msg=key)
        else:  # one row a chain
            np.testing.assert_array_equal(other[:2], value, err_msg=key)


def test_a_sample_whose_loss_is_infinite_at_some_draw_is_named():
    # Infinite where a weight has left its place by a little, on one sample that no chain ever walks on.
    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(2))

    def loss(model, batch):
        away = (model.w**2).sum()
        return 0.5 * away * batch[:, 0] + torch.where((batch[:, 1] > 0) & (away > 0), float("inf"), 0.0)

    data = torch.ones(6, 2) * torch.tensor([1.0, 0.0])
    odd = data.clone()
    odd[4, 1] = 1.0
    found = dif.influence(One(), loss, data, odd, **QUICK)
    assert "1 values were not finite at some draw, column 4 among them: theirs are NaN" in found.warnings
    assert np.isnan(found.values[:, 4]).all()
    assert np.isfinite(np.delete(found.values, 4, 1)).all()
    chi = dif.susceptibilities(One(), loss, data, {"all": torch.ones(2) > 0}, probe=odd, **QUICK)
    sentence = "1 values of the probe were not finite at some draw, sample 4 among them: theirs are NaN"
    assert f"all: {sentence}" in chi.warnings
    assert np.isnan(chi.values["chi"][0, 4])
    assert np.isfinite(chi.values["chi"][0, :4]).all()
    # Among the data of the run itself it ends the chains that meet it.
    waic = dif.estimate_waic(One(), loss, odd, **{**QUICK, "batch_size": 1, "draws": 3, "burn_in": 0, "chains": 8})
    assert waic.llc.diverged
    assert np.isnan(waic.value)
    assert "the loss was not finite at some draw on 1 of 6 samples, sample 4 among them" in waic.warnings
    refused(
        LossError,
        "loss_fn: expected finite losses at the model's weights, got NaN or infinity",
        lambda: dif.estimate_waic(One(), lambda model, b: loss(model, b) / (b[:, 1] == 0), odd, **QUICK),
    )


def test_bad_settings():
    def run(name, **options):
        return lambda: EVERY[name](ROW[0], LOSS, (X, Y), **{**QUICK, **options})

    for name in ("estimate_waic", "variance_llc", "susceptibilities"):
        refused(
            ValueError,
            "nbeta: expected one number for all chains, got [1.0, 2.0, 3.0]",
            run(name, nbeta=[1.0, 2.0, 3.0]),
        )
    refused(ValueError, "draws: expected an integer of at least 1, got 0", run("estimate_waic", draws=0))
    refused(ValueError, "burn_in: expected an integer of at least 0, got -1", run("loss_kernel", burn_in=-1))
    refused(ValueError, "nbeta: expected nbeta or n, got both", run("influence", nbeta=1.0, n=4))
    text = "mask: expected none, as each component is a mask, got one"
    refused(ValueError, text, run("susceptibilities", mask=torch.ones(26) > 0))
    refused(
        ValueError,
        "mask: expected at least one True, got none: nothing would be sampled",
        run("estimate_waic", mask=torch.zeros(26) > 0),
    )
    refused(
        ValueError,
        "components: expected at least one {name: mask}, got none",
        lambda: dif.susceptibilities(ROW[0], LOSS, (X, Y), {}),
    )
    for k in (0, 27, True, 2.0):
        text = f"k: expected an integer from 1 to the 26 coordinates that move, got {k!r}"
        refused(ValueError, text, lambda k=k: dif.posterior_covariance(ROW[0], LOSS, (X, Y), k=k, **QUICK))
    text = "passes: expected an integer of at least 2, got 1"
    refused(ValueError, text, lambda: dif.posterior_covariance(ROW[0], LOSS, (X, Y), passes=1, **QUICK))
    with pytest.raises(TypeError, match="got an unexpected keyword argument 'step'"):
        dif.estimate_waic(ROW[0], LOSS, (X, Y), step=3)


@ALL
def test_models_that_cannot_run_here(estimate):
    class Locked(nn.Linear):
        """Holds what cannot be copied, nor pickled."""

        def __init__(self):
            super().__init__(3, 2)
            self.lock = threading.Lock()

    class Elsewhere(nn.Linear):
        """Wants a GPU."""

        def forward(self, x):
            return super().forward(x.cuda())

    refused(
        ModelError,
        "model: expected a module that copy.deepcopy can copy, got cannot pickle '_thread.lock' object",
        lambda: estimate(Locked(), LOSS, (X, Y), **{**QUICK, "backend": "torch"}),
    )
    if not torch.cuda.is_available():
        refused(
            DeviceError,
            "model: expected a forward that runs on the cpu, got ",
            lambda: estimate(Elsewhere(3, 2), LOSS, (X, Y), **QUICK),
        )


@ALL
def test_nothing_of_the_model_changes(estimate):
    model = network()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    versions = [(id(p), p.data_ptr(), p._version, p.grad) for p in model.parameters()]
    random = torch.get_rng_state()
    estimate(model, LOSS, (X, Y), **QUICK)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert versions == [(id(p), p.data_ptr(), p._version, p.grad) for p in model.parameters()]
    assert torch.equal(random, torch.get_rng_state())
    assert torch.get_num_threads() == 1
