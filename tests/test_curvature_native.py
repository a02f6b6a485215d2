"""Curvature products of captured models: what autograd computes in float64, for every operation and loss."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from test_program import Encoder, Gpt, MultiHead, Superposition, Transformer, next_token, rms
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from devinterp_fast import _cpu, _native
from devinterp_fast._program import Unsupported
from devinterp_fast.errors import DTypeError, NumericalError, ShapeError
from devinterp_fast.sampling.native import capture

# A product sums at most some ten thousand terms of mixed sign, each rounded to 2^-53 or 2^-24; relative to the norm the
# error of such sums stays near sqrt(terms) roundings in practice. The products of a layer, its delta and its tangent
# follow each other through a few layers, each passing on its input's error: 1e-5 and 1e-12, as for the gradient.
F32, F64 = 1e-5, 1e-12


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def error(a, b):
    return float((a.double() - b).norm() / b.norm())


class Case:
    """A model, its loss and data, as a function of the trainable parameters in float64."""

    def __init__(self, model, loss_fn, x, y):
        self.model, self.loss_fn, self.program = model, loss_fn, capture(model, loss_fn, x, y)
        self.x = x.double() if x.is_floating_point() else x
        self.y = self.x if y is x else y.double() if y.is_floating_point() else y
        self.rest = {n: p.detach().double() for n, p in model.named_parameters()}
        self.names = [n for n, p in model.named_parameters() if p.requires_grad]
        self.w = torch.cat([self.rest[n].reshape(-1) for n in self.names])

    def outputs(self, w):
        state, at = dict(self.rest), 0
        for name in self.names:
            size = state[name].numel()
            state[name], at = w[at : at + size].view_as(state[name]), at + size
        return torch.func.functional_call(self.model, state, (self.x,))

    def loss(self, w):
        return self.loss_fn(self.outputs(w), self.y).mean()

    def hessian_products(self, v):
        w = self.w.clone().requires_grad_()
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no double backward
            (g,) = torch.autograd.grad(self.loss(w), w, create_graph=True)
            return torch.stack([torch.autograd.grad(g, w, row, retain_graph=True)[0] for row in v])

    def ggn_products(self, v):
        w = self.w.clone().requires_grad_()
        out = self.outputs(w)
        u = torch.zeros_like(out, requires_grad=True)
        (back,) = torch.autograd.grad(out, w, u, create_graph=True)
        at = out.detach().requires_grad_()
        (g,) = torch.autograd.grad(self.loss_fn(at, self.y).mean(), at, create_graph=True)
        rows = []
        for row in v:
            (tangent,) = torch.autograd.grad(back, u, row, retain_graph=True)  # J v, as the transpose of J^T u
            (bent,) = torch.autograd.grad(g, at, tangent, retain_graph=True)
            rows.append(torch.autograd.grad(out, w, bent, retain_graph=True)[0])
        return torch.stack(rows)

    def sample_gradients(self, index):
        return torch.stack([self.program.gradient(self.w, torch.tensor([i]))[1] for i in index.tolist()])


def tokens(length=9, n=8):
    return torch.randint(0, 11, (n, length))


def mlp(activation, width=9, bias=True):
    last = copy.deepcopy(activation)
    return nn.Sequential(nn.Linear(7, width), activation, nn.Linear(width, 3, bias=bias), last)


class Mixed(nn.Module):
    """Residual sum, scale, a value read twice, a frozen weight, an activation of its own."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.b.weight.requires_grad_(False)

    def forward(self, x):
        h = functional.silu(self.a(x))
        return torch.tanh(self.c(0.5 * h + torch.tanh(self.b(h)) + functional.gelu(h) + self.b(h)))


