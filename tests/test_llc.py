"""What every call of ``estimate_llc`` keeps, and what it says when in doubt."""

from __future__ import annotations

import copy
import random

import arviz_stats.base
import numpy as np
import pytest
import torch
from conftest import Quadratic, quadratic_loss
from torch import nn
from torch.nn import functional as F

import devinterp_fast as dif
from devinterp_fast import _cpu
from devinterp_fast.errors import LossError, NumericalError
from devinterp_fast.sampling import torch_engine
from devinterp_fast.sampling.diagnostics import block_means, diagnose
from devinterp_fast.sampling.objective import Objective
from devinterp_fast.sampling.torch_engine import Settings

DRAW = torch.Generator().manual_seed(0)
X = torch.randn(120, 3, generator=DRAW)
Y = torch.randint(0, 2, (120,), generator=DRAW)
QUICK = {"chains": 3, "draws": 12, "burn_in": 5, "lr": 1e-4, "batch_size": 16, "progress": False}
ALONE = pytest.mark.parametrize("together", [True, False], ids=["together", "alone"])


@pytest.fixture
def together(request, monkeypatch):
    if not request.param:
        monkeypatch.setattr(torch_engine, "VMAP_LIMIT", 0)
    return request.param


BOTH = pytest.mark.parametrize("together", [True, False], ids=["together", "alone"], indirect=True)


def network():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 2)).eval()


def run(model=None, loss_fn=None, data=(X, Y), **options):
    model = network() if model is None else model
    return dif.estimate_llc(model, nn.CrossEntropyLoss() if loss_fn is None else loss_fn, data, **{**QUICK, **options})


def same(a, b):
    """Whether two results are equal bit for bit."""
    traces = all(np.array_equal(a.trace[k], b.trace[k]) for k in ("loss", "baseline"))
    return traces and (a.value, a.mcse, a.step_bias) == (b.value, b.mcse, b.step_bias)


# --- nothing of the user's changes


class World:
    """Everything a call could disturb."""

    def __init__(self, model):
        self.model = model
        self.state = {k: v.clone() for k, v in model.state_dict().items()}
        self.parameters = [(id(p), p.data_ptr(), p.requires_grad, p.device, p._version) for p in model.parameters()]
        self.grads = [None if p.grad is None else (id(p.grad), p.grad.clone()) for p in model.parameters()]
        self.modes = [m.training for m in model.modules()]
        self.generators = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
        self.settings = torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype()
        self.isa = _cpu.isa()

    def assert_unchanged(self):
        now = World(self.model)
        assert list(now.state) == list(self.state)
        assert all(torch.equal(now.state[k], self.state[k]) for k in self.state)
        assert now.parameters == self.parameters
        for new, old in zip(now.grads, self.grads, strict=True):
            assert (new is None) == (old is None)
            assert new is None or (new[0] == old[0] and torch.equal(new[1], old[1]))
        assert now.modes == self.modes
        assert torch.equal(now.generators[0], self.generators[0])
        assert now.generators[1:] == self.generators[1:]
        assert now.settings == self.settings
        assert now.isa == self.isa


@pytest.fixture
def world():
    torch.set_num_threads(2)
    model = network()
    model[0].bias.requires_grad_(False)
    model[4].weight.grad = torch.full((2, 5), 7.0)
    return World(model)


@BOTH
@pytest.mark.parametrize("options", [{}, {"lr": "auto"}, {"batches": "full"}, {"batches": "shared"}])
def test_nothing_of_the_callers_changes(world, together, options):
    run(world.model, **options)
    world.assert_unchanged()


def test_nothing_changes_on_failure_either(world):
    class Late(nn.Module):
        """Fails in the middle of a run."""

        calls = 0

        def forward(self, out, y):
            Late.calls += 1
            if Late.calls == 40:
                raise KeyError("late")
            return F.cross_entropy(out, y)

    with pytest.raises(KeyError, match="late"):
        run(world.model, Late(), draws=60)
    world.assert_unchanged()
    with pytest.raises(NumericalError):
        run(world.model, lr=1e30)
    world.assert_unchanged()
    with pytest.raises(LossError):
        run(world.model, nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0])))
    world.assert_unchanged()


@BOTH
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_a_callers_no_grad_does_no_harm(together, context):
    model = network()
    want = run(model)
    with context():
        assert same(run(model), want)


# --- the same numbers


