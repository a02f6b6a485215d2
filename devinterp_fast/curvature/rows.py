"""Per-sample gradients by their products, in two forms.

Where every parameter acts through ``nn.Linear`` layers, sample i's gradient of a weight is the sum over positions of
d a^T, with a what went into the layer and d the loss's slope at what came out: products with all N gradients are then
two matrix products over the cached a and d. Any other model: G^T w is one pass backward through the kept graph of the
losses, and G v the derivative of that pass in w. Either way the N x P matrix is never formed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from devinterp_fast import _native
from devinterp_fast.curvature.graphs import Graph, Graphs, Rows, jacobian_of, through
from devinterp_fast.curvature.krylov import rademacher

_AGREE = 1e-3  # two float32 sums of the same terms in other orders stay far inside it
_EXPLICIT = 1 << 24  # numbers of per-sample gradients of one layer held at once


class Layers:
    """What went into each run of a linear layer and what came out, while it is entered."""

    def __init__(self, model: nn.Module):
        self._modules = {name: m for name, m in model.named_modules() if type(m) is nn.Linear}
        self.runs: list[tuple[str, Tensor, Tensor]] = []

    def __enter__(self) -> None:
        def watch(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
            return module.register_forward_hook(lambda _, given, out: self.runs.append((name, given[0], out)))

        self._handles = [watch(name, module) for name, module in self._modules.items()]

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()


class _Factored:
    """Gradients of linear layers as factors.

    Args:
        runs: (place of the weight, place of the bias or -1, inputs a, slopes d) for each run of a layer.
        like: the parameters.

    Shape:
        a: (samples, positions, inputs); d: (samples, positions, outputs).
    """

    def __init__(self, runs: list[tuple[int, int, Tensor, Tensor]], like: list[Tensor]):
        self.runs, self.like, self.samples = runs, like, len(runs[0][2])

    def forward(self, v: list[Tensor]) -> Tensor:
        out = torch.zeros(self.samples, dtype=v[0].dtype)
        for weight, bias, a, d in self.runs:
            image = F.linear(a, v[weight], None if bias < 0 else v[bias])
            out += (image * d).flatten(1).sum(1)
        return out

    def backward(self, w: Tensor) -> tuple[Tensor, ...]:
        out = [torch.zeros_like(p) for p in self.like]
        for weight, bias, a, d in self.runs:
            scaled = (d * w[:, None, None]).flatten(0, 1)
            out[weight].addmm_(scaled.T, a.flatten(0, 1))
            if bias >= 0:
                out[bias] += scaled.sum(0)
        return tuple(out)

    def against(self, other: _Factored) -> Tensor:
        out = torch.zeros(self.samples, other.samples, dtype=self.like[0].dtype)
        for weight in sorted({run[0] for run in self.runs}):
            mine, theirs = ([run for run in side.runs if run[0] == weight] for side in (self, other))
            if len(mine) == len(theirs) == 1 and mine[0][2].shape[1] == theirs[0][2].shape[1] == 1:
                _, bias, a, d = mine[0]
                _, _, a2, d2 = theirs[0]
                pairs = a[:, 0] @ a2[:, 0].T
                out += (pairs + 1 if bias >= 0 else pairs) * (d[:, 0] @ d2[:, 0].T)
            else:
                _explicit(out, mine, theirs)
        return out


def _explicit(
    out: Tensor, mine: list[tuple[int, int, Tensor, Tensor]], theirs: list[tuple[int, int, Tensor, Tensor]]
) -> None:
    """Adds the share of a layer with many positions: its own gradients are formed, a few samples at a time."""
    size = mine[0][2].shape[-1] * mine[0][3].shape[-1] + mine[0][3].shape[-1]
    step = max(1, _EXPLICIT // size)

    def formed(runs: list[tuple[int, int, Tensor, Tensor]], low: int) -> Tensor:
        total: Tensor | None = None
        for _, bias, a, d in runs:
            d, a = d[low : low + step], a[low : low + step]
            rows = torch.einsum("nto,nti->noi", d, a).flatten(1)
            rows = torch.cat([rows, d.sum(1)], 1) if bias >= 0 else rows
            total = rows if total is None else total + rows
        assert total is not None
        return total

    for low in range(0, out.shape[0], step):
        left = formed(mine, low)
        for low2 in range(0, out.shape[1], step):
            out[low : low + step, low2 : low2 + step] += left @ formed(theirs, low2).T


class _General:
    """Gradients of any losses (samples,), by their graph."""

    def __init__(self, losses: Tensor, leaves: list[Tensor]):
        self.losses, self.leaves, self.forward = losses, leaves, jacobian_of(losses, leaves)

    def backward(self, w: Tensor) -> tuple[Tensor, ...]:
        return through([self.losses], self.leaves, [w])

    def against(self, other: _General) -> Tensor:
        units = torch.eye(len(other.losses), dtype=other.losses.dtype)
        return torch.stack([self.forward(list(other.backward(unit))) for unit in units], 1)


def rows_graph(graphs: Graphs, layers: Layers, losses: list[Tensor], gradient: tuple[Tensor, ...] | None) -> Graph:
    """The graph of a Fisher matrix from the losses (samples,) of each draw.

    Args:
        graphs: the engine that asks.
        layers: the linear layers' runs behind the losses.
        losses: of each draw.
        gradient: of the mean loss, or None where it is that of the first draw.
    """
    rows: list[Rows] = [_factored(graphs, layers, one) or _General(one, graphs.leaves) for one in losses]
    count = len(losses[0])
    if gradient is None:
        gradient = rows[0].backward(torch.full_like(losses[0], 1.0 / count).detach())
    mean = gradient

    def product(v: list[Tensor]) -> tuple[Tensor, ...]:
        parts = [row.backward(row.forward(v) / (count * len(rows))) for row in rows]
        return tuple(torch.stack(x).sum(0) for x in zip(*parts, strict=True)) if len(parts) > 1 else parts[0]

    return Graph(lambda: mean, product, tuple(rows))


def _factored(graphs: Graphs, layers: Layers, losses: Tensor) -> _Factored | None:
    """The factored form, if it gives the same gradients as autograd; else None."""
    names, samples = graphs.problem.where.names, len(losses)
    place = {name: i for i, name in enumerate(names)}
    known = {f"{name}.{part}" for name, _, _ in layers.runs for part in ("weight", "bias")}
    if not set(names) <= known or any(a.dim() < 2 or a.shape[0] != samples for _, a, _ in layers.runs):
        return None
    slopes = torch.autograd.grad(losses.sum(), [z for _, _, z in layers.runs], retain_graph=True, allow_unused=True)
    runs = []
    for (name, a, z), d in zip(layers.runs, slopes, strict=True):
        if d is not None:
            at = (place.get(f"{name}.weight", -1), place.get(f"{name}.bias", -1))
            runs.append((*at, a.detach().reshape(samples, -1, a.shape[-1]), d.reshape(samples, -1, z.shape[-1])))
    if not runs or any(weight < 0 for weight, *_ in runs):
        return None
    rows = _Factored(runs, graphs.leaves)
    # A parameter used outside its layer, or samples that are not the first dimension, would show here.
    signs = rademacher(1, samples, seed=0, dtype=losses.dtype, first=_native.SHARED)[0]
    found, expected = rows.backward(signs), through([losses], graphs.leaves, [signs])
    gap = sum(float((a - b).square().sum()) for a, b in zip(found, expected, strict=True)) ** 0.5
    size = sum(float(b.square().sum()) for b in expected) ** 0.5
    return rows if gap <= _AGREE * size else None