class Joined(nn.Module):
    """Values side by side."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(7, 5), nn.Linear(7, 4), nn.Linear(9, 3)

    def forward(self, x):
        return self.c(torch.cat([torch.tanh(self.a(x)), functional.gelu(self.b(x))], -1))


def images():
    return torch.randn(9, 2, 4, 4), torch.randint(0, 3, (9,))


def pooling(pool):
    return nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), pool, nn.Flatten(), nn.Linear(12, 3))


def last_token(p, y):
    return functional.cross_entropy(p[:, -1], y[:, 0])


def ignoring(p, y):
    return functional.cross_entropy(p.transpose(1, 2), y)


def case(name):
    x, y, classes, t = torch.randn(21, 7), torch.randn(21, 3), torch.randint(0, 3, (21,)), tokens()
    activations = {"relu": nn.ReLU(), "tanh": nn.Tanh(), "sigmoid": nn.Sigmoid(), "gelu": nn.GELU(),
                   "gelu_tanh": nn.GELU("tanh"), "silu": nn.SiLU()}  # fmt: skip
    if name in activations:
        return Case(mlp(activations[name]), nn.MSELoss(), x, y)
    weights = torch.rand(3)
    ignored = t.clone()
    ignored[:, ::2] = -100
    conv = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 3, 2, 1), nn.GELU(), nn.Flatten(),
                         nn.Linear(8, 3))  # fmt: skip
    cases = {
        "cross_entropy": lambda: Case(mlp(nn.ReLU(), 40), nn.CrossEntropyLoss(), x, classes),
        "importance": lambda: Case(mlp(nn.Tanh(), bias=False), lambda p, q: (weights * (p - q) ** 2).mean(), x, y),
        "summed": lambda: Case(mlp(nn.Tanh()), lambda p, q: ((p - q) ** 2).sum(-1).mean(), x, y),
        "binary": lambda: Case(mlp(nn.Tanh(), 9)[:3], nn.BCEWithLogitsLoss(), x, torch.rand(len(x), 3)),
        "tied": lambda: Case(Superposition(), nn.MSELoss(), (z := torch.rand(300, 6)), z),
        "mixed": lambda: Case(Mixed(), nn.MSELoss(), torch.randn(30, 6), torch.randn(30, 4)),
        "convolutions": lambda: Case(conv, nn.CrossEntropyLoss(), torch.randn(9, 2, 4, 4), torch.randint(0, 3, (9,))),
        "max_pooling": lambda: Case(pooling(nn.MaxPool2d(2)), nn.CrossEntropyLoss(), *images()),
        "average_pooling": lambda: Case(pooling(nn.AvgPool2d(2)), nn.CrossEntropyLoss(), *images()),
        "joined": lambda: Case(Joined(), nn.MSELoss(), x, y),
        "attention": lambda: Case(Transformer("full"), next_token, t, t),
        "causal": lambda: Case(Transformer("causal", length=19), next_token, (u := tokens(19)), u),
        "layer_norm": lambda: Case(Transformer("causal", nn.LayerNorm, layers=1), next_token, t, t),
        "rms_norm": lambda: Case(Transformer("causal", rms, layers=1), next_token, t, t),
        "gpt": lambda: Case(Gpt(), next_token, t, t),
        "last": lambda: Case(Gpt(), last_token, t, t),
        "ignored": lambda: Case(Gpt(), ignoring, t, ignored),
        "encoder": lambda: Case(Encoder(True, norm_first=False, batch_first=True, activation="gelu"), next_token, t, t),
        "multihead": lambda: Case(MultiHead(True, True), next_token, t, t),
    }
    return cases[name]()


SMOOTH = ["relu", "tanh", "sigmoid", "gelu", "gelu_tanh", "silu"]
PLAIN = ["cross_entropy", "importance", "summed", "binary", "tied", "mixed", "convolutions"]
PLAIN += ["max_pooling", "average_pooling", "joined"]
SEQUENCES = ["attention", "causal", "layer_norm", "rms_norm", "gpt", "last", "ignored", "encoder", "multihead"]
ALL = SMOOTH + PLAIN + SEQUENCES


def directions(c, few=5):
    """All of them for a small model, so that the whole matrix is compared."""
    return torch.eye(c.w.numel(), dtype=torch.double) if c.w.numel() <= 200 else torch.randn(few, c.w.numel()).double()


@pytest.mark.parametrize("name", ALL)
def test_hessian(name):
    c = case(name)
    v = directions(c)
    expected = c.hessian_products(v)
    assert error(c.program.curvature(c.w).hvp(v), expected) <= F64
    assert error(c.program.curvature(c.w.float()).hvp(v.float()), expected) <= F32


@pytest.mark.parametrize("name", ["relu", "gelu", *PLAIN, "causal", "layer_norm", "rms_norm", "ignored"])
def test_gauss_newton(name):
    c = case(name)
    v = directions(c, 3)
    with sdpa_kernel(SDPBackend.MATH):
        expected = c.ggn_products(v)
    assert error(c.program.curvature(c.w).ggn(v), expected) <= F64
    assert error(c.program.curvature(c.w.float()).ggn(v.float()), expected) <= F32


@pytest.mark.parametrize("name", ALL)
def test_fisher_and_gram(name):
    c = case(name)
    index = torch.tensor([3, 0, 7, 7, 5])
    g, v = c.sample_gradients(index), torch.randn(3, c.w.numel()).double()
    for dtype, tolerance in ((torch.float64, F64), (torch.float32, F32)):
        curvature = c.program.curvature(c.w.to(dtype), index)
        assert error(curvature.gradient(), g.mean(0)) <= tolerance
        assert error(curvature.fisher(v.to(dtype)), v @ g.T @ g / len(index)) <= tolerance
        assert error(curvature.gram(), g @ g.T / len(index)) <= tolerance
        torch.testing.assert_close(curvature.losses, c.program.losses(c.w.to(dtype), index), rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["cross_entropy", "gpt", "tied"])
def test_symmetric(name):
    """u'Hv = v'Hu: both are sums of dim products, rounded as F64 says relative to |u| |Hv|."""
    c = case(name)
    curvature, u, v = c.program.curvature(c.w), *torch.randn(2, 1, c.w.numel()).double()
    for product in (curvature.hvp, curvature.ggn, curvature.fisher):
        one, two = float((u * product(v)).sum()), float((v * product(u)).sum())
        assert abs(one - two) <= F64 * float(u.norm() * product(v).norm())
    for product in (curvature.ggn, curvature.fisher):
        assert float((u * product(u)).sum()) >= 0


def test_least_squares():
    """Linear regression: H = 2 X'X / n, whatever the weights, and the Gauss-Newton matrix is the same."""
    x, y = torch.randn(50, 6), torch.randn(50, 1)
    c = Case(nn.Linear(6, 1, bias=False), nn.MSELoss(), x, y)
    expected = 2 * c.x.T @ c.x / 50
    curvature = c.program.curvature(c.w)
    assert error(curvature.hvp(torch.eye(6, dtype=torch.double)), expected) <= F64
    assert error(curvature.ggn(torch.eye(6, dtype=torch.double)), expected) <= F64


