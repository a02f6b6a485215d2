"""Eigenvalues, densities, traces: known spectra, error bars that cover at their nominal rate, known networks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

import devinterp_fast as dif
from devinterp_fast.curvature import density as density_module
from devinterp_fast.curvature import eigen as eigen_module
from devinterp_fast.curvature.krylov import Krylov, gaussian, rademacher
from devinterp_fast.errors import ShapeError

SEEDS = 200


def rotated(spectrum, seed=0):
    """A symmetric matrix of this spectrum in a random basis, float64."""
    g = torch.Generator().manual_seed(seed)
    lam = torch.as_tensor(spectrum, dtype=torch.float64)
    q = torch.linalg.qr(torch.randn(len(lam), len(lam), generator=g, dtype=torch.float64))[0]
    a = (q * lam) @ q.T
    return (a + a.T) / 2


BULK = 0.3 * np.random.default_rng(0).random(291)
SPECTRUM = np.concatenate([[10, 9, 8, -7.5, 5, 4, 3, 2.5, 2], BULK])
TOP = torch.tensor([10, 9, 8, -7.5, 5, 4, 3, 2.5, 2], dtype=torch.float64)


# --- eigenvalues ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("room", [None, 12], ids=["one basis", "restarts"])
@pytest.mark.parametrize("tol", [1e-2, 1e-4])
def test_eigsh_finds_the_outliers_within_its_bounds(dtype, room, tol):
    A = rotated(SPECTRUM).to(dtype)
    found = dif.eigsh(A, 9, tol=tol, room=room)
    assert not found.warnings
    error = (found.values - TOP).abs()
    # A's own rounding to float32 moves an eigenvalue by at most its norm, 300 entries deep: 10 * 300^.5 * 6e-8
    slack = 0.0 if dtype == torch.float64 else 10 * 300**0.5 * 6e-8
    assert (error <= found.bounds + slack + 1e-13).all()
    assert (error <= tol * TOP.abs() + slack).all()
    X = found.vectors.double()
    residual = (rotated(SPECTRUM) @ X - X * found.values).norm(dim=0)
    noise = 1e-12 if dtype == torch.float64 else 1e-5  # twice the products' own rounding, 300 terms of size 10
    assert (residual <= found.residuals + noise).all()
    torch.testing.assert_close(X.T @ X, torch.eye(9, dtype=torch.float64), rtol=0, atol=noise)
    assert (X.gather(0, X.abs().argmax(0, keepdim=True)) > 0).all()


@pytest.mark.parametrize(
    ("which", "expected"), [("LA", [10.0, 9.0, 8.0]), ("SA", [-7.5]), ("LM", [10.0, 9.0, 8.0, -7.5])]
)
def test_either_end_of_the_spectrum(which, expected):
    found = dif.eigsh(rotated(SPECTRUM), len(expected), which=which, tol=1e-6)
    np.testing.assert_allclose(found.values, expected, rtol=1e-6)


def test_all_eigenvalues_with_their_copies():
    """k = dim: an invariant basis goes on with a fresh vector, so that every copy is found."""
    spectrum = [3.0, 3.0, 3.0, -2.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    found = dif.eigsh(rotated(spectrum), 9)
    np.testing.assert_allclose(found.values, spectrum, atol=1e-13)
    assert found.matvecs == (9,)
    zero = dif.eigsh(torch.zeros(4, 4), 2)
    assert torch.equal(zero.values, torch.zeros(2, dtype=torch.float64))


def test_checkpoints_in_lockstep_are_each_alone():
    """Products, convergence and restarts of one checkpoint do not know the others, which stop earlier or later."""
    stack = torch.stack([rotated(SPECTRUM), rotated(np.linspace(0.5, 1, 300), 1), rotated(SPECTRUM * 2 + 1, 2)])
    together = dif.eigsh(stack, 5, room=12)
    assert len(set(together.matvecs)) > 1
    for c, matrix in enumerate(stack):
        alone = dif.eigsh(matrix, 5, room=12)
        # the matrices' own batched product may round otherwise than a single one: some 300 terms of 1e-16
        np.testing.assert_allclose(together.values[c], alone.values, rtol=1e-10)
        assert together.matvecs[c] == alone.matvecs[0]
    assert together.vectors.shape == (3, 300, 5)


@pytest.mark.parametrize("threads", [1, 2])
def test_native_checkpoints_one_after_another_are_those_in_lockstep(monkeypatch, threads):
    """What one thread's caches hold decides how many bases go together, and no bit of the result."""
    torch.manual_seed(0)
    model, x = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 2)), torch.randn(33, 5)
    row = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    rows = row * torch.tensor([[1.0], [0.5], [2.0]])
    H = dif.hessian(model, torch.nn.MSELoss(), (x, torch.randn(33, 2)), checkpoints=rows, backend="native")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    calls = []
    monkeypatch.setattr(H, "products", lambda V, first=0, of=H.products: calls.append(len(V)) or of(V, first))
    try:
        together = dif.eigsh(H, 3)
        monkeypatch.setattr(eigen_module, "_CACHED", 1)
        one_by_one = dif.eigsh(H, 3)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(together.values, one_by_one.values)
    assert torch.equal(together.vectors, one_by_one.vectors)
    assert together.matvecs == one_by_one.matvecs
    assert set(calls) == ({3, 1} if threads == 1 else {3})


