"""Nothing set: the choice of a sampler, its warm-up, and the value against known truths; grids; names of masks."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import Quadratic, quadratic_loss
from torch import nn

import devinterp_fast as dif
from devinterp_fast import _flat
from devinterp_fast.errors import ModelError
from devinterp_fast.estimators import exact
from devinterp_fast.sampling import warmup
from devinterp_fast.sampling.diagnostics import diagnose, extrapolation, lost_at, reached, targets_of
from devinterp_fast.sampling.masks import mask_of
from devinterp_fast.sampling.run import Settings, State, Trace
from devinterp_fast.sampling.samplers import Sampler

NBETA = 1e6 / math.log(1e6)


def half_squared(out, y):
    return 0.5 * ((out - y) ** 2).sum(1)


def deep_linear(widths, rank, samples=None, seed=0):
    """A net at an exact minimum of this rank; inputs sqrt(d) e_i give the population loss."""
    g = torch.Generator().manual_seed(seed)
    model = nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in pairwise(widths)))
    with torch.no_grad():
        for layer in model:
            layer.weight.zero_()
            layer.weight[:rank, :rank] = torch.eye(rank)
    x = math.sqrt(widths[0]) * torch.eye(widths[0])
    if samples:
        x = torch.randn(samples, widths[0], generator=g)
    with torch.no_grad():
        return model, (x, model(x))


def found(widths, rank, samples=None, **options):
    model, data = deep_linear(widths, rank, samples)
    return dif.estimate_llc(model, half_squared, data, nbeta=NBETA, progress=False, **options)


@pytest.mark.parametrize(
    ("widths", "rank"), [([4, 4], 0), ([6, 6, 6], 3), ([4, 6, 5, 4], 2), ([5, 4, 5, 4, 5], 0), ([1, 1, 1], 0)]
)
def test_the_small_truth_table(widths, rank):
    llc = found(widths, rank, seed=1)
    want = exact.at_temperature(*exact.deep_linear(widths, rank), NBETA)
    assert llc.settings["sampler"] == "hmc"
    # 4 standard errors and what the next order in 1 / ln nbeta, the localization and 400 trajectories leave: 8 %
    assert abs(llc.value - want) < 4 * llc.mcse + 0.08 * want
    assert llc.mcse < 0.05 * want
    assert llc.verdict == "local minimum"
    assert llc.step_bias == 0


def test_nearly_flat_directions_are_waited_for():
    """Twelve layers: the loss stands still long before the chains have spread, and then reads 12 % low."""
    llc = found([9] * 13, 3, seed=2)
    # Trajectories four times as long read 29.2 +- 0.4; the expansion says less at multiplicity 37. 8 % as above.
    assert llc.value > 0.92 * 29.2
    assert llc.value < exact.deep_linear([9] * 13, 3)[0]


def test_minibatches_are_read_off_at_step_size_zero():
    llc = found([4, 6, 4], 2, samples=4096, sampler="sgnht", seed=2)
    want, _ = exact.deep_linear([4, 6, 4], 2)
    assert len(set(llc.settings["lr"])) == 2
    assert abs(llc.value - want) < 4 * llc.mcse + 0.08 * want
    lr, values = np.array(llc.settings["lr"]), llc.per_chain
    assert llc.value == pytest.approx(np.polyfit(lr, values, 1)[1], rel=1e-9)


def test_minibatches_leave_a_center_without_curvature():
    # At rank 0 and depth 4 the Hessian at w0 is zero: a step from there says nothing, one from afar lets nothing move.
    llc = found([5, 6, 5, 6, 5], 0, samples=4096, sampler="sgnht", seed=3)
    want = exact.at_temperature(*exact.deep_linear([5, 6, 5, 6, 5], 0), NBETA)
    assert not llc.diverged
    assert abs(llc.value - want) < 4 * llc.mcse + 0.08 * want


def test_trajectories_without_a_chance_make_the_step_smaller():
    targets = [np.arange(4), np.arange(4, 8)]
    chance = np.full((8, 10), warmup.ACCEPTANCE)
    np.testing.assert_allclose(warmup._regulated(chance, targets), 1.0)
    chance[:4] = 1.0
    chance[:4, 0] = 0.0  # the same mean acceptance, of all or nothing
    factor = warmup._regulated(chance, targets)
    assert (factor[:4] < 0.5).all()
    np.testing.assert_allclose(factor[4:], 1.0)


def test_reached_is_one_where_the_energy_is_equally_shared():
    # U = (nbeta h + pull) w^2 / 2 in 3 of 5 coordinates, pull w^2 / 2 in 2: E[pull |w|^2] + 2 value = 5
    pull, stiff = 2.0, 30.0
    away = torch.tensor([[(pull + stiff) ** -0.5] * 3 + [pull**-0.5] * 2] * 2)
    state = State(0, away + 1, torch.zeros(2, 0), torch.zeros(2, 0), np.zeros(2), np.full(2, -1))
    none = np.zeros((2, 1))
    trace = Trace(none, none, none, none, np.full(2, -1), state)
    value = 3 * stiff / (pull + stiff) / 2
    run = replace(settings([0.1, 0.1]), localization=np.full(2, pull))
    assert reached(trace, run, np.ones(5), value, 5) == pytest.approx(1, rel=1e-6)
    assert math.isnan(reached(replace(trace, state=None), run, np.ones(5), value, 5))


def test_the_same_seed_gives_the_same_bits():
    one, other = (found([3, 3, 3], 1, seed=4) for _ in range(2))
    np.testing.assert_array_equal(one.trace["loss"], other.trace["loss"])
    assert one.settings == other.settings


def test_the_choice_is_a_function_of_size():
    native = warmup.Budget(1000.0, 0.0, warmup.NATIVE_WORK)
    assert warmup.automatic(Sampler(), native, 100, 256, 8) == ("hmc", warmup.LONGEST)
    name, limit = warmup.automatic(Sampler(), native, 5000, 256, 8)
    assert name == "hmc"
    assert warmup.SHORTEST <= limit < warmup.LONGEST
    assert warmup.automatic(Sampler(), native, 10**6, 256, 8) == ("sgnht", 40_000)
    assert warmup.automatic(Sampler(), replace(native, sample=1e7), 10**6, 256, 8) == ("sgld", 0)
    assert warmup.automatic(Sampler(control_variate=True), native, 100, 256, 8)[0] == "sgnht"


def test_settled_sees_a_slow_rise():
    rng = np.random.default_rng(0)
    still = [10 + rng.standard_normal((8, 10)) for _ in range(16)]
    rising = [10 + 0.1 * k + rng.standard_normal((8, 10)) for k in range(16)]
    assert warmup.settled(still)
    assert not warmup._drifts(np.array([1.0, 1.01, 0.99, 1.0] * 4))
    assert warmup._drifts(1 + 0.05 * np.arange(16))  # a twentieth a round, and no noise
    assert not warmup.settled(rising)
    assert not warmup.settled(still[:2])
    assert not warmup.settled([r * np.nan for r in still])
    split = [r + np.repeat([0.0, 5.0], 4)[:, None] for r in still]  # each half of the chains in a basin of its own
    assert not warmup.settled(split)


@pytest.mark.parametrize("sampler", [Sampler("hmc", leapfrog=3), "mala", "sgnht", "sgld"])
def test_a_saddle_is_never_silent(sampler):
    # K = 1/2 (h . w^2) with one direction down, bounded by a wall: chains fall, and the verdict says so
    class Saddle(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 1, bias=False)
            nn.init.zeros_(self.layer.weight)

        def forward(self, x):
            return self.layer(x)

    def loss(out, y):
        return 0.5 * out.square().sum(1) * y[:, 0] + 0.05 * out.pow(4).sum(1)

    x = torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0]))
    y = torch.tensor([[1.0], [1.0], [1.0], [-1.0]])
    llc = dif.estimate_llc(
        Saddle(), loss, (x, y), nbeta=1000.0, sampler=sampler, progress=False, draws=300, burn_in=300
    )
    assert llc.verdict == "not a local minimum at this temperature"
    assert any("not a local minimum" in sentence for sentence in llc.warnings)


def settings(lr, nbeta=10.0, localization=1.0, sampler=None):
    lr = np.array(lr, dtype=float)
    each = np.ones(len(lr))
    return Settings(
        len(lr), 4, 0, 1, lr, localization * each, nbeta * each, "independent", 4, 0, Sampler("sgnht") or sampler
    )


def test_extrapolation_is_the_intercept_of_a_line():
    lr = [1.0, 2.0, 1.0, 2.0, 4.0]
    healthy = np.array([True, True, False, True, True])
    weights = extrapolation(settings(lr), healthy)
    values = np.array([3.0, 5.0, 4.5, 9.0])
    assert weights.sum() == pytest.approx(1)
    assert weights @ values == pytest.approx(np.polyfit(np.array(lr)[healthy], values, 1)[1])
    assert (extrapolation(settings([1.0, 1.0]), np.ones(2, bool)) == 0.5).all()


def test_unlike_targets_are_not_pooled():
    s = settings([1.0, 1.0, 2.0, 2.0])
    rng = np.random.default_rng(0)
    draws = rng.standard_normal((4, 200)) * np.array([1, 1, 9, 9])[:, None] + np.array([0, 0, 7, 7])[:, None]
    targets = targets_of(s, np.ones(4, bool))
    assert targets.tolist() == [0, 0, 1, 1]
    kept = draws.copy()
    apart, pooled = diagnose(draws, targets), diagnose(draws)
    np.testing.assert_array_equal(draws, kept)
    assert apart.rhat == max(diagnose(draws[:2]).rhat, diagnose(draws[2:]).rhat) < 1.05 < 1.3 < pooled.rhat
    # independent draws: the variance of the mean is the mean variance over 800; known to a tenth
    assert apart.mcse == pytest.approx(math.sqrt((1 + 81) / 2 / 800), rel=0.1)
    split = draws + np.array([0, 0, -40, 40])[:, None]
    assert diagnose(split, targets).rhat > 1.3


def test_a_chain_that_ran_away_is_left_out_though_finite():
    s = settings([1.0, 1.0])
    loss = np.ones((2, 4))
    loss[1, 2:] = 1e30
    trace = Trace(loss, np.zeros((2, 4)), loss, loss, np.full(2, -1))
    np.testing.assert_array_equal(lost_at(trace, s, 10 * loss, 5), [-1, 2])


def test_a_grid_is_one_run_of_cells_apart():
    h = [4.0, 1.0, 0.25, 0.0]
    grid = {"lr": [2e-3, 5e-3], "localization": [1.0, 5.0], "nbeta": [50.0, 100.0]}
    sweep = dif.calibrate(
        Quadratic(h), quadratic_loss, torch.zeros(8, 4), **grid, chains=16, draws=300, burn_in=600, progress=False
    )
    assert dict(sweep.table.sizes) == {"nbeta": 2, "localization": 2, "lr": 2}
    for beta in grid["nbeta"]:
        for pull in grid["localization"]:
            for lr in grid["lr"]:
                a = beta * np.array(h) + pull
                want = (0.5 * beta * np.array(h) / (a * (1 - lr * a / 4))).sum()
                cell = sweep.table.sel(nbeta=beta, localization=pull, lr=lr)
                # 4 standard errors; mcse of 16 chains is itself good to a tenth
                assert abs(float(cell["llc"]) - want) < 4.4 * float(cell["mcse"])
    assert sweep.settings["nbeta"] == 50.0
    assert sweep.settings["localization"] in grid["localization"]
    again = dif.estimate_llc(
        Quadratic(h), quadratic_loss, torch.zeros(8, 4), chains=4, progress=False, **{**sweep.settings, "draws": 50}
    )
    assert np.isfinite(again.value)
    assert str(sweep).startswith("LLC ")


def test_a_sweep_is_plotted():
    pytest.importorskip("matplotlib")
    sweep = dif.calibrate(
        Quadratic([1.0]), quadratic_loss, torch.zeros(8, 1), draws=20, chains=2, nbeta=[10.0], progress=False
    )
    figure = sweep.plot()
    assert [ax.get_title() for ax in figure.axes] == [
        "LLC",
        "Metropolis acceptance",
        "R-hat",
        "escaped, share of chains",
    ]
    assert {len(ax.texts) for ax in figure.axes} == {sweep.table["llc"].size}  # a number in each cell
    acceptance = sweep.table["acceptance"].values
    # a step of 0.02 over the stiffness is all but always accepted, and of larger ones fewer are
    assert (acceptance[..., 0] > 0.95).all()
    assert ((acceptance[..., 0] > acceptance[..., -1]) & (acceptance[..., -1] > 0)).all()


def test_bad_grids():
    with pytest.raises(ValueError, match="expected at least one value of each"):
        dif.calibrate(Quadratic([1.0]), quadratic_loss, torch.zeros(8, 1), lr=[], progress=False)
    with pytest.raises(ValueError, match="expected a step size at which chains stay finite"):
        dif.calibrate(
            Quadratic([1.0]), quadratic_loss, torch.zeros(8, 1), lr=[1e6], nbeta=[10.0], draws=50, progress=False
        )


# --- masks by name -------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads)
        self.mlp = nn.Linear(width, width)


class Heads(nn.Module):
    """Separate projections, and TransformerLens' stacked ones."""

    def __init__(self, width, heads):
        super().__init__()
        self.n_heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.W_Q = nn.Parameter(torch.zeros(heads, width, width // heads))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(6, 3), Block(6, 3)])
        self.last = Heads(4, 2)


def moved(mask):
    model = Net()
    where = _flat.layout(model)
    flat = mask_of(mask, model, where)
    return {
        name: part
        for name, part in zip(where.names, where.views(flat), strict=True)
        if part.any()
    }  # fmt: skip


def test_a_head_by_name():
    parts = moved("l1h2")
    assert set(parts) == {
        "blocks.1.attn.in_proj_weight", "blocks.1.attn.in_proj_bias", "blocks.1.attn.out_proj.weight",
    }  # fmt: skip
    rows = parts["blocks.1.attn.in_proj_weight"].all(1).nonzero().flatten().tolist()
    assert rows == [4, 5, 10, 11, 16, 17]  # rows 4 and 5 of queries, keys and values
    assert parts["blocks.1.attn.out_proj.weight"].all(0).nonzero().flatten().tolist() == [4, 5]
    other = moved("l2h0")
    assert other["last.q_proj.weight"].all(1).nonzero().flatten().tolist() == [0, 1]
    assert other["last.out_proj.weight"].all(0).nonzero().flatten().tolist() == [0, 1]
    assert other["last.W_Q"][0].all()
    assert not other["last.W_Q"][1].any()


def test_blocks_slices_and_expressions():
    assert set(moved("l0 mlp")) == {"blocks.0.mlp.weight", "blocks.0.mlp.bias"}
    assert set(moved("l0 attn")) == set(moved(r"blocks\.0\.attn"))
    cut = moved("blocks.0.mlp.weight[1:3, 2]")["blocks.0.mlp.weight"]
    assert cut.nonzero().tolist() == [[1, 2], [2, 2]]
    both = moved(["l0h0", "l0h1"])
    assert int(both["blocks.0.attn.in_proj_bias"].sum()) == 12


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        ("nothing", ValueError, "mask: expected a name that matches a parameter"),
        ("l7h0", ModelError, "mask: expected a model with attention layer 7, got 3"),
        ("l0h3", ValueError, "mask: expected a head below 3 in attention layer 0, got 3"),
        ("l2 mlp", ModelError, "mask: expected a block with an mlp"),
        ("(", ValueError, "mask: expected a regular expression"),
    ],
)
def test_masks_that_match_nothing(mask, error, message):
    with pytest.raises(error, match=message.replace("(", r"\(")):
        moved(mask)
