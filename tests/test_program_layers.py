"""Pooling, concatenation, binary cross-entropy and tied pairs: a Program computes what autograd computes in float64."""

from __future__ import annotations

import pytest
import torch
from test_program import F32, agrees, autograd
from torch import nn
from torch.nn import functional

from devinterp_fast import _cpu
from devinterp_fast.sampling.native import MODES, Unsupported, capture


class Through(nn.Module):
    """A function of an input and some modules."""

    def __init__(self, function, *modules):
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(modules)

    def forward(self, x):
        return self.function(x, *self.parts)


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def images():
    return torch.randn(40, 3, 7, 9), torch.randint(0, 5, (40,))


POOLS = {
    "max": (nn.MaxPool2d(2), 6),
    "max, padded and overlapping": (nn.MaxPool2d(3, 2, 1), 12),
    "max of unequal sides": (nn.MaxPool2d((2, 3), (1, 2)), 12),
    "max, dilated": (nn.MaxPool2d(2, 1, dilation=2), 15),
    "max, ceil": (nn.MaxPool2d(2, ceil_mode=True), 12),
    "average": (nn.AvgPool2d(2), 6),
    "average, padded": (nn.AvgPool2d(3, 2, 1), 12),
    "adaptive average": (nn.AdaptiveAvgPool2d(1), 1),
    "adaptive maximum": (nn.AdaptiveMaxPool2d(1), 1),
}


@pytest.mark.parametrize("channels", [1, 5, 17])
@pytest.mark.parametrize("name", POOLS)
def test_pooling(name, channels):
    pool, pixels = POOLS[name]
    model = nn.Sequential(nn.Conv2d(3, channels, 3), nn.Tanh(), pool, nn.Flatten(), nn.Linear(channels * pixels, 5))
    agrees(model, nn.CrossEntropyLoss(), *images())


def test_pooling_of_the_input_and_between_convolutions():
    x, y = images()
    agrees(nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5)), nn.CrossEntropyLoss(), x, y)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5),
    )  # fmt: skip
    agrees(model, nn.CrossEntropyLoss(), x, y)


def test_equal_maxima_send_the_gradient_to_the_first_as_torch_does():
    x, y = torch.ones(9, 1, 4, 4), torch.randint(0, 5, (9,))
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 5))
    x[:, :, ::2] = 2.0
    agrees(model, nn.CrossEntropyLoss(), x, y)


def test_pooling_that_has_no_native_form_says_so():
    x, y = images()
    for pool, pixels, reason in (
        (nn.AvgPool2d(3, 2, 1, count_include_pad=False), 12, "divided by different counts"),
        (nn.AdaptiveAvgPool2d(2), 4, "unequal windows"),
    ):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), pool, nn.Flatten(), nn.Linear(4 * pixels, 5))
        with pytest.raises(Unsupported, match=reason):
            capture(model, nn.CrossEntropyLoss(), x, y)


@pytest.mark.parametrize("over", [1, -1, (1, 2)])
def test_means_over_positions(over):
    width = {1: 6, -1: 7, (1, 2): 1}[over]

    def function(x, up, out):
        mean = torch.tanh(up(x)).mean(over)
        return out(mean if mean.dim() > 1 else mean[:, None])

    model = Through(function, nn.Linear(9, 6), nn.Linear(width, 5))
    agrees(model, nn.CrossEntropyLoss(), torch.randn(40, 7, 9), torch.randint(0, 5, (40,)))


def test_concatenation():
    def function(x, a, b, out):
        return out(torch.cat([a(x), x, torch.tanh(b(x)), a(x)[..., 1:4]], -1)).flatten(1)

    model = Through(function, nn.Linear(9, 6), nn.Linear(9, 17), nn.Linear(35, 1))
    agrees(model, nn.CrossEntropyLoss(), torch.randn(40, 5, 9), torch.randint(0, 5, (40,)))


# ---- binary cross-entropy


