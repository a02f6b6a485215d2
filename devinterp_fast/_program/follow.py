"""Following tensors through a run: where their elements come from, and which value of the Program that makes them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from devinterp_fast._program.description import Op, Unsupported, Value

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


@dataclass(frozen=True)
class Tracked:
    """Where a tensor's elements come from: ``index`` numbers those of ``ref``, a value or a name of the data."""

    kind: str  # data, parameter, value, scores, probabilities, residual, squared, loss, square, ..., opaque
    index: Tensor
    ref: Any = None
    note: dict[str, Any] = field(default_factory=dict)


def contiguous(index: Tensor) -> bool:
    if index.shape[-1] > 1 and int(index[..., 1].reshape(-1)[0] - index[..., 0].reshape(-1)[0]) != 1:
        return False  # before a transposed index is copied
    flat = index.reshape(-1)
    steps = flat[0] + torch.arange(min(flat.numel(), 2**16))  # piece by piece: millions would leave the cache
    return all(torch.equal(part, steps[: len(part)] + i * 2**16) for i, part in enumerate(flat.split(2**16)))


class Follower(TorchDispatchMode):  # type: ignore[no-untyped-call, unused-ignore]
    """Knows where every tensor's elements come from while the model runs, and keeps the operations found so far."""

    data_size: dict[str, int]  # elements of a sample, of "x" and of "y"
    integer: dict[str, bool]
    vocabulary: int

    def __init__(self, model: nn.Module, samples: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.samples = samples
        self.values: list[Value] = []
        self.ops: list[Op] = []
        self.maps: list[int] = []
        self.tracked: dict[int, Tracked] = {}
        self.keep: list[Any] = []  # no id is used twice while its tensor lives
        self.constants: list[Tensor] = []
        self.reads: dict[str, list[Tensor]] = {"x": [], "tokens": []}
        self.known: dict[Any, int] = {}
        self.names, self.dim = [], 0
        for name, p in model.named_parameters():
            if not p.requires_grad:
                continue
            self.names.append(name)
            self.tracked[id(p)] = Tracked("parameter", torch.arange(self.dim, self.dim + p.numel()).view(p.shape))
            self.dim += p.numel()
        self.total = self.dim

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # the wrapper it asks for imports the compiler, which costs more than everything else here

    # ---- following tensors
    def follow(self, tensor: Tensor, name: str) -> None:
        self.keep.append(tensor)
        self.tracked[id(tensor)] = Tracked("data", torch.arange(tensor.numel()).view(tensor.shape), name)

    def get(self, tensor: Any) -> Tracked | None:
        return self.tracked.get(id(tensor)) if isinstance(tensor, Tensor) else None

    def parameter(self, tensor: Tensor) -> Tracked:
        """A parameter, or any constant as a frozen one."""
        tracked = self.get(tensor)
        if tracked is None:
            tracked = Tracked("parameter", (self.total + torch.arange(tensor.numel())).view(tensor.shape))
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

    def matrix(self, t: Tracked, cols: int) -> tuple[int, Tensor]:
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
        self.set(out, Tracked("value", (rows[:, None] * cols + torch.arange(cols)).view(out.shape), value))

    def set(self, out: Tensor, tracked: Tracked) -> None:
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
            except (Unsupported, TypeError, RuntimeError, IndexError) as error:
                # Beside what handlers refuse: arguments they do not take, shapes they do not expect.
                other = f"operation {name} is used in a way that has no native form"
                for o in outs:
                    note = {"reason": str(error) if isinstance(error, Unsupported) else other}
                    self.set(o, Tracked("opaque", torch.zeros(0, dtype=torch.long), None, note))
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
