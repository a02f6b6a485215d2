"""Losses, as torch calls them, and the batch average around them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from devinterp_fast._program.description import Unsupported
from devinterp_fast._program.follow import Tracked
from devinterp_fast._program.pooling import Pooling


class Losses(Pooling):
    """Squared errors, cross-entropies and binary cross-entropies."""

    # ---- losses
    def on_sub(self, out: Tensor, a: Any, b: Any, alpha: float = 1) -> None:
        left, right = self.get(a), self.get(b)
        if left is None or right is None or alpha != 1:
            raise Unsupported("a difference with a constant has no native form")
        if (left.kind == "data" and left.ref == "y") or (right.kind == "value" and left.kind == "data"):
            left, right = right, left
        if left.kind != "value" or right.kind != "data" or left.index.shape != right.index.shape:
            raise Unsupported("a difference is native between prediction and target only")
        note = {"prediction": left, "target": right, "factor": 1.0}
        self.set(out, Tracked("residual", left.index, None, note))

    def on_mse_loss(self, out: Tensor, a: Tensor, b: Tensor, reduction: int = 1) -> None:
        full = a if reduction == 0 else torch.empty(a.shape)
        self.keep.append(full)
        self.on_sub(full, a, b)
        error = replace(self.tracked[id(full)], kind="squared")
        if reduction == 0:
            self.set(out, error)
        else:
            self.reduce(out, error, 1.0 / a.numel() if reduction == 1 else 1.0)

    def on_binary_cross_entropy_with_logits(
        self, out: Tensor, a: Tensor, b: Tensor, weight: Any = None, pos_weight: Any = None, reduction: int = 1
    ) -> None:
        if weight is not None or pos_weight is not None:
            raise Unsupported("binary cross-entropy with weights has no native form")
        full = a if reduction == 0 else torch.empty(a.shape)
        self.keep.append(full)
        self.on_sub(full, a, b)
        logits = replace(self.tracked[id(full)], kind="binary")
        if reduction == 0:
            self.set(out, logits)
        else:
            self.reduce(out, logits, 1.0 / a.numel() if reduction == 1 else 1.0)

    def on_binary_cross_entropy(
        self, out: Tensor, a: Tensor, b: Tensor, weight: Any = None, reduction: int = 1
    ) -> None:
        """Of probabilities: those of a sigmoid only, whose logits it then takes."""
        probability = self.get(a)
        op = next((o for o in self.ops if probability and o.out == probability.ref), None)
        if probability is None or op is None or (op.kind, op.activation) != ("activation", "sigmoid"):
            raise Unsupported("binary cross-entropy of something else than a sigmoid has no native form")
        logits = torch.empty(a.shape)
        self.keep.append(logits)
        self.set(logits, replace(probability, ref=op.a))
        self.on_binary_cross_entropy_with_logits(out, logits, b, weight, None, reduction)

    def reduce(self, out: Tensor, t: Tracked, factor: float) -> None:
        index = torch.arange(out.numel()).view(out.shape)
        self.set(out, Tracked("loss", index, t, {"factor": t.note["factor"] * factor}))

    def on_mean(self, out: Tensor, t: Tensor, dim: Any = None, keepdim: bool = False, **_: Any) -> None:
        tracked = self.get(t)
        assert tracked is not None
        if tracked.kind == "square":
            last = [d % t.dim() for d in dim or []]
            shape = self.values[tracked.ref]
            if last != [t.dim() - 1] or not keepdim or t.shape[-1] != shape.cols:
                raise Unsupported("a mean of squares is native over a row only")
            self.set(out, Tracked("mean square", torch.zeros(0, dtype=torch.long), tracked.ref))
            return
        if tracked.kind == "value":
            self.mean_over(out, t, dim)
            return
        self.reduction(out, t, out.numel() / t.numel())

    def on_sum(self, out: Tensor, t: Tensor, dim: Any = None, keepdim: bool = False, **_: Any) -> None:
        self.reduction(out, t, 1.0)

    def reduction(self, out: Tensor, t: Tensor, factor: float) -> None:
        tracked = self.get(t)
        if tracked is None or tracked.kind not in ("squared", "binary", "loss"):
            raise Unsupported("sums and means are native in the loss only")
        if tracked.kind == "loss":
            root: Tracked = tracked.ref
            note = {"factor": tracked.note["factor"] * factor}
            self.set(out, Tracked("loss", torch.arange(out.numel()).view(out.shape), root, note))
        else:
            self.reduce(out, tracked, factor)

    def on_log_softmax(self, out: Tensor, t: Tensor, dim: int, half: bool = False) -> None:
        tracked = self.get(t)
        if tracked is None or tracked.kind != "value":
            raise Unsupported("log_softmax is native on the prediction only")
        self.set(out, replace(tracked, kind="log probabilities"))

    def on_nll_loss_forward(
        self, out: Tensor, t: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignore_index: int
    ) -> None:
        logs, classes = self.get(t), self.get(target)
        if logs is None or logs.kind != "log probabilities" or classes is None or classes.kind != "data":
            raise Unsupported("a likelihood of something else than the prediction and the target has no native form")
        if weight is not None:
            raise Unsupported("cross-entropy with class weights has no native form")
        rows = logs.index.movedim(1, -1) if logs.index.dim() > 1 else logs.index[None]
        prediction = replace(logs, kind="value", index=rows.reshape(-1, rows.shape[-1]))
        note = {"prediction": prediction, "target": classes, "factor": 1.0, "ignore_index": ignore_index}
        count = int((target != ignore_index).sum())
        factor = 1.0 / max(count, 1) if reduction == 1 else 1.0
        self.reduce(out, Tracked("likelihood", prediction.index, None, note), factor)

    on_nll_loss2d_forward = on_nll_loss_forward