@pytest.mark.parametrize("width", [1, 3, 33])
@pytest.mark.parametrize("hidden", [None, 7, 40])
def test_binary_cross_entropy(width, hidden):
    layers = [nn.Linear(9, width)] if hidden is None else [nn.Linear(9, hidden), nn.ReLU(), nn.Linear(hidden, width)]
    y = torch.rand(40, width)
    y[::3] = y[::3].round()
    program = agrees(nn.Sequential(*layers), nn.BCEWithLogitsLoss(), torch.randn(40, 9), y)
    narrow = width <= 32 and hidden != 40
    assert program.native.layout(MODES.index("full")) == int(narrow)
    agrees(nn.Sequential(*layers, nn.Sigmoid()), nn.BCELoss(), torch.randn(40, 9), y)


def test_binary_cross_entropy_of_one_output_and_per_sample():
    y = torch.randint(0, 2, (40,)).float()
    agrees(nn.Sequential(nn.Linear(9, 1), nn.Flatten(0)), nn.BCEWithLogitsLoss(), torch.randn(40, 9), y)
    model, x = nn.Linear(9, 3), torch.randn(40, 9)
    y = torch.randint(0, 2, (40, 3)).float()
    program = capture(
        model, lambda p, y: functional.binary_cross_entropy_with_logits(p, y, reduction="none").sum(1), x, y
    )
    w = torch.cat([p.detach().reshape(-1) for p in model.parameters()]).double()
    expected = functional.binary_cross_entropy_with_logits(model.double()(x.double()), y.double(), reduction="none")
    torch.testing.assert_close(program.losses(w), expected.sum(1).detach(), rtol=1e-12, atol=0)


def test_binary_cross_entropy_keeps_small_losses_and_large_logits():
    """A loss of e^-20 is far below the rounding of 1 + e^-20, a logit of 100 far beyond where e^x overflows."""
    x = torch.tensor([[-20.0], [20.0], [100.0], [-100.0], [0.0]])
    y = torch.tensor([[0.0], [1.0], [0.0], [1.0], [1.0]])
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(1.0)
    program = capture(model, nn.BCEWithLogitsLoss(), x, y)
    expected = functional.binary_cross_entropy_with_logits(x.double(), y.double(), reduction="none")[:, 0]
    torch.testing.assert_close(program.losses(torch.ones(1)), expected, rtol=4e-7, atol=0)


def test_weighted_binary_cross_entropy_says_why_not():
    with pytest.raises(Unsupported, match="binary cross-entropy with weights"):
        capture(nn.Linear(9, 3), nn.BCEWithLogitsLoss(pos_weight=torch.ones(3)), torch.randn(40, 9), torch.rand(40, 3))


# ---- the tied pair


class Pair(nn.Module):
    """act(W^T W x + b), or with ``rows`` act(x W W^T + b), W (features, hidden)."""

    def __init__(self, features, hidden, relu, bias, rows):
        super().__init__()
        self.W = nn.Parameter(torch.randn(*((features, hidden) if rows else (hidden, features))) / hidden**0.5)
        self.b = nn.Parameter(torch.randn(features) / 9) if bias else None
        self.relu, self.rows = relu, rows

    def forward(self, x):
        out = x @ self.W @ self.W.T if self.rows else x @ self.W.T @ self.W
        out = out if self.b is None else out + self.b
        return functional.relu(out) if self.relu else out


@pytest.mark.parametrize("features", [1, 4, 6, 15, 32])
@pytest.mark.parametrize("hidden", [1, 2, 3, 4])
@pytest.mark.parametrize("form", ["plain", "own target", "weighted", "linear", "no bias", "rows"])
def test_tied_pair(features, hidden, form):
    model = Pair(features, hidden, form != "linear", form != "no bias", form == "rows")
    x = torch.randn(40, features)
    y = torch.randn(40, features) if form == "own target" else x
    weights = 0.7 ** torch.arange(features)
    loss = (lambda p, y: (weights * (p - y) ** 2).mean()) if form == "weighted" else nn.MSELoss()
    program = agrees(model, loss, x, y, counts=(1, 15, 16, 17, 64, 131))
    assert program.native.layout(MODES.index("full")) == 1
    w = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    index = torch.arange(40).repeat(3)
    results = []
    try:
        for name in _cpu.isa_available():
            assert _cpu.use_isa(name)
            results.append(program.gradient(w, index)[1])
    finally:
        _cpu.use_isa("")
    assert all(torch.equal(g, results[0]) for g in results)
    expected = autograd(model, loss, x, y, index)[1]
    assert float((results[0] - expected).norm()) <= F32 * float(expected.norm())
