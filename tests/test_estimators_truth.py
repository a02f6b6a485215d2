"""Estimators against closed forms.

The model: loss_i(w) = sum_k c_ik w_k^2 / 2 + s_ik w_k, whose mean is sum_k h_k w_k^2 / 2 (mean s = 0). With full
batches SGLD is a linear recursion, so its draws are Gaussian around 0 with the exact variance v_k = 1 / (a_k (1 - lr
a_k / 4)), a_k = nbeta h_k + localization (sampling at a step size, no asymptotics). Every moment below follows from E
w^2 = v and E w^4 = 3 v^2. Errors quoted by the estimators are the jackknife's over 32 chains; estimates must lie
within 4.5 of them, which a Student t with 31 degrees of freedom exceeds with probability 1e-4. Where many entries
share the same few moments of the draws (9: the second moments and third of three coordinates), the root mean square
of their deviations in errors lies within 0.3 and 2.2, which chi-square with 9 degrees of freedom leaves with
probability 1e-4.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import Quadratic
from torch import nn

import devinterp_fast as dif

FAR = 4.5
DIM, N, NBETA, PULL, LR = 3, 12, 40.0, 2.0, 4e-3
DRAW = np.random.default_rng(0)
C = DRAW.uniform(0.5, 2.0, (N, DIM)) * np.array([4.0, 1.0, 0.25])
S = DRAW.normal(size=(N, DIM))
S -= S.mean(0)
DATA = torch.tensor(np.concatenate([C, S], 1), dtype=torch.float32)
H = C.mean(0)
RUN = {
    "chains": 32, "draws": 200, "burn_in": 150, "thin": 2, "lr": LR, "nbeta": NBETA, "localization": PULL,
    "batches": "full", "progress": False,
}  # fmt: skip


def bowls(model, batch):
    return 0.5 * batch[:, :DIM] @ model.w**2 + batch[:, DIM:] @ model.w


def variance(nbeta=NBETA, h=H):
    a = nbeta * h + PULL
    return 1 / (a * (1 - LR * a / 4))


V = variance()


def bowl():
    return Quadratic([0.0] * DIM)


def close(value, mcse, exact):
    value, mcse, exact = np.asarray(value), np.asarray(mcse), np.asarray(exact)
    assert np.isfinite(mcse).all()
    assert (mcse > 0).all()
    distance = np.abs(value - exact) / mcse
    assert distance.max() < FAR, f"{distance.max():.1f} standard errors"
    return distance


def test_waic_and_the_singular_fluctuation():
    waic = dif.estimate_waic(bowl(), bowls, DATA, **RUN)
    beta = NBETA / N
    spread = (C**2 * V**2 / 2 + S**2 * V).sum()
    # E exp(-c w^2 / 2 - s w) = (1 + c v)^-1/2 exp(s^2 v / (1 + c v) / 2)
    training = -(-0.5 * np.log1p(C * V) + S**2 * V / (1 + C * V) / 2).sum(1).mean()
    assert waic.beta == beta
    close(waic.value, waic.mcse, training + beta * spread / N)
    close(waic.nu, waic.nu_mcse, beta * spread / 2)
    assert waic.nu_mcse < 0.15 * waic.nu
    assert waic.value == pytest.approx(waic.training + beta * waic.variance / N)
    assert str(waic).startswith(f"WAIC {waic.value:.4f} ± ")


def test_wbic_is_the_mean_loss_of_all_samples():
    settings = {key: value for key, value in RUN.items() if key != "nbeta"}
    wbic = dif.estimate_wbic(bowl(), bowls, DATA + torch.tensor([0.0] * 6), **settings)
    v = variance(N / np.log(N))
    close(wbic.value, wbic.mcse, N * (H * v).sum() / 2)
    with pytest.raises(ValueError, match="nbeta: expected none, as WBIC is defined at n / ln n, got 3"):
        dif.estimate_wbic(bowl(), bowls, DATA, nbeta=3)


def test_llc_by_variance():
    llc = dif.variance_llc(bowl(), bowls, DATA, **RUN)
    close(llc.value, llc.mcse, NBETA**2 * (H**2 * V**2).sum() / 2)
    close(llc.llc.value, llc.llc.mcse, NBETA * (H * V).sum() / 2)
    assert llc.mcse < 0.15 * llc.value


def test_llc_from_two_temperatures():
    llc = dif.two_temperature_llc(bowl(), bowls, DATA, ratio=3.0, **RUN)
    warm, cold = ((H * variance(nbeta)).sum() / 2 for nbeta in (NBETA, 3 * NBETA))
    close(llc.value, llc.mcse, (warm - cold) / (1 / NBETA - 1 / (3 * NBETA)))
    close(llc.warm.value, llc.warm.mcse, NBETA * warm)
    close(llc.cold.value, llc.cold.mcse, 3 * NBETA * cold)
    # Noise of their own: some 200 effective draws of the 6,400 make a correlation of 0.07 by chance.
    both = np.corrcoef(llc.warm.trace["loss"].to_numpy().ravel(), llc.cold.trace["loss"].to_numpy().ravel())
    assert abs(both[0, 1]) < 0.35
    for ratio in (1.0, 0.5, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="ratio: expected a finite number above 1, got"):
            dif.two_temperature_llc(bowl(), bowls, DATA, ratio=ratio)


def test_susceptibilities_of_restricted_chains():
    parts = {"all": [True, True, True], "first": [True, False, False], "rest": [False, True, True]}
    components = {name: torch.tensor(mask) for name, mask in parts.items()}
    chi = dif.susceptibilities(bowl(), bowls, DATA, components, **RUN)
    assert chi.values["chi"].dims == ("component", "sample")
    exact = []
    for mask in parts.values():
        exact.append(-(H * (C - H) * V**2 / 2 * np.array(mask)).sum(1))
    distance = close(chi.values["chi"], chi.values["mcse"], exact)
    assert 0.3 < np.sqrt((distance**2).mean()) < 2.2
    for name, mask in parts.items():
        close(chi.llcs[name].value, chi.llcs[name].mcse, NBETA * (H * V)[mask].sum() / 2)
    # The formula is the derivative it is named for: (1 / nbeta) d<phi> / dh, exact in the limit of small steps.
    step, a = 1e-6, NBETA * H + PULL
    tilted = [(H / (a + NBETA * sign * step * (C - H)) / 2).sum(1) for sign in (1, -1)]
    derivative = (tilted[0] - tilted[1]) / (2 * step) / NBETA
    np.testing.assert_allclose(derivative, -(H * (C - H) / a**2 / 2).sum(1), rtol=1e-6)


def test_susceptibilities_to_each_token():
    # Two "tokens" a sample: the quadratic part of its loss, and the linear one.
    def tokens(model, batch):
        return torch.stack([0.5 * batch[:, :DIM] @ model.w**2, batch[:, DIM:] @ model.w], 1)

    probe = DATA[:5]
    chi = dif.susceptibilities(bowl(), bowls, DATA, {"all": torch.ones(3) > 0}, probe=probe, function=tokens, **RUN)
    assert chi.values["chi"].dims == ("component", "sample", "value0")
    loss = (H**2 * V**2 / 2).sum()
    exact = np.stack([-((H * C[:5] * V**2 / 2).sum(1) - loss), np.full(5, loss)], 1)
    close(chi.values["chi"][0], chi.values["mcse"][0], exact)


def test_influence_is_minus_the_covariance():
    queries = DATA[:4] * 2
    found = dif.influence(bowl(), bowls, DATA, queries, **RUN)
    exact = -2 * ((C * V**2) @ C[:4].T / 2 + (S * V) @ S[:4].T)
    distance = close(found.values, found.mcse, exact)
    assert 0.3 < np.sqrt((distance**2).mean()) < 2.2
    few = {**RUN, "draws": 50}
    w = dif.influence(
        bowl(), bowls, DATA, DATA[:1], function=lambda model, batch: model.w[None], samples=DATA[:5], **few
    )
    close(w.values, w.mcse, -S[:5] * V)


def test_the_loss_kernel():
    exact = (C * V**2) @ C.T / 2 + (S * V) @ S.T
    covariance = dif.loss_kernel(bowl(), bowls, DATA, correlation=False, **RUN)
    close(covariance.values, covariance.mcse, exact)
    assert np.linalg.eigvalsh(covariance.values).min() > -1e-12
    kernel = dif.loss_kernel(bowl(), bowls, DATA, samples=DATA[:6], **RUN)
    size = np.sqrt(np.diagonal(exact))
    np.testing.assert_allclose(np.diagonal(kernel.values), 1.0, rtol=1e-12)
    off = ~np.eye(6, dtype=bool)
    close(kernel.values[off], kernel.mcse[off], (exact / np.outer(size, size))[:6, :6][off])


def test_posterior_covariance():
    found = dif.posterior_covariance(bowl(), bowls, DATA, k=3, passes=2, **RUN)
    order = np.argsort(-V)
    close(found.values, found.mcse, V[order])
    assert found.residuals.max() < 1e-10  # three coordinates, three directions: exact
    np.testing.assert_allclose(np.abs(found.vectors[order, range(3)]), 1.0, atol=0.1)
    assert str(found).startswith("variances 0.")


def test_mala_acceptance_by_quadrature():
    # Of one Gaussian coordinate at stationarity: E min(1, ratio) over w ~ N(0, v) and the proposal's noise.
    lr = 0.02
    h, settings = 1.5, {**RUN, "lr": lr}
    data = torch.tensor([[h, 0.0]])

    def loss(model, batch):
        return 0.5 * batch[:, 0] * model.w[0] ** 2 + 0 * batch[:, 1]

    found = dif.mala_acceptance(Quadratic([h]), loss, data, **settings)
    a = NBETA * h + PULL
    points, weights = np.polynomial.hermite_e.hermegauss(80)
    w, xi = np.meshgrid(points * np.sqrt(1 / (a * (1 - lr * a / 4))), points)
    to = w - lr / 2 * a * w + np.sqrt(lr) * xi
    log = -a / 2 * (to**2 - w**2) - (w - to + lr / 2 * a * to) ** 2 / (2 * lr) + xi**2 / 2
    exact = (np.outer(weights, weights) * np.minimum(1, np.exp(log))).sum() / weights.sum() ** 2
    assert 0.5 < exact < 0.95
    # Quadrature over a kink with 80 x 80 points errs by some 1e-3, a fraction of the error asked for.
    assert abs(found.value - exact) < FAR * found.mcse + 1e-3
    assert found.mcse < 0.01
    small = dif.mala_acceptance(Quadratic([h]), loss, data, **{**settings, "lr": 1e-6, "draws": 20})
    assert small.value > 0.999


def test_native_linear_regression():
    # Squared error is -log p for noise of variance 1/2. loss_i = (r_i - u)^2, u = x_i . (w - w0) ~ N(0, q_i):
    # Var = 4 r^2 q + 2 q^2, E exp(-loss) = (1 + 2 q)^-1/2 exp(-r^2 / (1 + 2 q)).
    g = torch.Generator().manual_seed(1)
    x = torch.randn(200, 4, generator=g)
    y = x @ torch.randn(4, 1, generator=g) + 0.7 * torch.randn(200, 1, generator=g)
    model = nn.Linear(4, 1, bias=False)
    model.weight.data = torch.linalg.lstsq(x, y).solution.T.contiguous()
    lr, pull = 2e-4, 1.0
    waic = dif.estimate_waic(
        model, nn.MSELoss(), (x, y), nbeta=200.0, lr=lr, localization=pull, batches="full", chains=32, draws=400,
        burn_in=300, thin=4, progress=False, backend="native",
    )  # fmt: skip
    a = 200 * 2 * (x.T @ x).double().numpy() / 200 + pull * np.eye(4)
    cov = np.linalg.inv(a @ (np.eye(4) - lr * a / 4))
    q = np.einsum("ni,ij,nj->n", x.double().numpy(), cov, x.double().numpy())
    r = (y - x @ model.weight.detach().T).double().numpy()[:, 0]
    spread = (4 * r**2 * q + 2 * q**2).sum()
    training = (0.5 * np.log1p(2 * q) + r**2 / (1 + 2 * q)).mean()
    close(waic.nu, waic.nu_mcse, spread / 2)
    close(waic.value, waic.mcse, training + spread / 200)
    assert abs(waic.nu - 4 / 2) < 0.5  # theory: nu = d / 2 as n grows
    assert waic.llc.engine.startswith("native")
