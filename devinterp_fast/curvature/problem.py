"""What a curvature matrix is taken of: a loss, data, one or many checkpoints, and the coordinates that count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from devinterp_fast import _flat
from devinterp_fast.errors import DeviceError, DTypeError, ModelError, ShapeError
from devinterp_fast.sampling import engines
from devinterp_fast.sampling.batches import Data, as_data
from devinterp_fast.sampling.masks import Mask, mask_of
from devinterp_fast.sampling.objective import LossFn, MeanLoss, Objective
from devinterp_fast.sampling.torch_engine import private_copy, undisturbed

State = Mapping[str, Tensor]
Checkpoints = Tensor | Sequence[State]

_FEW = 8  # samples of the pass that looks for unused parameters


@dataclass(frozen=True)
class Problem:
    """A loss at given weights, checked.

    Attributes:
        model: the user's own; ``apart`` gives one whose forward hooks and buffers are nobody else's.
        objective: the loss.
        data: all samples.
        where: layout of the trainable parameters.
        weights: of each checkpoint. Shape: (K, dim).
        others: what each checkpoint holds beside them (buffers, frozen parameters), by name; empty for the model's own.
        index: the coordinates that count, or None for all. Shape: (m,).
        stacked: checkpoints were given, and results keep their dimension.
        choice: native or torch, and why.
    """

    model: nn.Module
    objective: Objective
    data: Data
    where: _flat.Layout
    weights: Tensor
    others: tuple[dict[str, Tensor], ...]
    index: Tensor | None
    stacked: bool
    choice: engines.Choice

    @property
    def dim(self) -> int:
        """How many coordinates count."""
        return self.where.dim if self.index is None else len(self.index)

    def apart(self) -> Problem:
        """The same problem with a private copy of the model, its buffers as they are now."""
        return replace(self, model=private_copy(self.model))

    def widen(self, rows: Tensor) -> Tensor:
        """Vectors over the coordinates that count, as vectors over all. Shape: (..., m) -> (..., dim)."""
        if self.index is None:
            return rows
        out = rows.new_zeros(*rows.shape[:-1], self.where.dim)
        out[..., self.index] = rows
        return out

    def narrow(self, rows: Tensor) -> Tensor:
        """The coordinates that count. Shape: (..., dim) -> (..., m)."""
        return rows if self.index is None else rows[..., self.index]


def pose(
    model: nn.Module,
    loss_fn: LossFn,
    data: object,
    *,
    checkpoints: Checkpoints | None,
    mask: Mask | None,
    backend: str,
) -> Problem:
    """Checks the arguments that every curvature matrix takes, and chooses the engine.

    Raises:
        ShapeError, DTypeError, DeviceError, DataError, LossError, ModelError: an input does not fit; one sentence.
        ValueError: the backend is unknown, the mask is empty, or there is no checkpoint.
        KeyError: a checkpoint lacks a parameter, or a mask names none.
    """
    samples = as_data(data)
    where = _flat.layout(model)
    index = None
    if mask is not None:
        flat = mask_of(mask, model, where)
        index = None if flat.all() else torch.nonzero(flat)[:, 0]
    with undisturbed(where.dim, samples.n):
        objective = Objective(loss_fn, model, samples)
        weights, others = _weights(model, where, checkpoints)
        choice = engines.choose(backend, model, objective, samples, where.dtype)
        if any(others) and choice.program is not None:
            if backend == "native":
                raise ModelError(
                    "backend: expected checkpoints that differ in trainable parameters alone for the native engine, "
                    f"got another {min(min(o) for o in others if o)!r}"
                )
            choice = engines.Choice("torch", "the checkpoints differ in more than their trainable parameters", None)
        problem = Problem(model, objective, samples, where, weights, others, index, checkpoints is not None, choice)
        _check_used(problem)
    return problem


def _weights(
    model: nn.Module, where: _flat.Layout, checkpoints: Checkpoints | None
) -> tuple[Tensor, tuple[dict[str, Tensor], ...]]:
    if checkpoints is None:
        return _flat.flatten(model, where)[None], ({},)
    if isinstance(checkpoints, Tensor):
        if checkpoints.dim() != 2 or checkpoints.shape[1] != where.dim or checkpoints.shape[0] == 0:
            raise ShapeError(f"checkpoints: expected (K, {where.dim}), got {tuple(checkpoints.shape)}")
        if checkpoints.dtype != where.dtype:
            raise DTypeError(f"checkpoints: expected {where.dtype} like the model, got {checkpoints.dtype}")
        if checkpoints.device.type != "cpu":
            raise DeviceError(f"checkpoints: expected a tensor on cpu, got {checkpoints.device}")
        rows = checkpoints.detach().contiguous()
        others: tuple[dict[str, Tensor], ...] = tuple({} for _ in checkpoints)
    else:
        if len(checkpoints) == 0:
            raise ValueError("checkpoints: expected at least one, got none")
        own = model.state_dict()
        pairs = [_split(i, state, own, where) for i, state in enumerate(checkpoints)]
        rows, others = torch.stack([row for row, _ in pairs]), tuple(other for _, other in pairs)
    bad = torch.nonzero(~torch.isfinite(rows).all(1))
    if len(bad):
        raise ModelError(f"checkpoints: expected finite parameters, got NaN or infinity in checkpoint {int(bad[0])}")
    return rows, others


def _split(i: int, state: State, own: State, where: _flat.Layout) -> tuple[Tensor, dict[str, Tensor]]:
    """A state dict as a row of trainable coordinates, and what else in it is not the model's own."""
    for name in where.names:
        if name not in state:
            raise KeyError(f"checkpoints[{i}]: expected the parameter {name!r}, got none of that name")
        if state[name].shape != own[name].shape:
            raise ShapeError(
                f"checkpoints[{i}][{name!r}]: expected {tuple(own[name].shape)}, got {tuple(state[name].shape)}"
            )
    row = torch.cat([state[name].detach().reshape(-1).to(where.dtype) for name in where.names])
    rest = {name: value for name, value in state.items() if name in own and name not in where.names}
    return row, {name: value.detach() for name, value in rest.items() if not torch.equal(value, own[name])}


def _check_used(problem: Problem) -> None:
    """Every coordinate that counts must be able to move the loss: a stray parameter makes zeros that mean nothing."""
    where, few = problem.where, slice(0, min(_FEW, problem.data.n))
    leaves = {
        f"model.{name}": view.detach().requires_grad_()
        for name, view in zip(where.names, where.views(problem.weights[0]), strict=True)
    }
    loss = torch.func.functional_call(MeanLoss(problem.objective, problem.model), leaves, (problem.data.select(few),))
    if not loss.requires_grad:
        raise ModelError("model: expected a loss that depends on the parameters, got one that does not")
    grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    counts = torch.ones(where.dim) if problem.index is None else torch.zeros(where.dim)
    if problem.index is not None:
        counts[problem.index] = 1.0
    for name, g, part in zip(where.names, grads, where.views(counts), strict=True):
        if g is None and part.any():
            raise ModelError(
                f"model: expected every parameter to enter the loss, got {name!r} unused: leave it out with mask, "
                "or with requires_grad_(False)"
            )
