"""The data as tensors in memory, and which samples a step sees.

A minibatch is a set of indices with an address (seed; chain, step), drawn inside the engine: no loader runs while
chains do, and no batch depends on how many chains or threads there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler, default_collate

from devinterp_fast import _native
from devinterp_fast._random import kept_random_state
from devinterp_fast.errors import DataError, DeviceError

Batches = Literal["independent", "shared", "epoch", "full"]
Batch = Any
"""What the loss function is given: a tuple, list or dict of tensors, or one tensor."""

_COLLATE = 512


@dataclass(frozen=True)
class Data:
    """All samples: tensors whose first dimension counts samples, in the container the loss expects.

    Attributes:
        tensors: {key: tensor}; keys are positions of a tuple or names of a dict.
        n: number of samples.
        rebuild: makes the user's container from such a dict.
    """

    tensors: dict[Any, Tensor]
    n: int
    rebuild: Callable[[dict[Any, Tensor]], Batch]

    def select(self, index: Tensor | slice) -> Batch:
        """Returns the samples of an index tensor or slice, as one batch."""
        return self.rebuild({key: value[index] for key, value in self.tensors.items()})

    def all(self) -> Batch:
        """Returns the whole data as one batch."""
        return self.rebuild(self.tensors)


def as_data(data: object) -> Data:
    """Brings a tuple of tensors, a tensor, a dict, a Dataset or a DataLoader into memory as tensors.

    A Dataset or DataLoader is read through once, in order, and kept: random augmentations are drawn once. A loader's
    ``sampler`` chooses the samples; a custom ``batch_sampler`` is not asked.

    Raises:
        DataError: it is empty, ragged, not finite, or holds something else than tensors.
        DeviceError: a tensor is not on the CPU.
    """
    if isinstance(data, Data):
        return data
    if isinstance(data, DataLoader | Dataset):
        data = _read(data)
    if isinstance(data, Tensor):
        return _checked({0: data}, lambda parts: parts[0])
    if isinstance(data, Mapping):
        return _checked(dict(data), lambda parts: dict(parts))
    if isinstance(data, tuple | list):
        return _checked(dict(enumerate(data)), lambda parts: tuple(parts[i] for i in range(len(parts))))
    raise DataError(
        "data: expected a tuple of tensors, a tensor, a dict of tensors, a Dataset or a DataLoader, "
        f"got {type(data).__name__}"
    )


def _read(source: DataLoader[Any] | Dataset[Any]) -> object:
    """Collates a dataset once, in order; a loader's own collate function and subset of samples are respected."""
    loader = source if isinstance(source, DataLoader) else None
    dataset: Any = source.dataset if isinstance(source, DataLoader) else source
    collate: Callable[[Any], Any] = (
        default_collate if loader is None or loader.collate_fn is None else loader.collate_fn
    )
    try:
        with kept_random_state():
            if isinstance(dataset, IterableDataset):
                items = list(dataset)
            else:
                items = [dataset[i] for i in _indices(loader, dataset)]
            if loader is not None and loader.batch_size is None and loader.batch_sampler is None:
                parts = [collate(item) for item in items]  # the dataset makes batches itself
            else:
                parts = [collate(items[i : i + _COLLATE]) for i in range(0, len(items), _COLLATE)]
            return _joined(parts)
    except (TypeError, RuntimeError) as error:
        raise DataError(f"data: expected samples that collate into tensors, got {error}") from error


def _indices(loader: DataLoader[Any] | None, dataset: Sized) -> Iterable[Any]:
    """Which samples a loader visits. Shuffling is undone, a sampler that chooses (a split, weights) is asked once."""
    if loader is None or isinstance(loader.sampler, SequentialSampler | RandomSampler):
        return range(len(dataset))
    return list(loader.sampler)


def _joined(parts: list[Any]) -> object:
    if not parts:
        raise DataError("data: expected at least one sample, got an empty dataset")
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(parts)
    if isinstance(first, Mapping):
        return {key: torch.cat([part[key] for part in parts]) for key in first}
    if isinstance(first, tuple | list):
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))
    raise TypeError(f"a batch of type {type(first).__name__}")


def _checked(tensors: dict[Any, Any], rebuild: Callable[[dict[Any, Tensor]], Batch]) -> Data:
    if not tensors:
        raise DataError("data: expected at least one tensor, got none")
    n = None
    for key, value in tensors.items():
        if not isinstance(value, Tensor):
            raise DataError(f"data[{key!r}]: expected a tensor, got {type(value).__name__}")
        if value.device.type != "cpu":
            raise DeviceError(f"data[{key!r}]: expected a tensor on cpu, got {value.device}")
        if value.dim() == 0 or value.shape[0] == 0:
            raise DataError(f"data[{key!r}]: expected at least one sample, got shape {tuple(value.shape)}")
        if n is None:
            n = value.shape[0]
        elif value.shape[0] != n:
            raise DataError(f"data[{key!r}]: expected {n} samples like the first, got {value.shape[0]}")
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise DataError(f"data[{key!r}]: expected finite numbers, got NaN or infinity")
    assert n is not None
    return Data({key: value.detach() for key, value in tensors.items()}, n, rebuild)


def check_batches(batches: str, batch_size: int, n: int) -> int:
    """Returns the size of a step's batch.

    Raises:
        ValueError: the mode is unknown or the size not positive.
    """
    if batches not in get_args(Batches):
        raise ValueError(f"batches: expected one of {get_args(Batches)}, got {batches!r}")
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    return n if batches == "full" else min(batch_size, n)


class Minibatches:
    """The samples that chains ``chain`` to ``chain + chains - 1`` see at each step.

    independent: each chain its own, with replacement; shared: one draw for all; epoch: each chain its own permutations
    of the samples, one after the other; full: every sample.
    """

    def __init__(self, batches: str, chain: int, chains: int, size: int, n: int, *, seed: int):
        rows = 1 if batches == "shared" else chains
        self.draws = (
            None if batches == "full" else _native.Batches(batches, rows, size, n, seed=seed, first_chain=chain)
        )

    def at(self, step: int) -> Tensor | slice:
        """The samples of a step.

        Shape:
            Returns int64 (chains, size), or (1, size) when shared, or a slice over everything.
        """
        return slice(None) if self.draws is None else self.draws.at(step)


def draw(batches: str, chain: int, chains: int, size: int, n: int, *, seed: int, step: int) -> Tensor | slice:
    """``Minibatches`` of one step."""
    return Minibatches(batches, chain, chains, size, n, seed=seed).at(step)
