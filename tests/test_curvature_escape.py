"""The escape indicator: what it is on known paths and whose shares it gives; the curvature observables of a monitor."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import devinterp_fast as dif
from devinterp_fast import plots
from devinterp_fast.errors import DTypeError, NumericalError, ShapeError
from devinterp_fast.monitor.curvature import subspace_overlap
from devinterp_fast.monitor.schedule import Schedule


class Deep(nn.Module):
    """x A B on the unit vectors: a deep linear network that leaves one saddle after the other."""

    def __init__(self, seed=0, size=1e-2):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.a = nn.Parameter(size * torch.randn(3, 3, generator=g, dtype=torch.float64))
        self.b = nn.Parameter(size * torch.randn(3, 3, generator=g, dtype=torch.float64))

    def forward(self, x):
        return x @ self.a @ self.b


X, Y = torch.eye(3, dtype=torch.float64), torch.diag(torch.tensor([3.0, 1.0, 0.0], dtype=torch.float64))
LOSS = nn.MSELoss()


def path(model, lr, steps):
    """Losses and states of full-batch gradient descent."""
    losses, states = [], []
    for _ in range(steps):
        states.append({n: p.detach().clone() for n, p in model.named_parameters()})
        loss = LOSS(model(X), Y)
        losses.append(loss.item())
        grads = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for p, g in zip(model.parameters(), grads, strict=True):
                p -= lr * g
    return np.array(losses), states


def test_kappa_is_half_the_second_difference_of_the_loss():
    """L'' = 2 g'Hg along gradient flow. Steps of size e follow the flow to first order, so the second difference
    quotient over e^2 differs from L'' by a term of order e: it halves with e."""
    gaps = []
    for lr in (2e-3, 1e-3, 5e-4):
        losses, states = path(Deep(size=0.3), lr, round(0.6 / lr))
        at = [round(len(losses) * share) for share in (0.2, 0.5, 0.8)]
        found = dif.escape(Deep(), LOSS, (X, Y), checkpoints=[states[i] for i in at])
        second = np.array([losses[i + 1] - 2 * losses[i] + losses[i - 1] for i in at]) / lr**2
        g2 = found.loss_slope.numpy()  # g'v with v = g
        gaps.append(np.abs(second / 2 / g2 - found.value.numpy()).max() / np.abs(found.value.numpy()).max())
    assert gaps[0] < 0.01
    assert gaps[1] < 0.6 * gaps[0]
    assert gaps[2] < 0.6 * gaps[1]


def test_kappa_is_negative_while_a_saddle_is_left():
    """From small weights the modes of strengths 3 and 1 rise one after the other: two spells, both before the drop."""
    losses, states = path(Deep(), 0.02, 1600)
    modes = np.array([torch.diagonal(s["a"] @ s["b"]).numpy() for s in states])
    every = range(0, 1600, 5)
    kappa = dif.escape(Deep(), LOSS, (X, Y), checkpoints=[states[i] for i in every]).value.numpy()
    negative = kappa < 0
    assert np.diff(negative.astype(int)).tolist().count(1) + int(negative[0]) == 2
    for mode, strength in ((0, 3.0), (1, 1.0)):
        tenth = int(np.argmax(modes[:, mode] > 0.1 * strength))
        assert negative[tenth // 5]  # the spell is on when a tenth of the rise has been made
    assert not negative[-1]
    assert losses[-1] < 1e-2


def test_shares_sum_to_kappa():
    model = Deep(size=0.5)
    found = dif.escape(model, LOSS, (X, Y))
    assert abs(sum(float(s.sum()) for s in found.shares.values()) - float(found.value)) < 1e-12
    assert abs(sum(float(m) for m in found.modules.values()) - float(found.value)) < 1e-12
    assert {n: s.shape for n, s in found.shares.items()} == {n: p.shape for n, p in model.named_parameters()}
    assert str(found).startswith(f"kappa {float(found.value):.4g}")
    assert float(found.loss_slope) > 0  # the gradient climbs


# --- the planted experiment: twelve weights, two transitions, known actors ------------------------------------


class Planted(nn.Module):
    """y = (a1 b1 x1, p a2 b2 x2, p x3, c x4, u v x5) and four weights that no output knows but through zeros.

    a1 b1 rises first; p drifts slowly and sets the growth of a2 b2, which rises later; u v is solved from the start.
    """

    NAMES = ("a1", "b1", "a2", "b2", "p", "c", "u", "v", "z1", "z2", "z3", "z4")
    START = (0.02, 0.02, 0.02, 0.02, 0.05, 1.0, 1.0, 1.0, 0.3, -0.3, 0.2, -0.2)

    def __init__(self):
        super().__init__()
        for name, value in zip(self.NAMES, self.START, strict=True):
            self.register_parameter(name, nn.Parameter(torch.tensor(value, dtype=torch.float64)))

    def forward(self, x):
        idle = 0.0 * (self.z1 + self.z2 + self.z3 + self.z4)
        parts = [self.a1 * self.b1, self.p * self.a2 * self.b2, self.p, self.c + idle, self.u * self.v]
        return x * torch.stack(parts)


PLANTED_X = torch.diag(torch.tensor([2.0, 1.5, 0.3, 1.0, 1.0], dtype=torch.float64))


def test_the_planted_actors_have_all_of_the_shares():
    """At each transition's spell of negative kappa: a1, b1 half each; later a2, b2, p; all others zero."""
    model = Planted()
    states = []
    for _ in range(6000):
        states.append({n: p.detach().clone() for n, p in model.named_parameters()})
        loss = LOSS(model(PLANTED_X), PLANTED_X)
        grads = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for p, g in zip(model.parameters(), grads, strict=True):
                p -= 0.05 * g
    every = 25
    found = dif.escape(model, LOSS, (PLANTED_X, PLANTED_X), checkpoints=states[::every])
    kappa = found.value.numpy()
    first = np.array([float(s["a1"] * s["b1"]) for s in states])
    second = np.array([float(s["a2"] * s["b2"]) for s in states])
    at_first, at_second = (int(np.argmax(c > 0.1)) // every for c in (first, second))
    assert at_first < at_second
    shares = {n: found.shares[n].numpy() / kappa for n in Planted.NAMES}
    for at, actors in ((at_first, {"a1", "b1"}), (at_second, {"a2", "b2", "p"})):
        assert kappa[at] < 0
        on = {n for n in Planted.NAMES if abs(shares[n][at]) > 0.02}
        assert on == actors
    assert abs(shares["a1"][at_first] - 0.5) < 0.02
    assert abs(shares["b1"][at_first] - 0.5) < 0.02
    for name in ("c", "u", "v", "z1", "z2", "z3", "z4"):  # solved from the start, or unused: exactly nothing
        assert not found.shares[name].abs().max() > 1e-12


# --- directions -----------------------------------------------------------------------------------------------


def test_a_direction_of_ones_own():
    model = Deep(size=0.5)
    H = dif.hessian(model, LOSS, (X, Y))
    v = torch.randn(18, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = dif.escape(model, LOSS, (X, Y), direction=v)
    assert abs(float(found.value) - float(v @ (H @ v) / (v @ v))) < 1e-12
    assert abs(float(found.loss_slope) - float(H.gradient() @ v)) < 1e-12
    assert torch.equal(dif.escape(model, LOSS, (X, Y), direction=H.named(v)).value, found.value)
    mask = torch.arange(18) < 9
    half = dif.escape(model, LOSS, (X, Y), direction=H.named(v), mask=mask)
    assert abs(float(half.value) - float(v[:9] @ (H @ torch.where(mask, v, 0))[:9] / (v[:9] @ v[:9]))) < 1e-12
    assert not half.shares["b"].any()


def test_under_adam_both_terms_carry_the_acceleration():
    """L'' = v'Hv + g'(dv/dt) with v and dv/dt by differences of Adam's path; the error of both falls with the step."""
    gaps = []
    for lr in (2e-3, 1e-3):
        model = Deep(size=0.3)
        optimizer = torch.optim.Adam(model.parameters(), lr, betas=(1 - lr * 20, 1 - lr * 2))  # one flow, finer steps
        losses, rows = [], []
        for _ in range(round(0.4 / lr)):
            optimizer.zero_grad()
            loss = LOSS(model(X), Y)
            losses.append(loss.item())
            rows.append(torch.cat([p.detach().reshape(-1) for p in model.parameters()]))
            loss.backward()
            optimizer.step()
        i = len(rows) // 2
        v = (rows[i + 1] - rows[i - 1]) / (2 * lr)
        change = (rows[i + 1] - 2 * rows[i] + rows[i - 1]) / lr**2
        found = dif.escape(
            Deep(), LOSS, (X, Y), direction=v[None], direction_change=change[None], checkpoints=rows[i][None]
        )
        both = float((found.value + found.drive)[0] * (v @ v))
        second = (losses[i + 1] - 2 * losses[i] + losses[i - 1]) / lr**2
        gaps.append(abs(both / second - 1))
        assert abs(float(found.value[0] * (v @ v)) / second - 1) > 0.1  # the first term alone is not it
    assert gaps[0] < 0.05
    assert gaps[1] < 0.6 * gaps[0]


def test_bad_directions():
    model = Deep(size=0.5)
    with pytest.raises(NumericalError, match=r"^direction: expected a direction .* a zero direction$"):
        dif.escape(model, LOSS, (X, Y), direction=torch.zeros(18, dtype=torch.float64))
    with pytest.raises(NumericalError, match=r"gradient: the weights are a critical point$"):
        dif.escape(Deep(size=0.0), LOSS, (X, Y))
    with pytest.raises(ShapeError, match=r"^direction: expected \(18,\), got \(17,\)$"):
        dif.escape(model, LOSS, (X, Y), direction=torch.ones(17, dtype=torch.float64))
    with pytest.raises(DTypeError, match=r"^direction: expected torch.float64 like the model, got torch.float32$"):
        dif.escape(model, LOSS, (X, Y), direction=torch.ones(18))
    with pytest.raises(KeyError, match=r"direction: expected a tensor for each trainable parameter, got others at 'b'"):
        dif.escape(model, LOSS, (X, Y), direction={"a": torch.ones(3, 3)})
    with pytest.raises(ShapeError, match=r"^direction\['b'\]: expected"):
        dif.escape(model, LOSS, (X, Y), direction={"a": torch.ones(3, 3), "b": torch.ones(2, 3)})


# --- the monitor ----------------------------------------------------------------------------------------------

WANTED = ["loss", "kappa", "hessian_top", "hessian_spectrum"]


def watched(out, steps, stop=None):
    model = Deep(size=0.3)
    watch = dif.Monitor(
        model, LOSS, (X, Y), observables=WANTED, out=out, schedule=Schedule(0, 5), llc_schedule=Schedule(0, 10)
    )
    for step in range(steps):
        watch.update(step)
        if step == stop:
            return watch
        loss = LOSS(model(X), Y)
        with torch.no_grad():
            for p, g in zip(model.parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True):
                p -= 0.05 * g
    return watch


def test_the_monitor_records_curvature_and_resumes_to_the_same_bits(tmp_path):
    whole = watched(tmp_path / "whole", 41)
    watched(tmp_path / "cut", 41, stop=25)
    again = watched(tmp_path / "cut", 41)
    assert set(whole.trace) == set(again.trace)
    for name in whole.trace:
        np.testing.assert_array_equal(whole.trace[name].values, again.trace[name].values)
    files = [[f.name for f in (tmp_path / run / "hessian_top").iterdir()] for run in ("whole", "cut")]
    assert files == [["step-00000040.safetensors"]] * 2
    trace = whole.trace
    assert np.isfinite(trace["kappa"].values).all()
    # the modules of this model have no parameters of their own beside the model itself
    seen = ~np.isnan(trace["hessian_top 1"].values)
    assert seen.tolist() == [step % 10 == 0 for step in trace["step"].values]
    tops = np.stack([np.abs(trace[f"hessian_top {i}"].values[seen]) for i in range(1, 11)])
    assert (np.diff(tops, axis=0) <= 1e-6).all()
    inside = trace["gradient_overlap"].values[seen]
    assert ((inside >= 0) & (inside <= 1 + 1e-9)).all()
    overlap = trace["subspace_overlap"].values[seen]
    assert np.isnan(overlap[0])
    assert ((overlap[1:] > 0.3) & (overlap[1:] <= 1 + 1e-9)).all()
    assert (trace["effective_dimension"].values[seen] <= 18).all()


def test_observables_are_those_of_the_functions():
    model = Deep(size=0.4)
    watch = dif.Monitor(model, LOSS, (X, Y), observables=WANTED, llc_schedule=Schedule(0, 10))
    watch.update(0)
    H = dif.hessian(model, LOSS, (X, Y))
    lam, V = torch.linalg.eigh(H @ torch.eye(18, dtype=torch.float64))
    value = {name: float(watch.trace[name].values[0]) for name in watch.trace}
    assert abs(value["kappa"] - float(dif.escape(model, LOSS, (X, Y)).value)) < 1e-12
    order = lam.abs().argsort(descending=True)
    assert abs(value["hessian_top 1"] - float(lam[order[0]])) < 1e-2 * abs(float(lam[order[0]]))
    g = H.gradient()
    top = V[:, order[:10]]
    assert abs(value["gradient_overlap"] - float((top.T @ g).square().sum() / g.square().sum())) < 1e-2
    # all 18 steps of each recurrence are taken, so what is left is the spread of four probes: five errors of its own
    assert abs(value["hessian_trace"] - float(lam.sum())) < 5 * value["hessian_trace_se"]
    nbeta = 3 / math.log(3)
    effective = float((lam.clamp_min(0) / (lam.clamp_min(0) + 1 / nbeta)).sum())
    assert abs(value["effective_dimension"] - effective) < 5 * value["effective_dimension_se"]
    flat = dif.Monitor(Deep(size=0.0), LOSS, (X, Y), observables=["kappa"])
    flat.update(0)
    assert math.isnan(float(flat.trace["kappa"].values[0]))


def test_kappa_has_a_channel_for_each_module():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    watch = dif.Monitor(model, LOSS, (X, Y), observables=["kappa"])
    watch.update(0)
    value = {name: float(watch.trace[name].values[0]) for name in watch.trace if not name.endswith("_se")}
    assert set(value) == {"kappa", "kappa 0", "kappa 2"}
    assert abs(value["kappa 0"] + value["kappa 2"] - value["kappa"]) < 1e-12


def test_subspace_overlap():
    eye = torch.eye(5)
    assert subspace_overlap(eye[:, :2], eye[:, :2].flip(1)) == 1.0
    assert subspace_overlap(eye[:, :2], eye[:, 2:4]) == 0.0
    assert subspace_overlap(eye[:, :2], eye[:, 1:3]) == 0.5


# --- figures --------------------------------------------------------------------------------------------------


def test_figures_of_spectra():
    density = dif.spectral_density(torch.diag(torch.linspace(0, 1, 40)), probes=4, steps=20)
    figure = plots.density_figure(density)
    (ax,) = figure.axes
    assert ax.get_xlabel() == "eigenvalue"
    assert ax.get_yscale() == "log"
    assert len(ax.collections) == 1  # the band
    stack = torch.stack([torch.diag(torch.linspace(0, c, 20)) for c in (1.0, 2.0, 3.0)])
    figure = plots.eigenvalue_figure([0, 10, 20], dif.eigsh(stack, 4))
    (ax,) = figure.axes
    assert len(ax.lines) == 4
    assert ax.get_xlabel() == "training step"
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [1, 2, 3], rtol=1e-3)
    with pytest.raises(ShapeError, match=r"^eigen: expected the eigenvalues of 2 checkpoints"):
        plots.eigenvalue_figure([0, 10], dif.eigsh(stack, 4))


def test_the_figure_of_an_escape_marks_the_negative_spells():
    figure = plots.escape_figure(range(6), [3, 2, 2, 1, 0, 0], [-1.0, -0.5, 0.5, -0.2, -0.1, 0.3])
    for ax in figure.axes:
        spans = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in ax.patches]
        assert spans == [(0.0, 2.0), (3.0, 5.0)]