def test_few_bases_at_a_time_give_the_same(monkeypatch):
    stack = torch.stack([rotated(SPECTRUM), rotated(SPECTRUM * 2 + 1, 2)])
    whole, density = dif.eigsh(stack, 3), dif.spectral_density(stack, probes=3, steps=10)
    for module in (eigen_module, density_module):
        monkeypatch.setattr(module, "BASIS_BYTES", 300 * 8 * 41)
    again = dif.eigsh(stack, 3)
    torch.testing.assert_close(again.values, whole.values, rtol=1e-12, atol=0)
    monkeypatch.setattr(density_module, "BASIS_BYTES", 300 * 8 * 11 * 4)  # four of six recurrences, then two
    nodes = dif.spectral_density(stack, probes=3, steps=10).nodes
    torch.testing.assert_close(nodes, density.nodes, rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match=r"^steps: expected at most 42 of vectors of 300 coordinates, got 50$"):
        dif.spectral_density(stack, probes=3, steps=50)


def test_a_warm_start_saves_products():
    A = rotated(np.concatenate([[10, 9, 8, 7, 6], 5 * BULK]))
    g = torch.Generator().manual_seed(1)
    nearby = A + 1e-3 * rotated(torch.randn(296, generator=g), 3)
    cold, warm = dif.eigsh(nearby, 5, tol=1e-5), dif.eigsh(nearby, 5, tol=1e-5, start=dif.eigsh(A, 5))
    assert warm.matvecs[0] < cold.matvecs[0]
    np.testing.assert_allclose(warm.values, cold.values, rtol=1e-5)


def test_a_direction_that_grew_since_the_warm_start_is_found():
    old = torch.diag(torch.linspace(5, 1, 50, dtype=torch.float64))
    new = old.clone()
    new[-1, -1] = 20.0  # orthogonal to every vector of the start
    found = dif.eigsh(new, 3, start=dif.eigsh(old, 3))
    np.testing.assert_allclose(found.values, [20, 5, 5 - 4 / 49], rtol=1e-3)


def test_what_has_not_converged_is_said():
    found = dif.eigsh(rotated(np.linspace(1, 2, 300)), 5, tol=1e-9, matvecs=20)
    assert found.warnings == ("5 of 5 eigenvalues have not reached tol=1e-09 after 20 products",)
    truth = torch.linspace(2, 1, 300, dtype=torch.float64)
    nearest = (found.values[:, None] - truth).abs().min(1).values
    assert (nearest <= found.residuals).all()  # an eigenvalue lies within the residual, converged or not
    assert "! 5 of 5" in str(found)


def test_outliers_stand_before_the_largest_ratio():
    assert int(dif.eigsh(rotated(SPECTRUM), 12, tol=1e-2).outliers) == 9
    assert dif.eigsh(torch.stack([rotated(SPECTRUM)] * 2), 12, tol=1e-2).outliers.tolist() == [9, 9]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 0}, r"^k: expected an integer from 1 to the dimension 30, got 0$"),
        ({"k": 31}, r"^k: expected an integer from 1 to the dimension 30, got 31$"),
        ({"which": "SM"}, "^which: expected one of"),
        ({"tol": 0.0}, "^tol: expected a number between 0 and 1"),
        ({"k": 5, "room": 6}, "^room: expected at least k [+] 2 = 7 vectors, got 6$"),
        ({"k": 5, "matvecs": 4}, "^matvecs: expected at least k = 5, got 4$"),
        ({"start": torch.zeros(29, 2)}, r"^start: expected \(30, j\) vectors"),
        ({"start": torch.zeros(2, 30, 2)}, "^start: expected vectors of 1 checkpoints, got 2$"),
    ],
)
def test_bad_settings_of_eigsh(settings, message):
    with pytest.raises(ValueError, match=message):
        dif.eigsh(rotated(np.arange(30.0)), **settings)


