"""The loss a chain walks on: its mean over a batch, and its value on each sample.

Two forms of loss function are taken. A criterion (``nn.CrossEntropyLoss()``, ``F.mse_loss``) is applied as
``criterion(model(x), y)``. A function whose first parameter is called ``model`` is applied as ``f(model, batch)``.
Either gives per-sample losses (B,) or their mean. Whichever it is, the mean over a batch must be the mean of the
losses of its samples: the baseline L(w0) of every minibatch is then known from one pass, and its noise cancels.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from devinterp_fast.errors import DataError, DeviceError, LossError, ModelError
from devinterp_fast.sampling.batches import Batch, Data

LossFn = Callable[..., Tensor]

_MODEL_NAMES = {"model", "net", "network", "module"}
_CHUNK = 2048
_SPREAD = 64


def next_token_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of the next token, averaged over positions: one loss for each sequence.

    -(1 / (T - 1)) sum_t log p(token_{t+1} | tokens up to t).

    Args:
        model: tokens (B, T) -> logits (B, T, vocabulary), or an object with ``.logits``.
        batch: tokens, or a tuple or dict (``input_ids``) that starts with them.

    Shape:
        Returns (B,).

    Units:
        nats
    """
    if isinstance(batch, dict):
        tokens = batch["input_ids"]
    else:
        tokens = batch if isinstance(batch, Tensor) else batch[0]
    out = model(tokens)
    logits = getattr(out, "logits", out)
    losses = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    return losses.view(tokens.shape[0], -1).mean(1)


def takes_model(loss_fn: LossFn) -> bool:
    """Whether a loss function is applied as f(model, batch) rather than as criterion(model(x), y)."""
    if isinstance(loss_fn, nn.Module):
        return False
    try:
        parameters = list(inspect.signature(loss_fn).parameters.values())
    except (TypeError, ValueError):
        return False
    return bool(parameters) and parameters[0].name in _MODEL_NAMES


