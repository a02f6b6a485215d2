"""Pooling, means over positions, and concatenation, as torch calls them, become operations of the Program."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from devinterp_fast._program.description import Unsupported
from devinterp_fast._program.follow import Follower, Tracked


class Pooling(Follower):
    """What joins rows of a value."""

    def image(self, t: Tensor) -> tuple[int, Tensor]:
        """An image (n, channels, height, width) as the value (height width, channels), and the place of each row."""
        tracked = self.get(t)
        if tracked is None or t.dim() != 4:
            raise Unsupported("pooling of something else than images (n, channels, height, width) has no native form")
        channels = t.shape[1]
        return self.matrix(replace(tracked, index=tracked.index.permute(0, 2, 3, 1).reshape(-1, channels)), channels)

    def pool(self, kind: str, value: int, windows: Tensor, factor: float = 0.0) -> int:
        """Row r of the result joins rows ``windows[r]`` of a value; -1 is none."""
        key = ("map", tuple(windows.reshape(-1).tolist()))
        if key not in self.known:
            self.known[key] = len(self.maps)
            self.maps.extend(key[1])
        fields = {"a": value, "first": self.known[key], "size": windows.shape[1], "factor": factor}
        return self.emit(kind, windows.shape[0], self.values[value].cols, **fields)

    def windows(self, out: Tensor, t: Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any = 1) -> Tensor:
        """The pixels (height width) that each pixel of ``out`` joins."""
        size, step, edge, gap = (_pair(v) for v in (kernel, stride or kernel, padding, dilation))
        height, width = t.shape[2:]
        rows = torch.arange(out.shape[2])[:, None] * step[0] - edge[0] + torch.arange(size[0]) * gap[0]
        columns = torch.arange(out.shape[3])[:, None] * step[1] - edge[1] + torch.arange(size[1]) * gap[1]
        inside = ((rows >= 0) & (rows < height))[:, None, :, None] & ((columns >= 0) & (columns < width))[None, :, None]
        pixel = rows[:, None, :, None] * width + columns[None, :, None]
        return torch.where(inside, pixel, -1).reshape(out.shape[2] * out.shape[3], -1)

    def picture(self, out: Tensor, t: Tensor, kind: str, windows: Tensor, factor: float = 0.0) -> None:
        value, place = self.image(t)
        pixels = self.values[value].rows
        if not torch.equal(place, torch.arange(self.samples * pixels)):
            raise Unsupported("pooling of samples in another order has no native form")
        pooled = self.pool(kind, value, windows, factor)
        count, channels, height, width = out.shape
        index = torch.arange(out.numel()).view(count, height, width, channels).permute(0, 3, 1, 2)
        self.set(out, Tracked("value", index, pooled))

    def on_max_pool2d_with_indices(
        self,
        out: Tensor,
        t: Tensor,
        kernel: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
    ) -> None:
        self.picture(out, t, "max_rows", self.windows(out, t, kernel, stride, padding, dilation))

    def on_avg_pool2d(
        self,
        out: Tensor,
        t: Tensor,
        kernel: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> None:
        windows = self.windows(out, t, kernel, stride, padding)
        # What torch divides by, read off an image of ones.
        ones = functional.avg_pool2d(
            torch.ones(1, 1, *t.shape[2:]), kernel, stride or kernel, padding, ceil_mode, count_include_pad,
            divisor_override,
        ).reshape(-1)  # fmt: skip
        factors = ones / (windows >= 0).sum(1)
        if not torch.allclose(factors, factors[0]):
            raise Unsupported("average pooling whose windows are divided by different counts has no native form")
        self.picture(out, t, "mean_rows", windows, 1.0 / round(1.0 / float(factors[0])))

    def on_adaptive_avg_pool2d(self, out: Tensor, t: Tensor, size: Any) -> None:
        if any(whole % part for whole, part in zip(t.shape[2:], out.shape[2:], strict=True)):
            raise Unsupported("adaptive pooling into unequal windows has no native form")
        kernel = [whole // part for whole, part in zip(t.shape[2:], out.shape[2:], strict=True)]
        self.on_avg_pool2d(out, t, kernel)

    def on_adaptive_max_pool2d(self, out: Tensor, t: Tensor, size: Any) -> None:
        if any(whole % part for whole, part in zip(t.shape[2:], out.shape[2:], strict=True)):
            raise Unsupported("adaptive pooling into unequal windows has no native form")
        kernel = [whole // part for whole, part in zip(t.shape[2:], out.shape[2:], strict=True)]
        self.on_max_pool2d_with_indices(out, t, kernel)

    def mean_over(self, out: Tensor, t: Tensor, dim: Any) -> None:
        """A mean of activations over some dimensions, but not over samples."""
        tracked = self.get(t)
        assert tracked is not None
        over = sorted({d % t.dim() for d in ([dim] if isinstance(dim, int) else dim or [])})
        if not over or 0 in over or t.shape[0] != self.samples:
            raise Unsupported("a mean of activations over samples has no native form")
        kept = [d for d in range(1, t.dim()) if d not in over]
        rows, cols = math.prod(t.shape[d] for d in over), math.prod(t.shape[d] for d in kept)
        value, place = self.matrix(
            replace(tracked, index=tracked.index.permute(0, *over, *kept).reshape(-1, cols)), cols
        )
        order = place.view(self.samples, rows) - rows * torch.arange(self.samples)[:, None]
        if not (order == order[0]).all() or order.min() < 0 or order.max() >= rows:
            raise Unsupported("an operation mixes samples or treats them differently")
        self.result(out, self.pool("mean_rows", value, order[:1], 1.0 / rows))

    def on_cat(self, out: Tensor, parts: Sequence[Tensor], dim: int = 0) -> None:
        """Values side by side along the last dimension."""
        if dim % out.dim() != out.dim() - 1 or out.dim() < 2:
            raise Unsupported("a concatenation is native along the last dimension only")
        joined, place = -1, torch.zeros(0)
        for part in parts:
            tracked = self.get(part)
            if tracked is None or tracked.kind not in ("value", "data"):
                raise Unsupported("a concatenation with constants or parameters has no native form")
            value, order = self.matrix(tracked, part.shape[-1])
            if joined < 0:
                joined, place = value, order
                continue
            one, two = self.values[joined], self.values[value]
            if one.rows != two.rows or not torch.equal(place, order):
                raise Unsupported("a concatenation pairs rows of unlike order")
            joined = self.emit("join", one.rows, one.cols + two.cols, a=joined, b=value)
        self.result(out, joined, place)


def _pair(value: Any) -> tuple[int, int]:
    """A setting for height and width."""
    if isinstance(value, int):
        return value, value
    return int(value[0]), int(value[-1])
