"""Random Programs: whatever small module is written from known parts computes what autograd computes in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_program import autograd
from torch import nn
from torch.nn import functional

from devinterp_fast.sampling.native import capture

ACTIVATIONS = {
    "relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "gelu": nn.GELU, "silu": nn.SiLU,
    "gelu tanh": lambda: nn.GELU("tanh"),
}  # fmt: skip


class Scale(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


class Residual(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x)


class Beside(nn.Module):
    """x and f(x) side by side, brought back to the width of x."""

    def __init__(self, d, inner):
        super().__init__()
        self.inner, self.back = inner, nn.Linear(2 * d, d)

    def forward(self, x):
        return self.back(torch.cat([x, self.inner(x)], -1))


class Attention(nn.Module):
    def __init__(self, d, heads, causal):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(d, d) for _ in range(3))
        self.heads, self.causal = heads, causal

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = (f(x).view(b, t, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        a = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return a.transpose(1, 2).reshape(b, t, d)


class Positions(nn.Module):
    def __init__(self, t, d):
        super().__init__()
        self.place = nn.Parameter(torch.randn(t, d))

    def forward(self, x):
        return x + self.place


class Embed(nn.Module):
    def __init__(self, vocabulary, d):
        super().__init__()
        self.table = nn.Embedding(vocabulary, d)

    def forward(self, tokens):
        return self.table(tokens)


@st.composite
def layer(draw, d, t, depth=0):
    """A module from width d to width d; over t tokens where t > 0."""
    kinds = ["linear", "activation", "scale", "layer norm", "rms norm"]
    kinds += ["attention", "positions"] if t else []
    kinds += ["residual", "beside"] if depth < 2 else []
    kind = draw(st.sampled_from(kinds))
    if kind == "linear":
        wide = draw(st.integers(1, 37))
        middle = ACTIVATIONS[draw(st.sampled_from(sorted(ACTIVATIONS)))]()
        return nn.Sequential(nn.Linear(d, wide, bias=draw(st.booleans())), middle, nn.Linear(wide, d))
    if kind == "activation":
        return ACTIVATIONS[draw(st.sampled_from(sorted(ACTIVATIONS)))]()
    if kind == "scale":
        return Scale(draw(st.sampled_from([0.5, -1.25, 2.0])))
    if kind == "layer norm":
        return nn.LayerNorm(d, elementwise_affine=draw(st.booleans()), eps=0.125)
    if kind == "rms norm":
        return nn.RMSNorm(d, eps=0.125)
    if kind == "attention":
        return Attention(d, draw(st.sampled_from([h for h in (1, 2, 3) if d % h == 0])), draw(st.booleans()))
    if kind == "positions":
        return Positions(t, d)
    inner = nn.Sequential(*(draw(layer(d, t, depth + 1)) for _ in range(draw(st.integers(1, 2)))))
    return Residual(inner) if kind == "residual" else Beside(d, inner)


@st.composite
def case(draw):
    torch.manual_seed(draw(st.integers(0, 2**31)))
    d, n = draw(st.sampled_from([1, 2, 3, 6, 9, 17, 33])), draw(st.sampled_from([1, 3, 20]))
    t = draw(st.sampled_from([0, 1, 3, 5]))
    layers = [draw(layer(d, t)) for _ in range(draw(st.integers(0, 3)))]
    outputs = draw(st.sampled_from([1, 2, 5, 18]))
    if t and draw(st.booleans()):
        x, first = torch.randint(0, 7, (n, t)), Embed(7, d)
    else:
        width = draw(st.integers(1, 19))
        x, first = torch.randn(n, *([t] if t else []), width), nn.Linear(width, d)
    model = nn.Sequential(first, *layers, nn.Linear(d, outputs))
    loss = draw(st.sampled_from(["squared", "binary"] + ["classes"] * (outputs > 1)))
    rows = (n, t) if t else (n,)
    if loss == "squared":
        return model, nn.MSELoss(), x, torch.randn(*rows, outputs)
    if loss == "binary":
        return model, nn.BCEWithLogitsLoss(), x, torch.rand(*rows, outputs)
    classes = torch.randint(0, outputs, rows)
    if t:
        return model, lambda p, y: functional.cross_entropy(p.flatten(0, 1), y.flatten()), x, classes
    return model, nn.CrossEntropyLoss(), x, classes


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(case())
def test_random_programs(program):
    """In float64 to rounding; in float32 no worse than torch's own float32, both being sums in some order.

    Float64: 2^-53 grown by a few hundred operations in a row, each of moderate condition, stays below 1e-11 of the
    gradient's norm. Float32: twice torch's error, and never asked for more than 2^-20 of the norm.
    """
    model, loss_fn, x, y = program
    captured = capture(model, loss_fn, x, y)
    for count in (1, 7):
        index = torch.arange(count) * 3 % len(x)
        loss, gradient, w = autograd(model, loss_fn, x, y, index)
        losses, g = captured.gradient(w, index)
        assert float(losses.mean()) == pytest.approx(float(loss), rel=1e-11, abs=1e-13)
        norm = float(gradient.norm())
        assert float((g - gradient).norm()) <= 1e-11 * norm + 1e-13
        for one in range(min(count, 3)):
            alone = autograd(model, loss_fn, x, y, index[one : one + 1])[0]
            assert float(losses[one]) == pytest.approx(float(alone), rel=1e-11, abs=1e-13)
        single = torch.autograd.grad(loss_fn(model(x[index]), y[index]), list(model.parameters()), allow_unused=True)
        parts = zip(model.parameters(), single, strict=True)
        own = torch.cat([(torch.zeros_like(p) if d is None else d).reshape(-1) for p, d in parts])
        error = float((captured.gradient(w.float(), index)[1] - gradient).norm())
        assert error <= 2 * float((own - gradient).norm()) + 2.0**-20 * norm + 1e-9