@BOTH
def test_the_seed_names_all_noise(together):
    first = run(seed=5)
    torch.manual_seed(99)
    assert same(run(seed=5), first)
    other = run(seed=6)
    assert not np.isin(other.trace["loss"], first.trace["loss"]).any()


@pytest.mark.parametrize("together", [False], indirect=True)
@pytest.mark.parametrize("batches", ["independent", "shared", "full"])
def test_a_chain_alone_equals_the_chain_among_many(together, batches):
    many = run(batches=batches, chains=4)
    assert len(set(many.per_chain)) == 4
    for chains in (1, 3):
        few = run(batches=batches, chains=chains)
        for name in ("loss", "baseline"):
            assert np.array_equal(few.trace[name], many.trace[name][:chains])
        assert few.per_chain.tolist() == many.per_chain[:chains].tolist()


@BOTH
def test_instruction_sets_and_threads_do_not_show(together):
    want = run()
    try:
        for name in _cpu.isa_available():
            _cpu.use_isa(name)
            torch.set_num_threads(2)
            assert same(run(), want)
    finally:
        _cpu.use_isa("")


def test_together_and_alone_agree_up_to_rounding(monkeypatch):
    want = run(draws=5, burn_in=0)
    monkeypatch.setattr(torch_engine, "VMAP_LIMIT", 0)
    # Five steps of 1e-4 cannot blow up the rounding of a loss near 1: 2^-24 times some tens of operations.
    np.testing.assert_allclose(run(draws=5, burn_in=0).trace["loss"], want.trace["loss"], rtol=0, atol=1e-5)


def test_thinning_keeps_every_kth_draw():
    every, third = run(draws=13), run(draws=5, thin=3)
    assert np.array_equal(every.trace["loss"][:, ::3], third.trace["loss"])


def test_a_sequence_an_array_and_a_number_are_the_same_setting():
    want = run(lr=1e-4, localization=2.0, nbeta=20.0)
    assert same(run(lr=[1e-4] * 3, localization=np.full(3, 2.0), nbeta=(20.0,) * 3), want)
    assert same(run(lr=np.full(3, 1e-4), localization=torch.full((3,), 2.0), nbeta=np.float32(20.0)), want)


def test_nbeta_is_n_over_its_logarithm():
    assert run().settings["nbeta"] == [120 / np.log(120)] * 3
    assert run(n=5000).settings["nbeta"] == [5000 / np.log(5000)] * 3


def test_thresholds_do_not_look_at_the_number_of_chains():
    settings = {"draws": 1, "burn_in": 0, "thin": 1, "lr": None, "localization": None, "nbeta": None, "seed": 0}
    assert Settings(chains=1, batches="full", batch_size=1, **settings).steps == 1
    model, data = network(), dif.sampling.batches.as_data((X, Y))
    where = dif._flat.layout(model)
    ways = set()
    for chains in (1, 1000):
        each = np.ones(chains)
        s = Settings(chains, 1, 0, 1, each, each, each, "full", 120, 0)
        objective = Objective(nn.CrossEntropyLoss(), model, data)
        ways.add(torch_engine.TorchEngine(model, objective, data, where, None, torch.zeros(120), None, s).together)
    assert ways == {True}


# --- models of all kinds


@BOTH
def test_frozen_and_masked_parameters_stay(together):
    class Watch(nn.Module):
        """A loss that reports the first weight it sees."""

        def __init__(self):
            super().__init__()
            self.frozen = nn.Parameter(torch.tensor([1.0, 2.0]), requires_grad=False)
            self.masked = nn.Parameter(torch.tensor([3.0, 4.0]))
            self.free = nn.Parameter(torch.tensor([5.0, 6.0]))

    def fixed(model, batch):
        return model.frozen.sum() + model.masked[0] + 0 * model.free.sum() + 0 * batch

    mask = {"masked": torch.tensor([False, True]), "free": torch.tensor([True, True])}
    llc = run(Watch(), fixed, torch.zeros(40), mask=mask)
    assert (llc.trace["loss"] == 6.0).all()

    def moving(model, batch):
        return (model.masked[1] + model.free.sum()) ** 2 + 0 * batch

    assert (run(Watch(), moving, torch.zeros(40), mask=mask).trace["loss"][:, 1:].std("chain") > 0).all()


