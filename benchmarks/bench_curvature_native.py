"""Native curvature products against our own gradient, torch's double backward, and reading memory.

    python benchmarks/bench_curvature_native.py [--rounds 9]

One thread, float32, full data. Answers are asserted equal to torch's before any clock starts; contestants take turns,
and medians of process CPU time are quoted. Flops count matrix products only: a dense layer of a gradient has three (two
in the first layer), of a Hessian product with kept values and gradients six (two in the first).
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import harness
import torch
from bench_engine import peak, workloads
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from workloads import w3

import devinterp_fast as dif
from devinterp_fast import _native
from devinterp_fast.sampling.native import Program, capture


def cases() -> dict[str, tuple[Any, Any, Tensor, Tensor]]:
    digits, tokens = w3(), workloads()["W4"]
    return {
        "W3": (digits.model, digits.loss, digits.x, digits.y),
        "W4": (tokens.model, tokens.loss, tokens.x[:32], tokens.y[:32]),
    }


def race(contestants: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median CPU seconds of each, taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for name, run in contestants.items():
            begin = time.process_time()
            run()
            if turn:
                seconds[name].append(time.process_time() - begin)
    return {name: statistics.median(times) for name, times in seconds.items()}


def native_gradient(program: Program, w: Tensor) -> Callable[[], object]:
    """The engine's own loss and gradient over all samples, with nothing prepared twice."""
    data, alive = program.data(torch.float32)
    index, g = torch.arange(program.n, dtype=torch.int32), torch.zeros(program.dim)
    losses, kept = torch.zeros(program.n, dtype=torch.float64), (alive, w)

    def run() -> object:
        program.native.pass_f32(
            0, kept[1].data_ptr(), data, index.data_ptr(), program.n, g.data_ptr(), losses.data_ptr()
        )
        return g

    return run


