"""Networks whose spectrum is known: linear ones at their optimum, TMS, and classifiers under SGD."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import devinterp_fast as dif
from devinterp_fast.transitions.tms import TMS


def test_a_two_layer_linear_network_at_its_optimum():
    """W2 W1 = T, balanced: the Hessian of half the squared error has s_i + s_j, s_i (d_in - r) and (d_out - r) times.

    On the unit vectors with the mean over their d_in rows of d_out squares, torch's loss is 2 / (d_in d_out) of that.
    """
    d_in, d_out, s = 5, 4, torch.tensor([3.0, 2.0, 0.5], dtype=torch.float64)
    g = torch.Generator().manual_seed(0)
    U = torch.linalg.qr(torch.randn(d_out, d_out, generator=g, dtype=torch.float64))[0][:, :3]
    V = torch.linalg.qr(torch.randn(d_in, d_in, generator=g, dtype=torch.float64))[0][:, :3]
    net = nn.Sequential(nn.Linear(d_in, 3, bias=False), nn.Linear(3, d_out, bias=False)).double()
    net[0].weight.data, net[1].weight.data = s.sqrt()[:, None] * V.T, U * s.sqrt()
    x = torch.eye(d_in, dtype=torch.float64)
    H = dif.hessian(net, nn.MSELoss(), (x, x @ (U * s @ V.T).T))
    pairs = [a + b for a in s for b in s]
    expected = sorted([*pairs, *(list(s) * (d_in - 3)), *(list(s) * (d_out - 3))], reverse=True)
    found = dif.eigsh(H, 27)
    values = torch.zeros(27, dtype=torch.float64)
    values[: len(expected)] = torch.tensor([float(v) for v in expected])
    torch.testing.assert_close(found.values * d_in * d_out / 2, values, rtol=0, atol=1e-12)


def test_tms_turns_without_cost():
    """Rotating the plane of W leaves the loss alone: H annihilates the generator's direction at every minimum."""
    W, b = torch.zeros(2, 6, dtype=torch.float64), torch.full((6,), -0.28230, dtype=torch.float64)
    angles = torch.arange(5) * 2 * math.pi / 5
    W[:, :5] = 1.17046 * torch.stack([angles.cos(), angles.sin()])
    b[5] = 1 / 12
    # Between two radii the gradient itself turns with the frame; at zero gradient only H v = 0 is left. H v + J g = 0
    # holds everywhere, J g the rotated gradient: differentiate g(R w) = R g(w).
    x = torch.zeros(120, 6, dtype=torch.float64)
    x[torch.arange(120), torch.arange(120) % 6] = torch.linspace(0.01, 1, 120, dtype=torch.float64)
    H = dif.hessian(TMS(W, b), nn.MSELoss(), (x, x))
    turn = torch.stack([-W[1], W[0]])
    v = torch.cat([turn.reshape(-1), torch.zeros(6, dtype=torch.float64)])
    g = H.named(H.gradient())["W"]
    rotated_gradient = torch.cat([torch.stack([-g[1], g[0]]).reshape(-1), torch.zeros(6, dtype=torch.float64)])
    torch.testing.assert_close(H @ v, rotated_gradient, rtol=0, atol=1e-12)
    assert float((H @ v).norm()) < 0.02 * float(v.norm() * dif.eigsh(H, 1).values[0])  # near the minimum: a zero mode


def digits():
    found = load_digits()
    return torch.tensor(found.data, dtype=torch.float32) / 16, torch.tensor(found.target)


def trained(widths: tuple[int, ...], batch_size: int | None, keep: tuple[int, ...]):
    """An MLP on digits under SGD at rate 0.1 (full batches for None): the net, and its weights after some steps."""
    x, y = digits()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [m for a, b in pairwise(widths) for m in (nn.Linear(a, b), nn.ReLU())]
        net, rows = nn.Sequential(*layers[:-1]), []
        for step in range(1, keep[-1] + 1):
            i = slice(None) if batch_size is None else torch.randint(len(x), (batch_size,))
            grads = torch.autograd.grad(F.cross_entropy(net(x[i]), y[i]), list(net.parameters()))
            with torch.no_grad():
                for p, g in zip(net.parameters(), grads, strict=True):
                    p -= 0.1 * g
            if step in keep:
                rows.append(torch.cat([p.detach().reshape(-1) for p in net.parameters()]))
    return net, torch.stack(rows)


@pytest.fixture(scope="module")
def classifier():
    """An MLP on digits after 500 steps of minibatch SGD, and what its curvature is there."""
    net, _ = trained((64, 32, 10), 32, (500,))
    return net, digits(), dif.hessian(net, nn.CrossEntropyLoss(), digits())


def test_a_classifier_has_one_outlier_less_than_classes(classifier):
    """Nine outliers for ten classes (Sagun 2017, Papyan 2018), mid training at a pinned seed."""
    assert int(dif.eigsh(classifier[2], 15).outliers) == 9


def in_the_top(net, rows):
    """The share of the full gradient in the span of as many top eigenvectors as classes, and those. Shape: (K,)."""
    H = dif.hessian(net, nn.CrossEntropyLoss(), digits(), checkpoints=rows)
    g, vectors = H.gradient(), dif.eigsh(H, 10).vectors
    inside = (vectors.mT @ g[..., None])[..., 0].square().sum(-1)
    return inside / g.square().sum(-1), vectors


def test_the_gradient_of_sgd_lies_in_the_top_subspace():
    """Gur-Ari, Roberts, Dyer (2018), for two hidden layers and minibatches of 32.

    After the early phase nearly all of |g|^2 lies in the top ten directions, one for each class, and these directions
    stay where they are while training goes on. It is the noise that puts it there: of full-batch descent at the same
    rate, which has slid off the stiff directions by then, next to nothing lies there.
    """
    share, vectors = in_the_top(*trained((64, 128, 128, 10), 32, (100, 500, 750, 1000)))
    assert share[0] < 0.5  # the early phase
    assert (share[1:] > 0.9).all()
    stays = [float((a.T @ b).square().sum()) / 10 for a, b in pairwise(vectors[1:])]
    assert min(stays) > 0.8  # two random subspaces of ten among 26 thousand share 10 / 26122
    share, _ = in_the_top(*trained((64, 128, 128, 10), None, (250,)))
    assert share < 0.01


def test_the_trace_of_a_classifier(classifier):
    """tr(H) = tr(GGN) for a ReLU network, by two estimators with their own errors."""
    net, data, H = classifier
    G = dif.ggn(net, nn.CrossEntropyLoss(), data)
    first, second = dif.trace(H, matvecs=100, seed=1), dif.trace(G, matvecs=100, seed=2)
    assert abs(float(first.value - second.value)) < 4.5 * math.hypot(float(first.se), float(second.se))
    entries = dif.diagonal(G, matvecs=100)
    # GGN entries are not negative: an estimate is so only within its error
    assert ((entries.value + 5 * entries.se) > -1e-6).all()
    fisher = dif.fisher(net, nn.CrossEntropyLoss(), data)
    losses = F.cross_entropy(net(data[0]), data[1], reduction="none")
    assert fisher.gram().shape == (len(losses), len(losses))
    torch.testing.assert_close(
        dif.eigsh(fisher, 3).values, torch.linalg.eigvalsh(fisher.gram().double()).flip(0)[:3], rtol=1e-3, atol=0
    )