def test_a_tensor_must_be_a_symmetric_matrix():
    with pytest.raises(ShapeError, match=r"^H: expected a symmetric matrix, got one that differs from its transpose$"):
        dif.eigsh(torch.triu(torch.ones(3, 3)), 1)
    with pytest.raises(ShapeError, match=r"^H: expected an operator or a symmetric matrix, got shape \(3, 2\)$"):
        dif.trace(torch.ones(3, 2))


def test_bases_stay_orthonormal():
    """Sixty steps past convergence of the outliers, in float32: two passes of Gram-Schmidt keep V'V = I to rounding."""
    A = rotated(SPECTRUM).float()
    krylov = Krylov(rademacher(2, 300, seed=0, dtype=torch.float32), 60, 0)
    for _ in range(60):
        krylov.extend(krylov.last @ A)
    for basis in krylov.basis:
        gram = basis.double() @ basis.double().T
        # one dot product of two unit vectors of 300 float32 entries errs by at most 300^.5 roundings or so
        assert (gram - torch.eye(61, dtype=torch.float64)).abs().max() < 300**0.5 * 1.2e-7


def test_probes_have_addresses():
    signs = rademacher(5, 70, seed=7, dtype=torch.float64)
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(signs[2:], rademacher(3, 70, seed=7, dtype=torch.float64, first=2))
    assert torch.equal(signs[:, :33], rademacher(5, 33, seed=7, dtype=torch.float64))
    assert not torch.equal(signs, rademacher(5, 70, seed=8, dtype=torch.float64))
    many = rademacher(100, 1000, seed=0, dtype=torch.float64)
    assert abs(float(many.mean())) < 4 / math.sqrt(many.numel())  # four standard errors of a fair coin
    z = gaussian(0, 1000, seed=0, step=1, dtype=torch.float64)
    assert abs(float(z.norm()) - 1) < 1e-6


# --- densities ------------------------------------------------------------------------------------------------


def smoothed(spectrum, x, width):
    z = (np.asarray(x)[:, None] - np.asarray(spectrum)) / width
    return np.exp(-0.5 * z**2).mean(1) / (width * math.sqrt(2 * math.pi))


def covers(count):
    """Of 200 intervals at 95 %, the number that cover is binomial: from its 1e-3 quantile to its .999."""
    return stats.binom.ppf(1e-3, SEEDS, 0.95) <= count <= stats.binom.ppf(0.999, SEEDS, 0.95)


def test_bands_cover_the_density_at_their_nominal_rate():
    """At a point of the bulk and at its edge, over 200 seeds; the kernel is wide enough for 30 steps to be exact."""
    rng = np.random.default_rng(1)
    spectrum = np.concatenate([rng.normal(0, 1, 300), [4.0]])
    A, width = rotated(spectrum), 0.5
    inside = np.zeros(2)
    for seed in range(SEEDS):
        curve = dif.spectral_density(A, probes=8, steps=30, seed=seed).curve(width=width, points=401)
        for i, at in enumerate((0.0, 1.5)):
            j = int((curve.x - at).abs().argmin())
            truth = smoothed(spectrum, curve.x[j : j + 1], width)[0]
            inside[i] += float(curve.lower[j]) <= truth <= float(curve.upper[j])
    assert all(covers(count) for count in inside), inside


def test_moments_and_sums_cover_at_their_nominal_rate():
    A, lam = rotated(BULK), torch.from_numpy(BULK)
    reach = stats.t.ppf(0.975, 7)
    inside = np.zeros(3)
    for seed in range(SEEDS):
        found = dif.spectral_density(A, probes=8, steps=12, seed=seed)
        values, errors = found.moments(2)
        total, error = found.total(lambda h: h / (h + 0.1))
        pairs = [
            (values[0], errors[0], lam.mean()), (values[1], errors[1], lam.square().mean()),
            (total, error, (lam / (lam + 0.1)).sum()),
        ]  # fmt: skip
        inside += [float((v - t).abs() <= reach * e) for v, e, t in pairs]
    assert all(covers(count) for count in inside), inside


