"""What devinterp's example notebooks call, with the import changed: introduction, normal crossing, grokking."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from devinterp_fast.compat.devinterp import (
    SGLD,
    SGNHT,
    OnlineLLCEstimator,
    default_nbeta,
    estimate_learning_coeff_with_summary,
    evaluate_ce,
    evaluate_mse,
    get_init_loss_full_batch,
    get_init_loss_multi_batch,
    get_init_loss_one_batch,
    plot_trace,
    sample,
)
from devinterp_fast.errors import DataError, LossError, ShapeError

# what such short runs warn of is not what is tested
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def loader(*tensors, size=50, shuffle=True):
    return DataLoader(TensorDataset(*tensors), batch_size=size, shuffle=shuffle)


@pytest.fixture
def unseen(monkeypatch):
    """matplotlib without windows; yields what was shown."""
    matplotlib.use("agg")
    from matplotlib import pyplot

    monkeypatch.setattr(pyplot, "show", lambda: None)
    yield pyplot
    pyplot.close("all")


def test_introduction(unseen):
    """An ``evaluate`` of one's own that returns a tuple; online; the trace plotted."""
    torch.manual_seed(0)
    batches = loader(torch.rand(120, 1, 6, 6), torch.randint(3, (120,)))
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 3))

    def evaluate(model, data):
        inputs, outputs = data
        logits = model(inputs)
        return F.cross_entropy(logits, outputs), {"logits": logits}

    found = estimate_learning_coeff_with_summary(
        model, loader=batches, evaluate=evaluate, sampling_method=SGLD,
        optimizer_kwargs={"lr": 4e-4, "localization": 100.0, "nbeta": default_nbeta(batches)}, num_chains=3,
        num_draws=10, num_burnin_steps=0, num_steps_bw_draws=1, device="cpu", online=True, verbose=False,
    )  # fmt: skip
    assert list(found) == ["init_loss", "llc/means", "llc/stds", "llc/trace", "loss/trace"]
    plot_trace(found["loss/trace"], "Loss", x_axis="Step", title="Loss Trace", plot_mean=False, plot_std=False)
    lines = unseen.gcf().axes[0].lines
    np.testing.assert_array_equal([line.get_ydata() for line in lines], found["loss/trace"])


class LineAndPoint(nn.Module):
    def __init__(self, at):
        super().__init__()
        self.weights = nn.Parameter(torch.tensor(at))

    def forward(self, x):
        return x * (self.weights[0] - 1) * (self.weights[0] ** 2 + self.weights[1] ** 2) ** 2


@pytest.mark.parametrize(
    ("method", "settings"),
    [(SGLD, {"lr": 1e-4, "bounding_box_size": 0.5}), (SGNHT, {"lr": 1e-4, "bounding_box_size": 0.5})],
)
def test_normal_crossing(method, settings, unseen):
    """Samples without a feature dimension, full batches, an estimator of one's own given to ``sample``."""
    torch.manual_seed(0)
    batches = loader(2 * torch.randn(200), 0.25 * torch.randn(200), size=200)
    model, nbeta = LineAndPoint([1.0, 0.3]), default_nbeta(batches)
    init_loss = get_init_loss_multi_batch(batches, 2, model, evaluate_mse, "cpu")
    estimator = OnlineLLCEstimator(num_chains=2, num_draws=20, nbeta=nbeta, init_loss=init_loss)
    sample(
        model, batches, callbacks=[estimator], evaluate=evaluate_mse, sampling_method=method,
        optimizer_kwargs={"nbeta": nbeta, **settings}, num_chains=2, num_draws=20, init_loss=init_loss, verbose=False,
    )  # fmt: skip
    found = estimator.get_results()
    assert found["llc/trace"].shape == (2, 20)
    # one batch is all samples: each draw's LLC is nbeta times its loss above the one given, to float32
    scaled = nbeta * (np.asarray(found["loss/trace"], np.float64) - init_loss)
    np.testing.assert_allclose(found["llc/trace"], scaled, atol=nbeta * 1e-6 * (1 + init_loss))
    plot_trace(found["llc/trace"], "LLC", true_lc=0.5)
    assert len(unseen.gcf().axes[0].lines) == 2 + 2  # the chains, their mean, the truth


def test_grokking():
    """A list of pairs as data set, tokens in, classes out."""

    class Adder(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(7, 4)
            self.left, self.right = nn.Linear(4, 6), nn.Linear(4, 6)
            self.out = nn.Linear(6, 7, bias=False)

        def forward(self, x):
            a, b = self.embedding(x[..., 0]), self.embedding(x[..., 1])
            return self.out(F.gelu(self.left(a) + self.right(b)))

    torch.manual_seed(0)
    pairs = [(torch.tensor([a, b]), torch.tensor((a + b) % 7)) for a in range(7) for b in range(7)]
    batches = DataLoader(pairs, shuffle=True, batch_size=16)
    found = estimate_learning_coeff_with_summary(
        Adder(), batches, evaluate=evaluate_ce, sampling_method=SGLD,
        optimizer_kwargs={"nbeta": 2.0, "lr": 0.001, "localization": 5.0}, num_chains=2, num_draws=10,
        device="cpu", online=True, verbose=False,
    )  # fmt: skip
    assert np.isfinite(found["llc/means"]).all()


def test_losses_at_the_weights():
    torch.manual_seed(0)
    x, y = torch.randn(10, 2), torch.randn(10, 1)
    model = nn.Linear(2, 1).train()
    in_order, shuffled = loader(x, y, size=4, shuffle=False), loader(x, y, size=4)
    with torch.no_grad():
        each = [float(F.mse_loss(model(a), b)) for a, b in in_order]
    assert get_init_loss_full_batch(in_order, model, evaluate_mse, "cpu") == pytest.approx(np.mean(each))
    assert get_init_loss_one_batch(in_order, model, evaluate_mse, "cpu") == pytest.approx(each[0])
    # the loader ends after three batches and begins again
    expected = np.mean([*each, each[0]])
    assert get_init_loss_multi_batch(in_order, 4, model, evaluate_mse, "cpu") == pytest.approx(expected)
    before = torch.get_rng_state()
    twice = [get_init_loss_one_batch(shuffled, model, evaluate_mse, "cpu", seed=3) for _ in range(2)]
    assert twice[0] == twice[1]
    assert torch.equal(before, torch.get_rng_state())
    with pytest.raises(ValueError, match=r"^n_batches: expected an integer of at least 1, got 0$"):
        get_init_loss_multi_batch(in_order, 0, model, evaluate_mse, "cpu")
    with pytest.raises(DataError, match=r"^dataloader: expected at least one batch, got none$"):
        get_init_loss_full_batch([], model, evaluate_mse, "cpu")
    with pytest.raises(LossError, match=r"^evaluate: expected a loss tensor"):
        get_init_loss_one_batch(in_order, model, lambda model, batch: 1.0, "cpu")
    with pytest.raises(ShapeError, match=r"^trace: expected \(chains, draws\), got \(3,\)$"):
        plot_trace([1.0, 2.0, 3.0], "loss")