def test_float64_models_run_on_the_reference():
    llc = run(network().double(), data=(X.double(), Y))
    assert llc.engine == "torch/reference"
    plain = run()
    assert plain.engine == f"torch/{_cpu.isa()}"
    # The same noise up to rounding, so the same path: loss differences of 17 small steps within float32's digits.
    np.testing.assert_allclose(llc.trace["loss"], plain.trace["loss"], rtol=0, atol=1e-5)


def test_models_that_vmap_does_not_know():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            out = self.layer(x)
            return out if float(out.detach().sum()) < 1e9 else -out

    class Plain(Branch):
        def forward(self, x):
            return self.layer(x)

    # Together the plain one would differ in the last bits, so it too is walked one at a time.
    want = run(Branch())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_engine, "VMAP_LIMIT", 0)
        assert same(run(Plain()), want)


def test_tied_unused_scalar_and_empty_parameters():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.embed = nn.Embedding(6, 4)
            self.head = nn.Linear(4, 6, bias=False)
            self.head.weight = self.embed.weight
            self.scale = nn.Parameter(torch.tensor(1.0))
            self.unused = nn.Parameter(torch.zeros(2))
            self.empty = nn.Parameter(torch.zeros(0))

        def forward(self, tokens):
            return self.head(self.embed(tokens)) * self.scale

    tokens = torch.randint(0, 6, (50, 5), generator=DRAW)
    first = run(Odd(), dif.next_token_loss, tokens)
    assert np.isfinite(first.value)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_engine, "VMAP_LIMIT", 0)
        np.testing.assert_allclose(
            run(Odd(), dif.next_token_loss, tokens).trace["loss"], first.trace["loss"], rtol=0, atol=1e-5
        )


# --- what a result says


def test_trace_and_settings():
    llc = run(seed=7)
    assert dict(llc.trace.sizes) == {"chain": 3, "draw": 12}
    assert llc.trace["loss"].dims == llc.trace["baseline"].dims == ("chain", "draw")
    assert llc.trace["loss"].dtype == np.float64
    assert llc.settings == {
        "lr": [1e-4] * 3,
        "localization": [1.0] * 3,
        "nbeta": [120 / np.log(120)] * 3,
        "burn_in": 5,
        "thin": 1,
        "batches": "independent",
        "batch_size": 16,
        "seed": 7,
        "sampler": "sgld",
    }
    assert llc.trace.attrs == {**llc.settings, "engine": llc.engine, "engine_reason": llc.engine_reason}
    scaled = 120 / np.log(120) * (llc.trace["loss"] - llc.trace["baseline"]).to_numpy()
    np.testing.assert_allclose(llc.per_chain, scaled.mean(1), rtol=1e-12)
    assert np.isclose(llc.value, scaled.mean(), rtol=1e-12)
    assert llc.seconds > 0
    assert llc.diverged == {}


