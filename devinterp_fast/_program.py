"""An ordinary ``nn.Module`` and its criterion as a Program: the operations that the native engine runs.

The model runs once on two samples under a dispatch mode that sees every tensor operation. Each tensor is
followed by *where its elements come from*: an integer tensor of the same shape that numbers the elements of a
parameter, of the data or of a Program value. Views, permutations and copies are applied to that tensor as
they are, so any way of writing the same arithmetic (``nn.Linear``, ``x @ W.T``, ``einsum``, heads split in
whatever order) ends in the same few operations. What is not understood is opaque; it matters only if the loss
depends on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from devinterp_fast import _cpu  # type: ignore[attr-defined, unused-ignore]

# The kinds of csrc/core/program.hpp, in its order.
KINDS = (
    "input",
    "linear",
    "activation",
    "add",
    "scale",
    "embedding",
    "position",
    "layer_norm",
    "rms_norm",
    "attention",
    "gather",
)
ACTIVATIONS = ("none", "relu", "tanh", "sigmoid", "gelu", "gelu_tanh", "silu")
LOSSES = ("squared", "cross_entropy")

_MOVES = frozenset(
    [
        "view",
        "_unsafe_view",
        "reshape",
        "t",
        "transpose",
        "permute",
        "expand",
        "select",
        "slice",
        "unsqueeze",
        "squeeze",
        "clone",
        "contiguous",
        "detach",
        "alias",
        "unbind",
        "split",
        "split_with_sizes",
        "narrow",
        "movedim",
        "flip",
        "index_select",
        "lift_fresh",
        "_reshape_alias",
        "diagonal",
    ]
)


class Unsupported(Exception):  # noqa: N818 - a finding, not a mistake
    """The model cannot run natively; the message is the reason, in one sentence."""


@dataclass(frozen=True)
class Op:
    """One operation; the fields are those of ``ProgramOp`` in csrc/core/program.hpp."""

    kind: str
    out: int
    a: int = -1
    b: int = -1
    c: int = -1
    weight: int = -1
    bias: int = -1
    first: int = 0
    activation: str = "none"
    transposed: bool = False
    heads: int = 0
    causal: bool = False
    size: int = 0
    factor: float = 0.0

    def native(self) -> tuple[list[int], float]:
        """The operation as integers in the order of ``ProgramOp``, and its factor."""
        kind, activation = KINDS.index(self.kind), ACTIVATIONS.index(self.activation)
        head = [kind, activation, self.out, self.a, self.b, self.c, self.weight, self.bias, self.first]
        return [*head, int(self.transposed), self.heads, int(self.causal), self.size], self.factor


@dataclass(frozen=True)
class Value:
    """A matrix (rows, cols) of each sample, or columns of value ``base``."""

    rows: int
    cols: int
    base: int = -1
    column: int = 0


@dataclass(frozen=True)
class Loss:
    """``factor`` times the sum over a sample's predictions of a squared error or a cross-entropy."""

    kind: str
    prediction: int
    factor: float
    importance: int = -1


