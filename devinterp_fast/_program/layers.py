"""Elementwise operations, norms and embeddings, as torch calls them, become operations of the Program."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from devinterp_fast._program.description import Unsupported
from devinterp_fast._program.follow import Follower, Tracked, contiguous


class Layers(Follower):
    """What lies between the products."""

    # ---- elementwise
    def unary(self, out: Tensor, t: Tensor, kind: str, **fields: Any) -> None:
        tracked = self.get(t)
        assert tracked is not None
        if tracked.kind == "value":
            value = self.values[tracked.ref]
            flat = tracked.index.reshape(-1)
            if value.base < 0 and torch.equal(flat.sort().values, torch.arange(self.samples * self.size(tracked.ref))):
                same = self.emit(kind, value.rows, value.cols, a=tracked.ref, **fields)
                self.set(out, replace(tracked, ref=same))
                return
        source, place = self.matrix(tracked, t.shape[-1] if t.dim() > 1 else 1)
        shape = self.values[source]
        self.result(out, self.emit(kind, shape.rows, shape.cols, a=source, **fields), place)

    def on_relu(self, out: Tensor, t: Tensor) -> None:
        self.unary(out, t, "activation", activation="relu")

    def on_tanh(self, out: Tensor, t: Tensor) -> None:
        self.unary(out, t, "activation", activation="tanh")

    def on_sigmoid(self, out: Tensor, t: Tensor) -> None:
        self.unary(out, t, "activation", activation="sigmoid")

    def on_silu(self, out: Tensor, t: Tensor) -> None:
        self.unary(out, t, "activation", activation="silu")

    def on_gelu(self, out: Tensor, t: Tensor, *, approximate: str = "none") -> None:
        self.unary(out, t, "activation", activation="gelu" if approximate == "none" else "gelu_tanh")

    def on_neg(self, out: Tensor, t: Tensor) -> None:
        self.on_mul(out, t, -1.0)

    def on_native_dropout(self, out: Tensor, t: Tensor, p: float, train: bool | None) -> None:
        if p and train:
            raise Unsupported("dropout has no native form")
        tracked = self.get(t)
        assert tracked is not None
        self.set(out, tracked)

    def on_empty_like(self, out: Tensor, t: Tensor, **_: Any) -> None:
        raise Unsupported("dropout has no native form, nor has any other random draw")

    def on_mul(self, out: Tensor, a: Any, b: Any) -> None:
        left, right = self.get(a), self.get(b)
        if left is None:
            a, b, left, right = b, a, right, left
        assert left is not None
        constant = right is None and (not isinstance(b, Tensor) or b.numel() == 1)
        if constant:
            return self.times(out, a, float(b))
        if right is not None and left.kind == right.kind == "residual" and left.note is right.note:
            self.set(out, replace(left, kind="squared"))
        elif left.kind == "squared" and right is None:
            self.set(out, replace(left, note={**left.note, "importance": b.expand(out.shape), "shape": out.shape}))
        elif right is not None and "deviation" in (left.kind, right.kind):
            norm, value = (left, right) if left.kind == "deviation" else (right, left)
            if value.kind != "value" or value.ref != norm.ref:
                raise Unsupported("a product of activations has no native form")
            shape = self.values[norm.ref]
            fields = {"a": norm.ref, "factor": norm.note["epsilon"]}
            self.set(out, replace(value, ref=self.emit("rms_norm", shape.rows, shape.cols, **fields)))
        elif left.kind == "value" and (right is None or right.kind == "parameter"):
            self.weigh(out, left, b)
        elif right is not None and right.kind == "value" and left.kind == "parameter":
            self.weigh(out, right, a)
        else:
            raise Unsupported("a product of activations has no native form")
        return None

    def weigh(self, out: Tensor, value: Tracked, weight: Tensor) -> None:
        """A norm's elementwise weight."""
        op = next((op for op in self.ops if op.out == value.ref), None)
        index = self.parameter(weight).index
        if op is None or op.kind != "rms_norm" or op.weight >= 0 or not contiguous(index) or index.dim() != 1:
            raise Unsupported("an elementwise product with weights is native behind a norm only")
        shape = self.values[op.out]
        fields = {"a": op.a, "factor": op.factor, "weight": int(index[0])}
        self.set(out, replace(value, ref=self.emit("rms_norm", shape.rows, shape.cols, **fields)))

    def times(self, out: Tensor, t: Tensor, factor: float) -> None:
        tracked = self.get(t)
        assert tracked is not None
        if tracked.kind in ("scores", "squared", "loss"):
            note = {**tracked.note, "factor": tracked.note["factor"] * factor}
            self.set(out, replace(tracked, note=note))
        else:
            self.unary(out, t, "scale", factor=factor)

    def on_div(self, out: Tensor, t: Tensor, by: Any) -> None:
        if self.get(by) is not None or (isinstance(by, Tensor) and by.numel() != 1):
            raise Unsupported("a quotient of activations has no native form")
        self.times(out, t, 1.0 / float(by))

    def on_add(self, out: Tensor, a: Any, b: Any, alpha: float = 1) -> None:
        left, right = self.get(a), self.get(b)
        if left is None or left.kind == "parameter":
            a, b, left, right = b, a, right, left
        if alpha != 1 or left is None or left.kind == "parameter":
            raise Unsupported("a sum of weights has no native form")
        if left.kind == "scores":
            if right is not None or not isinstance(b, Tensor):
                raise Unsupported("an attention bias that is not a mask has no native form")
            return self.masked(left, self.additive(b), out)
        if left.kind == "mean square":
            if isinstance(b, Tensor):
                raise Unsupported("a norm's epsilon is not a number")
            self.set(out, replace(left, note={"epsilon": float(b)}))
            return None
        if right is not None and right.kind != "parameter":
            return self.sum(out, left, right)
        if not isinstance(b, Tensor):
            raise Unsupported("adding a number to activations has no native form")
        return self.shift(out, left, b)

    def sum(self, out: Tensor, left: Tracked, right: Tracked) -> None:
        if left.kind == right.kind == "value" and left.index.shape == right.index.shape == out.shape:
            one, two = self.values[left.ref], self.values[right.ref]
            whole = one.base < 0 and (one.rows, one.cols) == (two.rows, two.cols)
            if whole and torch.equal(left.index, right.index):
                value = self.emit("add", one.rows, one.cols, a=left.ref, b=right.ref)
                self.set(out, replace(left, ref=value))
                return
        cols = out.shape[-1] if out.dim() > 1 else 1
        first, place = self.matrix(replace(left, index=left.index.expand(out.shape)), cols)
        second, other = self.matrix(replace(right, index=right.index.expand(out.shape)), cols)
        if not torch.equal(place, other):
            raise Unsupported("a sum pairs rows of unlike order")
        self.result(out, self.emit("add", self.values[first].rows, cols, a=first, b=second), place)

    def shift(self, out: Tensor, left: Tracked, weight: Tensor) -> None:
        """Adds a parameter: the same row to all rows, or one row to each position."""
        index = self.parameter(weight).index.expand(out.shape)
        if left.kind == "value" and self.values[left.ref].base < 0:
            cols = self.values[left.ref].cols
            flat = left.index.reshape(-1)
            if torch.equal(flat.sort().values, torch.arange(self.samples * self.size(left.ref))):
                ordered = torch.empty_like(flat)
                ordered[flat] = index.reshape(-1)
                value = self.positions(left.ref, ordered.view(self.samples, -1, cols))
                self.set(out, replace(left, ref=value))
                return
        cols = out.shape[-1] if out.dim() > 1 else 1
        source, place = self.matrix(replace(left, index=left.index.expand(out.shape)), cols)
        ordered = torch.empty(out.numel() // cols, cols, dtype=torch.long)
        ordered[place] = index.reshape(-1, cols)
        self.result(out, self.positions(source, ordered.view(self.samples, -1, cols)), place)

    def positions(self, value: int, index: Tensor) -> int:
        shape = self.values[value]
        if not (index == index[0]).all():
            raise Unsupported("an operation mixes samples or treats them differently")
        pattern = index[0]
        same = bool((pattern == pattern[0]).all())
        if not contiguous(pattern[0] if same else pattern):
            raise Unsupported("a parameter that is added is not one block")
        rows = 1 if same else shape.rows
        return self.emit("position", shape.rows, shape.cols, a=value, weight=int(pattern[0, 0]), size=rows)

    # ---- masks of attention scores
    def masked(self, scores: Tracked, allowed: Tensor, out: Tensor) -> None:
        length = out.shape[-1]
        allowed = allowed.expand(out.shape).reshape(-1, length, length)
        if allowed.all():
            self.set(out, scores)
        elif (allowed == torch.ones(length, length, dtype=torch.bool).tril()).all():
            self.set(out, replace(scores, note={**scores.note, "causal": True}))
        else:
            raise Unsupported("an attention mask is neither full nor causal")

    @staticmethod
    def additive(mask: Tensor) -> Tensor:
        """Where a mask that is added lets through."""
        if not ((mask == 0) | (mask <= -1e4)).all():
            raise Unsupported("an attention bias that is not a mask has no native form")
        return mask == 0

    # ---- norms
    def on_native_layer_norm(self, out: Tensor, t: Tensor, shape: Any, weight: Any, bias: Any, epsilon: float) -> None:
        tracked = self.get(t)
        if tracked is None or len(shape) != 1:
            raise Unsupported("layer norm over more than one dimension has no native form")
        value, place = self.matrix(tracked, shape[0])
        at = [-1 if p is None else int(self.parameter(p).index.reshape(-1)[0]) for p in (weight, bias)]
        rows = self.values[value].rows
        norm = self.emit("layer_norm", rows, shape[0], a=value, weight=at[0], bias=at[1], factor=epsilon)
        self.result(out, norm, place)

    def on_pow(self, out: Tensor, t: Tensor, exponent: Any) -> None:
        tracked = self.get(t)
        if tracked is None or exponent != 2 or tracked.kind not in ("residual", "value"):
            raise Unsupported("a power other than the square of an error or in a norm has no native form")
        self.set(out, replace(tracked, kind="squared" if tracked.kind == "residual" else "square"))

    def on_square(self, out: Tensor, t: Tensor) -> None:
        self.on_pow(out, t, 2)

    def on_rsqrt(self, out: Tensor, t: Tensor) -> None:
        tracked = self.get(t)
        if tracked is None or tracked.kind != "mean square" or "epsilon" not in tracked.note:
            raise Unsupported("rsqrt is native inside an RMS norm only")
        self.set(out, replace(tracked, kind="deviation"))

    # ---- tokens
    def on_embedding(
        self,
        out: Tensor,
        weight: Tensor,
        tokens: Tensor,
        padding_idx: int = -1,
        scale: bool = False,
        sparse: bool = False,
    ) -> None:
        chosen = self.get(tokens)
        index = self.parameter(weight).index
        if chosen is None:
            self.set(out, Tracked("parameter", index[tokens]))
            return
        if chosen.kind != "data" or chosen.ref != "x" or padding_idx >= 0 or not contiguous(index):
            raise Unsupported("an embedding looks up something else than the input's tokens, or pads")
        size, cols = weight.shape
        pattern, place = self.local(chosen.index.reshape(-1, 1), self.size("x"))
        first = self.source("tokens", pattern.reshape(-1))
        self.vocabulary = min(self.vocabulary, size)
        fields = {"first": first, "weight": int(index[0, 0]), "size": size}
        self.result(out, self.emit("embedding", pattern.shape[0], cols, **fields), place)