@pytest.mark.parametrize("draws", [50, 1000, 2500])
def test_diagnostics_are_arvizs(draws):
    values = np.random.default_rng(0).normal(size=(4, draws)).cumsum(1) * 0.05 + np.random.default_rng(1).normal(
        size=(4, draws)
    )
    got = diagnose(values)
    blocks = block_means(values)
    size = -(-draws // 1000)
    assert blocks.shape == (4, draws // size)
    np.testing.assert_allclose(blocks[:, -1], values[:, -size:].mean(1))
    stats = arviz_stats.base.array_stats
    axes = {"chain_axis": 0, "draw_axis": 1}
    assert got.rhat == float(stats.rhat(blocks, **axes))
    assert got.mcse == float(stats.mcse(blocks, method="mean", **axes))
    assert got.ess == min(float(stats.ess(blocks, method="mean", **axes)) * size, values.size)
    # Blocks keep the standard error: of white noise beside a walk, within a tenth.
    assert got.mcse == pytest.approx(float(stats.mcse(values, method="mean", **axes)), rel=0.1)


def test_result_diagnostics_belong_to_its_trace():
    llc = run(draws=40)
    scaled = np.array(llc.settings["nbeta"])[:, None] * (llc.trace["loss"] - llc.trace["baseline"]).to_numpy()
    want = diagnose(scaled)
    assert (llc.mcse, llc.rhat, llc.ess) == (want.mcse, want.rhat, want.ess)


def quadratic(h=(4.0, 1.0), **options):
    settings = {"chains": 8, "draws": 300, "burn_in": 200, "lr": 5e-3, "nbeta": 50.0, "localization": 5.0}
    data = torch.zeros(4, len(h))
    return dif.estimate_llc(Quadratic(list(h)), quadratic_loss, data, progress=False, **{**settings, **options})


def test_a_sound_estimate_is_one_line():
    llc = quadratic(lr=2e-3)
    assert llc.warnings == ()
    assert llc.verdict == "local minimum"
    digits = max(0, 1 - int(np.floor(np.log10(llc.mcse))))
    assert str(llc) == (
        f"LLC {llc.value:.{digits}f} ± {llc.mcse:.{digits}f}   8 chains x 300 draws   R-hat {llc.rhat:.2f}   "
        f"ESS {llc.ess:.0f}   {llc.engine}   {llc.seconds:.1f} s"
    )
    assert "trace" not in repr(llc)


@BOTH
def test_a_diverged_chain_is_named_and_left_out(together):
    good = quadratic(chains=3)
    lr = [5e-3] * 4
    lr[3] = 1e3
    llc = quadratic(chains=4, lr=lr)
    assert list(llc.diverged) == [3]
    step = llc.diverged[3]
    assert 0 < step < 60
    assert np.isnan(llc.per_chain[3])
    if not together:  # one at a time, the others' bits are their own; together, they round alike up to vmap's kernels
        assert llc.per_chain[:3].tolist() == good.per_chain.tolist()
    np.testing.assert_allclose(llc.per_chain[:3], good.per_chain, rtol=1e-4)
    assert (llc.value, llc.mcse) == pytest.approx((good.value, good.mcse), rel=1e-4)
    assert llc.step_bias == pytest.approx(good.step_bias, rel=1e-4)
    sentence = f"chain 3 diverged at step {step} and is left out; lower lr (1e+03)"
    assert sentence in llc.warnings
    assert str(llc).splitlines()[1 + llc.warnings.index(sentence)] == f"  ! {sentence}"


@BOTH
def test_all_chains_diverged(together):
    with pytest.raises(NumericalError) as caught:
        quadratic(chains=2, lr=[1e3, 2e3])
    first = quadratic(chains=2, lr=[1e3, 5e-3]).diverged[0]
    assert str(caught.value) == (
        "lr: expected a step size at which chains stay finite, got 1e+03: "
        f"all 2 chains diverged, chain 0 at step {first}"
    )


def test_a_saddle_is_no_minimum():
    # L = (x^2 - y^2) / 2 with batch noise: along y the chains fall away, held back only by the localization.
    class Saddle(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(2))

    def loss(model, batch):
        return 0.5 * (model.w[0] ** 2 - model.w[1] ** 2) + batch @ model.w

    data = torch.tensor([[0.1, 0.1], [-0.1, -0.1], [0.1, -0.1], [-0.1, 0.1]])
    # Bound, with a mean far below its error; unbound, falling for ever, with an error as large as the fall.
    for pull, chains, how in ((60.0, 64, "mean loss lies"), (40.0, 8, "still falling"), (1.0, 8, "still falling")):
        llc = dif.estimate_llc(
            Saddle(), loss, data, nbeta=50.0, localization=pull, lr=2e-3, chains=chains, draws=400, batch_size=4,
            progress=False,
        )  # fmt: skip
        assert llc.value < 0
        assert llc.verdict == "not a local minimum at this temperature"
        assert llc.warnings[0].startswith("not a local minimum at this temperature: ")
        assert how in llc.warnings[0]
        assert llc.warnings[0].endswith("; train further, or raise localization or nbeta")


def test_a_network_at_a_saddle_is_no_minimum():
    # Two layers at zero: their product is 0 and has no slope, but learning anything lowers the loss.
    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(2, 2))

        def forward(self, x):
            return x @ self.a.t() @ self.b.t()

    llc = run(Deep(), nn.MSELoss(), (X, X[:, :2]), nbeta=200.0, lr=1e-3, draws=200, burn_in=200, chains=8)
    assert llc.value < 0
    assert llc.verdict == "not a local minimum at this temperature"
    # With nothing set a warm-up carries the chains; how far says nothing of a place they left.
    free = dif.estimate_llc(Deep(), nn.MSELoss(), (X, X[:, :2]), nbeta=200.0, chains=8, progress=False)
    assert free.verdict == llc.verdict
    assert not any("the chains fill" in warning for warning in free.warnings)


@pytest.mark.parametrize("seed", range(5))
def test_no_false_escape_from_a_minimum(seed):
    # At 4 standard errors a false verdict has probability 3e-5 a run.
    assert quadratic((4.0, 0.0, 1.0), seed=seed, draws=100).verdict == "local minimum"


def test_a_negative_value_is_never_called_a_minimum():
    # Flat but for batch noise: the estimate is a coin toss around zero.
    results = [quadratic_noise(seed) for seed in range(12)]
    negative = [llc for llc in results if llc.value < 0]
    assert 0 < len(negative) < 12  # both happen, but for a chance of 2^-11
    for llc in results:
        sentence = (
            f"the value is negative, by {-llc.value / llc.mcse:.1f} standard errors: too few to tell a minimum from a "
            "saddle; take more draws or chains"
        )
        assert llc.verdict == ("undecided" if llc.value < 0 else "local minimum")
        assert (sentence in llc.warnings) == (llc.value < 0)


def quadratic_noise(seed):
    data = torch.tensor([[1.0], [-1.0]])
    return dif.estimate_llc(
        Quadratic([0.0]), quadratic_loss, data, nbeta=1.0, localization=100.0, lr=2e-3, chains=4, draws=40,
        batch_size=1, seed=seed, progress=False,
    )  # fmt: skip


def sentences(llc):
    return "\n".join(llc.warnings)


def test_drifting_chains_are_reported():
    llc = quadratic((0.5, 0.5, 0.5), burn_in=0, lr=1.6e-3, localization=0.0, chains=256, draws=60)
    assert "the loss is still drifting up (" in sentences(llc)
    assert llc.verdict == "local minimum"


def test_disagreeing_chains_are_reported():
    llc = quadratic(
        lr=1e-5, burn_in=50, draws=100
    )  # a hundredth of the way across: each chain is where it happened to go
    assert f"the chains disagree (R-hat {llc.rhat:.2f}); take more draws or a longer burn_in" in llc.warnings


def test_chains_of_unlike_targets_need_not_agree():
    llc = quadratic(nbeta=[5.0, 500.0] * 4, localization=300.0, lr=5e-4)
    assert "the chains disagree" not in sentences(llc)


@pytest.mark.parametrize("draws", [1, 3])
def test_too_few_draws_are_reported(draws):
    llc = quadratic(draws=draws)
    assert np.isnan([llc.mcse, llc.rhat, llc.ess]).all()
    assert f"no standard error: it takes at least 4 draws, got {draws}" in llc.warnings
    assert llc.verdict == "undecided"
    assert str(llc).startswith(f"LLC {llc.value:.3f} ± nan   8 chains x {draws} draws   R-hat nan   ESS nan")


def test_shared_batches_are_reported():
    shared = "chains share their minibatches: they are correlated, and mcse and rhat look too good"
    assert shared in quadratic(batches="shared").warnings
    assert shared not in quadratic(batches="shared", chains=1).warnings


def test_a_large_step_is_reported_and_auto_takes_it_off():
    llc = quadratic(lr=1.2e-2)
    assert f"the step is large: a bias of about {llc.step_bias:.2g} is in the value; lower lr" in llc.warnings
    auto = quadratic(lr="auto")
    scaled = 50.0 * (auto.trace["loss"] - auto.trace["baseline"]).to_numpy()
    assert auto.value == pytest.approx(scaled.mean() - auto.step_bias, rel=1e-12)


def test_a_loss_that_does_not_move_has_no_error():
    llc = run(Quadratic([0.0, 0.0]), lambda model, batch: 0 * model.w.sum() + 0 * batch, torch.zeros(5))
    assert (llc.value, llc.mcse, llc.step_bias) == (0.0, 0.0, 0.0)
    assert str(llc).startswith("LLC 0.000 ± 0.000   3 chains x 12 draws   R-hat nan   ESS nan")


def test_the_model_may_be_copied_deeply_only():
    class Locked(Quadratic):
        def __deepcopy__(self, memo):
            raise TypeError("locked")

    with pytest.raises(dif.errors.ModelError) as caught:
        run(Locked([1.0]), quadratic_loss, torch.zeros(4, 1))
    assert str(caught.value) == "model: expected a module that copy.deepcopy can copy, got locked"
    assert copy.deepcopy(Quadratic([1.0])).h.tolist() == [1.0]


def test_progress_stays_out_of_pipes(capfd):
    run(progress=True)
    assert capfd.readouterr() == ("", "")