def test_a_well_fitted_classifier_keeps_its_curvature():
    """Where the right class has probability 1 - 1e-6, float32 rounds 1 - p; H u = p (u - p.u) must not."""
    model = nn.Linear(3, 3, bias=False)
    model.weight.data = 14.0 * torch.eye(3)
    c = Case(model, nn.CrossEntropyLoss(), torch.eye(3).repeat(4, 1), torch.arange(3).repeat(4))
    v = torch.randn(4, 9).double()
    assert error(c.program.curvature(c.w.float()).hvp(v.float()), c.hessian_products(v)) <= F32


def large():
    model = nn.Sequential(nn.Linear(9, 64), nn.GELU(), nn.Linear(64, 50), nn.ReLU(), nn.Linear(50, 4))
    x, y = torch.randn(1500, 9), torch.randint(0, 4, (1500,))
    program = capture(model, nn.CrossEntropyLoss(), x, y)
    w = torch.stack([torch.cat([p.detach().reshape(-1) for p in model.parameters()]) * s for s in (1.0, 0.5, 1.5)])
    return program, w, torch.randn(3, 6, program.dim)


def sequences():
    model, t = Gpt(d=16), torch.randint(0, 11, (70, 9))
    program = capture(model, next_token, t, t)
    w = torch.cat([p.detach().reshape(-1) for p in model.parameters()]).repeat(2, 1)
    w[1] *= 1.1
    return program, w, torch.randn(2, 5, program.dim)


def products(curvature, v):
    return [curvature.gradient(), curvature.hvp(v), curvature.ggn(v), curvature.fisher(v), curvature.gram()]


