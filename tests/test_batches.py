"""Data of every kind end up as the same tensors, and minibatches have addresses."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from scipy import stats
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from devinterp_fast import _native, _reference
from devinterp_fast.errors import DataError, DeviceError
from devinterp_fast.sampling.batches import Minibatches, as_data, check_batches, draw

N = 1100  # more than two collations of 512
X, Y = torch.randn(N, 3, generator=torch.Generator().manual_seed(0)), torch.arange(N)


class Pairs(Dataset):
    def __len__(self):
        return N

    def __getitem__(self, i):
        return X[i], int(Y[i])


class Named(Pairs):
    def __getitem__(self, i):
        return {"x": X[i], "y": Y[i]}


class Stream(IterableDataset):
    def __iter__(self):
        return iter((X[i], Y[i]) for i in range(N))


class Noisy(Pairs):
    """Draws from every global generator, as augmentations do."""

    def __getitem__(self, i):
        return X[i] + torch.randn(3) + random.random() + np.random.rand(), Y[i]  # noqa: NPY002


def halves(items):
    """A collate function of one's own: dict out of tuples."""
    return {"x": torch.stack([x for x, _ in items]) / 2, "y": torch.tensor([int(y) for _, y in items])}


def test_containers_keep_their_form():
    whole = as_data((X, Y)).all()
    assert isinstance(whole, tuple)
    assert torch.equal(whole[0], X)
    assert torch.equal(whole[1], Y)
    assert isinstance(as_data([X, Y]).all(), tuple)
    assert torch.equal(as_data(X).all(), X)
    some = as_data({"a": X, "b": Y}).select(torch.tensor([5, 5, 2]))
    assert list(some) == ["a", "b"]
    assert torch.equal(some["a"], X[[5, 5, 2]])
    assert torch.equal(as_data(X).select(slice(3, 7)), X[3:7])
    assert as_data((X, Y)).n == N


@pytest.mark.parametrize(
    "source",
    [
        lambda: TensorDataset(X, Y),
        Pairs,
        Stream,
        lambda: DataLoader(Pairs(), batch_size=7),
        lambda: DataLoader(Pairs(), batch_size=64, shuffle=True, drop_last=True),
        lambda: DataLoader(Stream(), batch_size=10),
        lambda: DataLoader(TensorDataset(X, Y), sampler=range(N)),
    ],
)
def test_datasets_and_loaders_become_the_tensors_behind_them(source):
    x, y = as_data(source()).all()
    assert torch.equal(x, X)
    assert torch.equal(y, Y)


def test_dicts_and_own_collate_functions_are_respected():
    for data, scale in (
        (Named(), 1),
        (DataLoader(Named(), shuffle=True), 1),
        (DataLoader(Pairs(), collate_fn=halves), 2),
    ):
        whole = as_data(data).all()
        assert torch.equal(whole["x"], X / scale)
        assert torch.equal(whole["y"], Y)


def test_a_dataset_that_makes_its_own_batches():
    class Chunks(IterableDataset):
        def __iter__(self):
            return iter((X[i : i + 100], Y[i : i + 100]) for i in range(0, N, 100))

    x, y = as_data(DataLoader(Chunks(), batch_size=None)).all()
    assert torch.equal(x, X)
    assert torch.equal(y, Y)


def test_a_sampler_chooses_the_samples():
    split = [3, 1, 4, 15, 9, 2, 6]
    _, y = as_data(DataLoader(Pairs(), sampler=SubsetRandomSampler(split), batch_size=2)).all()
    assert sorted(y.tolist()) == sorted(split)
    weighted = WeightedRandomSampler([1.0] + [0.0] * (N - 1), 5)
    assert as_data(DataLoader(Pairs(), sampler=weighted)).all()[1].tolist() == [0] * 5


def test_reading_leaves_global_generators_alone():
    def state():
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002

    before = state()
    loader = DataLoader(Noisy(), shuffle=True)
    first = as_data(loader).all()[0]
    assert state() == before
    assert torch.equal(as_data(loader).all()[0], first)  # the state it starts from is the caller's
    as_data(DataLoader(Noisy(), sampler=SubsetRandomSampler(range(9))))
    assert state() == before


def test_gradients_stop_at_the_data():
    x = X.clone().requires_grad_()
    assert not as_data(x).all().requires_grad


class Ragged(Pairs):
    def __getitem__(self, i):
        return torch.zeros(1 + i % 2)


class Texts(Pairs):
    def __getitem__(self, i):
        return "a"


class Endless(Dataset):
    def __getitem__(self, i):
        return X[0]


COLLATE = "data: expected samples that collate into tensors, got "
NAN = X.clone()
NAN[7, 1] = float("nan")


