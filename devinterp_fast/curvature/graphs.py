"""Curvature products of any module by autograd, on graphs that are kept while the weights stand still.

A gradient is differentiated once and kept as a graph; each product is then one more pass backward through it. The data
go through in blocks of samples, each weighted by its size, so that a ragged last block counts for what it is. Blocks
are as large as a stated budget of memory allows; where all their graphs fit into it they are kept, else they are built
anew for each call. Fused attention has no second derivative on the CPU and is routed to its differentiable form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from devinterp_fast import _cpu
from devinterp_fast.curvature.problem import Problem
from devinterp_fast.errors import LossError, ModelError
from devinterp_fast.sampling.batches import Batch
from devinterp_fast.sampling.objective import MeanLoss, Objective
from devinterp_fast.sampling.torch_engine import undisturbed

GRAPH_BYTES = 2**30
"""What the kept graphs, or one that is built anew, may save for their backward passes."""

_PROBE = 8  # samples of the graph whose saved bytes are counted


@dataclass(frozen=True)
class Graph:
    """One block of samples at one checkpoint, ready for products.

    Attributes:
        gradient: of the block's mean loss. Shape: as the parameters.
        product: one vector, cut into parameters, to the block's matrix times it.
        rows: of a Fisher matrix: the samples' gradients, one entry for each draw of labels.
    """

    gradient: Callable[[], tuple[Tensor, ...]]
    product: Callable[[list[Tensor]], tuple[Tensor, ...]]
    rows: tuple[Rows, ...] = ()


class Rows(Protocol):
    """Per-sample gradients G of one block, known by their products."""

    def forward(self, v: list[Tensor]) -> Tensor:
        """G v. Shape: (samples,)."""
        ...

    def backward(self, w: Tensor) -> tuple[Tensor, ...]:
        """G^T w, cut into parameters."""
        ...

    def against(self, other: Any) -> Tensor:
        """G of this block times the transpose of another's. Shape: (samples, samples of the other)."""
        ...


Build = Callable[["Graphs", dict[str, Tensor], Batch], Graph]