class Objective:
    """A loss function bound to the way it is called.

    Args:
        loss_fn: a criterion, or f(model, batch).
        model: at the center; left as it was.
        data: all samples.

    Raises:
        LossError: the value is neither a scalar nor (B,), is not finite, or is not a mean over samples.
        ModelError: the forward is random, or changes the model's buffers.
        DataError: a criterion needs data (x, y).
        DeviceError: the forward asks for a GPU that is not there.
    """

    def __init__(self, loss_fn: LossFn, model: nn.Module, data: Data):
        self.loss_fn = loss_fn
        self.with_model = takes_model(loss_fn)
        if not self.with_model and len(data.tensors) != 2:
            raise DataError(
                f"data: expected (x, y) for a criterion, got {len(data.tensors)} tensors; "
                "a loss of another form is written as f(model, batch)"
            )
        self._check(model, data)

    def raw(self, model: nn.Module, batch: Batch) -> Tensor:
        """What the user's function returns."""
        if self.with_model:
            return self.loss_fn(model, batch)
        x, y = batch.values() if isinstance(batch, dict) else batch
        return self.loss_fn(model(x), y)

    def mean(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss of a batch, a scalar with a graph."""
        value = self.raw(model, batch)
        return value if value.dim() == 0 else value.mean()

    @torch.no_grad()
    def per_sample(self, model: nn.Module, data: Data) -> Tensor:
        """The loss of each sample. Shape: float64 (n,)."""
        parts = []
        for start in range(0, data.n, _CHUNK):
            chunk = slice(start, min(start + _CHUNK, data.n))
            batch = data.select(chunk)
            parts.append(self.losses(model, batch).double())
        return torch.cat(parts)

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss of each sample of a batch, with a graph. Shape: (B,)."""
        return self.raw(model, batch) if self._per_sample_form else self._one_by_one(model, batch)

    def _one_by_one(self, model: nn.Module, batch: Batch) -> Tensor:
        """Per-sample losses of a function that returns means: it is called on batches of one, vectorized."""
        if not self.with_model and isinstance(getattr(self.loss_fn, "reduction", None), str):
            value = self._without_reduction(model, batch)
            if value is not None:
                return value

        def one(sample: Batch) -> Tensor:
            return self.mean(model, tree_map(lambda t: t.unsqueeze(0), sample))

        try:
            return torch.func.vmap(one)(batch)
        except (RuntimeError, ValueError):  # an operation that vmap does not know: the slow way is as right
            leaves, shape = torch.utils._pytree.tree_flatten(batch)
            singles = [
                torch.utils._pytree.tree_unflatten([t[i : i + 1] for t in leaves], shape) for i in range(len(leaves[0]))
            ]
            return torch.stack([self.mean(model, single) for single in singles])

    def _without_reduction(self, model: nn.Module, batch: Batch) -> Tensor | None:
        """A torch criterion with its reduction off, averaged over all but samples; None where that is not its mean."""
        criterion: Any = self.loss_fn
        x, y = batch.values() if isinstance(batch, dict) else batch
        out = model(x)
        mean = criterion(out, y)
        kept, criterion.reduction = criterion.reduction, "none"
        try:
            value = criterion(out, y)
        finally:
            criterion.reduction = kept
        if value.shape[:1] != out.shape[:1]:
            return None
        value = value.flatten(1).mean(1) if value.dim() > 1 else value
        return value if torch.allclose(value.mean(), mean, rtol=1e-4, atol=1e-7) else None

    def _check(self, model: nn.Module, data: Data) -> None:
        if not self.with_model and getattr(self.loss_fn, "reduction", None) == "sum":
            raise LossError("loss_fn: expected reduction 'mean' or per-sample losses, got reduction 'sum'")
        # Spread over the data, which may be sorted: one class alone would not tell a weighted mean from a mean.
        count = min(data.n, _SPREAD)
        batch = data.select(torch.arange(count) * data.n // count)
        before = {name: buffer.clone() for name, buffer in model.named_buffers()}
        try:
            with torch.no_grad():
                value, again = self.raw(model, batch), self.raw(model, batch)
        except (RuntimeError, AssertionError) as error:  # a build without CUDA asserts
            if "cuda" not in str(error).lower():
                raise
            raise DeviceError(f"model: expected a forward that runs on the cpu, got {error}") from error
        finally:
            changed = [n for n, b in model.named_buffers() if not torch.equal(b, before[n])]
            for name in changed:
                model.get_buffer(name).copy_(before[name])
        if changed:
            raise ModelError(
                f"model: expected a forward that leaves its buffers alone, got a new {changed[0]!r} "
                "(batch-norm in train mode?): call model.eval() first"
            )
        if not isinstance(value, Tensor):
            raise LossError(f"loss_fn: expected a tensor, got {type(value).__name__}")
        if value.shape not in ((), (count,)):
            raise LossError(
                f"loss_fn: expected per-sample losses ({count},) or their mean (), got {tuple(value.shape)}"
            )
        if not torch.equal(value, again):
            if not torch.isfinite(value).all():
                raise LossError("loss_fn: expected finite losses at the model's weights, got NaN or infinity")
            raise ModelError(
                "model: expected a forward that gives the same loss twice, got two values "
                "(dropout in train mode?): call model.eval() first"
            )
        if not torch.isfinite(value).all():
            raise LossError("loss_fn: expected finite losses at the model's weights, got NaN or infinity")
        self._per_sample_form = value.dim() == 1
        if not self._per_sample_form and count > 1:
            with torch.no_grad():
                single = self._one_by_one(model, batch).double().mean()
            # Two float32 sums of the same terms in two orders: relative error below count * 2^-23 each.
            if not torch.isclose(single, value.double(), rtol=max(1e-4, count * 2.0**-22), atol=1e-7):
                raise LossError(
                    f"loss_fn: expected the mean of per-sample losses ({single:.6g} on {count} samples), "
                    f"got {value:.6g}: use reduction='mean', or return per-sample losses (B,)"
                )


class MeanLoss(nn.Module):
    """The mean loss as a module, so that ``functional_call`` may give it other parameters (named ``model.*``)."""

    def __init__(self, objective: Objective, model: nn.Module):
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(self, batch: Batch) -> Tensor:
        """Returns the mean loss of a batch, a scalar."""
        return self.objective.mean(self.model, batch)
