"""Products, convolutions and attention, as torch calls them, become operations of the Program."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from devinterp_fast._program.description import Unsupported
from devinterp_fast._program.follow import Tracked, contiguous
from devinterp_fast._program.layers import Layers


class Products(Layers):
    """Linear maps, and attention in any of its spellings."""

    # ---- products
    def on_addmm(self, out: Tensor, bias: Tensor, a: Tensor, b: Tensor, beta: float = 1, alpha: float = 1) -> None:
        if beta != 1 or alpha != 1:
            raise Unsupported("addmm with factors has no native form")
        self.on_mm(out, a, b)
        self.on_add(out, out, bias)

    def on_mm(self, out: Tensor, a: Tensor, b: Tensor) -> None:
        left = self.get(a)
        if left is None or left.kind == "parameter":
            right = self.get(b)
            if right is None:
                raise Unsupported("a product of weights with weights has no native form")
            self.product(out.t(), replace(right, index=right.index.t()), self.parameter(a).index.t())
            flipped = self.tracked.pop(id(self.last))
            self.set(out, replace(flipped, index=flipped.index.t()))
            return
        self.product(out, left, self.parameter(b).index)

    def product(self, out: Tensor, left: Tracked, weight: Tensor) -> None:
        """``out`` (M, N) = left (M, K) weight (K, N)."""
        value, place = self.matrix(left, weight.shape[0])
        transposed = contiguous(weight) and min(weight.shape) > 1
        if not transposed and not contiguous(weight.t()):
            raise Unsupported("the weights of a product are not one block of a parameter")
        linear = self.emit(
            "linear",
            self.values[value].rows,
            weight.shape[1],
            a=value,
            weight=int(weight[0, 0]),
            transposed=transposed,
        )
        self.last = out
        self.keep.append(out)
        self.result(out, linear, place)

    def on_bmm(self, out: Tensor, a: Tensor, b: Tensor) -> None:
        left, right = self.get(a), self.get(b)
        if a.shape[0] == 1:
            flat = out[0]
            for whole, part in ((a, a[0]), (b, b[0])):
                self.keep.append(part)
                tracked = self.get(whole)
                if tracked is not None:
                    self.set(part, replace(tracked, index=tracked.index[0]))
            self.keep.append(flat)
            parts = self.keep[-3:-1]
            self.on_mm(flat, parts[0], parts[1])
            tracked = self.tracked[id(flat)]
            self.set(out, replace(tracked, index=tracked.index[None]))
        elif left is None or right is None or "parameter" in (left.kind, right.kind):
            raise Unsupported("a batched product with weights has no native form")
        elif left.kind == "probabilities":
            self.weighted(out, left, right)
        else:
            self.scores(out, left, replace(right, index=right.index.transpose(1, 2)))

    def on_convolution(
        self,
        out: Tensor,
        t: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        transposed: bool,
        output_padding: list[int],
        groups: int,
    ) -> None:
        """Patches gathered into rows, then a linear map."""
        tracked = self.get(t)
        if tracked is None or t.dim() != 4 or transposed or groups != 1 or any(d != 1 for d in dilation):
            raise Unsupported("convolutions are native in two dimensions, without groups, dilation and transposition")
        whole = tracked.index
        if tracked.kind == "data":
            size = self.size(tracked.ref)
            value = self.matrix(replace(tracked, index=whole.reshape(-1, size)), size)[0]
            whole = torch.arange(t.numel()).view(t.shape)
        elif tracked.kind == "value" and self.values[tracked.ref].base < 0:
            value = tracked.ref
        else:
            raise Unsupported("a convolution of something else than the input or a layer has no native form")
        up, across = padding[0], padding[-1]
        padded = functional.pad(whole, (across, across, up, up), value=-1)
        height, width = weight.shape[2:]
        patches = padded.unfold(2, height, stride[0]).unfold(3, width, stride[-1]).permute(0, 2, 3, 1, 4, 5)
        patches = patches.reshape(self.samples, out.shape[2] * out.shape[3], -1)
        first = torch.arange(self.samples)[:, None, None] * self.size(value)
        patches = torch.where(patches < 0, -1, patches - first)
        if not (patches == patches[0]).all() or patches.max() >= self.size(value):
            raise Unsupported("an operation mixes samples or treats them differently")
        channels = weight.shape[0]
        rows = torch.arange(patches.shape[0] * patches.shape[1] * patches.shape[2])
        unfolded = Tracked("value", rows.view(-1, patches.shape[2]), self.gather(value, patches[0]))
        flat = torch.empty(len(unfolded.index), channels)
        self.keep.append(flat)
        self.product(flat, unfolded, self.parameter(weight).index.reshape(channels, -1).t())
        if bias is not None:
            self.on_add(flat, flat, bias)
        image = self.tracked[id(flat)]
        shape = (self.samples, out.shape[2], out.shape[3], channels)
        self.set(out, replace(image, index=image.index.view(shape).permute(0, 3, 1, 2)))

    # ---- attention
    def heads(self, t: Tracked, order: Tensor | None = None) -> tuple[int, Tensor, int]:
        """(groups, T, d) of samples x heads as the value (T, heads d); also the groups' order, the heads."""
        if t.kind not in ("value", "data") or t.index.dim() != 3:
            raise Unsupported("a batched product is not attention")
        groups, length, width = t.index.shape
        if order is None:
            sample = torch.div(t.index[:, 0, 0], self.size(t.ref), rounding_mode="floor")
            order = torch.argsort(sample, stable=True)
        heads = groups // self.samples
        if heads * self.samples != groups:
            raise Unsupported("a batched product is not attention")
        split = t.index[order].view(self.samples, heads, length, width).permute(0, 2, 1, 3)
        value, _ = self.matrix(replace(t, index=split.reshape(-1, heads * width)), heads * width)
        return value, order, heads

    def scores(self, out: Tensor, q: Tracked, k: Tracked) -> None:
        if q.index.shape != k.index.shape:
            raise Unsupported("attention between sequences of unlike length has no native form")
        query, order, heads = self.heads(q)
        key, _, _ = self.heads(k, order)
        index = torch.empty(out.shape, dtype=torch.long)
        index[order] = torch.arange(out.numel()).view(out.shape)
        self.set(
            out,
            Tracked("scores", index, None, {"q": query, "k": key, "heads": heads, "factor": 1.0, "causal": False}),
        )

    def on_masked_fill(self, out: Tensor, t: Tensor, mask: Tensor, value: Any) -> None:
        scores = self.get(t)
        if scores is None or scores.kind != "scores" or float(value) > -1e4 or self.get(mask) is not None:
            raise Unsupported("masked_fill is native on attention scores only")
        self.masked(scores, ~mask, out)

    def on_where(self, out: Tensor, condition: Tensor, yes: Tensor, no: Tensor) -> None:
        scores = self.get(yes)
        if scores is None or scores.kind != "scores" or self.get(no) is not None or float(no.max()) > -1e4:
            raise Unsupported("where is native on attention scores only")
        self.masked(scores, condition, out)

    def on_softmax(self, out: Tensor, t: Tensor, dim: int, half: bool = False) -> None:
        scores = self.get(t)
        if scores is None or scores.kind != "scores" or dim not in (-1, t.dim() - 1):
            raise Unsupported("softmax is native on attention scores only")
        self.set(out, replace(scores, kind="probabilities"))

    on_safe_softmax = on_softmax

    def on_baddbmm(self, out: Tensor, mask: Tensor, a: Tensor, b: Tensor, beta: float = 1, alpha: float = 1) -> None:
        if beta != 1:
            raise Unsupported("baddbmm with factors has no native form")
        self.on_bmm(out, a, b)
        if alpha != 1:
            self.on_mul(out, out, alpha)
        self.on_add(out, out, mask)

    def weighted(self, out: Tensor, p: Tracked, v: Tracked) -> None:
        length = p.index.shape[-1]
        order = torch.argsort(p.index[:, 0, 0])
        if not torch.equal(p.index[order].reshape(-1), torch.arange(p.index.numel())):
            raise Unsupported("attention probabilities are reordered before they are used")
        value, _, heads = self.heads(v, order)
        attended = self.attend({**p.note, "v": value})
        width = self.values[attended].cols // heads
        index = torch.empty(out.shape, dtype=torch.long)
        whole = torch.arange(out.numel()).view(self.samples, length, heads, width)
        index[order] = whole.permute(0, 2, 1, 3).reshape(out.shape)
        self.set(out, Tracked("value", index, attended))

    def attend(self, note: dict[str, Any]) -> int:
        q, factor = note["q"], note["factor"]
        before = next((op for op in self.ops if op.out == q), None)
        if before is not None and before.kind == "scale":  # queries scaled beforehand
            q, factor = before.a, factor * before.factor
        v = self.values[note["v"]]
        if v.cols != self.values[q].cols or v.rows != self.values[q].rows:
            raise Unsupported("attention whose values are not as wide as its keys has no native form")
        fields = {
            "a": q,
            "b": note["k"],
            "c": note["v"],
            "heads": note["heads"],
            "causal": note["causal"],
            "factor": factor,
        }
        return self.emit("attention", v.rows, v.cols, **fields)

    def on_scaled_dot_product_flash_attention_for_cpu(
        self,
        out: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        attn_mask: Tensor | None = None,
        scale: float | None = None,
    ) -> None:
        if dropout_p:
            raise Unsupported("dropout has no native form")
        parts = [self.get(t) for t in (q, k, v)]
        if any(t is None for t in parts):
            raise Unsupported("attention over constants has no native form")
        three = [replace(t, index=t.index.reshape(-1, *t.index.shape[2:])) for t in parts if t is not None]
        if len({t.index.shape for t in three}) != 1:
            raise Unsupported("attention between sequences of unlike length has no native form")
        value, order, heads = self.heads(three[0])
        key, _, _ = self.heads(three[1], order)
        last, _, _ = self.heads(three[2], order)
        factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
        note = {"q": value, "k": key, "v": last, "heads": heads, "factor": factor, "causal": is_causal}
        if attn_mask is not None:
            length = q.shape[-2]
            allowed = attn_mask if attn_mask.dtype == torch.bool else self.additive(attn_mask)
            square = torch.empty(*q.shape[:2], length, length)
            held = Tracked("scores", torch.empty(0), None, note)
            self.masked(held, allowed, square)
            note = self.tracked.pop(id(square)).note
        whole = torch.arange(out.numel()).view(self.samples, q.shape[2], heads, q.shape[3])
        index = torch.empty(three[0].index.shape, dtype=torch.long)
        index[order] = whole.permute(0, 2, 1, 3).reshape(index.shape)
        self.set(out, Tracked("value", index.view(out.shape), self.attend(note)))
