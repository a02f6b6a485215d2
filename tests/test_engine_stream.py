"""Weights read where they lie: the bits of a transposed copy, and what millions of parameters run on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_engine import build, same, start
from torch import nn

import devinterp_fast as dif
from devinterp_fast import _cpu
from devinterp_fast.sampling import native
from devinterp_fast.sampling.native import MODES, Unsupported, capture

INPUTS, WIDE, MIDDLE, OUTPUTS, BESIDE = 67, 1901, 1953, 3, 3001


class Product(nn.Module):
    """x W + b, W (inputs, outputs)."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.W = nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5)
        self.b = nn.Parameter(torch.randn(outputs))

    def forward(self, x):
        return x @ self.W + self.b


class Network(nn.Module):
    """3.9 million parameters; ``beside`` adds 0.2 million that change nothing, and weights are streamed."""

    def __init__(self, linear, beside):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = linear(INPUTS, WIDE), linear(WIDE, MIDDLE), linear(MIDDLE, OUTPUTS)
        self.up, self.down = (linear(INPUTS, BESIDE), linear(BESIDE, OUTPUTS)) if beside else (None, None)
        if beside:
            for p in self.down.parameters():
                p.data.zero_()

    def forward(self, x):
        out = self.c(torch.tanh(self.b(torch.relu(self.a(x)))))
        return out if self.up is None else out + self.down(self.up(x))


def data(n):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, INPUTS, generator=generator), torch.randn(n, OUTPUTS, generator=generator)


def programs(linear, beside, n=33):
    x, y = data(n)
    model = Network(linear, beside)
    return model, capture(model, nn.MSELoss(), x, y, batch=32)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        yield


@pytest.mark.parametrize("linear", [nn.Linear, Product])
def test_bits_of_a_transposed_copy(linear):
    """The same network streamed and not; up to 22 rows both sum biases over one block."""
    (model, copied), (other, streamed) = programs(linear, False), programs(linear, True)
    assert copied.dim < native.LARGEST < streamed.dim
    w, v = start(model), start(other)
    assert torch.equal(v[: copied.dim], w)
    for rows in (1, 7, 16, 17, 22):
        index = torch.arange(rows)
        (losses, g), (others, h) = copied.gradient(w, index), streamed.gradient(v, index)
        assert torch.equal(losses, others)
        assert torch.equal(g, h[: copied.dim])


@pytest.mark.parametrize("linear", [nn.Linear, Product])
def test_losses_and_gradients_over_rows(linear):
    """A sample's loss has the same bits among 1, 32 and 33; the gradient is autograd's.

    Float64 sums of at most n = 3,001 terms in another order differ by n 2^-53 < 1e-12 of their size, and cancellation
    costs a few digits more. Float32's errors add like a random walk: sqrt(n) 2^-24 = 3e-6 a product, six in a row.
    """
    model, program = programs(linear, True)
    x, y = data(33)
    w = start(model)
    whole = program.losses(w)
    for rows in ([0], [32], list(range(32)), list(range(5, 13))):
        assert torch.equal(program.losses(w, torch.tensor(rows)), whole[rows])
    for rows in (1, 32, 33):
        exact = Network(linear, True).double()
        nn.MSELoss()(exact(x[:rows].double()), y[:rows].double()).backward()
        expected = torch.cat([p.grad.reshape(-1) for p in exact.parameters()])
        for dtype, bound in ((torch.float64, 1e-10), (torch.float32, 2e-5)):
            g = program.gradient(w.to(dtype), torch.arange(rows))[1]
            assert float((g - expected).norm()) <= bound * float(expected.norm())


def test_every_instruction_set_streams_the_same_bits():
    model, program = programs(nn.Linear, True)
    w, found = start(model), {}
    try:
        for name in _cpu.isa_available():
            assert _cpu.use_isa(name)
            found[name] = program.gradient(w)
    finally:
        _cpu.use_isa("")
    for losses, g in found.values():
        assert torch.equal(losses, found["baseline"][0])
        assert torch.equal(g, found["baseline"][1])


@pytest.mark.parametrize("mode", ["independent", "full"])
def test_chains_alone_and_on_two_threads(mode):
    model, program = programs(nn.Linear, True, n=9)

    def case():
        return model, nn.MSELoss(), *data(9)

    settings = {"program": program, "batches": mode, "draws": 2, "burn_in": 1, "batch_size": 5}
    whole = build(case, chains=3, **settings).finish()
    same(build(case, chains=3, threads=2, **settings).finish(), whole)
    assert MODES.index(mode) == whole.mode
    alone = build(
        case, chains=1, first_chain=2, lr=whole.lr[2:], localization=whole.localization[2:], nbeta=whole.nbeta[2:],
        **settings,
    ).finish()  # fmt: skip
    np.testing.assert_array_equal(alone.loss[0], whole.loss[2])
    np.testing.assert_array_equal(alone.gauge[0], whole.gauge[2])
    assert torch.equal(alone.w[0], whole.w[2])


# ---- which engine


def test_the_batch_decides_above_the_largest(monkeypatch):
    monkeypatch.setattr(native, "LARGEST", 20)
    model, x, y = nn.Linear(7, 3), torch.randn(40, 7), torch.randn(40, 3)
    settings = {"lr": 1e-4, "localization": 1.0, "nbeta": 10.0, "draws": 4, "burn_in": 0, "progress": False}
    for size, batches, engine in ((32, "independent", "native"), (33, "independent", "torch"), (8, "full", "torch")):
        found = dif.estimate_llc(model, nn.MSELoss(), (x, y), batch_size=size, batches=batches, **settings)
        assert found.engine.split("/")[0] == engine
    assert dif.explain(model, nn.MSELoss(), (x, y), batch_size=32).engine == "native"
    many = dif.explain(model, nn.MSELoss(), (x, y), batch_size=33)
    assert (many.engine, many.reason) == (
        "torch", "the model has 24 parameters, above 20 torch's own products are as fast on a batch of 33",
    )  # fmt: skip
    with pytest.raises(Unsupported, match=r"above 20 torch's own products are as fast$"):
        capture(model, nn.MSELoss(), x, y)


def test_rows_of_a_sample_count(monkeypatch):
    monkeypatch.setattr(native, "LARGEST", 20)
    model, x = nn.Linear(7, 3), torch.randn(20, 5, 7)
    y = torch.randn(20, 5, 3)
    capture(model, nn.MSELoss(), x, y, batch=6)
    with pytest.raises(Unsupported, match="on 5 rows for each of 7 samples"):
        capture(model, nn.MSELoss(), x, y, batch=7)
