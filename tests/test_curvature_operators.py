"""Curvature operators: against dense matrices, at many checkpoints, under masks; and what they refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import eigsh as scipy_eigsh
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import devinterp_fast as dif
from devinterp_fast.curvature import graphs
from devinterp_fast.errors import DataError, DTypeError, LossError, ModelError, ShapeError

N, IN, OUT = 11, 3, 3


def seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return make()


def small(activation: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    return seeded(lambda: nn.Sequential(nn.Linear(IN, 4), activation(), nn.Linear(4, OUT)).double())


def normed() -> nn.Sequential:
    return seeded(lambda: nn.Sequential(nn.Linear(IN, 4), nn.LayerNorm(4), nn.GELU(), nn.Linear(4, OUT)).double())


class Attention(nn.Module):
    """One head of fused attention over three positions, read out by its mean."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(IN, 12, bias=False), nn.Linear(4, OUT)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None] * torch.tensor([[1.0], [0.5], [-1.0]], dtype=x.dtype)
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).mean(1))


def data(classes: bool = True) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(N, IN, generator=g, dtype=torch.float64)
    y = torch.randint(OUT, (N,), generator=g) if classes else torch.randn(N, OUT, generator=g, dtype=torch.float64)
    return x, y


class Dense:
    """What a model's curvature is, from explicit Jacobians in float64."""

    def __init__(self, model: nn.Module, loss: nn.Module, x: Tensor, y: Tensor):
        self.model, self.loss, self.x, self.y = model, loss, x, y
        named = list(model.named_parameters())
        self.names, self.shapes = [n for n, _ in named], [p.shape for _, p in named]
        self.w = torch.cat([p.detach().reshape(-1) for _, p in named])

    def output(self, w: Tensor, i: slice = slice(None)) -> Tensor:
        parts = torch.split(w, [s.numel() for s in self.shapes])
        given = {n: p.view(s) for n, p, s in zip(self.names, parts, self.shapes, strict=True)}
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return functional_call(self.model, given, (self.x[i],))

    def hessian(self) -> Tensor:
        return torch.autograd.functional.hessian(lambda w: self.loss(self.output(w), self.y), self.w)

    def jacobian(self) -> Tensor:
        return torch.autograd.functional.jacobian(self.output, self.w)

    def ggn(self) -> Tensor:
        z, J = self.output(self.w), self.jacobian()
        bend = torch.autograd.functional.hessian(lambda z: self.loss(z, self.y), z)
        return torch.einsum("ncp,ncmd,mdq->pq", J, bend, J)

    def gradients(self) -> Tensor:
        rows = []
        for i in range(N):
            one = slice(i, i + 1)
            rows.append(
                torch.autograd.functional.jacobian(lambda w, o=one: self.loss(self.output(w, o), self.y[o]), self.w)
            )
        return torch.stack(rows)


def dense(H) -> Tensor:
    return H @ torch.eye(H.dim, dtype=H.dtype).expand(*H.shape[:-2], -1, -1)


MODELS = {"tanh": small, "layer norm and gelu": normed, "fused attention": lambda: seeded(lambda: Attention().double())}
LOSSES = {"cross-entropy": (nn.CrossEntropyLoss(), True), "squared": (nn.MSELoss(), False)}
CLOSE = {"rtol": 0.0, "atol": 1e-12}  # float64: some hundred operations on numbers of order one, each 1e-16


@pytest.mark.parametrize(
    "settings", [{"backend": "torch"}, {"backend": "torch", "batch_size": 4}, {}], ids=["whole", "ragged", "auto"]
)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("model", MODELS)
def test_products_are_those_of_the_dense_matrices(model, loss, settings):
    net, (criterion, classes) = MODELS[model](), LOSSES[loss]
    x, y = data(classes)
    truth = Dense(net, criterion, x, y)
    H = dif.hessian(net, criterion, (x, y), **settings)
    torch.testing.assert_close(dense(H), truth.hessian(), **CLOSE)
    assert H.engine.startswith("torch/" if settings or model == "fused attention" else "native/")
    torch.testing.assert_close(dense(dif.ggn(net, criterion, (x, y), **settings)), truth.ggn(), **CLOSE)
    J, G = truth.jacobian(), truth.gradients()
    torch.testing.assert_close(
        dense(dif.ntk(net, criterion, (x, y), batch_size=settings.get("batch_size"))),
        torch.einsum("ncp,ncq->pq", J, J) / N,
        **CLOSE,
    )
    fisher = dif.fisher(net, criterion, (x, y), **settings)
    torch.testing.assert_close(dense(fisher), G.T @ G / N, **CLOSE)
    torch.testing.assert_close(fisher.gram(), G @ G.T / N, **CLOSE)
    torch.testing.assert_close(fisher.gradient(), G.mean(0), **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["hessian", "ggn", "fisher"])
