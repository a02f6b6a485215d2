"""Each sampler against its closed form on a Gaussian target; both engines, masks, boxes and state.

On L = 1/2 sum h w^2 with exact gradients each step is linear, so the stationary variance of w is known for every step
size. Every tolerance is 4 standard errors, from the effective sample size of the very draws.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import Quadratic, quadratic_loss
from scipy.linalg import solve_discrete_lyapunov
from torch import nn

import devinterp_fast as dif
from devinterp_fast.sampling import native
from devinterp_fast.sampling.diagnostics import diagnose
from devinterp_fast.sampling.run import State
from devinterp_fast.sampling.samplers import KINDS, Sampler

H = np.array([1.0, 0.5, 0.1])
NBETA, PULL = 50.0, 5.0
A = NBETA * H + PULL
STEPS = (0.2, 1.0, 2.0)  # lr times the largest curvature; 4 is the edge


class Regression(nn.Module):
    """Linear, on inputs whose mean square is H: half the squared output is 1/2 sum h w^2."""

    def __init__(self, w=(0.0, 0.0, 0.0)):
        super().__init__()
        self.layer = nn.Linear(3, 1, bias=False)
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor([w]))

    def forward(self, x):
        return self.layer(x)


def half_squared(out, y):
    return 0.5 * ((out - y) ** 2).sum(1)


X = torch.diag(torch.tensor(np.sqrt(3 * H), dtype=torch.float32))
Y = torch.zeros(3, 1)


@pytest.fixture(scope="module")
def program():
    return native.capture(Regression(), half_squared, X, Y)


def run(program, sampler, lr, *, draws=400, burn_in=400, chains=256, thin=1, start=None, mask=None, **options):
    full = {"batches": "full", "baseline": np.zeros(3), "center": torch.zeros(3), "seed": 1, "mask": mask, **options}
    each = np.full(chains, 1.0)
    return native.NativeRun(
        program, draws=draws, burn_in=burn_in, thin=thin, lr=lr * each, localization=PULL * each, nbeta=NBETA * each,
        sampler=sampler, start=start, **full,
    ).finish()  # fmt: skip


def langevin_variance(a, h, friction, heat=0.0):
    """Variance of w of one step (w, p) -> M (w, p) + noise, at the point where gradients are taken.

    ``heat`` is the variance of the noise in a kick's force, friction both the loss of momentum and, where it is a pair,
    (thermostat, noise).
    """
    zeta, noise = friction if isinstance(friction, tuple) else (friction, friction)
    x = zeta / 2
    keep, size = (1 - x) / (1 + x), np.sqrt(2 * noise) / (1 + x)
    move = h / 2 * (1 + keep)
    M = np.array([[1 - move * h * a, move], [-keep * h * a, keep]])
    fresh, kick = np.array([h / 2 * size, size]), np.array([move * h, keep * h])
    return solve_discrete_lyapunov(M, np.outer(fresh, fresh) + heat * np.outer(kick, kick))


def expected(name, sampler, lr, metric=None):
    """The stationary variance of each coordinate."""
    if name in ("mala", "hmc"):
        return 1 / A
    if name in ("sghmc", "sgnht"):
        return np.array([langevin_variance(a, np.sqrt(lr), sampler.damping)[0, 0] for a in A])
    G = np.ones(3) if metric is None else metric
    return 1 / (A * (1 - lr * G * A / 4))


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", ["sgld", "sghmc", "mala", "hmc"])
def test_stationary_variance(program, name, step):
    lr = step / A[0] / (4 if name in ("mala", "hmc") else 1)
    sampler = Sampler(name, leapfrog=3)
    done = run(program, sampler, lr)
    want = 0.5 * NBETA * (H * expected(name, sampler, lr)).sum()
    got = NBETA * done.loss
    # 4 standard errors; the error of the mean is itself known to a tenth at this many draws
    assert abs(got.mean() - want) < 4 * diagnose(got).mcse
    assert diagnose(got).ess > 1000
    # and coordinate by coordinate: where the 256 chains end, the squares have standard error sqrt(2 / 256)
    squares = (done.w.double().numpy() ** 2).mean(0)
    assert (abs(squares / expected(name, sampler, lr) - 1) < 4 * np.sqrt(2 / 256)).all()


@pytest.mark.parametrize("friction", [0.02, 0.1, 0.5, 2.0])
def test_momentum_has_no_step_bias_on_a_quadratic(friction):
    # what makes BAOAB worth its name: the variance is 1 / a to rounding at every step and friction
    for a in (1.0, 7.0):
        for step in (0.01, 1.0, 3.9):
            assert langevin_variance(a, np.sqrt(step / a), friction)[0, 0] == pytest.approx(1 / a, rel=1e-9)


def test_a_held_metric_is_right(program):
    sampler = Sampler("rmsprop_sgld", epsilon=0.05)
    warm = run(program, sampler, 0.01, burn_in=200, draws=1, chains=512)
    held = warm.state
    lr = 0.01
    done = run(program, sampler, lr, burn_in=0, draws=300, chains=512, start=held)
    assert torch.equal(done.second, held.second)  # burn_in 0: nothing adapts any more
    metric = 1 / (held.second.double().sqrt().numpy() + 0.05)  # (chains, 3), each its own
    variance = 1 / (A * (1 - lr * metric * A / 4))
    squares = done.w.double().numpy() ** 2 / variance
    assert (abs(squares.mean(0) - 1) < 4 * np.sqrt(2 / 512)).all()


def test_adam_in_a_held_metric_has_the_variance_of_its_recursion(program):
    # m <- b m + (1 - b) h w, w <- w - (lr / 2) G (nbeta m + pull w) + sqrt(lr G) xi: linear in (w, m)
    sampler, lr = Sampler("adam_sgld", epsilon=0.05, beta1=0.5), 0.004
    held = run(program, sampler, lr, burn_in=300, draws=1, chains=512).state
    done = run(program, sampler, lr, burn_in=0, draws=400, chains=512, start=held)
    metric = 1 / (held.second.double().sqrt().numpy() + 0.05)
    squares = done.w.double().numpy() ** 2
    for i, h in enumerate(H):
        want = []
        for G in metric[:, i]:
            r = lr * G / 2
            M = np.array([[1 - r * (NBETA * 0.5 * h + PULL), -r * NBETA * 0.5], [0.5 * h, 0.5]])
            want.append(solve_discrete_lyapunov(M, np.diag([lr * G, 0.0]))[0, 0])
        assert abs((squares[:, i] / want).mean() - 1) < 4 * np.sqrt(2 / 512)


def test_thermostat_takes_up_the_heat_of_batches():
    # 400 equal coordinates with noise of variance v in the force: the thermostat settles where mean p^2 is 1
    dim, h, a, v = 400, 0.1, 1.0, 40.0
    model = Quadratic([0.02] * dim)  # nbeta h = 1
    nbeta, spread = 50.0, np.sqrt(v) / 50.0
    data = torch.randn(1024, dim, generator=torch.Generator().manual_seed(0)) * spread
    data -= data.mean(0)
    options = {"chains": 8, "draws": 300, "burn_in": 1500, "lr": h * h, "localization": 0.0, "nbeta": nbeta}
    options |= {"batch_size": 1, "progress": False, "seed": 2}
    friction = 0.05
    cold = dif.estimate_llc(model, quadratic_loss, data, sampler=Sampler("sgnht", friction=friction), **options)
    hot = dif.estimate_llc(model, quadratic_loss, data, sampler=Sampler("sghmc", friction=friction), **options)
    # mean p^2 after the noise, from the same recursion; the thermostat is the zeta at which it is 1
    heats = [langevin_variance(a, h, (z, friction), v) for z in np.linspace(friction, 1.0, 2000)]
    settled = min(heats, key=lambda c: abs(c[1, 1] - 1))
    without = langevin_variance(a, h, friction, v)
    # The estimate is 1/2 nbeta h w^2 summed over 400 coordinates; w is one of 8 chains x 400 coordinates, and 300 draws
    # hold at least 2 independent ones: 4 sqrt(2 / 6400) = 7 %.
    assert cold.value == pytest.approx(dim / 2 * a * settled[0, 0], rel=0.07)
    assert hot.value == pytest.approx(dim / 2 * a * without[0, 0], rel=0.07)
    assert without[0, 0] > 3 * settled[0, 0]  # there was heat to take up
    # step_bias of the hot one is that heat, to first order in friction and step
    assert hot.step_bias == pytest.approx(hot.value - dim / 2, rel=0.15)


@pytest.mark.parametrize("name", sorted(KINDS))
@pytest.mark.parametrize("control", [False, True])
def test_engines_agree(name, control):
    corrected = name in ("mala", "hmc")
    if corrected and control:
        with pytest.raises(ValueError, match="control_variate: expected False"):
            Sampler(name, control_variate=True)
        return
    g = torch.Generator().manual_seed(3)
    x = torch.randn(40, 3, generator=g)
    y = torch.randn(40, 1, generator=g)
    sampler = Sampler(name, leapfrog=3, control_variate=control)
    options = {"chains": 3, "draws": 6, "burn_in": 2, "lr": 0.02 * np.array([1.0, 0.5, 0.1]), "nbeta": 10.0, "seed": 7}
    options |= {"batch_size": 8, "localization": [1.0, 2.0, 0.0], "progress": False, "sampler": sampler}
    model = Regression((0.3, -0.2, 0.1))
    one, other = (
        dif.estimate_llc(model, half_squared, (x, y), backend=backend, **options) for backend in ("native", "torch")
    )
    # The same noise, batches and decisions: float32 rounding of some ten steps apart, each of 1e-6 of a loss of about 1
    np.testing.assert_allclose(one.trace["loss"], other.trace["loss"], rtol=2e-4)
    np.testing.assert_allclose(one.per_chain, other.per_chain, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", sorted(KINDS))
def test_a_run_in_two_parts_is_one_run(program, name):
    sampler = Sampler(name, leapfrog=3, adapt=True)
    whole = run(program, sampler, 0.01, draws=12, burn_in=0, chains=5)
    first = run(program, sampler, 0.01, draws=5, burn_in=0, chains=5)
    second = run(program, sampler, 0.01, draws=7, burn_in=0, chains=5, start=first.state)
    np.testing.assert_array_equal(np.concatenate([first.loss, second.loss], 1), whole.loss)
    assert torch.equal(second.w, whole.w)


@pytest.mark.parametrize("name", sorted(KINDS))
def test_threads_sets_and_company_do_not_show(program, name, isa):
    sampler = Sampler(name, leapfrog=3)
    whole = run(program, sampler, 0.01, draws=8, burn_in=3, chains=5)
    threaded = run(program, sampler, 0.01, draws=8, burn_in=3, chains=5, threads=3)
    alone = run(program, sampler, 0.01, draws=8, burn_in=3, chains=1, first_chain=3)
    np.testing.assert_array_equal(threaded.loss, whole.loss)
    np.testing.assert_array_equal(alone.loss[0], whole.loss[3])
    assert _bits.setdefault(name, whole.loss.tobytes()) == whole.loss.tobytes()


_bits: dict[str, bytes] = {}


@pytest.mark.parametrize("name", sorted(KINDS))
def test_masked_coordinates_stand_still(program, name):
    mask = torch.tensor([True, False, True])
    done = run(program, Sampler(name, leapfrog=3), 0.01, draws=20, burn_in=0, chains=4, mask=mask)
    assert (done.w[:, 1] == 0).all()
    assert (done.w[:, [0, 2]] != 0).all()


@pytest.mark.parametrize("name", sorted(KINDS))
@pytest.mark.parametrize("backend", ["native", "torch"])
def test_a_box_is_never_left(name, backend):
    sampler = Sampler(name, leapfrog=2, box=0.05)
    options = {
        "chains": 2,
        "draws": 40,
        "burn_in": 0,
        "lr": 0.01,
        "nbeta": NBETA,
        "localization": PULL,
        "batches": "full",
    }
    llc = dif.estimate_llc(
        Regression(), half_squared, (X, Y), backend=backend, sampler=sampler, progress=False, **options
    )
    most = 0.5 * NBETA * (H * 0.05**2).sum()
    scaled = NBETA * (llc.trace["loss"] - llc.trace["baseline"])
    assert float(scaled.max()) <= most * (1 + 1e-5)
    assert float(scaled.max()) > 0.3 * most  # the box was felt


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "sgd"}, "sampler: expected one of"),
        ({"leapfrog": 0}, "leapfrog: expected an integer of at least 1, got 0"),
        ({"friction": -1.0}, "friction: expected a number from 0 to 2"),
        ({"beta2": 1.5}, "beta2: expected a number from 0 to 1"),
        ({"epsilon": 0.0}, "epsilon: expected a number above 0"),
        ({"box": -1.0}, "box: expected a number above 0"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        Sampler(**settings)


def test_a_state_fits_its_sampler(program):
    with pytest.raises(ValueError, match=r"start: expected first \(4, 3\)"):
        run(program, Sampler("sghmc"), 0.01, chains=4, start=State.at(torch.zeros(3), 4, Sampler()))
    with pytest.raises(ValueError, match="batches: expected 'full' for 'hmc'"):
        run(program, Sampler("hmc"), 0.01, chains=4, batches="independent", batch_size=2)


@pytest.mark.parametrize("beta2", [0.9, 0.99])
def test_a_metric_that_is_held_needs_no_drift_and_one_that_is_not_is_biased(beta2):
    # Mean loss 1/2 sum h w^2; E nbeta L = 1/2 sum nbeta h / (nbeta h + localization), the step's bias taken off.
    h, nbeta = np.array([4.0, 1.0, 0.25, 0.05]), 200.0
    model = nn.Linear(4, 1, bias=False)
    nn.init.zeros_(model.weight)
    data = torch.diag(torch.from_numpy(2 * np.sqrt(h)).float()), torch.zeros(4, 1)

    def value(adapt):
        sampler = dif.Sampler("rmsprop_sgld", beta2=beta2, epsilon=0.1, adapt=adapt)
        llc = dif.estimate_llc(
            model, lambda out, y: 0.5 * ((out - y) ** 2).sum(1), data, sampler=sampler, chains=16, draws=20_000,
            burn_in=4000, lr=2e-4, localization=2.0, nbeta=nbeta, batches="full", seed=3, progress=False,
        )  # fmt: skip
        return llc.value - llc.step_bias, llc.mcse

    exact = float((0.5 * nbeta * h / (nbeta * h + 2.0)).sum())
    held, error = value(adapt=False)
    assert abs(held - exact) < 4.4 * error  # mcse of 16 chains is itself good to a tenth
    adapted, error = value(adapt=True)
    # Seen: 11 % at beta2 = 0.9, 2.5 % at 0.99, where one standard error is 0.7 %
    assert adapted - exact > (10 if beta2 == 0.9 else 2) * error