def test_entropy_of_known_spectra():
    """That of a multiple of the identity is ln m, exactly; those of a projector and a bulk lie within their errors."""
    value, error = dif.spectral_density(3 * torch.eye(50, dtype=torch.float64), probes=4, steps=10).entropy()
    assert abs(float(value) - math.log(50)) < 1e-12
    assert float(error) < 1e-12
    value, error = dif.spectral_density(rotated([1.0] * 20 + [0.0] * 30), probes=16, steps=10).entropy()
    assert abs(float(value) - math.log(20)) < 4 * float(error)
    p = BULK / BULK.sum()
    value, error = dif.spectral_density(rotated(BULK), probes=16, steps=40).entropy()
    assert abs(float(value) + float((p * np.log(p)).sum())) < 4 * float(error)


def test_quadrature_is_exact_for_as_many_steps_as_dimensions():
    spectrum = np.arange(1.0, 9.0)
    found = dif.spectral_density(rotated(spectrum), probes=2, steps=50)
    np.testing.assert_allclose(found.nodes, np.tile(spectrum, (2, 1)), rtol=1e-12)
    np.testing.assert_allclose(found.weights.sum(-1), 1, rtol=1e-12)
    assert "8 eigenvalues in [1, 8]   2 probes x 8 steps" in str(found)


def test_outliers_are_counted():
    assert (
        int(dif.spectral_density(rotated(SPECTRUM), probes=5, steps=40).outliers()) == 8
    )  # one of the nine is negative
    two = torch.stack([rotated(SPECTRUM), rotated(np.concatenate([[9.0, 8.0], BULK, np.zeros(7)]))])
    found = dif.spectral_density(two, probes=5, steps=40)
    assert found.outliers().tolist() == [8, 2]
    assert found[1].nodes.shape == (5, 40)
    with pytest.raises(ShapeError, match=r"^curve: expected the density of one checkpoint, got 2: index it first$"):
        found.curve()


def test_bad_settings_of_densities():
    for settings, message in (({"probes": 0}, "^probes: expected"), ({"steps": 1.5}, "^steps: expected")):
        with pytest.raises(ValueError, match=message):
            dif.spectral_density(torch.eye(3), **settings)
    with pytest.raises(ValueError, match=r"^width: expected a positive number, got -1"):
        dif.spectral_density(torch.eye(3)).curve(width=-1)
    assert math.isnan(float(dif.spectral_density(torch.eye(3), probes=1).moments(1)[1][0]))  # no error from one probe


# --- traces ---------------------------------------------------------------------------------------------------

KINDS = {
    "decaying": 1 / np.arange(1, 151),
    "flat": np.linspace(0.5, 1.5, 150),
    "indefinite": np.random.default_rng(2).normal(size=150),
    "outliers": np.concatenate([np.full(9, 10.0), 0.05 * np.random.default_rng(3).random(141)]),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["hutchinson", "hutch++", "xtrace"])
def test_intervals_cover_the_trace_at_their_nominal_rate(method, kind):
    A = rotated(KINDS[kind])
    results = [dif.trace(A, matvecs=48, method=method, seed=s) for s in range(SEEDS)]
    truth = float(A.trace())
    errors = np.array([float(r.value) - truth for r in results])
    inside = sum(float(low) <= truth <= float(high) for low, high in (r.interval() for r in results))
    assert covers(inside), inside
    # the mean square of the reported errors is that of the real ones; both are known to sqrt(2 / 200) = 10 % or so
    ratio = np.mean([float(r.se) ** 2 for r in results]) / np.mean(errors**2)
    assert 0.65 < ratio < 1.5, ratio