def test_native_and_torch_engines_agree(kind, dtype):
    net = small().to(dtype)
    x, y = data()
    native = getattr(dif, kind)(net, nn.CrossEntropyLoss(), (x.to(dtype), y), backend="native")
    other = getattr(dif, kind)(net, nn.CrossEntropyLoss(), (x.to(dtype), y), backend="torch")
    assert native.dtype == other.dtype == dtype
    assert native.engine.startswith("native/")
    assert other.engine.startswith("torch/")
    # two evaluations: sums of up to N x width terms of order one, each rounded to eps / 2
    close = {"rtol": 0.0, "atol": 50 * torch.finfo(dtype).eps}
    torch.testing.assert_close(dense(native), dense(other), **close)
    torch.testing.assert_close(native.gradient(), other.gradient(), **close)


@pytest.mark.parametrize("backend", ["torch", "native"])
def test_a_loader_with_a_ragged_last_batch_is_the_whole_data(backend):
    """Each sample counts once: batches of 4, 4 and 3 weigh by their sizes."""
    net, (x, y) = small(), data()
    loader = DataLoader(TensorDataset(x, y), batch_size=4)
    whole = Dense(net, nn.CrossEntropyLoss(), x, y).hessian()
    H = dif.hessian(net, nn.CrossEntropyLoss(), loader, batch_size=4, backend=backend)
    torch.testing.assert_close(dense(H), whole, **CLOSE)


