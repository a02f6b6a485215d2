"""Hessian-vector products in a block's shared memory against the native engine's curvature."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from builds import kernels
from case import Case, aligned, expected
from cases_resident import models, whereabouts
from shim import Call, Library
from torch import nn

from devinterp_fast._program.curvature import Curvature
from devinterp_fast.sampling import native


class Residual(nn.Module):
    """Sums, scales and a bend behind them: gradients that join."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.sigmoid(self.first(x))
        return self.last(h + 0.5 * torch.tanh(self.second(h)))


def products() -> Iterator[Case]:
    """Samples that fit a tile, to the CPU's bits; then more, in segments, to rounding. Groups full and not."""
    draw = torch.Generator().manual_seed(1)
    x, y = torch.rand(50, 6, generator=draw), torch.rand(50, 3, generator=draw)
    library = Library(kernels(), module="_cuda")
    for number, (name, model, criterion, inputs, target) in enumerate(
        [*models(), ("residual", Residual(), nn.MSELoss(), x, y)]
    ):
        for n, checkpoints, probes in ((33, 2, 5), (520, 1, 1)):
            rows = torch.arange(n) % len(inputs)
            scale = 1 + torch.arange(n)[:, None] / n
            xs = inputs[rows] * scale
            ys = xs if target is inputs else target[rows] * scale if target.is_floating_point() else target[rows]
            program = native.capture(model, criterion, xs, ys)
            yield product(f"products of {name}, {n}", library, program, checkpoints, probes, number)


def product(name: str, library: Library, program: native.Program, checkpoints: int, probes: int, number: int) -> Case:
    d, random = program.description, np.random.default_rng(number)
    w = aligned(0.5 * random.standard_normal((checkpoints, d.dim)).astype(np.float32))
    v = aligned(random.standard_normal((checkpoints, probes, d.dim)).astype(np.float32))
    plan = d.plain()
    assert library.module is not None
    layout = library.module.ResidentProducts(*plan)
    segments = layout.segments(program.n)
    out = aligned(np.full(v.shape, np.nan, np.float32))
    call = Call(
        "ResidentProducts.run",
        {
            **whereabouts(program),
            "w": w,
            "w_ld": d.dim,
            "v": v,
            "out": out,
            "partial": aligned(np.full((segments, *v.shape), np.nan, np.float32)) if segments > 1 else 0,
            "checkpoints": checkpoints,
            "probes": probes,
        },
        plan,
    )
    exact = Curvature(program, torch.from_numpy(w).double()).hvp(torch.from_numpy(v).double()).numpy()
    cpu = Curvature(program, torch.from_numpy(w)).hvp(torch.from_numpy(v)).numpy()
    after = cpu
    if program.n > layout.tile:
        # the same terms in another order: what rounding leaves is of the CPU's size
        (after,) = (a for a in library.run(call) if a.shape == v.shape and not np.array_equal(a, v))
        assert np.linalg.norm(after - exact) <= 2 * np.linalg.norm(cpu - exact)
    changed: dict[str, np.ndarray | None] = {"out": after}
    if segments > 1:
        changed["partial"] = None
    return Case(name, call, expected(call, changed), number < 2 and segments == 1)
