"""Capture and passes: what a Program computes is what autograd computes in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from devinterp_fast import _cpu
from devinterp_fast.sampling.native import MODES, Unsupported, capture

# Float32 passes sum at most a few thousand terms of mixed sign, each rounded to 2^-24; the error of such sums
# relative
# to their norm stays below sqrt(terms) 2^-24 in practice and below 1e-5 with a wide margin. Float64 has 29
# bits more.
F32, F64 = 1e-5, 1e-12


def autograd(model, loss_fn, x, y, index):
    """Loss and gradient in float64."""
    x, y = (t.double() if t.is_floating_point() else t for t in (x[index], y[index]))
    state = {n: p.detach().double().requires_grad_(p.requires_grad) for n, p in model.named_parameters()}
    state |= {n: b.double() if b.is_floating_point() else b for n, b in model.named_buffers()}
    loss = loss_fn(torch.func.functional_call(model, state, (x,)), y)
    trained = [p for p in state.values() if p.requires_grad]
    grads = torch.autograd.grad(loss, trained, allow_unused=True)
    grads = [torch.zeros_like(p) if g is None else g for p, g in zip(trained, grads, strict=True)]
    return (
        loss.detach(),
        torch.cat([g.reshape(-1) for g in grads]),
        torch.cat([p.detach().reshape(-1) for p in trained]),
    )


def agrees(model, loss_fn, x, y, counts=(1, 2, 7, 33)):
    """Loss, gradient and per-sample losses of several batches; indices repeat, as batches of chains do."""
    program = capture(model, loss_fn, x, y)
    generator = torch.Generator().manual_seed(1)
    for count in counts:
        index = torch.randint(0, len(x), (count,), generator=generator)
        loss, gradient, w = autograd(model, loss_fn, x, y, index)
        for dtype, tolerance in ((torch.float64, F64), (torch.float32, F32)):
            losses, g = program.gradient(w.to(dtype), index)
            assert float(losses.mean()) == pytest.approx(float(loss), rel=tolerance)
            assert float((g - gradient).norm()) <= tolerance * float(gradient.norm()) + 1e-30
            torch.testing.assert_close(program.losses(w.to(dtype), index), losses, rtol=0, atol=0)
        single = program.losses(w, index[:1])
        expected = autograd(model, loss_fn, x, y, index[:1])[0]
        assert float(single) == pytest.approx(float(expected), rel=F64)
    return program


class Superposition(nn.Module):
    def __init__(self, form="matmul"):
        super().__init__()
        self.W, self.b, self.form = nn.Parameter(torch.randn(2, 6)), nn.Parameter(torch.randn(6) / 9), form

    def forward(self, x):
        if self.form == "matmul":
            return functional.relu(x @ self.W.T @ self.W + self.b)
        if self.form == "einsum":
            return functional.relu(torch.einsum("hi,bh->bi", self.W, torch.einsum("bi,hi->bh", x, self.W)) + self.b)
        return functional.relu((self.W.T @ (self.W @ x.T)).T + self.b)


class Attention(nn.Module):
    def __init__(self, d, heads, form):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(d, d, bias=form == "sdpa") for _ in range(4))
        self.heads, self.form = heads, form

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = (m(x).view(b, t, self.heads, d // self.heads).transpose(1, 2) for m in (self.q, self.k, self.v))
        hidden = torch.ones(t, t, dtype=torch.bool).triu(1)
        if self.form == "sdpa":
            out = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        elif self.form == "einsum":
            s = torch.einsum("bhqd,bhkd->bhqk", q, k) * (d // self.heads) ** -0.5
            out = torch.einsum("bhqk,bhkd->bhqd", s.masked_fill(hidden, -1e9).softmax(-1), v)
        else:
            s = q @ k.transpose(-2, -1) / (d // self.heads) ** 0.5
            if self.form == "causal":
                s = s.masked_fill(hidden, float("-inf"))
            if self.form == "added":
                s = s + torch.zeros(t, t, dtype=x.dtype).masked_fill(hidden, float("-inf"))
            out = s.softmax(-1) @ v
        return x + self.o(out.transpose(1, 2).reshape(b, t, d))


class Transformer(nn.Module):
    def __init__(self, form="causal", norm=nn.Identity, vocabulary=11, d=12, heads=3, length=9, layers=2):
        super().__init__()
        self.embed, self.place = nn.Embedding(vocabulary, d), nn.Embedding(length, d)
        self.layers = nn.ModuleList(Attention(d, heads, form) for _ in range(layers))
        self.norm, self.out = norm(d), nn.Linear(d, vocabulary, bias=False)

    def forward(self, tokens):
        x = self.embed(tokens) + self.place(torch.arange(tokens.shape[1]))
        for layer in self.layers:
            x = layer(x)
        return self.out(self.norm(x))


class Block(nn.Module):
    def __init__(self, d, heads):
        super().__init__()
        self.n1, self.n2, self.qkv, self.o = (
            nn.LayerNorm(d),
            nn.LayerNorm(d),
            nn.Linear(d, 3 * d),
            nn.Linear(d, d),
        )
        self.mlp, self.heads = nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d)), heads

    def forward(self, x):
        b, t, d = x.shape
        parts = self.qkv(self.n1(x)).split(d, -1)
        q, k, v = (p.view(b, t, self.heads, d // self.heads).transpose(1, 2) for p in parts)
        a = functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, d)
        x = x + self.o(a)
        return x + self.mlp(self.n2(x))


class Gpt(nn.Module):
    def __init__(self, vocabulary=11, d=12, heads=2, length=9):
        super().__init__()
        self.embed, self.place = nn.Embedding(vocabulary, d), nn.Parameter(torch.randn(length, d))
        self.blocks, self.out = nn.Sequential(Block(d, heads), Block(d, heads)), nn.Linear(d, vocabulary)

    def forward(self, tokens):
        return self.out(self.blocks(self.embed(tokens) + self.place))


class MultiHead(nn.Module):
    def __init__(self, batch_first, weights):
        super().__init__()
        self.embed, self.out = nn.Embedding(11, 12), nn.Linear(12, 11)
        self.attention, self.weights = nn.MultiheadAttention(12, 3, batch_first=batch_first), weights

    def forward(self, tokens):
        x = self.embed(tokens)
        x = x if self.attention.batch_first else x.transpose(0, 1)
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1], dtype=x.dtype)
        x = x + self.attention(x, x, x, attn_mask=mask, need_weights=self.weights)[0]
        return self.out(x if self.attention.batch_first else x.transpose(0, 1))


def next_token(logits, tokens):
    return functional.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1))


@pytest.fixture(autouse=True)
def _seeded():
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("form", ["matmul", "einsum", "columns"])
def test_tied_weights(form):
    x = torch.rand(60, 6)
    program = agrees(Superposition(form), nn.MSELoss(), x, x)
    assert [op.kind for op in program.description.ops] == ["input", "linear", "linear"]
    assert program.native.layout(MODES.index("shared")) == 2


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.GELU(), nn.GELU("tanh"), nn.Tanh(), nn.Sigmoid(), nn.SiLU()])
@pytest.mark.parametrize("width", [5, 40])
def test_activations(activation, width):
    model = nn.Sequential(nn.Linear(7, width), activation, nn.Linear(width, 3, bias=False), copy.deepcopy(activation))
    program = agrees(model, nn.MSELoss(), torch.randn(50, 7), torch.randn(50, 3))
    assert program.native.layout(MODES.index("full")) == (1 if width == 5 else 0)


@pytest.mark.parametrize("width", [4, 64])
def test_losses(width):
    x, model = torch.randn(40, 9), nn.Sequential(nn.Linear(9, width), nn.ReLU(), nn.Linear(width, 5))
    weights = torch.rand(5)
    target = torch.randn(40, 5)
    agrees(model, lambda p, y: ((p - y) ** 2).sum(-1).mean(), x, target)
    agrees(model, lambda p, y: (weights * (p - y).pow(2)).mean(), x, target)
    agrees(model, lambda p, y: functional.mse_loss(p, y, reduction="sum") / len(p), x, target)
    agrees(model, nn.CrossEntropyLoss(), x, torch.randint(0, 5, (40,)))


def test_ignored_targets():
    tokens = torch.randint(0, 11, (20, 9))
    tokens[:, ::2] = -100
    agrees(
        Gpt(),
        lambda p, y: functional.cross_entropy(p.transpose(1, 2), y),
        torch.randint(0, 11, (20, 9)),
        tokens,
    )


def test_frozen_parameters_and_shared_values():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 4)
            self.b.weight.requires_grad_(False)

        def forward(self, x):
            h = functional.relu(self.a(x))
            return self.c(0.5 * h + torch.tanh(self.b(h)) + self.b(h))

    agrees(Two(), nn.MSELoss(), torch.randn(30, 6), torch.randn(30, 4))


def test_flatten_and_rows():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 2))
    agrees(model, nn.CrossEntropyLoss(), torch.randn(9, 1, 3, 4), torch.randint(0, 2, (9,)))
    tokens = torch.randint(0, 11, (12, 9))
    agrees(Gpt(), lambda p, y: functional.cross_entropy(p[:, -1], y[:, 0]), tokens, tokens)


@pytest.mark.parametrize(("stride", "padding", "bias"), [(1, 1, True), (2, 1, False), (2, 0, True)])
def test_convolutions(stride, padding, bias):
    size = (6 + 2 * padding - 3) // stride + 1
    model = nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1, bias=bias), nn.ReLU(), nn.Conv2d(5, 4, 3, stride, padding, bias=bias), nn.GELU(),
        nn.Flatten(), nn.Linear(4 * size * size, 3),
    )  # fmt: skip
    x = torch.randn(30, 2, 6, 6)
    agrees(model, nn.CrossEntropyLoss(), x, torch.randint(0, 3, (30,)))
    agrees(model, lambda p, y: (p - y).square().sum(-1).mean(), x, torch.randn(30, 3))


@pytest.mark.parametrize("form", ["full", "causal", "added", "einsum", "sdpa"])
def test_attention(form):
    tokens = torch.randint(0, 11, (20, 9))
    program = agrees(Transformer(form), next_token, tokens, tokens)
    assert sum(op.kind == "attention" for op in program.description.ops) == 2


def rms(d):
    return nn.RMSNorm(d, eps=1e-6)


@pytest.mark.parametrize("norm", [nn.LayerNorm, rms])
def test_norms(norm):
    tokens = torch.randint(0, 11, (20, 17))
    agrees(Transformer("causal", norm, length=17), next_token, tokens, tokens)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("weights", [True, False])
def test_multihead_attention(batch_first, weights):
    tokens = torch.randint(0, 11, (20, 9))
    agrees(MultiHead(batch_first, weights), next_token, tokens, tokens)


def test_gpt():
    tokens = torch.randint(0, 11, (20, 9))
    agrees(Gpt(), next_token, tokens, tokens)


class Encoder(nn.Module):
    def __init__(self, tied, **settings):
        super().__init__()
        self.embed, self.layer = nn.Embedding(11, 12), nn.TransformerEncoderLayer(12, 3, 24, 0.0, **settings)
        self.out = self.embed.weight if tied else nn.Parameter(torch.randn(11, 12))

    def forward(self, tokens):
        return self.layer(self.embed(tokens)) @ self.out.T


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
def test_encoder_layers_and_tied_embeddings(tied, norm_first):
    tokens = torch.randint(0, 11, (20, 9))
    agrees(Encoder(tied, norm_first=norm_first, batch_first=True, activation="gelu"), next_token, tokens, tokens)


def test_one_loss_for_each_sample():
    model, x = nn.Linear(6, 3), torch.randn(30, 6)
    program = capture(model, nn.CrossEntropyLoss(reduction="none"), x, torch.randint(0, 3, (30,)))
    assert program.description.loss.factor == 1.0
    capture(model, lambda p, y: ((p - y) ** 2).mean(-1), x, torch.randn(30, 3))


LAYER = st.tuples(st.integers(1, 37), st.sampled_from([None, nn.ReLU, nn.Tanh, nn.SiLU]), st.booleans())


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.integers(1, 37), st.lists(LAYER, min_size=1, max_size=4), st.integers(1, 40), st.booleans())
def test_random_networks(inputs, layers, n, classify):
    torch.manual_seed(0)
    modules, width = [], inputs
    for size, activation, bias in layers:
        modules += [nn.Linear(width, size, bias=bias)] + ([activation()] if activation else [])
        width = size
    x = torch.randn(n, inputs)
    if classify:
        agrees(nn.Sequential(*modules), nn.CrossEntropyLoss(), x, torch.randint(0, width, (n,)), counts=(1, 17))
    else:
        agrees(nn.Sequential(*modules), nn.MSELoss(), x, torch.randn(n, width), counts=(1, 17))


@pytest.mark.parametrize("make", [Superposition, lambda: Gpt(d=8)])
def test_every_instruction_set_gives_the_same_bits(make):
    model = make()
    x = torch.rand(40, 6) if isinstance(model, Superposition) else torch.randint(0, 11, (6, 9))
    program = capture(model, nn.MSELoss() if x.is_floating_point() else next_token, x, x)
    w = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    answers = []
    try:
        for name in _cpu.isa_available():
            assert _cpu.use_isa(name)
            answers.append(program.gradient(w))
    finally:
        _cpu.use_isa("")
    for losses, g in answers:
        assert torch.equal(losses, answers[0][0])
        assert torch.equal(g, answers[0][1])


def test_nothing_of_the_model_changes():
    model = nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.0), nn.Linear(5, 2))
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    capture(model, nn.MSELoss(), torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(8, 2))
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


class Square(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return torch.cumsum(x * self.w, -1)


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.b(self.a(x).detach())


def test_reasons():
    x, y, linear = torch.randn(8, 4), torch.randn(8, 2), nn.Linear(4, 2)
    with pytest.raises(Unsupported, match="a product of activations has no native form"):
        capture(Square(), nn.MSELoss(), x, x)
    with pytest.raises(Unsupported, match=r"the native loss is .* where autograd has"):
        capture(linear, lambda p, t: ((p - t) ** 2).sum(), x, y)
    with pytest.raises(Unsupported, match="operation smooth_l1_loss has no native form"):
        capture(linear, nn.SmoothL1Loss(), x, y)
    with pytest.raises(Unsupported, match="float64"):
        capture(nn.Linear(4, 2).double(), nn.MSELoss(), x, y)
    with pytest.raises(Unsupported, match="batch_norm"):
        capture(nn.Sequential(linear, nn.BatchNorm1d(2)), nn.MSELoss(), x, y)
    with pytest.raises(Unsupported, match="dropout has no native form"):
        capture(nn.Sequential(linear, nn.Dropout(0.5)), nn.MSELoss(), x, y)
    with pytest.raises(Unsupported, match=r"classes lie outside 0 ... 1"):
        capture(linear, nn.CrossEntropyLoss(), x, torch.tensor([0, 1, 0, 1, 1, 0, 1, 2]))
    with pytest.raises(Unsupported, match="does not run on 2 samples: RuntimeError"):
        capture(nn.Linear(5, 2), nn.MSELoss(), x, y)
    with pytest.raises(Unsupported, match="gradient differs from autograd's"):
        capture(Detached(), nn.MSELoss(), x, y)
    tokens = torch.randint(0, 11, (8, 9))
    tokens[7, 3] = -100
    with pytest.raises(Unsupported, match="ignored targets differ in number"):
        capture(Gpt(), lambda p, t: functional.cross_entropy(p.transpose(1, 2), t), tokens.clamp(0), tokens)


def test_a_mixing_model_is_refused():
    class Mixing(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 2)

        def forward(self, x):
            return self.a(x.flip(0))

    with pytest.raises(Unsupported, match=r"targets of another|differ|native"):
        capture(Mixing(), nn.MSELoss(), torch.randn(8, 4), torch.randn(8, 2))
