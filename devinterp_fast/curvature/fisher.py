"""The Fisher information matrix by per-sample gradients that are never formed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from devinterp_fast import _native
from devinterp_fast.curvature.graphs import (
    Graph,
    Graphs,
    filled,
    is_cross_entropy,
    output_and_loss,
    output_hessian,
    prediction_weights,
    targets,
)
from devinterp_fast.curvature.native import NativeProducts
from devinterp_fast.curvature.operators import Operator, make
from devinterp_fast.curvature.problem import Checkpoints
from devinterp_fast.curvature.rows import Layers, rows_graph
from devinterp_fast.errors import LossError, ShapeError
from devinterp_fast.sampling.batches import Batch
from devinterp_fast.sampling.masks import Mask
from devinterp_fast.sampling.objective import LossFn, Objective


class SampleLosses(nn.Module):
    """The loss of each sample as a module, so that ``functional_call`` may give it other parameters."""

    def __init__(self, objective: Objective, model: nn.Module):
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(self, batch: Batch) -> Tensor:
        """Returns the losses (B,)."""
        return self.objective.losses(self.model, batch)


class Fisher(Operator):
    """A Fisher matrix F = (1 / N) G^T G, G the gradients of the samples' losses as rows."""

    def gram(self) -> Tensor:
        """The other product, (1 / N) G G^T: one row for each sample, the same nonzero eigenvalues.

        Shape:
            (N, N), or (K, N, N) for a stack of checkpoints. Sampled labels have a row for each sample and draw.

        Raises:
            ShapeError: it has a mask, which the rows do not know.
        """
        if self.problem.index is not None:
            raise ShapeError("gram: expected a matrix over all parameters, got one with a mask")
        if isinstance(self._engine, NativeProducts):
            out = self._engine.gram()
        else:
            assert isinstance(self._engine, Graphs)
            rows = self._engine
            out = torch.stack([rows.gram(c) for c in range(self.count)])
        return out if self.stacked else out[0]


def fisher(
    model: nn.Module,
    loss_fn: LossFn,
    data: object,
    *,
    mc_samples: int = 0,
    seed: int = 0,
    checkpoints: Checkpoints | None = None,
    mask: Mask | None = None,
    batch_size: int | None = None,
    backend: str = "auto",
) -> Operator:
    """The Fisher information matrix, empirical or with sampled labels, as an operator.

    F = (1 / N) sum_i g_i g_i^T. Empirical: g_i is the gradient of sample i's loss. Sampled: g_i = J_i^T b_i, with b_i
    drawn so that E[b b^T] is the Hessian of the loss in the model's output: for a cross-entropy the gradient at a
    label that the model draws itself, for a squared error a scaled normal vector. Its mean over draws is the GGN.

    Args:
        model: as in ``hessian``.
        loss_fn: as in ``hessian``.
        data: as in ``hessian``.
        mc_samples: labels drawn for each sample; 0 is the empirical matrix.
        seed: of the labels: each has its address (seed; element, sample, draw, stream 4).
        checkpoints: as in ``hessian``.
        mask: as in ``hessian``.
        batch_size: as in ``hessian``.
        backend: as in ``hessian``.

    Returns:
        An ``Operator``; ``.gram()`` is the matrix over samples with the same nonzero spectrum.

    Shape:
        products: (m,), (m, k), (K, m), (K, m, k).

    Units:
        loss squared over the square of the parameters'; sampled: loss over it

    Raises:
        ShapeError, DTypeError, DeviceError, DataError, LossError, ModelError: an input does not fit; one sentence.
        ValueError: a setting is out of range.
        KeyError: a checkpoint lacks a parameter, or a mask names none.

    Source:
        Kunstner, Balles, Hennig (2019), Limitations of the empirical Fisher approximation, for the two kinds.
    """
    if isinstance(mc_samples, bool) or not isinstance(mc_samples, int) or mc_samples < 0:
        raise ValueError(f"mc_samples: expected an integer of at least 0, got {mc_samples!r}")
    if mc_samples == 0:
        return make("fisher", empirical_graph, model, loss_fn, data, checkpoints, mask, batch_size, backend, Fisher)

    def sampled(graphs: Graphs, given: dict[str, Tensor], batch: Batch) -> Graph:
        return sampled_graph(graphs, given, batch, mc_samples, seed)

    return make("sampled fisher", sampled, model, loss_fn, data, checkpoints, mask, batch_size, backend, Fisher)


def empirical_graph(graphs: Graphs, given: dict[str, Tensor], batch: Batch) -> Graph:
    """The gradients of the samples' own losses."""
    problem = graphs.problem
    layers = Layers(problem.model)
    with layers:
        losses = torch.func.functional_call(SampleLosses(problem.objective, problem.model), given, (batch,))
    return rows_graph(graphs, layers, [losses], gradient=None)


def sampled_graph(graphs: Graphs, given: dict[str, Tensor], batch: Batch, draws: int, seed: int) -> Graph:
    """The gradients of z . b for outputs z and drawn vectors b."""
    layers = Layers(graphs.problem.model)
    with layers:
        z, loss = output_and_loss(graphs, given, batch)
    b = [_drawn(graphs, z, loss, batch, seed, draw) for draw in range(draws)]
    gradient = filled(torch.autograd.grad(loss, graphs.leaves, retain_graph=True, allow_unused=True), graphs.leaves)
    return rows_graph(graphs, layers, [(z * one).flatten(1).sum(1) for one in b], gradient)


def _drawn(graphs: Graphs, z: Tensor, loss: Tensor, batch: Batch, seed: int, draw: int) -> Tensor:
    """B for each sample, with mean b b^T the Hessian of the sample's loss in its output. Shape: as z."""
    objective, samples, size = graphs.problem.objective, z.shape[0], z[0].numel()
    first = graphs.block.start
    if is_cross_entropy(objective) and not targets(batch).is_floating_point():
        p = torch.softmax(z.detach(), 1).movedim(1, -1)
        words = _native.words(
            samples, p[0, ..., 0].numel(), seed=seed, step=draw, first_chain=first, stream=_native.LABELS
        )
        uniform = ((words.double() + 0.5) / 2.0**32).view(p.shape[:-1])
        label = (p.double().cumsum(-1) < uniform.unsqueeze(-1)).sum(-1).clamp_max(p.shape[-1] - 1)
        weight = prediction_weights(objective, z, targets(batch)) * samples
        return (weight.sqrt().unsqueeze(-1) * (p - F.one_hot(label, p.shape[-1]))).movedim(-1, 1)
    criterion: Any = objective.loss_fn
    if criterion is F.mse_loss or type(criterion) is nn.MSELoss:
        xi = torch.empty(samples, size)
        _native.normals_(xi, seed=seed, step=draw, first_chain=first, stream=_native.LABELS)
        bend = output_hessian(objective, z, loss, batch)(torch.ones_like(z)) * samples
        return bend.sqrt() * xi.to(z.dtype).view(z.shape)
    raise LossError(
        "loss_fn: expected a cross-entropy of classes or a mean squared error to sample labels from, "
        f"got {getattr(criterion, '__name__', type(criterion).__name__)}"
    )