@pytest.mark.parametrize("make", [large, sequences])
def test_bits_depend_on_nothing_else(make):
    """Threads, cache, company of checkpoints and of probes."""
    program, w, v = make()
    whole = program.curvature(w)
    assert whole._native.cached == whole._native.states > len(w)
    expected = products(whole, v)
    some = whole._native.states * 3 // 4  # blocks that a cache of about that share of the bytes holds
    small = program.curvature(w, cache=0)
    assert small._native.cached == 0 < some
    for other in (small, program.curvature(w, threads=2), program.curvature(w, cache=500_000, threads=3)):
        for got, want in zip(products(other, v), expected, strict=True):
            assert torch.equal(got, want)
    for k in range(len(w)):
        alone = program.curvature(w[k])
        for got, want in zip(products(alone, v[k]), expected, strict=True):
            assert torch.equal(got, want[k])
        assert torch.equal(alone.hvp(v[k, 4:5]), expected[1][k, 4:5])
        assert torch.equal(alone.losses, whole.losses[k])
    again = whole.hvp(v)
    assert torch.equal(again, expected[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", [large, sequences])
def test_every_instruction_set_gives_the_same_bits(make, dtype):
    program, w, v = make()
    w, v = w.to(dtype), v.to(dtype)
    answers = []
    try:
        for name in _cpu.isa_available():
            assert _cpu.use_isa(name)
            answers.append(products(program.curvature(w[0], torch.arange(60)), v[0]))
    finally:
        _cpu.use_isa("")
    for answer in answers:
        for got, want in zip(answer, answers[0], strict=True):
            assert torch.equal(got, want)


def test_float32_against_float64():
    program, w, v = large()
    single, double = program.curvature(w), program.curvature(w.double())
    for name in ("hvp", "ggn", "fisher"):
        got, want = getattr(single, name)(v), getattr(double, name)(v.double())
        for a, b in zip(got.flatten(0, 1), want.flatten(0, 1), strict=True):
            assert error(a, b) <= F32


def test_arguments():
    c = case("relu")
    w, dim = c.w.float(), c.w.numel()
    with pytest.raises(DTypeError, match=r"w: expected float32 or float64, got float16"):
        c.program.curvature(w.half())
    with pytest.raises(ShapeError, match=rf"w: expected float32 \({dim},\) on cpu, got float32 \({dim - 1},\)"):
        c.program.curvature(w[1:])
    with pytest.raises(ShapeError, match=r"w: expected .* or \(checkpoints"):
        c.program.curvature(w.view(1, 1, -1))
    with pytest.raises(ValueError, match=r"index: expected samples 0 ... 20, got \(1,\) of them"):
        c.program.curvature(w, torch.tensor([21]))
    with pytest.raises(ValueError, match=r"index: expected samples"):
        c.program.curvature(w, torch.zeros(0, dtype=torch.int64))
    with pytest.raises(NumericalError, match="w: expected a finite loss, got none at checkpoint 1"):
        c.program.curvature(torch.stack([w, w * 1e30]))
    curvature = c.program.curvature(w)
    with pytest.raises(ShapeError, match=rf"v: expected float32 \(k, {dim}\) on cpu, got float32 \({dim},\)"):
        curvature.hvp(w)
    with pytest.raises(DTypeError, match=r"v: expected float32"):
        curvature.ggn(torch.randn(2, dim).double())
    with pytest.raises(ShapeError, match=rf"v: expected float32 \(2, k, {dim}\) on cpu, got"):
        c.program.curvature(torch.stack([w, w])).hvp(torch.randn(2, dim))
    assert curvature.hvp(torch.zeros(0, dim)).shape == (0, dim)


def test_what_has_no_second_derivative_says_so(monkeypatch):
    c = case("relu")
    monkeypatch.setattr(_cpu, "has_second", lambda program: False)
    with pytest.raises(Unsupported, match="no second derivative in the native engine"):
        c.program.curvature(c.w)


# ---- Gram-Schmidt


def orthonormal(chains, m, dim, dtype):
    return torch.linalg.qr(torch.randn(chains, dim, m).double())[0].mT.to(dtype).contiguous()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("dim", "m"), [(1, 1), (7, 3), (33, 5), (2049, 9), (8191, 4), (20000, 6)])
def test_gram_schmidt(dtype, dim, m):
    """Orthogonal to the rounding of u: each element is off by half a unit of its last place, at random signs, so a sum
    of them against a unit vector is off by less than one unit of |u|."""
    chains, count = 3, min(m, dim)
    basis = orthonormal(chains, count, dim, dtype)
    gram = torch.zeros(chains, count, count, dtype=torch.double)
    u = torch.randn(chains, dim, dtype=dtype)
    before = u.double().clone()
    coefficients, norms = _native.gram_schmidt_(u, basis, count, gram, known=0)
    q, eps = basis.double(), torch.finfo(dtype).eps
    # sums of dim terms in another order
    torch.testing.assert_close(gram, q @ q.mT, rtol=0, atol=4 * dim**0.5 * 2**-53)
    wanted = torch.linalg.lstsq(q.mT, before[:, :, None]).solution[..., 0]
    # (2 I - G) against the inverse of G leaves |I - G|^2, far below eps
    torch.testing.assert_close(coefficients, wanted, rtol=0, atol=1e-11 + 4 * dim * eps**2)
    residual = before - (q.mT @ wanted[:, :, None])[..., 0]
    torch.testing.assert_close(norms, residual.norm(dim=1), rtol=4 * eps, atol=1e-7 if dim == count else 0)
    if dim > count:
        torch.testing.assert_close(u.double(), residual / residual.norm(dim=1, keepdim=True), rtol=0, atol=4 * eps)
        assert float((q @ u.double()[:, :, None]).abs().max()) <= 4 * eps


def test_gram_schmidt_survives_cancellation():
    """u almost inside the span: one pass in float32 would leave eps |u| / |rest|; here the sums are float64."""
    basis = orthonormal(1, 8, 5000, torch.float32)
    rest = torch.randn(1, 5000)
    u = (1e3 * basis.sum(1) + 1e-1 * rest / rest.norm()).float()
    gram = torch.zeros(1, 8, 8, dtype=torch.double)
    _native.gram_schmidt_(u, basis, 8, gram, known=0)
    # what is left is right to the rounding of the given u (1e3 eps against 0.1), and orthogonal all the same
    assert float((basis.double() @ u.double().mT).abs().max()) <= 4 * torch.finfo(torch.float32).eps


def test_lanczos_recurrence():
    """A diagonal operator: Q'AQ is tridiagonal with the coefficients and norms returned, the basis stays orthonormal,
    vectors being appended in place and G row by row."""
    dim, steps, chains = 3000, 30, 2
    a = torch.linspace(-1, 5, dim).repeat(chains, 1) * torch.tensor([[1.0], [2.0]])
    basis = torch.zeros(chains, steps, dim)
    gram = torch.zeros(chains, steps, steps, dtype=torch.double)
    basis[:, 0] = torch.randn(chains, dim)
    _native.gram_schmidt_(basis[:, 0], basis, 0, gram)
    alpha, beta = torch.zeros(chains, steps).double(), torch.zeros(chains, steps).double()
    for j in range(1, steps):
        basis[:, j] = a * basis[:, j - 1]
        coefficients, beta[:, j] = _native.gram_schmidt_(basis[:, j], basis, j, gram)
        alpha[:, j - 1] = coefficients[:, j - 1]
        assert float(coefficients[:, : max(j - 2, 0)].abs().sum()) <= 1e-4
    q = basis.double()
    eye = torch.eye(steps, dtype=torch.double)
    assert float((q @ q.mT - eye).abs().max()) <= 4 * torch.finfo(torch.float32).eps
    torch.testing.assert_close(gram[:, :-1, :-1], (q @ q.mT)[:, :-1, :-1], rtol=0, atol=1e-14)
    t = (q * a[:, None].double()) @ q.mT
    torch.testing.assert_close(t.diagonal(dim1=1, dim2=2)[:, :-1], alpha[:, :-1], rtol=0, atol=1e-5)
    torch.testing.assert_close(t.diagonal(1, 1, 2), beta[:, 1:], rtol=0, atol=1e-5)


def test_gram_schmidt_bits():
    """Threads, company, instruction set, strides."""
    basis, u = orthonormal(3, 6, 20000, torch.float32), torch.randn(3, 20000)

    def run(threads=1, rows=slice(None), spread=1):
        b = torch.zeros(3, 6 * spread, 20032)[:, ::spread, :20000].copy_(basis)[rows]
        x, g = u[rows].clone(), torch.zeros(len(b), 6, 6, dtype=torch.double)
        return x, g, *_native.gram_schmidt_(x, b, 5, g[:, : b.shape[1], : b.shape[1]], known=2, threads=threads)

    whole = run()
    for other in (run(threads=2), run(spread=2)):
        assert all(torch.equal(a, b) for a, b in zip(other, whole, strict=True))
    assert all(torch.equal(a, b[1:2]) for a, b in zip(run(rows=slice(1, 2)), whole, strict=True))
    try:
        for name in _cpu.isa_available():
            assert _cpu.use_isa(name)
            assert all(torch.equal(a, b) for a, b in zip(run(), whole, strict=True))
    finally:
        _cpu.use_isa("")


def test_gram_schmidt_of_nothing_and_bad_arguments():
    basis, gram = orthonormal(1, 2, 10, torch.float32), torch.zeros(1, 2, 2, dtype=torch.double)
    u = torch.zeros(1, 10)
    assert float(_native.gram_schmidt_(u, basis, 2, gram, known=0)[1]) == 0.0
    assert torch.equal(u, torch.zeros(1, 10))
    with pytest.raises(ValueError, match="count, known: expected 0 <= known <= count <= 2, got 3, 2"):
        _native.gram_schmidt_(u, basis, 3, gram)
    with pytest.raises(ShapeError, match="u, basis: expected"):
        _native.gram_schmidt_(u, basis[0], 1, gram)
    with pytest.raises(DTypeError, match="basis: expected float32"):
        _native.gram_schmidt_(u, basis.double(), 1, gram)
    with pytest.raises(DTypeError, match="u: expected float32 or float64"):
        _native.gram_schmidt_(u.half(), basis, 1, gram)


# ---- probes


@pytest.mark.parametrize("dim", [0, 1, 31, 33, 129, 8191, 20000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rademacher(dim, dtype):
    """Bit i % 32 of word i // 32 of the probe's own words."""
    out = _native.rademacher_(torch.empty(3, dim, dtype=dtype), seed=5, step=2, first_probe=7, threads=2)
    words = _native.words(3, (dim + 31) // 32, seed=5, step=2, first_chain=7, stream=_native.PROBES).numpy()
    bits = (words[:, :, None] >> np.arange(32)) & 1
    expected = torch.from_numpy(1.0 - 2.0 * bits.reshape(3, -1)[:, :dim]).to(dtype)
    assert torch.equal(out, expected)
    x = torch.randn(3, dim, dtype=dtype)
    dots = _native.rademacher_dot(x, seed=5, step=2, first_probe=7)
    torch.testing.assert_close(dots, (x.double() * out.double()).sum(1), rtol=0, atol=1e-15 * (dim + 1) ** 1.5)
    assert torch.equal(_native.rademacher_dot(x[1:2], seed=5, step=2, first_probe=8, threads=3), dots[1:2])


def test_rademacher_is_fair():
    """Sums over a million signs are within 4.5 of their standard deviation 1000; so are products of neighbours."""
    z = _native.rademacher_(torch.empty(4, 1_000_000), seed=1).double()
    assert float(z.sum(1).abs().max()) <= 4500
    assert float((z[:, 1:] * z[:, :-1]).sum(1).abs().max()) <= 4500
    assert float((z[0] * z[1]).sum().abs()) <= 4500


def test_probe_arguments():
    with pytest.raises(ShapeError, match=r"out: expected float32 or float64 \(probes, dim\) on cpu"):
        _native.rademacher_(torch.empty(3), seed=0)
    with pytest.raises(ShapeError, match=r"x: expected float32 or float64"):
        _native.rademacher_dot(torch.zeros(1, 3, dtype=torch.int64), seed=0)