@dataclass(frozen=True)
class Source:
    """Elements taken from each sample of ``x`` or ``y``."""

    name: str
    elements: Tensor
    ignore_index: int = -100

    def rows(self, x: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
        """The chosen elements of every sample: (n, elements), contiguous."""
        data = (x if self.name == "x" else y).detach()
        flat = data.reshape(data.shape[0], -1)
        whole = torch.equal(self.elements, torch.arange(flat.shape[1]))
        return (flat if whole else flat[:, self.elements]).to(dtype).contiguous()


@dataclass(frozen=True)
class Description:
    """A Program before it is laid out in memory."""

    values: tuple[Value, ...]
    ops: tuple[Op, ...]
    maps: tuple[int, ...]
    loss: Loss
    dim: int
    names: tuple[str, ...]
    frozen: Tensor  # float64 (total - dim)
    inputs: Source | None
    tokens: Source | None
    target: Source

    @property
    def multiply_adds(self) -> int:
        """Of one sample's loss and gradient, about: matrix products only, three for each linear map."""
        total = 0
        for op in self.ops:
            v = self.values[op.out]
            if op.kind == "linear":
                total += 3 * v.rows * v.cols * self.values[op.a].cols
            elif op.kind == "attention":
                total += 6 * v.rows * v.rows * v.cols
        return total

    def native(self) -> Any:
        """The laid-out Program."""
        loss = (LOSSES.index(self.loss.kind), self.loss.prediction, self.loss.factor, self.loss.importance)
        values = [(v.rows, v.cols, v.base, v.column) for v in self.values]
        total = self.dim + self.frozen.numel()
        return _cpu.Program(values, [op.native() for op in self.ops], list(self.maps), loss, self.dim, total)

    def __str__(self) -> str:
        """One line an operation."""
        lines = []
        for op in self.ops:
            reads = ", ".join(f"v{v}" for v in (op.a, op.b, op.c) if v >= 0)
            shape = f"({self.values[op.out].rows}, {self.values[op.out].cols})"
            extra = "" if op.activation == "none" else f" -> {op.activation}"
            lines.append(f"v{op.out} {shape} = {op.kind}({reads}){extra}")
        return "\n".join([*lines, f"loss = {self.loss.kind}(v{self.loss.prediction})"])


@dataclass(frozen=True)
class _Tracked:
    """Where a tensor's elements come from: ``index`` numbers those of ``ref``, a value or a name of the data."""

    kind: str  # data, parameter, value, scores, probabilities, residual, squared, loss, square, ..., opaque
    index: Tensor
    ref: Any = None
    note: dict[str, Any] = field(default_factory=dict)


def _contiguous(index: Tensor) -> bool:
    flat = index.reshape(-1)
    return torch.equal(flat, flat[0] + torch.arange(flat.numel()))


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call, unused-ignore]
    """Builds the operations while the model runs on ``samples`` samples."""

    def __init__(self, model: nn.Module, samples: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.samples = samples
        self.values: list[Value] = []
        self.ops: list[Op] = []
        self.maps: list[int] = []
        self.tracked: dict[int, _Tracked] = {}
        self.keep: list[Any] = []  # no id is used twice while its tensor lives
        self.constants: list[Tensor] = []
        self.reads: dict[str, list[Tensor]] = {"x": [], "tokens": []}
        self.known: dict[Any, int] = {}
        self.names, self.dim = [], 0
        for name, p in model.named_parameters():
            if not p.requires_grad:
                continue
            self.names.append(name)
            self.tracked[id(p)] = _Tracked("parameter", (self.dim + torch.arange(p.numel())).view(p.shape))
            self.dim += p.numel()
        self.total = self.dim

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # the wrapper it asks for imports the compiler, which costs more than everything else here

    # ---- following tensors
    def follow(self, tensor: Tensor, name: str) -> None:
        self.keep.append(tensor)
        self.tracked[id(tensor)] = _Tracked("data", torch.arange(tensor.numel()).view(tensor.shape), name)

    def get(self, tensor: Any) -> _Tracked | None:
        return self.tracked.get(id(tensor)) if isinstance(tensor, Tensor) else None

    def parameter(self, tensor: Tensor) -> _Tracked:
        """A parameter, or any constant as a frozen one."""
        tracked = self.get(tensor)
        if tracked is None:
            tracked = _Tracked("parameter", (self.total + torch.arange(tensor.numel())).view(tensor.shape))
            self.constants.append(tensor.detach().reshape(-1).double().clone())
            self.total += tensor.numel()
            self.keep.append(tensor)
            self.tracked[id(tensor)] = tracked
        if tracked.kind != "parameter":
            raise Unsupported("a product or sum takes activations where the engine takes weights")
        return tracked

    def size(self, ref: str | int) -> int:
        """Elements a sample has in a value or in the data."""
        if isinstance(ref, str):
            return self.data_size[ref]
        return self.values[ref].rows * self.values[ref].cols

    # ---- values
    def new(self, rows: int, cols: int) -> int:
        self.values.append(Value(rows, cols))
        return len(self.values) - 1

    def emit(self, kind: str, rows: int, cols: int, **fields: Any) -> int:
        key = (kind, rows, cols, *sorted(fields.items()))
        if key not in self.known:
            self.known[key] = self.new(rows, cols)
            self.ops.append(Op(kind, self.known[key], **fields))
        return self.known[key]

    def local(self, index: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Rows of elements as one (rows, cols) pattern of every sample, and the place of each row in it."""
        sample = torch.div(index[:, 0], size, rounding_mode="floor")
        order = torch.argsort(sample, stable=True)
        if index.shape[0] % self.samples:
            raise Unsupported("a tensor does not hold the same number of rows for every sample")
        inside = (index[order] - size * sample[order, None]).view(self.samples, -1, index.shape[1])
        expected = torch.arange(self.samples).repeat_interleave(inside.shape[1])
        if not torch.equal(sample[order], expected) or not (inside == inside[0]).all():
            raise Unsupported("an operation mixes samples or treats them differently")
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order))
        return inside[0], place

    def matrix(self, t: _Tracked, cols: int) -> tuple[int, Tensor]:
        """The value whose rows are the rows of ``t`` seen as (-1, cols), and the place of each row in it."""
        if t.kind not in ("value", "data"):
            raise Unsupported(t.note.get("reason", f"{t.kind} cannot be used as an activation"))
        pattern, place = self.local(t.index.reshape(-1, cols), self.size(t.ref))
        if t.kind == "data":
            return self.read(t.ref, pattern), place
        value, first = self.values[t.ref], pattern[:, 0]
        row, column = torch.div(first, value.cols, rounding_mode="floor"), int(first[0]) % value.cols
        straight = torch.equal(pattern, first[:, None] + torch.arange(cols))
        whole = torch.equal(row, torch.arange(value.rows)) and bool((first - row * value.cols == column).all())
        if straight and whole and column + cols <= value.cols:
            return (t.ref if cols == value.cols else self.columns(t.ref, column, cols)), place
        return self.gather(t.ref, pattern), place

    def gather(self, value: int, pattern: Tensor) -> int:
        """Elements of a value in any order; -1 is a zero."""
        key = ("map", tuple(pattern.reshape(-1).tolist()))
        if key not in self.known:
            self.known[key] = len(self.maps)
            self.maps.extend(key[1])
        return self.emit("gather", pattern.shape[0], pattern.shape[1], a=value, first=self.known[key])

    def columns(self, value: int, column: int, cols: int) -> int:
        key = ("columns", value, column, cols)
        if key not in self.known:
            self.values.append(Value(self.values[value].rows, cols, value, column))
            self.known[key] = len(self.values) - 1
        return self.known[key]

    def read(self, name: str, pattern: Tensor) -> int:
        if name != "x":
            raise Unsupported("the loss uses its target as an activation")
        if self.integer["x"]:
            raise Unsupported("integer inputs are used otherwise than as tokens of an embedding")
        return self.emit("input", *pattern.shape, first=self.source("x", pattern.reshape(-1)))

    def source(self, name: str, elements: Tensor) -> int:
        """The place of these elements among all that the Program reads of each sample."""
        at = 0
        for known in self.reads[name]:
            if torch.equal(known, elements):
                return at
            at += len(known)
        self.reads[name].append(elements)
        return at

    def result(self, out: Tensor, value: int, place: Tensor | None = None) -> None:
        """``out`` holds the rows of ``value``, in the order ``place`` of its rows."""
        cols = self.values[value].cols
        rows = torch.arange(out.numel() // cols) if place is None else place
        self.set(out, _Tracked("value", (rows[:, None] * cols + torch.arange(cols)).view(out.shape), value))

    def set(self, out: Tensor, tracked: _Tracked) -> None:
        self.tracked[id(out)] = tracked

    # ---- the mode
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        flat = [a for group in args for a in (group if isinstance(group, (list, tuple)) else [group])]
        inputs = [t for t in (self.get(a) for a in [*flat, *kwargs.values()]) if t is not None]
        if inputs:
            outs = [o for o in (out if isinstance(out, (list, tuple)) else [out]) if isinstance(o, Tensor)]
            self.keep.append((args, outs))
            opaque = next((t for t in inputs if t.kind == "opaque"), None)
            name = func._overloadpacket.__name__
            try:
                if opaque:
                    raise Unsupported(opaque.note["reason"])
                self.record(name, func, args, kwargs, outs)
            except Unsupported as error:
                for o in outs:
                    note = {"reason": str(error)}
                    self.set(o, _Tracked("opaque", torch.zeros(0, dtype=torch.long), None, note))
        return out

    def record(self, name: str, func: Any, args: Any, kwargs: Any, outs: list[Tensor]) -> None:
        name = name[:-1] if name.endswith("_") and not name.startswith("_") else name
        if name in _MOVES or (name == "_to_copy" and args[0].dtype == outs[0].dtype):
            return self.move(func, args, kwargs, outs)
        handler = getattr(self, f"on_{name.lstrip('_')}", None)
        if handler is None:
            raise Unsupported(f"operation {name} has no native form")
        handler(outs[0], *args, **kwargs)
        return None

    def move(self, func: Any, args: Any, kwargs: Any, outs: list[Tensor]) -> None:
        tracked = self.get(args[0])
        if tracked is None:
            raise Unsupported(f"operation {func} moves a constant by activations")
        quiet = {k: v for k, v in kwargs.items() if k in ("memory_format", "implicit")}
        if func._schema.name == "aten::_to_copy":
            moved = tracked.index
        elif "view" in func._schema.name:  # the numbering need not lie in memory as the tensor does
            moved = tracked.index.reshape(args[1])
        else:
            moved = func(tracked.index, *args[1:], **quiet)
        for o, index in zip(outs, moved if isinstance(moved, (list, tuple)) else [moved], strict=True):
            self.set(o, replace(tracked, index=index))

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

    def product(self, out: Tensor, left: _Tracked, weight: Tensor) -> None:
        """``out`` (M, N) = left (M, K) weight (K, N)."""
        value, place = self.matrix(left, weight.shape[0])
        transposed = _contiguous(weight) and min(weight.shape) > 1
        if not transposed and not _contiguous(weight.t()):
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
        unfolded = _Tracked("value", rows.view(-1, patches.shape[2]), self.gather(value, patches[0]))
        flat = torch.empty(len(unfolded.index), channels)
        self.keep.append(flat)
        self.product(flat, unfolded, self.parameter(weight).index.reshape(channels, -1).t())
        if bias is not None:
            self.on_add(flat, flat, bias)
        image = self.tracked[id(flat)]
        shape = (self.samples, out.shape[2], out.shape[3], channels)
        self.set(out, replace(image, index=image.index.view(shape).permute(0, 3, 1, 2)))

    # ---- attention
    def heads(self, t: _Tracked, order: Tensor | None = None) -> tuple[int, Tensor, int]:
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

    def scores(self, out: Tensor, q: _Tracked, k: _Tracked) -> None:
        if q.index.shape != k.index.shape:
            raise Unsupported("attention between sequences of unlike length has no native form")
        query, order, heads = self.heads(q)
        key, _, _ = self.heads(k, order)
        index = torch.empty(out.shape, dtype=torch.long)
        index[order] = torch.arange(out.numel()).view(out.shape)
        self.set(
            out,
            _Tracked("scores", index, None, {"q": query, "k": key, "heads": heads, "factor": 1.0, "causal": False}),
        )

    def masked(self, scores: _Tracked, allowed: Tensor, out: Tensor) -> None:
        length = out.shape[-1]
        allowed = allowed.expand(out.shape).reshape(-1, length, length)
        if allowed.all():
            self.set(out, scores)
        elif (allowed == torch.ones(length, length, dtype=torch.bool).tril()).all():
            self.set(out, replace(scores, note={**scores.note, "causal": True}))
        else:
            raise Unsupported("an attention mask is neither full nor causal")

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

    def weighted(self, out: Tensor, p: _Tracked, v: _Tracked) -> None:
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
        self.set(out, _Tracked("value", index, attended))

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
            held = _Tracked("scores", torch.empty(0), None, note)
            self.masked(held, allowed, square)
            note = self.tracked.pop(id(square)).note
        whole = torch.arange(out.numel()).view(self.samples, q.shape[2], heads, q.shape[3])
        index = torch.empty(three[0].index.shape, dtype=torch.long)
        index[order] = whole.permute(0, 2, 1, 3).reshape(index.shape)
        self.set(out, _Tracked("value", index.view(out.shape), self.attend(note)))

    @staticmethod
    def additive(mask: Tensor) -> Tensor:
        """Where a mask that is added lets through."""
        if not ((mask == 0) | (mask <= -1e4)).all():
            raise Unsupported("an attention bias that is not a mask has no native form")
        return mask == 0

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

    def weigh(self, out: Tensor, value: _Tracked, weight: Tensor) -> None:
        """A norm's elementwise weight."""
        op = next((op for op in self.ops if op.out == value.ref), None)
        index = self.parameter(weight).index
        if op is None or op.kind != "rms_norm" or op.weight >= 0 or not _contiguous(index) or index.dim() != 1:
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

    def sum(self, out: Tensor, left: _Tracked, right: _Tracked) -> None:
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

    def shift(self, out: Tensor, left: _Tracked, weight: Tensor) -> None:
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
        if not _contiguous(pattern[0] if same else pattern):
            raise Unsupported("a parameter that is added is not one block")
        rows = 1 if same else shape.rows
        return self.emit("position", shape.rows, shape.cols, a=value, weight=int(pattern[0, 0]), size=rows)

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
            self.set(out, _Tracked("parameter", index[tokens]))
            return
        if chosen.kind != "data" or chosen.ref != "x" or padding_idx >= 0 or not _contiguous(index):
            raise Unsupported("an embedding looks up something else than the input's tokens, or pads")
        size, cols = weight.shape
        pattern, place = self.local(chosen.index.reshape(-1, 1), self.size("x"))
        first = self.source("tokens", pattern.reshape(-1))
        self.vocabulary = min(self.vocabulary, size)
        fields = {"first": first, "weight": int(index[0, 0]), "size": size}
        self.result(out, self.emit("embedding", pattern.shape[0], cols, **fields), place)

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
        self.set(out, _Tracked("residual", left.index, None, note))

    def on_mse_loss(self, out: Tensor, a: Tensor, b: Tensor, reduction: int = 1) -> None:
        full = a if reduction == 0 else torch.empty(a.shape)
        self.keep.append(full)
        self.on_sub(full, a, b)
        error = replace(self.tracked[id(full)], kind="squared")
        if reduction == 0:
            self.set(out, error)
        else:
            self.reduce(out, error, 1.0 / a.numel() if reduction == 1 else 1.0)

    def reduce(self, out: Tensor, t: _Tracked, factor: float) -> None:
        index = torch.arange(out.numel()).view(out.shape)
        self.set(out, _Tracked("loss", index, t, {"factor": t.note["factor"] * factor}))

    def on_mean(self, out: Tensor, t: Tensor, dim: Any = None, keepdim: bool = False, **_: Any) -> None:
        tracked = self.get(t)
        assert tracked is not None
        if tracked.kind == "square":
            last = [d % t.dim() for d in dim or []]
            shape = self.values[tracked.ref]
            if last != [t.dim() - 1] or not keepdim or t.shape[-1] != shape.cols:
                raise Unsupported("a mean of squares is native over a row only")
            self.set(out, _Tracked("mean square", torch.zeros(0, dtype=torch.long), tracked.ref))
            return
        self.reduction(out, t, out.numel() / t.numel())

    def on_sum(self, out: Tensor, t: Tensor, dim: Any = None, keepdim: bool = False, **_: Any) -> None:
        self.reduction(out, t, 1.0)

    def reduction(self, out: Tensor, t: Tensor, factor: float) -> None:
        tracked = self.get(t)
        if tracked is None or tracked.kind not in ("squared", "loss"):
            raise Unsupported("sums and means are native in the loss only")
        if tracked.kind == "loss":
            root: _Tracked = tracked.ref
            note = {"factor": tracked.note["factor"] * factor}
            self.set(out, _Tracked("loss", torch.arange(out.numel()).view(out.shape), root, note))
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
        self.reduce(out, _Tracked("likelihood", prediction.index, None, note), factor)

    on_nll_loss2d_forward = on_nll_loss_forward
    data_size: dict[str, int]
    integer: dict[str, bool]
    vocabulary: int
    last: Tensor


def _consumers(ops: Sequence[Op], values: Sequence[Value], loss: Loss) -> dict[int, int]:
    """How often each value is read; reading columns reads the base."""
    count: dict[int, int] = {}
    for v in [v for op in ops for v in (op.a, op.b, op.c) if v >= 0] + [loss.prediction]:
        count[v] = count.get(v, 0) + 1
        if values[v].base >= 0:
            count[values[v].base] = count.get(values[v].base, 0) + 1
    return count


def _simplify(ops: list[Op], values: list[Value], loss: Loss) -> list[Op]:
    """Drops what the loss does not need; joins biases and activation functions to their linear maps."""
    needed, kept = {loss.prediction, values[loss.prediction].base}, []
    for op in reversed(ops):
        if op.out in needed:
            kept.append(op)
            needed |= {v for a in (op.a, op.b, op.c) if a >= 0 for v in (a, values[a].base)}
    ops = kept[::-1]
    count = _consumers(ops, values, loss)
    result: list[Op] = []
    for op in ops:
        at = next((i for i, before in enumerate(result) if before.out == op.a and before.kind == "linear"), -1)
        before = result[at] if at >= 0 and count[op.a] == 1 and result[at].activation == "none" else None
        if before and op.kind == "position" and op.size == 1 and before.bias < 0:
            result[at] = replace(before, out=op.out, bias=op.weight)
        elif before and op.kind == "activation":
            result[at] = replace(before, out=op.out, activation=op.activation)
        else:
            result.append(op)
    return result


def _number(ops: list[Op], values: list[Value], loss: Loss) -> tuple[list[Op], list[Value], Loss]:
    """Values in use, numbered anew; a base comes before its columns."""
    used = {v for op in ops for v in (op.out, op.a, op.b, op.c) if v >= 0} | {loss.prediction}
    used |= {values[v].base for v in used if values[v].base >= 0}
    new = {v: i for i, v in enumerate(sorted(used))} | {-1: -1}
    chosen = [replace(values[v], base=new[values[v].base]) for v in sorted(used)]
    moved = [replace(op, out=new[op.out], a=new[op.a], b=new[op.b], c=new[op.c]) for op in ops]
    return moved, chosen, replace(loss, prediction=new[loss.prediction])


def describe(model: nn.Module, loss_fn: Callable[[Any, Any], Tensor], x: Tensor, y: Tensor) -> Description:
    """The Program of ``loss_fn(model(x), y)``, read off one run on two samples.

    Args:
        model: any module; its parameters are read, its buffers are copied for the run, nothing is changed.
        loss_fn: a criterion that averages over samples, or gives one loss for each.
        x: inputs.
        y: targets; may be ``x`` itself.

    Returns:
        The operations, not yet compared with autograd.

    Shape:
        x: (n, ...), float32 or integer tokens; y: (n, ...).

    Units:
        none

    Raises:
        Unsupported: the arithmetic has no native form; the message says which part.

    Source:
        none
    """
    for name, p in model.named_parameters():
        if p.device.type != "cpu" or p.dtype != torch.float32:
            raise Unsupported(f"parameter {name} is {p.dtype} on {p.device}, the engine runs float32 on cpu")
    samples = min(2, x.shape[0])
    recorder = _Recorder(model, samples)
    few_x, few_y = x[:samples].detach().clone(), y[:samples].detach().clone()
    if y is x:
        few_y = few_x
    recorder.data_size = {"x": few_x[0].numel(), "y": few_y[0].numel()}
    recorder.integer = {"x": not x.is_floating_point(), "y": not y.is_floating_point()}
    recorder.vocabulary = 2**31
    recorder.follow(few_y, "y")
    recorder.follow(few_x, "x")
    buffers = {name: b.detach().clone() for name, b in model.named_buffers()}
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), recorder:
        out = loss_fn(torch.func.functional_call(model, buffers, (few_x,)), few_y)
    end = recorder.get(out)
    if end is None:
        raise Unsupported("the loss does not depend on the parameters by operations the engine can follow")
    if end.kind == "opaque":
        raise Unsupported(end.note["reason"])
    if end.kind == "squared":  # one number a sample, or a single output
        end = _Tracked("loss", end.index, end, {"factor": end.note["factor"]})
    if end.kind != "loss" or out.numel() not in (1, samples):
        raise Unsupported("the loss is neither a squared error nor a cross-entropy averaged over samples")
    return _finish(recorder, end, out)


def _finish(r: _Recorder, end: _Tracked, out: Tensor) -> Description:
    root: _Tracked = end.ref
    prediction, target = root.note["prediction"], root.note["target"]
    kind = "squared" if root.kind == "squared" else "cross_entropy"
    value = r.values[prediction.ref]
    whole = prediction.index.numel() == r.samples * r.size(prediction.ref) and prediction.index.shape[-1] != value.cols
    cols = value.cols if kind == "squared" and whole else prediction.index.shape[-1]
    index, wanted = prediction.index.reshape(-1), target.index.reshape(-1)
    importance = root.note.get("importance")
    if kind == "squared" and whole:  # the order of a value's own elements
        order = torch.argsort(index)
        index, wanted = index[order], wanted[order]
        importance = None if importance is None else importance.reshape(-1)[order].reshape(-1, cols)
    number, place = r.matrix(replace(prediction, index=index.view(-1, cols)), cols)
    wanted = wanted.view(-1, cols) if kind == "squared" else wanted.view(-1, 1)
    grouped = torch.empty_like(wanted)
    grouped[place] = wanted
    pattern, again = r.local(grouped, r.size(target.ref))
    if not torch.equal(again, torch.arange(len(again))):
        raise Unsupported("the loss pairs predictions of one sample with targets of another")
    offset = -1
    if importance is not None:
        weights = torch.empty(grouped.shape, dtype=torch.double)
        weights[place] = importance.reshape(-1, cols).double()
        weights = weights.view(r.samples, -1)
        if not (weights == weights[0]).all():
            raise Unsupported("importance weights differ between samples")
        offset = r.total
        r.total += weights.shape[1]
        r.constants.append(weights[0].clone())
    factor = end.note["factor"] * (r.samples if out.numel() == 1 else 1)
    loss = Loss(kind, number, factor, offset)
    ops, values, loss = _number(_simplify(r.ops, r.values, loss), r.values, loss)
    ignore = root.note.get("ignore_index", -100)
    inputs = Source("x", torch.cat(r.reads["x"])) if r.reads["x"] else None
    tokens = Source("x", torch.cat(r.reads["tokens"])) if r.reads["tokens"] else None
    frozen = torch.cat(r.constants) if r.constants else torch.zeros(0, dtype=torch.double)
    wants = Source(target.ref, pattern.reshape(-1), ignore)
    return Description(
        tuple(values), tuple(ops), tuple(r.maps), loss, r.dim, tuple(r.names), frozen, inputs, tokens, wants
    )
