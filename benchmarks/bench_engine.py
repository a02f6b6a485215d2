"""The native engine against an eager-torch forward and backward, the floor of any torch sampler, and the FMA peak.

    python benchmarks/bench_engine.py [W1 W2 W3 W4 W4b] [--chains 4 32] [--rounds 7] [--only-many]

One thread. Loss and gradient are asserted equal to float64 autograd before any clock starts; contestants take turns,
and the median over rounds of process CPU time is quoted, which a busy machine stretches less than wall time.
The sampling call is whole: batches, gradient, update, trace every tenth step. Peers (devinterp, jax) are raced where
installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from workloads import w5 as big_mlp

from devinterp_fast import _cpu
from devinterp_fast.sampling.native import NativeRun, Program, capture


class Superposition(nn.Module):
    """ReLU(W^T W x + b), 6 features in 2 dimensions: 18 parameters."""

    def __init__(self):
        super().__init__()
        self.W, self.b = nn.Parameter(torch.randn(2, 6)), nn.Parameter(torch.zeros(6))

    def forward(self, x):
        return functional.relu(x @ self.W.T @ self.W + self.b)


class Block(nn.Module):
    """Causal attention, and with ``wide`` a layer norm before it and an MLP behind it."""

    def __init__(self, d, heads, wide):
        super().__init__()
        self.qkv, self.o, self.heads = nn.Linear(d, 3 * d, bias=wide), nn.Linear(d, d, bias=wide), heads
        self.n1, self.n2 = (nn.LayerNorm(d) if wide else nn.Identity() for _ in range(2))
        self.mlp = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d)) if wide else None

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = (p.view(b, t, self.heads, -1).transpose(1, 2) for p in self.qkv(self.n1(x)).split(d, -1))
        a = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(a.transpose(1, 2).reshape(b, t, d))
        return x if self.mlp is None else x + self.mlp(self.n2(x))


class Transformer(nn.Module):
    """Two blocks of width d over ``length`` tokens."""

    def __init__(self, vocabulary, d, length, wide):
        super().__init__()
        self.embed, self.place = nn.Embedding(vocabulary, d), nn.Embedding(length, d)
        self.blocks = nn.Sequential(*(Block(d, 4, wide) for _ in range(2)))
        self.norm, self.out = nn.LayerNorm(d) if wide else nn.Identity(), nn.Linear(d, vocabulary, bias=False)

    def forward(self, tokens):
        x = self.embed(tokens) + self.place(torch.arange(tokens.shape[1]))
        return self.out(self.norm(self.blocks(x)))


def next_token(logits, tokens):
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


@dataclass
class Workload:
    """A model, its data, its batch, how long a run is, and flops of a sample where the products are not all."""

    model: nn.Module
    loss: Callable[[Any, Any], Tensor]
    x: Tensor
    y: Tensor
    batch: int
    steps: int
    flops: float | None = None


def workloads() -> dict[str, Workload]:
    torch.manual_seed(0)
    sparse = torch.zeros(1000, 6)
    sparse[torch.arange(1000), torch.randint(6, (1000,))] = torch.rand(1000)
    deep = nn.Sequential(*(nn.Linear(16, 16, bias=False) for _ in range(4)))
    mlp = nn.Sequential(*(m for a, b in pairwise((64, 128, 128, 10)) for m in (nn.Linear(a, b), nn.ReLU())))[:-1]
    small, large = torch.randint(0, 128, (512, 64)), torch.randint(0, 512, (512, 64))
    return {
        # 120 flops of products and 30 of bias, relu and loss
        "W1": Workload(Superposition(), nn.MSELoss(), sparse, sparse, 128, 2000, 150.0),
        "W2": Workload(deep, nn.MSELoss(), torch.randn(4096, 16), torch.randn(4096, 16), 256, 100),
        "W3": Workload(mlp, nn.CrossEntropyLoss(), torch.rand(1797, 64), torch.randint(0, 10, (1797,)), 256, 20),
        "W4": Workload(Transformer(128, 64, 64, False), next_token, small, small, 16, 5),
        "W4b": Workload(Transformer(512, 128, 64, True), next_token, large, large, 16, 3),
    }


def assert_equal(w: Workload, program: Any) -> Tensor:
    """The engine's loss and gradient are autograd's in float64; returns the parameters."""
    index = torch.arange(min(w.batch, len(w.x)))
    state = {n: p.detach().double().requires_grad_() for n, p in w.model.named_parameters()}
    x, y = (t[index].double() if t.is_floating_point() else t[index] for t in (w.x, w.y))
    loss = w.loss(torch.func.functional_call(w.model, state, (x,)), y)
    expected = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(state.values()))])
    start = torch.cat([p.detach().reshape(-1) for p in state.values()])
    losses, gradient = program.gradient(start.float(), index)
    assert abs(float(losses.mean()) - float(loss.detach())) <= 1e-5 * abs(float(loss.detach()))
    assert float((gradient - expected).norm()) <= 1e-5 * float(expected.norm())
    return start.float()


def cpu_seconds(run: Callable[[], object]) -> float:
    begin = time.process_time()
    run()
    return time.process_time() - begin


def peak() -> float:
    """Flops a second of one core, with the instruction set in use."""
    return max(_cpu.multiply_adds(300_000) / cpu_seconds(lambda: _cpu.multiply_adds(300_000)) for _ in range(3))


def sampler(program: Any, start: Tensor, w: Workload, chains: int, batches: Any, threads: int = 1) -> NativeRun:
    rates = {"lr": np.full(chains, 1e-6), "localization": np.ones(chains), "nbeta": np.full(chains, 100.0)}
    return NativeRun(
        program, draws=max(1, w.steps // 10), burn_in=w.steps % 10, thin=10, center=start, batches=batches,
        batch_size=w.batch, threads=threads, baseline=program.losses(start), **rates,
    )  # fmt: skip


def floor(w: Workload, repeats: int) -> None:
    """Eager forward and backward of one chain, batch by batch."""
    for _ in range(repeats):
        index = torch.randint(0, len(w.x), (w.batch,))
        w.model.zero_grad()
        w.loss(w.model(w.x[index]), w.y[index]).backward()


def measure(name: str, w: Workload, chains: int, batches: str, rounds: int) -> dict[str, float]:
    capture(w.model, w.loss, w.x, w.y)
    begin = time.perf_counter()
    program = capture(w.model, w.loss, w.x, w.y)
    captured = time.perf_counter() - begin
    start = assert_equal(w, program)
    repeats = 50 if w.batch >= 128 else 5
    seconds: dict[str, list[float]] = {"native": [], "floor": [], "peak": []}
    for turn in range(rounds + 1):
        run = sampler(program, start, w, chains, batches)
        native = cpu_seconds(run.finish) / (run.steps * chains)
        floors = cpu_seconds(lambda: floor(w, repeats)) / repeats
        if turn:
            seconds["native"].append(native)
            seconds["floor"].append(floors)
            seconds["peak"].append(peak())
    middle = {k: statistics.median(v) for k, v in seconds.items()}
    samples = len(w.x) if batches == "full" else w.batch
    flops = samples * (w.flops or 2.0 * program.description.multiply_adds)
    row = {
        "us": 1e6 * middle["native"], "floor_us": 1e6 * middle["floor"], "gflops": 1e-9 * flops / middle["native"],
        "peak_gflops": 1e-9 * middle["peak"], "capture_s": captured,
        # The products alone, at peak: their share of our time, and the most that any engine could win over the floor.
        "products_share": flops / middle["peak"] / middle["native"],
        "bound": middle["floor"] / (flops / middle["peak"]),
    }  # fmt: skip
    against = (
        ""
        if batches == "full"
        else f"   floor / native {row['floor_us'] / row['us']:7.2f} of at most {row['bound']:.2f}"
    )
    print(
        f"{name:4} {batches:12} {chains:3} chains  {row['us']:10.2f} us  {row['gflops']:6.1f} GF/s ="
        f" {100 * row['gflops'] / row['peak_gflops']:3.0f} % of peak{against}   capture {captured:.3f} s",
        flush=True,
    )
    return row


def scaling(name: str, w: Workload, rounds: int) -> dict[str, float]:
    """Wall time of 32 chains on one thread over two; shortest runs, since the second core is seldom all ours."""
    program = capture(w.model, w.loss, w.x, w.y)
    start = assert_equal(w, program)
    longer = replace(w, steps=3 * w.steps)
    runs = {str(k): (lambda k=k: sampler(program, start, longer, 32, "independent", k).finish()) for k in (1, 2)}
    seconds = harness.race(runs, 2 * rounds)
    ratio = min(seconds["1"]) / min(seconds["2"])
    print(f"{name:4} 2 threads over 1, 32 chains: {ratio:.2f}x", flush=True)
    return {"speedup": ratio}


MANY = (32, 256, 1024, 4096)


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def many(name: str, w: Workload, steps: int, rounds: int) -> dict[str, Any]:
    """CPU time of a step of one chain, and memory of a chain, among more and more chains; whole runs, built anew."""
    program = capture(w.model, w.loss, w.x, w.y)
    start, few = assert_equal(w, program), replace(w, steps=steps)
    seconds: dict[int, list[float]] = {chains: [] for chains in MANY}
    memory = 0
    for turn in range(rounds + 1):
        for chains in reversed(MANY):  # the largest first, before freed memory is used again
            before = resident_bytes()
            began = time.process_time()
            run = sampler(program, start, few, chains, "independent").finish()
            spent = time.process_time() - began
            memory = memory or resident_bytes() - before
            if turn:
                seconds[chains].append(spent / (run.steps * chains))
    us = {str(chains): 1e6 * statistics.median(times) for chains, times in seconds.items()}
    print(f"{name:4} us of a chain and step: " + ", ".join(f"{t:.3g} ({c} chains)" for c, t in us.items()), flush=True)
    return {
        "us": us, "steps": steps, "parameters": program.dim, "bytes a chain": memory / MANY[-1],
        "bytes expected": 4 * program.dim + 32 * max(1, steps // 10) + 40,  # w, a draw's four numbers, the settings
    }  # fmt: skip


def pieces(
    program: Program, start: torch.Tensor, rows: int, layout: int, chains: int
) -> tuple[Callable[[], None], ...]:
    """Forward and gradient of one chain over the first ``rows`` samples, and the update of ``chains``, each alone."""
    data, alive = program.data(torch.float32)
    index, losses = torch.arange(rows, dtype=torch.int32), torch.zeros(rows, dtype=torch.float64)
    g, w, dim = torch.zeros(program.dim), start.repeat(chains, 1), program.dim
    rates = [np.full(chains, v) for v in (1e-7, 1.0, 10.0)]

    def walk(address: int) -> None:
        program.native.pass_f32(layout, start.data_ptr(), data, index.data_ptr(), rows, address, losses.data_ptr())
        assert alive is not None  # holds the memory of `data`

    def update() -> None:
        _cpu.sgld_step_f32(
            w.data_ptr(), dim, start.data_ptr(), 0, 0, 0, chains, [(0, dim, g.data_ptr(), 0)],
            *(r.ctypes.data for r in rates), 0, 0, 0, True, 0, 0, 1,
        )  # fmt: skip

    return lambda: walk(0), lambda: walk(g.data_ptr()), update


def parts(w: Workload, rounds: int) -> dict[str, float]:
    """What a step of a deep linear network is made of, us: passes over all samples at once, cut to a batch's share.

    ``products at peak`` is the multiply-adds of loss and gradient at the rate of `peak`; ``rest`` is what a step takes
    beyond gradient and update: gathering, batch words, clearing and adding up sums, the trace.
    """
    program = capture(w.model, w.loss, w.x, w.y)
    start = assert_equal(w, program)
    chains, repeats = 32, 50
    forward, gradient, update = pieces(program, start, len(w.x), program.native.layout(0), chains)
    share = w.batch / len(w.x)
    products = program.description.multiply_adds - w.model[0].weight.numel()  # nobody asks for the inputs' gradient
    found: dict[str, list[float]] = {"forward": [], "gradient": [], "update": [], "step": [], "products at peak": []}
    for turn in range(rounds + 1):
        run = sampler(program, start, w, chains, "independent")
        each = {
            "forward": share * cpu_seconds(lambda: [forward() for _ in range(20)]) / 20,
            "gradient": share * cpu_seconds(lambda: [gradient() for _ in range(20)]) / 20,
            "update": cpu_seconds(lambda: [update() for _ in range(repeats)]) / (repeats * chains),
            "step": cpu_seconds(run.finish) / (chains * run.steps),
            "products at peak": 2.0 * w.batch * products / peak(),
        }
        for name, seconds in each.items():
            if turn:
                found[name].append(1e6 * seconds)
    us = {name: statistics.median(values) for name, values in found.items()}
    us["backward"] = us["gradient"] - us["forward"]
    us["rest"] = us["step"] - us["gradient"] - us["update"]
    print("W2   us of a step: " + ", ".join(f"{name} {t:.2f}" for name, t in us.items()), flush=True)
    return us


MOVED = 32  # bytes of a parameter and step: read forward and back, its gradient three times, the update's three


def large(rounds: int) -> dict[str, float]:
    """What a step of 10 M parameters on 8 rows is made of, ms, and what moving its bytes takes at a copy's speed."""
    w = big_mlp()
    program = capture(w.model, w.loss, w.x, w.y, batch=w.batch)
    start = torch.cat([p.detach().reshape(-1) for p in w.model.parameters()])
    forward, gradient, update = pieces(program, start, w.batch, 0, 1)
    spare = torch.zeros_like(start)
    rates = {"lr": np.full(1, 1e-7), "localization": np.ones(1), "nbeta": np.full(1, 10.0)}

    def step(thin: int) -> NativeRun:
        settings = {"draws": 20 // thin, "burn_in": thin - 1, "thin": thin, "center": start, "batch_size": w.batch}
        return NativeRun(program, **settings, **rates).finish()

    runs = {
        "forward": forward, "gradient": gradient, "update": update,
        "step": lambda: step(10), "step of a recorded draw": lambda: step(1), "copy": lambda: spare.copy_(start),
    }  # fmt: skip
    middle = harness.medians(harness.race(runs, rounds, clock=time.process_time))
    ms = {name: 1e3 * t / (20 if name.startswith("step") else 1) for name, t in middle.items()}
    ms["bytes at a copy's speed"] = ms.pop("copy") * MOVED / 8
    ms["backward"] = ms["gradient"] - ms["forward"]
    ms["rest"] = ms["step"] - ms["gradient"] - ms["update"]
    print("W5   ms of a step: " + ", ".join(f"{name} {t:.1f}" for name, t in ms.items()), flush=True)
    return ms


def peers() -> None:
    for peer in ("devinterp", "jax"):
        if importlib.util.find_spec(peer) is None:
            print(f"{peer}: not installed here, not raced")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=[])
    parser.add_argument("--chains", nargs="+", type=int, default=[4, 32])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--only-many", action="store_true", help="only the cost of up to 4,096 chains of W1 and W3, and the parts of W2"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = {}
    for name, w in workloads().items():
        if options.names and name not in options.names:
            continue
        if name in ("W1", "W3"):
            rows[f"{name} many"] = many(name, w, 200 if name == "W1" else 4, options.rounds)
        if name == "W2":
            rows["W2 parts"] = parts(w, options.rounds)
        if options.only_many:
            continue
        for batches in ("independent", "shared", "full") if name == "W1" else ("independent",):
            for chains in options.chains:
                rows[f"{name} {batches} {chains}"] = measure(name, w, chains, batches, options.rounds)
        if name in ("W1", "W3"):
            rows[f"{name} threads"] = scaling(name, w, options.rounds)
    if not options.names or "W5" in options.names:
        rows["W5 parts"] = large(options.rounds)
    peers()
    harness.record("engine", rows)


if __name__ == "__main__":
    main()