def double_backward(model: Any, loss_fn: Any, x: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
    """Returns v -> H v by a second backward through a gradient graph that is kept: torch's fastest way here."""
    parameters = list(model.parameters())
    with sdpa_kernel(SDPBackend.MATH):
        grads = torch.autograd.grad(loss_fn(model(x), y), parameters, create_graph=True)

    def one(v: Tensor) -> Tensor:
        parts, at = [], 0
        for p in parameters:
            parts.append(v[at : at + p.numel()].view_as(p))
            at += p.numel()
        out = torch.autograd.grad(grads, parameters, parts, retain_graph=True)
        return torch.cat([o.reshape(-1) for o in out])

    return lambda rows: torch.stack([one(v) for v in rows])


def products(name: str, model: Any, loss_fn: Any, x: Tensor, y: Tensor, rounds: int) -> dict[str, float]:
    program = capture(model, loss_fn, x, y)
    w = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    stack = w * torch.linspace(0.9, 1.1, 8)[:, None]
    one, eight = program.curvature(w), program.curvature(stack)
    v, many = torch.randn(10, program.dim), torch.randn(8, 10, program.dim)
    backward = double_backward(model, loss_fn, x, y)
    expected = backward(v)
    assert float((one.hvp(v) - expected).norm() / expected.norm()) <= 1e-5
    assert torch.equal(eight.hvp(many)[3], program.curvature(stack[3]).hvp(many[3]))
    double, in_double = copy.deepcopy(model).double(), x.double() if x.is_floating_point() else x
    H, wide = dif.hessian(double, loss_fn, (in_double, y), backend="native"), v.double().T.contiguous()
    backward_double = double_backward(double, loss_fn, in_double, y)
    truth = backward_double(wide.T)
    assert float((H @ wide - truth.T).norm() / truth.norm()) <= 1e-13
    seconds = race(
        {
            "double_10": lambda: H @ wide, "torch_double_10": lambda: backward_double(wide.T),
            "gradient": native_gradient(program, w), "hvp_1": lambda: one.hvp(v[:1]), "hvp_10": lambda: one.hvp(v),
            "ggn_10": lambda: one.ggn(v), "fisher_10": lambda: one.fisher(v), "torch_10": lambda: backward(v),
            "hvp_8x10": lambda: eight.hvp(many), "states": lambda: program.curvature(w),
        },
        rounds,
    )  # fmt: skip
    best, d = peak(), program.description
    linear = [
        (op, d.values[op.a].cols * d.values[op.out].cols * d.values[op.out].rows) for op in d.ops if op.kind == "linear"
    ]
    attention = sum(6 * d.values[op.out].rows ** 2 * d.values[op.out].cols for op in d.ops if op.kind == "attention")
    inputs = {op.out for op in d.ops if op.kind == "input"}
    gradient = sum((2 if op.a in inputs else 3) * size for op, size in linear) + attention
    hessian = sum((2 if op.a in inputs else 6) * size for op, size in linear) + 2 * attention
    row = {
        "ms_gradient": 1e3 * seconds["gradient"], "ms_states": 1e3 * seconds["states"],
        "hvp_1": seconds["hvp_1"] / seconds["gradient"], "hvp_10": seconds["hvp_10"] / 10 / seconds["gradient"],
        "ggn_10": seconds["ggn_10"] / 10 / seconds["gradient"],
        "fisher_10": seconds["fisher_10"] / 10 / seconds["gradient"],
        "torch_over_hvp_10": seconds["torch_10"] / seconds["hvp_10"],
        "torch_over_hvp_10_float64": seconds["torch_double_10"] / seconds["double_10"],
        "eight_over_one": seconds["hvp_8x10"] / 8 / seconds["hvp_10"],
        "flops_hvp_over_gradient": hessian / gradient,
        "gradient_of_peak": 2 * gradient * program.n / seconds["gradient"] / best,
        "hvp_10_of_peak": 2 * hessian * program.n * 10 / seconds["hvp_10"] / best,
    }  # fmt: skip
    print(name, " ".join(f"{key} {value:.3g}" for key, value in row.items()), flush=True)
    return row


def reorthogonalization(chains: int, m: int, dim: int, rounds: int) -> dict[str, float]:
    basis = torch.randn(chains, m + 1, dim)
    basis /= basis.norm(dim=2, keepdim=True)
    gram = (basis.double() @ basis.double().mT).contiguous()
    u = torch.randn(chains, dim)
    x = u.clone()
    coefficients, _ = _native.gram_schmidt_(x, basis, m, gram)
    q = basis[:, :m].double()
    first = (q @ u.double()[:, :, None])[..., 0]
    both = first + (q @ (u.double() - (q.mT @ first[:, :, None])[..., 0])[:, :, None])[..., 0]
    assert float((coefficients - both).abs().max()) <= 1e-9
    flat = basis[:, :m].reshape(-1)  # the same bytes, in one piece

    def by_torch() -> Tensor:
        y, live = u.clone()[:, :, None], basis[:, :m]
        for _ in range(2):
            y = torch.baddbmm(y, live.mT, live @ y, alpha=-1)
        return y / y.norm(dim=1, keepdim=True)

    seconds = race(
        {
            "native": lambda: _native.gram_schmidt_(x.copy_(u), basis, m, gram), "torch": by_torch,
            "reading": lambda: (flat.sum(), flat.sum()),
        },
        rounds,
    )  # fmt: skip
    row = {
        "ms": 1e3 * seconds["native"], "over_reading_twice": seconds["native"] / seconds["reading"],
        "torch_over_native": seconds["torch"] / seconds["native"],
    }  # fmt: skip
    print(f"Gram-Schmidt {chains} x {m} x {dim}:", " ".join(f"{key} {value:.3g}" for key, value in row.items()))
    return row


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows: dict[str, object] = {name: products(name, *case, rounds) for name, case in cases().items()}
    for shape in ((10, 30, 26122), (1, 60, 1_000_000)):
        rows["gram_schmidt " + " x ".join(map(str, shape))] = reorthogonalization(*shape, rounds)
    harness.record("curvature_native", rows)


if __name__ == "__main__":
    main()