@pytest.mark.parametrize(
    ("data", "kind", "text"),
    [
        (
            3,
            DataError,
            "data: expected a tuple of tensors, a tensor, a dict of tensors, a Dataset or a DataLoader, got int",
        ),
        ((), DataError, "data: expected at least one tensor, got none"),
        ((X, [1, 2]), DataError, "data[1]: expected a tensor, got list"),
        ({"x": 1.0}, DataError, "data['x']: expected a tensor, got float"),
        (torch.zeros(0, 3), DataError, "data[0]: expected at least one sample, got shape (0, 3)"),
        (torch.tensor(1.0), DataError, "data[0]: expected at least one sample, got shape ()"),
        ((X, Y[:5]), DataError, f"data[1]: expected {N} samples like the first, got 5"),
        ((NAN, Y), DataError, "data[0]: expected finite numbers, got NaN or infinity"),
        (torch.zeros(3, device="meta"), DeviceError, "data[0]: expected a tensor on cpu, got meta"),
        (TensorDataset(X[:0]), DataError, "data: expected at least one sample, got an empty dataset"),
        (DataLoader(Pairs(), collate_fn=len), DataError, COLLATE + "a batch of type int"),
    ],
)
def test_bad_data(data, kind, text):
    with pytest.raises(kind) as caught:
        as_data(data)
    assert type(caught.value) is kind
    assert str(caught.value) == text


@pytest.mark.parametrize("data", [Ragged(), Texts(), Endless()])
def test_samples_that_do_not_collate(data):
    with pytest.raises(DataError) as caught:
        as_data(data)
    assert str(caught.value).startswith(COLLATE)  # torch's own words follow
    assert caught.value.__cause__ is not None


def test_batch_settings():
    assert check_batches("full", 8, 100) == 100
    assert check_batches("shared", 8, 100) == 8
    assert check_batches("independent", 500, 100) == 100
    with pytest.raises(
        ValueError, match=r"^batches: expected one of \('independent', 'shared', 'epoch', 'full'\), got 'own'$"
    ):
        check_batches("own", 8, 100)
    with pytest.raises(ValueError, match=r"^batch_size: expected at least 1, got 0$"):
        check_batches("full", 0, 100)


def test_indices_follow_from_their_address(isa):
    # index j = floor(word_j n / 2^32), word_j of (seed; chain, step, stream 1).
    for n, size in ((1, 5), (7, 1), (1100, 257), (2**31, 9000)):
        got = _native.Batches("independent", 3, size, n, seed=2**40 + 5, first_chain=4).at(77)
        assert got.shape == (3, size)
        for c in range(3):
            words = _reference.words(4 + c, size, seed=2**40 + 5, step=77, stream=_native.BATCH_INDICES)
            np.testing.assert_array_equal(got[c].numpy(), (words * np.uint64(n) >> np.uint64(32)).astype(np.int64))
        assert 0 <= int(got.min()) <= int(got.max()) < n


def test_indices_are_uniform_and_independent():
    n, size, steps = 97, 256, 400
    batches = _native.Batches("independent", 4, size, n, seed=1)
    index = torch.stack([batches.at(t) for t in range(steps)])
    counts = np.bincount(index.numpy().reshape(-1), minlength=n)
    assert stats.chisquare(counts).pvalue > 1e-4
    pairs = n * index[:, :, 1:] + index[:, :, :-1]  # neighbors in a batch
    assert stats.chisquare(np.bincount(pairs.numpy().reshape(-1), minlength=n * n)).pvalue > 1e-4
    # The same place in another chain or step agrees with probability 1 / n: a binomial count, within 5 deviations.
    for a, b in ((index[:, 0], index[:, 1]), (index[1:], index[:-1])):
        equal, total = int((a == b).sum()), a.numel()
        assert abs(equal - total / n) < 5 * (total / n) ** 0.5


def test_a_chain_alone_draws_the_batch_it_draws_among_many():
    many = draw("independent", 0, 6, 33, N, seed=8, step=3)
    for c in range(6):
        assert torch.equal(draw("independent", c, 1, 33, N, seed=8, step=3)[0], many[c])
    assert draw("full", 0, 6, N, N, seed=8, step=3) == slice(None)
    shared = draw("shared", 0, 6, 33, N, seed=8, step=3)
    assert shared.shape == (1, 33)
    assert torch.equal(shared, draw("shared", 5, 1, 33, N, seed=8, step=3))
    assert not torch.equal(shared, draw("shared", 0, 6, 33, N, seed=8, step=4))
    assert not (many == shared).all(1).any()


def test_an_epoch_shows_every_sample_once_whoever_asks():
    n, size = 50, 20
    batches = Minibatches("epoch", 2, 3, size, n, seed=8)
    seen = torch.cat([batches.at(t) for t in range(10)], 1)  # four epochs of 50
    for row in seen.view(3, 4, n).flatten(0, 1):
        assert torch.equal(row.sort().values, torch.arange(n))
    assert not torch.equal(seen[0], seen[1])
    for step in (7, 2, 3):  # steps may be asked for in any order, one chain or several at a time
        there = seen[:, step * size : (step + 1) * size]
        assert torch.equal(batches.at(step), there)
        assert torch.equal(draw("epoch", 3, 1, size, n, seed=8, step=step)[0], there[1])