@pytest.mark.parametrize("backend", ["torch", "native"])
def test_a_stack_of_checkpoints_is_each_alone(backend):
    net, (x, y) = small(), data()
    criterion = nn.CrossEntropyLoss()
    states = []
    for c in range(3):
        states.append({n: (1 + 0.3 * c) * v for n, v in net.state_dict().items()})
    H = dif.hessian(net, criterion, (x, y), checkpoints=states, backend=backend)
    assert H.shape == (3, 31, 31)
    V = torch.randn(3, 31, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    product, gradient = H @ V, H.gradient()
    for c, state in enumerate(states):
        other = small()
        other.load_state_dict(state)
        alone = dif.hessian(other, criterion, (x, y), backend=backend)
        assert torch.equal(product[c], alone @ V[c])
        assert torch.equal(gradient[c], alone.gradient())
    rows = torch.stack([torch.cat([state[n].reshape(-1) for n, _ in net.named_parameters()]) for state in states])
    again = dif.hessian(net, criterion, (x, y), checkpoints=rows, backend=backend)
    assert torch.equal(again @ V, product)


def test_checkpoints_keep_their_own_buffers():
    """A state dict's running statistics are its own, not those of the model it is loaded into."""
    net = seeded(lambda: nn.Sequential(nn.Linear(IN, 4), nn.BatchNorm1d(4), nn.Linear(4, OUT)).double()).eval()
    other = seeded(lambda: nn.Sequential(nn.Linear(IN, 4), nn.BatchNorm1d(4), nn.Linear(4, OUT)).double()).eval()
    other[1].running_mean += 0.3
    other[1].running_var *= 2
    states = [net.state_dict(), other.state_dict()]
    H = dif.hessian(net, nn.CrossEntropyLoss(), data(), checkpoints=states)
    for c, model in enumerate((net, other)):
        torch.testing.assert_close(dense(H)[c], Dense(model, nn.CrossEntropyLoss(), *data()).hessian(), **CLOSE)


def test_the_native_engine_takes_checkpoints_of_trainable_parameters_alone():
    net, (x, y) = small().float(), data()
    net[0].bias.requires_grad_(False)
    moved = {n: v + 0.1 for n, v in net.state_dict().items()}
    arguments = (net, nn.CrossEntropyLoss(), (x.float(), y))
    H = dif.hessian(*arguments, checkpoints=[moved])
    assert H.engine.startswith("torch/")
    assert H.engine_reason == "the checkpoints differ in more than their trainable parameters"
    refuse(ModelError, "^backend: expected checkpoints that differ in trainable parameters alone .*'0.bias'$",
           lambda: dif.hessian(*arguments, checkpoints=[moved], backend="native"))  # fmt: skip


@pytest.mark.parametrize("backend", ["torch", "native"])
def test_a_mask_is_the_block_of_the_matrix(backend):
    net, (x, y) = small().float(), data()
    arguments = (net, nn.CrossEntropyLoss(), (x.float(), y))
    mask = {
        "0.weight": torch.rand(4, IN, generator=torch.Generator().manual_seed(0)) < 0.5,
        "2.bias": torch.ones(OUT, dtype=torch.bool),
    }
    flat = torch.cat(
        [mask.get(n, torch.zeros_like(p, dtype=torch.bool)).reshape(-1) for n, p in net.named_parameters()]
    )
    H, block = dif.hessian(*arguments, backend=backend), dif.hessian(*arguments, backend=backend, mask=mask)
    assert block.shape == (int(flat.sum()),) * 2
    torch.testing.assert_close(dense(block), dense(H)[flat][:, flat], rtol=0, atol=1e-6)
    torch.testing.assert_close(block.gradient(), H.gradient()[flat])
    v = torch.arange(1.0, block.dim + 1)
    named = block.named(v)
    assert torch.equal(torch.cat([part.reshape(-1) for part in named.values()])[flat], v)
    assert not named["0.bias"].any()
    assert torch.equal(dense(dif.hessian(*arguments, backend=backend, mask=flat)), dense(block))
    named = dif.hessian(*arguments, backend=backend, mask=["0.weight[1:3, 0]", "2.bias"])  # the names of sampling
    among = torch.zeros(31, dtype=torch.bool)
    among[[3, 6, 28, 29, 30]] = True
    torch.testing.assert_close(dense(named), dense(H)[among][:, among], rtol=0, atol=1e-6)


def test_scipy_takes_it():
    net, (x, y) = small(), data()
    H = dif.hessian(net, nn.CrossEntropyLoss(), (x, y))
    expected = torch.linalg.eigvalsh(Dense(net, nn.CrossEntropyLoss(), x, y).hessian())
    found = scipy_eigsh(H.to_scipy(), k=3, which="LA", return_eigenvectors=False)
    np.testing.assert_allclose(np.sort(found), expected[-3:], rtol=1e-8)
    block = np.eye(31)[:, :2]
    np.testing.assert_allclose(H.to_scipy() @ block, dense(H).numpy()[:, :2], atol=1e-12)


def test_graphs_that_do_not_fit_are_built_anew_with_the_same_numbers(monkeypatch):
    net, (x, y) = small(), data()
    v = torch.arange(31.0, dtype=torch.float64)
    arguments = (net, nn.CrossEntropyLoss(), (x, y))
    kept = dif.hessian(*arguments, batch_size=4, backend="torch")
    monkeypatch.setattr(graphs, "GRAPH_BYTES", 1)
    anew = dif.hessian(*arguments, batch_size=4, backend="torch")
    assert kept._engine.keeps
    assert not anew._engine.keeps
    assert torch.equal(kept @ v, anew @ v)
    assert torch.equal(anew @ v, anew @ v)
    assert not anew._engine._kept
    single = dif.hessian(*arguments, backend="torch")
    assert single._engine.size == 1  # one sample at a time is as small as blocks get
    torch.testing.assert_close(single @ v, kept @ v, **CLOSE)


@pytest.mark.parametrize("backend", ["torch", "native"])
def test_nothing_of_the_user_changes(backend):
    net, (x, y) = small().float(), data()
    net.train()
    before = {n: v.clone() for n, v in net.state_dict().items()}
    addresses = [p.data_ptr() for p in net.parameters()]
    state = torch.get_rng_state()
    with torch.no_grad():
        H = dif.hessian(net, nn.CrossEntropyLoss(), (x.float(), y), backend=backend)
        first = H @ torch.ones(31)
    assert all(torch.equal(v, before[n]) for n, v in net.state_dict().items())
    assert addresses == [p.data_ptr() for p in net.parameters()]
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert net.training
    assert torch.equal(torch.get_rng_state(), state)
    assert not net._forward_hooks
    assert not first.requires_grad


@pytest.mark.parametrize("kind", [dif.hessian, dif.ggn])
def test_a_loss_of_the_model_is_taken_too(kind):
    """f(model, batch) with per-sample losses, and the same as a criterion."""
    net, (x, y) = small(), data()

    def loss(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none")

    torch.testing.assert_close(
        dense(kind(net, loss, (x, y))), dense(kind(net, nn.CrossEntropyLoss(), (x, y), backend="torch")), **CLOSE
    )


def test_trace_of_hessian_and_ggn_are_equal_for_relu_networks():
    """diag(H) = diag(GGN) where the model is piecewise linear in each single weight, though H and GGN differ."""
    net, (x, y) = small(nn.ReLU), data()
    H, G = (dense(kind(net, nn.CrossEntropyLoss(), (x, y))) for kind in (dif.hessian, dif.ggn))
    assert (H - G).norm() > 0.05 * H.norm()
    torch.testing.assert_close(H.diagonal(), G.diagonal(), **CLOSE)


def test_linear_regression():
    """MSE of a linear map: H = 2 X'X / n, whatever the weights."""
    x, y = data(False)
    net = seeded(lambda: nn.Linear(IN, 1, bias=False).double())
    H = dif.hessian(net, nn.MSELoss(), (x, y[:, :1]))
    torch.testing.assert_close(dense(H), 2 * x.T @ x / N, **CLOSE)


def test_sampled_fisher_has_the_ggn_as_its_mean():
    """Quadratic forms along five vectors: the mean over seeds is the GGN's, within errors known from their spread."""
    V = torch.randn(31, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    for criterion, classes in LOSSES.values():
        net, (x, y) = small(), data(classes)
        expected = (V * (dif.ggn(net, criterion, (x, y)) @ V)).sum(0)
        draws = [dif.fisher(net, criterion, (x, y), mc_samples=4, seed=s) @ V for s in range(24)]
        forms = torch.stack([(V * image).sum(0) for image in draws])
        # each form sums 44 independent squares; 5 standard errors of Student's t with 23 degrees: 5e-5 for each of ten
        assert ((forms.mean(0) - expected).abs() <= 5 * forms.std(0) / math.sqrt(24)).all()
        assert (forms.std(0) < 0.5 * expected).all()  # else the line above would let anything pass
        again = dif.fisher(net, criterion, (x, y), mc_samples=4, seed=3, batch_size=3)
        torch.testing.assert_close(again @ V, draws[3], **CLOSE)  # a label's address knows no block
        gram = dif.fisher(net, criterion, (x, y), mc_samples=2, seed=0)
        spectrum, other = torch.linalg.eigvalsh(gram.gram()), torch.linalg.eigvalsh(dense(gram))
        rank = min(len(spectrum), len(other))
        torch.testing.assert_close(spectrum[-rank:], other[-rank:], **CLOSE)


def test_factored_fisher_sums_over_positions_and_repeated_layers():
    """A linear layer applied at several positions, twice in a row: products and Gram of explicit gradients."""

    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.read = nn.Linear(IN, IN), nn.Linear(IN, OUT)

        def forward(self, x):
            x = x[:, None] * torch.tensor([[1.0], [2.0], [3.0]], dtype=x.dtype)
            return self.read(torch.tanh(self.inner(torch.tanh(self.inner(x))))).mean(1)

    net, (x, y) = seeded(lambda: Recurrent().double()), data()
    G = Dense(net, nn.CrossEntropyLoss(), x, y).gradients()
    fisher = dif.fisher(net, nn.CrossEntropyLoss(), (x, y), batch_size=4, backend="torch")
    torch.testing.assert_close(dense(fisher), G.T @ G / N, **CLOSE)
    torch.testing.assert_close(fisher.gram(), G @ G.T / N, **CLOSE)
    assert type(fisher._engine._kept[0, 0].rows[0]).__name__ == "_Factored"


# --- what is refused ------------------------------------------------------------------------------------------


def refuse(error, message, call):
    with pytest.raises(error, match=message):
        call()


def test_a_random_model_is_refused():
    net = nn.Sequential(nn.Linear(IN, 4), nn.Dropout(0.5), nn.Linear(4, OUT)).double()
    refuse(ModelError, "^model: expected a forward that gives the same loss twice.*dropout in train mode",
           lambda: dif.hessian(net, nn.CrossEntropyLoss(), data()))  # fmt: skip


def test_no_data_is_refused():
    empty = (torch.zeros(0, IN), torch.zeros(0, dtype=torch.long))
    refuse(DataError, "^data.*expected at least one sample", lambda: dif.hessian(small(), nn.CrossEntropyLoss(), empty))


def test_half_precision_is_refused():
    x, y = data()
    refuse(DTypeError, "^model: expected float32 or float64 parameters, got torch.float16",
           lambda: dif.hessian(small().half(), nn.CrossEntropyLoss(), (x.half(), y)))  # fmt: skip


@pytest.mark.parametrize("kind", [dif.hessian, dif.ggn, dif.fisher, dif.ntk, dif.escape])
def test_an_unused_parameter_is_refused_unless_masked_out(kind):
    class Spare(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = nn.Linear(IN, OUT).double(), nn.Parameter(torch.ones(2).double())

        def forward(self, x):
            return self.used(x)

    net = seeded(Spare)
    refuse(ModelError, r"^model: expected every parameter to enter the loss, got 'spare' unused: .*mask",
           lambda: kind(net, nn.CrossEntropyLoss(), data()))  # fmt: skip
    mask = {"used.weight": torch.ones(OUT, IN, dtype=torch.bool)}
    assert kind(net, nn.CrossEntropyLoss(), data(), mask=mask)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "^batch_size: expected an integer of at least 1 or None, got 0$"),
        ({"backend": "cuda"}, ValueError, "^backend: expected one of"),
        ({"checkpoints": []}, ValueError, "^checkpoints: expected at least one, got none$"),
        ({"checkpoints": torch.zeros(2, 30)}, ShapeError, r"^checkpoints: expected \(K, 31\), got \(2, 30\)$"),
        ({"checkpoints": torch.zeros(2, 31)}, DTypeError, "^checkpoints: expected torch.float64 like the model"),
        ({"checkpoints": torch.full((2, 31), math.nan).double()}, ModelError, "NaN or infinity in checkpoint 0$"),
        ({"checkpoints": [{}]}, KeyError, r"checkpoints\[0\]: expected the parameter '0.weight'"),
        ({"mask": torch.zeros(31, dtype=torch.bool)}, ValueError, "^mask: expected at least one True"),
    ],
)  # fmt: skip
def test_bad_settings(settings, error, message):
    refuse(error, message, lambda: dif.hessian(small(), nn.CrossEntropyLoss(), data(), **settings))


def test_a_model_of_another_arithmetic_is_refused_by_the_native_engine():
    refuse(ModelError, "^backend: expected a model that the native engine can capture",
           lambda: dif.hessian(small(nn.Softplus), nn.CrossEntropyLoss(), data(), backend="native"))  # fmt: skip


def test_what_is_no_tensor_is_refused():
    H = dif.hessian(small(), nn.CrossEntropyLoss(), data())
    refuse(TypeError, "^v: expected a tensor, got ndarray$", lambda: H @ np.ones(31))
    refuse(TypeError, "^H: expected an operator or a symmetric tensor, got str$", lambda: dif.eigsh("H", 2))


def test_bad_vectors():
    H = dif.hessian(small(), nn.CrossEntropyLoss(), data())
    refuse(ShapeError, r"^v: expected \(31,\) or \(31, k\), got \(30,\)$", lambda: H @ torch.zeros(30).double())
    refuse(DTypeError, "^v: expected torch.float64 like the model, got torch.float32$", lambda: H @ torch.zeros(31))
    stack = dif.hessian(small(), nn.CrossEntropyLoss(), data(), checkpoints=[small().state_dict()])
    refuse(ShapeError, r"^to_scipy: expected an operator at one checkpoint", stack.to_scipy)
    mask = torch.arange(31) < 3
    refuse(ShapeError, "^gram: expected a matrix over all parameters",
           dif.fisher(small(), nn.CrossEntropyLoss(), data(), mask=mask).gram)  # fmt: skip


def test_losses_that_have_no_ggn_or_labels():
    net, (x, y) = small(), data()

    def decayed(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none") + model[0].weight.square().sum()

    refuse(LossError, "^loss_fn: expected a loss that depends on the parameters through the model's output alone",
           lambda: dif.ggn(net, decayed, (x, y)) @ torch.zeros(31).double().fill_(1))  # fmt: skip

    def twice(model, batch):
        return F.cross_entropy(model(batch[0]) + model(2 * batch[0]), batch[1], reduction="none")

    refuse(ModelError, "^model: expected a loss of one run of the model, with a tensor as output, got 2 runs",
           lambda: dif.ggn(net, twice, (x, y)))  # fmt: skip
    smooth = nn.SmoothL1Loss()
    refuse(LossError, "^loss_fn: expected a cross-entropy of classes or a mean squared error to sample labels from",
           lambda: dif.fisher(net, smooth, data(False), mc_samples=1))  # fmt: skip
    refuse(ValueError, "^mc_samples: expected an integer of at least 0",
           lambda: dif.fisher(net, nn.CrossEntropyLoss(), (x, y), mc_samples=-1))  # fmt: skip
    sampled = {"mc_samples": 1, "backend": "native"}
    refuse(ModelError, "^backend: expected a matrix that the native engine knows",
           lambda: dif.fisher(net.float(), nn.CrossEntropyLoss(), (x.float(), y), **sampled))  # fmt: skip