def test_the_plain_error_of_xtrace_would_be_too_small():
    """Why it is not used: std(t) / sqrt(m) explains no more than some three quarters of the real spread."""
    from devinterp_fast.curvature import trace as room

    A = rotated(KINDS["decaying"])
    ratio = []
    for seed in range(SEEDS):
        (sketch,) = room._sketches(room.as_operator(A), 24, seed)[0]
        value, se = room._xtrace_one(sketch)
        ratio.append((float(value - A.trace()) ** 2, float(se) ** 2, float(_naive(sketch)) ** 2))
    real, ours, plain = np.mean(ratio, 0)
    assert plain < 0.75 * real
    assert abs(ours / real - 1) < 0.35


def _naive(k):
    """std / sqrt(m) of estimates that each leave their own probe out, written from the definition."""
    estimates = []
    m = k.W.shape[1]
    for i in range(m):
        others = [j for j in range(m) if j != i]
        Q = torch.linalg.qr(k.Y[:, others])[0]
        QAQ = (k.Q.T @ Q).T @ (k.Q.T @ k.Z) @ (k.Q.T @ Q)
        w = k.W[:, i]
        p = Q @ (Q.T @ w)
        s = k.Q.T @ p
        rest = w @ k.Y[:, i] - 2 * p @ k.Y[:, i] + s @ (k.Q.T @ k.Z) @ s
        estimates.append(QAQ.trace() + rest)
    return torch.stack(estimates).std() / math.sqrt(m)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["hutchinson", "xdiag"])
def test_standard_errors_of_diagonals_are_calibrated(method, kind):
    """All entries of 40 seeds: 95 % within Student's t; entries of a seed hang together, so the rate has some play."""
    A = rotated(KINDS[kind])
    results = [dif.diagonal(A, matvecs=48, method=method, seed=s) for s in range(40)]
    reach = stats.t.ppf(0.975, results[0].probes - 1)
    rates = [float(((r.value - A.diagonal()).abs() <= reach * r.se).double().mean()) for r in results]
    # between seeds the rates are independent: within 4.5 of their standard errors, or half a percent, of .95
    assert abs(np.mean(rates) - 0.95) <= max(4.5 * np.std(rates, ddof=1) / math.sqrt(40), 0.005)
    mean = torch.stack([r.value for r in results])
    rms = (mean - A.diagonal()).square().mean().sqrt()
    se = torch.stack([r.se for r in results]).square().mean().sqrt()
    assert 0.85 < float(se / rms) < 1.15


def test_exact_with_as_many_products_as_dimensions():
    A = torch.stack([rotated(KINDS["indefinite"]), rotated(KINDS["flat"])])
    found, entries = dif.trace(A, matvecs=150), dif.diagonal(A, matvecs=150)
    assert (found.method, entries.method) == ("exact", "exact")
    np.testing.assert_allclose(found.value, torch.stack([a.trace() for a in A]), atol=1e-12)
    np.testing.assert_allclose(entries.value, A.diagonal(dim1=1, dim2=2), atol=1e-12)
    assert not found.se.any()
    assert not entries.se.any()


@pytest.mark.parametrize("method", ["xtrace", "hutch++"])
def test_a_matrix_of_low_rank_is_known_exactly(method):
    A = rotated([5.0, 3.0, 1.0] + [0.0] * 97)
    found = dif.trace(A, matvecs=48, method=method)
    assert abs(float(found.value) - 9) < 1e-9
    assert float(found.se) < 1e-9
    A = rotated([0.0] * 100)
    assert float(dif.trace(A, matvecs=48, method=method).value) == pytest.approx(0, abs=1e-12)


def test_stacks_and_settings_of_traces():
    A = torch.stack([rotated(KINDS["decaying"]), rotated(KINDS["flat"])])
    for method in ("hutchinson", "hutch++", "xtrace"):
        together = dif.trace(A, matvecs=30, method=method)
        for c in range(2):
            alone = dif.trace(A[c], matvecs=30, method=method)
            np.testing.assert_allclose(together.value[c], alone.value, rtol=1e-10)
            np.testing.assert_allclose(together.se[c], alone.se, rtol=1e-7)
    assert dif.trace(A, matvecs=30).method == "xtrace"
    assert "xtrace, 30 products" in str(dif.trace(A, matvecs=30))
    with pytest.raises(ValueError, match=r"^method: expected one of .* got 'xdiag'$"):
        dif.trace(A, method="xdiag")
    with pytest.raises(ValueError, match=r"^matvecs: expected an integer of at least 6 for xtrace, got 5$"):
        dif.trace(A, matvecs=5, method="xtrace")
