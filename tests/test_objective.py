"""The objective: every form of loss function, and the forms that cannot be sampled."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from devinterp_fast import next_token_loss
from devinterp_fast.errors import DataError, LossError, ModelError
from devinterp_fast.sampling.batches import as_data
from devinterp_fast.sampling.objective import MeanLoss, Objective, takes_model

N = 200
DRAW = torch.Generator().manual_seed(0)
X = torch.randn(N, 3, generator=DRAW)
TARGET = torch.randn(N, 2, generator=DRAW)
LABEL = torch.arange(N) * 2 // N  # sorted by class, as data sets often are


def linear(outputs=2):
    torch.manual_seed(1)
    return nn.Linear(3, outputs)


def mean_form(model, batch):
    return F.mse_loss(model(batch[0]), batch[1])


def sample_form(model, batch):
    return (model(batch[0]) - batch[1]).square().mean(1)


class Scaled:
    """A callable object of the form f(model, batch)."""

    def __call__(self, model, batch):
        return mean_form(model, batch)


class Opaque:
    """A criterion that vmap cannot follow: it reads a value."""

    def __call__(self, out, y):
        return F.mse_loss(out, y) * (1.0 if float(out.detach().sum()) < 1e9 else 2.0)


MEAN_SQUARES = [nn.MSELoss(), F.mse_loss, mean_form, sample_form, Scaled(), Opaque()]


@pytest.mark.parametrize("loss_fn", MEAN_SQUARES)
def test_every_form_gives_the_same_losses(loss_fn):
    model, data = linear(), as_data((X, TARGET))
    objective = Objective(loss_fn, model, data)
    want = (model(X) - TARGET).square().mean(1).detach()
    # Sums of two float32 squares: 4 roundings.
    torch.testing.assert_close(objective.per_sample(model, data), want.double(), rtol=2.0**-22, atol=1e-7)
    mean = objective.mean(model, data.select(slice(0, 50)))
    torch.testing.assert_close(mean, want[:50].mean(), rtol=1e-5, atol=0)
    assert mean.requires_grad
    assert torch.equal(MeanLoss(objective, model)(data.select(slice(0, 50))), mean)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_criterion_modules_on_classes(reduction):
    model, data = linear(), as_data((X, LABEL))
    criterion = nn.CrossEntropyLoss(reduction=reduction)
    got = Objective(criterion, model, data).per_sample(model, data)
    want = -torch.log_softmax(model(X).detach().double(), 1)[torch.arange(N), LABEL]
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    assert criterion.reduction == reduction


def test_data_may_be_a_dict():
    model, data = linear(), as_data({"x": X, "y": TARGET})
    want = Objective(nn.MSELoss(), model, as_data((X, TARGET))).per_sample(model, as_data((X, TARGET)))
    assert torch.equal(Objective(nn.MSELoss(), model, data).per_sample(model, data), want)

    def named(model, batch):
        return F.mse_loss(model(batch["x"]), batch["y"])

    torch.testing.assert_close(Objective(named, model, data).per_sample(model, data), want, rtol=2.0**-22, atol=1e-7)


def test_samples_beyond_one_chunk_are_all_there():
    model = linear()
    x = torch.randn(2048 + 5, 3, generator=DRAW)
    data = as_data((x, x[:, :2]))
    for loss_fn in (nn.MSELoss(), mean_form):
        got = Objective(loss_fn, model, data).per_sample(model, data)
        want = (model(x) - x[:, :2]).square().mean(1).detach().double()
        torch.testing.assert_close(got, want, rtol=2.0**-22, atol=1e-7)


def test_next_token_loss_by_hand():
    class Bigram(nn.Module):
        def __init__(self, wrap=False):
            super().__init__()
            torch.manual_seed(0)
            self.table, self.wrap = nn.Embedding(5, 5), wrap

        def forward(self, tokens):
            logits = self.table(tokens)
            return type("Output", (), {"logits": logits}) if self.wrap else logits

    tokens = torch.randint(0, 5, (7, 4), generator=DRAW)
    model = Bigram()
    logp = torch.log_softmax(model.table.weight.detach().double(), 1)
    want = torch.stack([-sum(logp[s[t], s[t + 1]] for t in range(3)) / 3 for s in tokens])
    for batch in (tokens, (tokens,), {"input_ids": tokens}):
        torch.testing.assert_close(next_token_loss(model, batch).double(), want, rtol=1e-5, atol=1e-6)
        data = as_data(batch)
        got = Objective(next_token_loss, model, data).per_sample(model, data)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(next_token_loss(Bigram(wrap=True), tokens).double(), want, rtol=1e-5, atol=1e-6)


def test_the_first_parameter_tells_how_a_function_is_called():
    assert takes_model(mean_form)
    assert takes_model(lambda net, batch: 0)
    assert takes_model(Scaled())
    assert not takes_model(nn.MSELoss())
    assert not takes_model(F.mse_loss)
    assert not takes_model(lambda out, y: 0)
    assert not takes_model(lambda: 0)


@pytest.mark.parametrize("loss_fn", [*MEAN_SQUARES, nn.MSELoss(reduction="sum")])
def test_the_model_is_left_as_it_was(loss_fn):
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises((LossError, ModelError)):
        Objective(loss_fn, model, as_data((X, TARGET)))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_buffers_are_restored_even_when_the_loss_raises():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).train()
    with pytest.raises(RuntimeError):
        Objective(nn.NLLLoss(), model, as_data((X, TARGET)))
    assert not model[1].running_mean.any()
    assert model[1].num_batches_tracked == 0


def message(kind, loss_fn, model, data):
    with pytest.raises(kind) as caught:
        Objective(loss_fn, model, as_data(data))
    assert type(caught.value) is kind
    return str(caught.value)


def test_random_forwards_are_refused():
    text = (
        "model: expected a forward that gives the same loss twice, got two values "
        "(dropout in train mode?): call model.eval() first"
    )
    model = nn.Sequential(linear(), nn.Dropout(0.5))
    assert message(ModelError, nn.MSELoss(), model, (X, TARGET)) == text
    Objective(nn.MSELoss(), model.eval(), as_data((X, TARGET)))


def test_forwards_that_change_buffers_are_refused():
    text = (
        "model: expected a forward that leaves its buffers alone, got a new '1.running_mean' "
        "(batch-norm in train mode?): call model.eval() first"
    )
    model = nn.Sequential(linear(), nn.BatchNorm1d(2))
    assert message(ModelError, nn.MSELoss(), model, (X, TARGET)) == text
    Objective(nn.MSELoss(), model.eval(), as_data((X, TARGET)))


def test_a_sum_is_refused():
    text = "loss_fn: expected reduction 'mean' or per-sample losses, got reduction 'sum'"
    assert message(LossError, nn.MSELoss(reduction="sum"), linear(), (X, TARGET)) == text
    # A model at its exact minimum has no loss to tell a sum from a mean: the criterion's word counts.
    zero = linear()
    assert message(LossError, nn.MSELoss(reduction="sum"), zero, (X, zero(X).detach())) == text


def spread(losses):
    """Mean of 64 samples spread over the data: what the check computes."""
    return losses[torch.arange(64) * N // 64].mean()


def test_functions_that_sum_are_refused():
    def total(model, batch):
        return (model(batch[0]) - batch[1]).square().sum()

    model = linear()
    single = (model(X) - TARGET).square().sum(1).detach()
    assert message(LossError, total, model, (X, TARGET)) == (
        f"loss_fn: expected the mean of per-sample losses ({spread(single):.6g} on 64 samples), "
        f"got {64 * spread(single):.6g}: use reduction='mean', or return per-sample losses (B,)"
    )


def test_class_weights_are_refused_on_sorted_data_too():
    model, weight = linear(), torch.tensor([1.0, 3.0])
    single = F.cross_entropy(model(X), LABEL, reduction="none").detach()
    index = torch.arange(64) * N // 64
    weighted = F.cross_entropy(model(X[index]), LABEL[index], weight=weight)
    assert message(LossError, nn.CrossEntropyLoss(weight=weight), model, (X, LABEL)) == (
        f"loss_fn: expected the mean of per-sample losses ({spread(single):.6g} on 64 samples), "
        f"got {weighted:.6g}: use reduction='mean', or return per-sample losses (B,)"
    )


def test_shapes_types_and_numbers_of_a_loss():
    wrong = nn.MSELoss(reduction="none")
    assert message(LossError, wrong, linear(), (X, TARGET)) == (
        "loss_fn: expected per-sample losses (64,) or their mean (), got (64, 2)"
    )
    assert message(LossError, lambda model, batch: 1.0, linear(), (X, TARGET)) == (
        "loss_fn: expected a tensor, got float"
    )
    text = "loss_fn: expected finite losses at the model's weights, got NaN or infinity"
    for bad in (float("nan"), float("inf")):

        def not_finite(out, y, bad=bad):
            return out.mean() * bad

        assert message(LossError, not_finite, linear(), (X, TARGET)) == text


def test_a_criterion_needs_pairs():
    assert message(DataError, nn.MSELoss(), linear(), X) == (
        "data: expected (x, y) for a criterion, got 1 tensors; a loss of another form is written as f(model, batch)"
    )
    assert message(DataError, nn.MSELoss(), linear(), (X, TARGET, LABEL)) == (
        "data: expected (x, y) for a criterion, got 3 tensors; a loss of another form is written as f(model, batch)"
    )
