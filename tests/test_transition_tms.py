"""Toy models of superposition: their exact loss, critical levels, plateaus."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from planted_run import record
from scipy.integrate import quad

from devinterp_fast.errors import ShapeError
from devinterp_fast.transitions import systems, tms


def weights(seed, scale=1.0):
    g = torch.Generator().manual_seed(seed)
    W = scale * torch.randn(2, 6, generator=g, dtype=torch.float64)
    return W, 0.5 * torch.randn(6, generator=g, dtype=torch.float64)


def integrated_loss(W, b):
    """The definition, by adaptive quadrature with every kink as a break point."""
    a, b = (W.T @ W).numpy(), b.numpy()
    total = 0.0
    for i in range(6):
        for j in range(6):
            kink = -b[j] / a[j, i] if a[j, i] else -1.0
            ends = [0.0, kink, 1.0] if 0 < kink < 1 else [0.0, 1.0]

            def residual(t, slope=a[j, i], bias=b[j], own=i == j):
                return (t * own - max(slope * t + bias, 0.0)) ** 2

            total += sum(quad(residual, p, q, epsabs=1e-13, epsrel=1e-13)[0] for p, q in pairwise(ends))
    return total / 6


@pytest.mark.parametrize("case", range(6))
def test_population_loss_against_quadrature(case):
    W, b = weights(case)
    if case == 4:
        W[:, 2:] = 0  # dead columns, biases of both signs
    if case == 5:
        b = torch.zeros_like(b)
    # piecewise quadratics are exact in quad: only rounding is left, 36 terms of order 10
    assert float(tms.population_loss(W, b)) == pytest.approx(integrated_loss(W, b), rel=1e-12, abs=1e-13)


def test_population_loss_derivatives_and_batches():
    W, b = weights(7)
    assert torch.autograd.gradcheck(tms.population_loss, (W.requires_grad_(), b.requires_grad_()))
    assert torch.autograd.gradgradcheck(tms.population_loss, (W, b))
    many = tms.population_loss(torch.stack([W, 2 * W]), torch.stack([b, b]))
    # the same operations in another order of summation: rounding of 36 terms
    torch.testing.assert_close(many[1], tms.population_loss(2 * W, b), rtol=1e-13, atol=0)


def test_critical_levels_are_critical():
    levels = tms.critical_levels()
    names = [f"{k}{'+' * plus}{'-' * (6 - k - plus)}" for k in range(2, 7) for plus in range(7 - k)]
    assert list(levels) == names  # in falling order of loss
    for level in levels.values():
        W, b = (t.requires_grad_() for t in level.weights())
        loss = tms.population_loss(W, b)
        assert loss.item() == level.loss
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, (W, b))])
        assert gradient.abs().max() < 1e-8
        assert float(integrated_loss(W.detach(), b.detach())) == pytest.approx(level.loss, rel=1e-12)


def test_critical_values():
    levels = tms.critical_levels()
    for k in (2, 3, 4):  # k features perfect, the others lose 1/18 each, less 1/144 for a bias of 1/12
        for plus in range(7 - k):
            level = levels[f"{k}{'+' * plus}{'-' * (6 - k - plus)}"]
            assert level.loss == pytest.approx((6 - k) / 18 - plus / 144, rel=1e-12)
    published = {"5-": 0.06874, "5+": 0.06180, "6": 0.04819, "4++": 0.09722, "4+-": 0.10417, "4--": 0.11111}
    for name, loss in published.items():
        assert levels[name].loss == pytest.approx(loss, abs=5e-6)  # five decimals
    assert (levels["5-"].radius, levels["5-"].bias) == pytest.approx((1.17046, -0.28230), abs=5e-6)
    assert (levels["6"].radius, levels["6"].bias) == pytest.approx((1.32053, -0.61813), abs=1e-5)
    assert levels["5-"].loss - levels["5+"].loss == pytest.approx(1 / 144, rel=1e-12)


@pytest.mark.parametrize(("name", "rank"), [("5-", 14), ("5+", 17), ("6", 17)])
def test_hessian_rank_is_twice_the_llc(name, rank):
    level = tms.critical_levels()[name]
    W, b = level.weights()

    def loss(v):
        return tms.population_loss(v[:12].view(2, 6), v[12:])

    values = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, torch.cat([W.flatten(), b])))
    assert int((values > 1e-3).sum()) == rank
    assert values.abs().sort().values[: 18 - rank].max() < 1e-10  # rounding of entries of order 1
    assert (level.hessian_rank, level.llc) == (rank, rank / 2)
    if name == "5-":  # flat, not only flat to second order: the dead column may move
        W[:, 5], b[5] = torch.tensor([0.05, -0.1], dtype=torch.float64), -0.7
        assert float(tms.population_loss(W, b)) == pytest.approx(level.loss, rel=1e-12)


def test_kinks_have_no_llc():
    assert all(tms.critical_levels()[name].llc is None for name in ("2----", "4--", "4++"))


@pytest.mark.parametrize("name", ["4++", "5-", "5+", "6"])
def test_probe_stands_for_the_population(name):
    level = tms.critical_levels()[name]
    W, b = level.weights()
    x, y = tms.midpoint_probe()
    assert x.shape == (192, 6)
    error = tms.squared_error(tms.TMS(W, b)(x.double()), y.double()).item() - level.loss
    # midpoint rule on r² = (own t - relu(a t + b))²: h²/24 |r²''| while smooth, where r²'' <= 2 max(1, a)²,
    # and h²/8 times the jump of the slope, 2 |b|, at the kink of an own feature; 36 residuals / 6 features
    # off the diagonal only open relus count: r²'' = 2 a²
    h, a = 1 / 32, (W.T @ W)
    own = 2 * a.diagonal().clamp(min=1).square() * h**2 / 24 + 2 * b.abs() * h**2 / 8
    other = (2 * a.square() - torch.diag(2 * a.diagonal().square())).sum() * h**2 / 24
    assert abs(error) < float(own.sum() + other) / 6
    assert abs(error) < 6e-5  # what the docstring says


def test_tms_gradient_is_that_of_the_loss():
    system = systems()["tms"](seed=5)
    state = system.state_dict()
    g = torch.Generator()
    g.set_state(state["generator"])
    feature = torch.randint(6, (64, 1), generator=g)
    x = torch.zeros(64, 6).scatter_(1, feature, torch.rand(64, 1, generator=g)).double()
    model = tms.TMS(state["W"].double(), state["b"].double())
    gradient = torch.autograd.grad(tms.squared_error(model(x), x), (model.W, model.b))
    system.train_step(0)
    for name, exact in zip(("W", "b"), gradient, strict=True):
        want = state[name].double() - 0.05 * exact
        # 64 samples x 6 outputs summed in float32, terms below 1 / 32
        torch.testing.assert_close(system.state_dict()[name].double(), want, rtol=0, atol=384 / 32 * 2**-24)


def test_tms_shapes():
    with pytest.raises(ShapeError, match=r"^W, b: expected shapes .*, got \(2, 6\) and \(5,\)$"):
        tms.TMS(torch.zeros(2, 6), torch.zeros(5))


@pytest.fixture(scope="module")
def tms_run():
    return record(systems()["tms"](), 2000, 10)


def test_tms_shows_the_plateau_and_leaves_it(tms_run):
    steps, curves = tms_run
    waits = tms.plateaus(np.array(steps, float), curves["loss"], curves["active"])
    assert [level.name for *_, level in waits] == ["4++", "5+"]
    first, last, level = waits[0]
    assert steps[last] - steps[first] >= 250
    assert np.median(np.abs(curves["loss"][first : last + 1] - level.loss)) < 0.005

    (marker,) = systems()["tms"]().truth(steps, curves)
    assert marker.name.startswith("4++ -> 5+ (column ")
    assert steps[first] < marker.onset < marker.midpoint < marker.end <= steps[-1]
    # two witnesses that the truth was not computed from: the column's norm and the number of columns
    norm = curves[f"norm {marker.name[-2]}"] ** 2
    assert np.interp(marker.onset, steps, norm) < 0.5 * norm[-1] < np.interp(marker.end, steps, norm)
    assert curves["active"][steps.index(10 * int(marker.onset // 10))] == 4
    assert curves["active"][-1] == 5
    assert curves["distance"][-1] < 0.005


def test_passing_a_level_is_no_plateau(tms_run):
    steps, curves = tms_run
    fast = [step / 5 for step in steps]  # the same curve, five times as fast: 4++ lasts about 100 steps
    assert systems()["tms"]().truth(fast, curves) == []


def test_tms_truth_between_exact_levels():
    levels = tms.critical_levels()
    steps = np.arange(0, 2001, 10)
    share = 1 / (1 + np.exp(-(steps - 900) / 60))
    curves = {name: np.full(len(steps), 1.17) for name in tms.COLUMNS}
    curves |= {"loss": levels["5-"].loss + share * (levels["5+"].loss - levels["5-"].loss)}
    (marker,) = systems()["tms"]().truth(steps, curves | {"active": np.full(len(steps), 5.0)})
    assert marker.name == "5- -> 5+"  # a bias changes sign, no column switches
    # sigmoid = .1, .5, .9 at 900 and 900 ± 60 ln 9; chords: (h²/8) (.0962/60²) / (.09/60) < .3
    want = (900 - 60 * math.log(9), 900, 900 + 60 * math.log(9))
    assert (marker.onset, marker.midpoint, marker.end) == pytest.approx(want, abs=0.3)
    # the same loss with another number of columns is at no level
    assert systems()["tms"]().truth(steps, curves | {"active": np.full(len(steps), 3.0)}) == []
