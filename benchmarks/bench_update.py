"""The fused SGLD step on 4 chains of 10 M float32: against itself without noise, eager torch, and a memory copy.

Run with ``python -m pytest benchmarks/bench_update.py``.
"""

import math
import os
import statistics

# Torch's OpenMP threads spin for milliseconds after each of its operations, on the core that the next contestant needs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch
from harness import medians, race, ratios, record

from devinterp_fast import _native

CHAINS, DIM = 4, 10_000_000
LR, LOCALIZATION, NBETA = 1e-6, 2.0, 30.0


@pytest.fixture(scope="module")
def block():
    generator = torch.Generator().manual_seed(0)
    ld = -(-DIM // 32) * 32
    w, g = (torch.randn(CHAINS, ld, generator=generator)[:, :DIM] for _ in range(2))
    g = g.contiguous()
    center = torch.randn(DIM, generator=generator)
    settings = [torch.full((CHAINS,), x, dtype=torch.float64) for x in (LR, LOCALIZATION, NBETA)]
    return w, g, center, settings


def eager(w, g, center, buffer, noise=True):
    """The shortest in-place sequence we know: four passes, one buffer kept."""
    w.lerp_(center, LR / 2 * LOCALIZATION)
    w.add_(g, alpha=-LR / 2 * NBETA)
    if noise:
        w.add_(buffer.normal_(), alpha=math.sqrt(LR))


@pytest.mark.parametrize("threads", [1, 2])
def test_fused_step(benchmark, block, threads):
    benchmark.group = f"SGLD step, 4 x 10 M float32, {threads} thread(s)"
    w, g, center, (lr, localization, nbeta) = block
    buffer = torch.empty_like(w)
    torch.set_num_threads(threads)

    def step(number, noise=True):
        _native.sgld_step_(w, [g], center, lr, localization, nbeta, seed=0, step=number, noise=noise, threads=threads)

    # The answers first: drift equal to eager torch's, noise of the right size in every chain.
    before, by_torch = w.clone(), w.clone()
    step(0, noise=False)
    eager(by_torch, g, center, buffer, noise=False)
    torch.testing.assert_close(w, by_torch, rtol=2**-22, atol=2**-22)
    plain = w.clone()
    w.copy_(before)
    step(0)
    spread = (w - plain).double().std(1) / math.sqrt(LR)
    # The noise of 1e-3 sits on weights of order 1, whose float32 grid is 6e-8 wide: relative error below 1e-4.
    assert ((spread - 1).abs() < 5 / math.sqrt(2 * DIM) + 1e-4).all()

    seconds = race(
        {
            "fused": lambda: step(1),
            "fused, no noise": lambda: step(1, noise=False),
            "torch eager": lambda: eager(w, g, center, buffer),
            "copy": lambda: buffer.copy_(g),
        },
        rounds=9,
    )
    benchmark.pedantic(step, args=(2,), rounds=3)
    times, of = medians(seconds), ratios(seconds, "fused")
    noise_cost = statistics.median(a / b for a, b in zip(seconds["fused"], seconds["fused, no noise"], strict=True))
    row = {
        "ns per element": {name: t / (CHAINS * DIM) * 1e9 for name, t in times.items()},
        "fused over no noise": noise_cost,
        "torch eager over fused": of["torch eager"],
        "fused over copy": 1 / of["copy"],
    }
    benchmark.extra_info.update(row)
    record("update", {f"threads {threads}": row})
    torch.set_num_threads(1)
    assert noise_cost <= (2.0 if threads == 1 else 1.6)
    assert of["torch eager"] >= 6.0
