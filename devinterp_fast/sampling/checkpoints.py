"""A row of checkpoints as a sequence of modules, each loaded when it is asked for."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from typing import overload

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from devinterp_fast.errors import DataError, ModelError

State = Mapping[str, Tensor] | str | os.PathLike[str]


def as_models(model: nn.Module | Sequence[nn.Module]) -> list[nn.Module]:
    """One module or a sequence of them, as a list.

    Raises:
        ModelError: there is none, or something else.
    """
    models: list[nn.Module] = [model] if isinstance(model, nn.Module) else list(model)
    for each in models:
        if not isinstance(each, nn.Module):
            raise ModelError(
                f"model: expected a module or a sequence of modules, got {type(each).__name__}; "
                "state dicts become modules by Checkpoints(model, states)"
            )
    if not models:
        raise ModelError("model: expected a module or a sequence of at least one, got none")
    return models


class Checkpoints(Sequence[nn.Module]):
    """Checkpoints of one model, for any estimator: ``estimate_llc(Checkpoints(model, states), loss_fn, data)``.

    Args:
        model: of the right architecture; it is copied, and stays as it is.
        states: state dicts, or paths of safetensors files, in order.

    Raises:
        DataError: there is no state, a file is absent or damaged, or a state does not fit the model.
    """

    def __init__(self, model: nn.Module, states: Sequence[State]):
        self._model, self._states = model, list(states)
        if not self._states:
            raise DataError("states: expected at least one state dict or file, got none")

    def __len__(self) -> int:
        return len(self._states)

    @overload
    def __getitem__(self, index: int) -> nn.Module: ...
    @overload
    def __getitem__(self, index: slice) -> Checkpoints: ...
    def __getitem__(self, index: int | slice) -> nn.Module | Checkpoints:
        if isinstance(index, slice):
            return Checkpoints(self._model, self._states[index])
        state = self._states[index]
        model = copy.deepcopy(self._model)
        try:
            model.load_state_dict(state if isinstance(state, Mapping) else load_file(state))
        except (RuntimeError, OSError, SafetensorError) as error:
            raise DataError(f"states[{index}]: expected a state that fits the model, got {error}") from error
        return model