class Graphs:
    """The torch engine of a curvature matrix.

    Args:
        problem: what it is taken of.
        build: makes the graph of one block from the parameters, by name in a ``MeanLoss``, and the samples.
        batch_size: samples of a block, or None for what the budget allows.
    """

    def __init__(self, problem: Problem, build: Build, batch_size: int | None):
        self.problem, self.build = problem, build
        self.mean = MeanLoss(problem.objective, problem.model)
        n = problem.data.n
        with self._differentiable(n):
            each = self._bytes_per_sample(min(n, _PROBE))
        size = max(1, int(GRAPH_BYTES // max(each, 1.0))) if batch_size is None else batch_size
        self.size = min(n, size)
        self.keeps = each * n * len(problem.weights) <= GRAPH_BYTES
        self._kept: dict[tuple[int, int], Graph] = {}

    @property
    def name(self) -> str:
        """The engine, as results quote it."""
        return f"torch/{_cpu.isa()}"

    def gradient(self) -> Tensor:
        """The gradient of the mean loss at each checkpoint. Shape: (K, dim)."""
        out = torch.zeros_like(self.problem.weights)
        with self._differentiable(self.size):
            for c in range(len(out)):
                for graph, share in self._graphs(c):
                    self._add(out[c], graph.gradient(), share)
        return out

    def apply(self, V: Tensor, first: int) -> Tensor:
        """The matrices of C checkpoints from ``first`` on, times their vectors. Shape: (C, k, dim) -> (C, k, dim)."""
        out = torch.zeros_like(V)
        with self._differentiable(self.size):
            for c, vectors in enumerate(V):
                wanted = [k for k, v in enumerate(vectors) if v.any()]
                for graph, share in self._graphs(first + c) if wanted else ():
                    for k in wanted:
                        self._add(out[c, k], graph.product(self.problem.where.views(vectors[k])), share)
        return out

    def gram(self, c: int) -> Tensor:
        """G G^T over the number of rows, a pair of blocks at a time. Shape: (rows, rows)."""
        with self._differentiable(self.size):
            bands = []
            for left, _ in self._graphs(c):
                blocks = [[[a.against(b) for b in right.rows] for right, _ in self._graphs(c)] for a in left.rows]
                bands += [[torch.cat([block[s] for block in row], 1) for s in range(len(left.rows))] for row in blocks]
            draws = len(bands[0])
            # rows in the order draw, sample
            whole = [torch.cat([torch.cat(bands[i], 1) for i in range(s, len(bands), draws)], 0) for s in range(draws)]
        out = torch.cat(whole, 0)
        return out / len(out)

    def _add(self, row: Tensor, parts: tuple[Tensor, ...], share: float) -> None:
        for view, part in zip(self.problem.where.views(row), parts, strict=True):
            view.add_(part, alpha=share)

    def _graphs(self, c: int) -> Iterator[tuple[Graph, float]]:
        """The graphs of one checkpoint and each block's share of all samples, in a fixed order."""
        n = self.problem.data.n
        for start in range(0, n, self.size):
            graph = self._kept.get((c, start))
            block = slice(start, min(start + self.size, n))
            if graph is None:
                graph = self._build(c, block)
                if self.keeps:
                    self._kept[c, start] = graph
            yield graph, (block.stop - block.start) / n

    def _build(self, c: int, block: slice) -> Graph:
        where = self.problem.where
        # Each graph owns its leaves: a kept one must not see the next block's.
        leaves = {
            f"model.{name}": view.detach().requires_grad_()
            for name, view in zip(where.names, where.views(self.problem.weights[c]), strict=True)
        }
        self.leaves, self.block = list(leaves.values()), block
        given = leaves | {f"model.{name}": value for name, value in self.problem.others[c].items()}
        return self.build(self, given, self.problem.data.select(block))

    def _bytes_per_sample(self, few: int) -> float:
        """What a graph of a few samples saves, parameters aside, over their number."""
        seen: dict[int, int] = {}
        own = self.problem.weights.untyped_storage()._cdata

        def saved(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata != own:
                seen[storage._cdata] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(saved, lambda tensor: tensor):
            graph = self._build(0, slice(0, few))
        total = sum(seen.values())
        del graph
        return total / few

    @contextmanager
    def _differentiable(self, samples: int) -> Iterator[None]:
        with undisturbed(self.problem.where.dim, samples), sdpa_kernel(SDPBackend.MATH):
            yield


def filled(parts: tuple[Tensor | None, ...], like: list[Tensor]) -> tuple[Tensor, ...]:
    """Zeros for the gradients of what a graph does not use."""
    return tuple(torch.zeros_like(p) if g is None else g for g, p in zip(parts, like, strict=True))


def through(outputs: list[Tensor], inputs: list[Tensor], vectors: list[Tensor]) -> tuple[Tensor, ...]:
    """vectors^T d outputs / d inputs by a kept graph; outputs that depend on nothing count as constants."""
    pairs = [(o, v) for o, v in zip(outputs, vectors, strict=True) if o.requires_grad]
    if not pairs:
        return tuple(torch.zeros_like(i) for i in inputs)
    return filled(
        torch.autograd.grad([o for o, _ in pairs], inputs, [v for _, v in pairs], retain_graph=True, allow_unused=True),
        inputs,
    )


def hessian_graph(graphs: Graphs, given: dict[str, Tensor], batch: Batch) -> Graph:
    """H v = d (g.v) / dw on the kept graph of the gradient g."""
    leaves = graphs.leaves
    loss = torch.func.functional_call(graphs.mean, given, (batch,))
    g = list(filled(torch.autograd.grad(loss, leaves, create_graph=True, allow_unused=True), leaves))
    return Graph(lambda: tuple(part.detach() for part in g), lambda v: through(g, leaves, v))


def jacobian_of(z: Tensor, leaves: list[Tensor]) -> Callable[[list[Tensor]], Tensor]:
    """V -> J v for z with Jacobian J, as the derivative of u -> J^T u: no operation needs a forward derivative."""
    u = torch.zeros_like(z, requires_grad=True)
    back = list(filled(torch.autograd.grad(z, leaves, u, create_graph=True, allow_unused=True), leaves))
    return lambda v: through(back, [u], v)[0]


def ggn_graph(graphs: Graphs, given: dict[str, Tensor], batch: Batch) -> Graph:
    """G v = J^T (d^2 loss / dz^2) J v, z the model's output."""
    leaves = graphs.leaves
    z, loss = output_and_loss(graphs, given, batch)
    forward = jacobian_of(z, leaves)
    curved = output_hessian(graphs.problem.objective, z, loss, batch)
    slope = torch.autograd.grad(loss, z, retain_graph=True)[0]
    gradient = through([z], leaves, [slope])
    whole = filled(torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True), leaves)
    gap = sum(float((a - b).square().sum()) for a, b in zip(gradient, whole, strict=True)) ** 0.5
    size = sum(float(b.square().sum()) for b in whole) ** 0.5
    # Two orders of summation of the same gradient differ by rounding; a term beside the output differs by its size.
    if gap > 1e-3 * size + 1e-6:
        raise LossError(
            "loss_fn: expected a loss that depends on the parameters through the model's output alone for a GGN, "
            "got one with a term of its own in them"
        )
    return Graph(lambda: gradient, lambda v: through([z], leaves, [curved(forward(v))]))


def ntk_graph(graphs: Graphs, given: dict[str, Tensor], batch: Batch) -> Graph:
    """(1 / N) J^T J v: the nonzero eigenvalues are those of the neural tangent kernel J J^T over N."""
    leaves = graphs.leaves
    z, loss = output_and_loss(graphs, given, batch)
    forward = jacobian_of(z, leaves)
    samples = z.shape[0]
    slope = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
    gradient = filled(slope, leaves)
    return Graph(lambda: gradient, lambda v: through([z], leaves, [forward(v) / samples]))


def output_and_loss(graphs: Graphs, given: dict[str, Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
    """The model's output and the mean loss, on one graph.

    Raises:
        ModelError: the output is no tensor, or the loss runs the model not exactly once.
    """
    seen: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        seen.append(getattr(output, "logits", output))

    handle = graphs.problem.model.register_forward_hook(keep)
    try:
        loss = torch.func.functional_call(graphs.mean, given, (batch,))
    finally:
        handle.remove()
    if len(seen) != 1 or not isinstance(seen[0], Tensor):
        got = f"{len(seen)} runs" if len(seen) != 1 else f"an output of type {type(seen[0]).__name__}"
        raise ModelError(f"model: expected a loss of one run of the model, with a tensor as output, got {got}")
    return seen[0], loss


def is_cross_entropy(objective: Objective) -> bool:
    """Whether the criterion is a cross-entropy without class weights."""
    criterion: Any = objective.loss_fn
    return criterion is F.cross_entropy or (type(criterion) is nn.CrossEntropyLoss and criterion.weight is None)


def targets(batch: Batch) -> Tensor:
    """What a criterion compares the output with."""
    y: Tensor = list(batch.values())[1] if isinstance(batch, dict) else batch[1]
    return y


def prediction_weights(objective: Objective, z: Tensor, y: Tensor) -> Tensor:
    """The weight of each prediction in a mean cross-entropy; 0 where its class is ignored. Shape: as y."""
    live = (y != getattr(objective.loss_fn, "ignore_index", -100)).to(z.dtype)
    return live / live.sum()


def output_hessian(objective: Objective, z: Tensor, loss: Tensor, batch: Batch) -> Callable[[Tensor], Tensor]:
    """U -> (d^2 loss / dz^2) u: p u - p (p.u) for a cross-entropy with p its softmax, else by autograd on z alone."""
    if is_cross_entropy(objective) and not targets(batch).is_floating_point():
        classes = 1 if z.dim() > 1 else 0
        p = torch.softmax(z.detach(), classes)
        weight = prediction_weights(objective, z, targets(batch)).unsqueeze(classes)
        return lambda u: weight * p * (u - (p * u).sum(classes, keepdim=True))
    slope = torch.autograd.grad(loss, z, create_graph=True)[0]
    return lambda u: through([slope], [z], [u])[0]
