"""Whole chains against the established package and against JAX: us for one step of one chain, 32 chains, one thread.

    python benchmarks/bench_peers.py [W1 W2 W3]

Needs ``devinterp==1.3.2`` and ``jax``; one that is absent is named and left out. JAX runs ``jit(scan(vmap))`` with a
minibatch of its own for each chain, compiled before the clock starts; its compile time stands beside. All run the same
settings from the same weights; before the clock starts their LLC estimates are asserted equal within 5 of their joint
standard errors over chains. Contestants take turns; medians of process CPU time, which a busy machine stretches less.
"""

from __future__ import annotations

import importlib.util
import math
import os
import statistics
import sys
import time

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
# JAX's own pool would otherwise take both cores.
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

import harness
import numpy as np
import torch
import workloads
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import devinterp_fast as dif

CHAINS, ROUNDS = 32, 5
BARS = {"W1": {"devinterp 1.3.2": 800, "jax": 15}, "W2": {"jax": 5}, "W3": {"devinterp 1.3.2": 6, "jax": 2.2}}


def w2() -> workloads.Workload:
    """Deep linear network of four 16 x 16 layers, batch 256 of 4,096: 1,024 parameters."""
    g = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(16, 16, bias=False) for _ in range(4)))
    x = torch.randn(4096, 16, generator=g)
    with torch.no_grad():
        y = model(x)  # the weights are a minimum: the loss there is 0
    settings = {"lr": 2e-5, "localization": 1.0, "nbeta": 500.0}
    return workloads.Workload("W2", model, nn.MSELoss(), x, y, 256, settings, draws=40, check_draws=400)


def forward(name, jnp, jax):
    """The workload's mean loss as a JAX function of (parameters, x, y)."""

    def superposition(p, x, y):
        return jnp.mean((jax.nn.relu(x @ p[0].T @ p[0] + p[1]) - y) ** 2)

    def linear(p, x, y):
        for w in p:
            x = x @ w.T
        return jnp.mean((x - y) ** 2)

    def mlp(p, x, y):
        for i in range(0, 6, 2):
            x = x @ p[i].T + p[i + 1]
            x = jax.nn.relu(x) if i < 4 else x
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(x), y[:, None], 1))

    return {"W1": superposition, "W2": linear, "W3": mlp}[name]


def jax_sampler(w):
    """Returns run(seed, steps) -> losses (steps, chains), compiled for that many steps on its first call."""
    import jax
    import jax.numpy as jnp

    loss = forward(w.name, jnp, jax)
    x, y = jnp.asarray(w.x.numpy()), jnp.asarray(w.y.numpy())
    center = [jnp.asarray(p.detach().numpy()) for p in w.model.parameters()]
    lr, pull, nbeta = (w.settings[k] for k in ("lr", "localization", "nbeta"))

    def one(state, key):
        batch, noise = jax.random.split(key)
        rows = jax.random.randint(batch, (w.batch,), 0, len(x))
        value, grads = jax.value_and_grad(loss)(state, x[rows], y[rows])
        keys = jax.random.split(noise, len(state))
        moved = [
            p - lr / 2 * (nbeta * g + pull * (p - c)) + math.sqrt(lr) * jax.random.normal(k, p.shape)
            for p, g, c, k in zip(state, grads, center, keys, strict=True)
        ]
        return moved, value

    def run(seed, steps):
        start = [jnp.broadcast_to(p, (CHAINS, *p.shape)) for p in center]

        def step(state, t):
            keys = jax.random.split(jax.random.fold_in(jax.random.PRNGKey(seed), t), CHAINS)
            return jax.vmap(one)(state, keys)

        return jax.lax.scan(step, start, jnp.arange(steps))[1]

    compiled = jax.jit(run, static_argnums=1)
    return lambda seed, steps: np.asarray(compiled(seed, steps))


def ours(w, steps, thin=1):
    return dif.estimate_llc(
        w.model, w.loss, (w.x, w.y), chains=CHAINS, draws=steps // thin, thin=thin, burn_in=0, batch_size=w.batch,
        progress=False, backend="native", **w.settings,
    )  # fmt: skip


def theirs(w, loader, init_loss, draws, chains, burn_in=0):
    from devinterp.optim.sgld import SGLD
    from devinterp.slt.sampler import estimate_learning_coeff_with_summary

    return estimate_learning_coeff_with_summary(
        w.model, loader, evaluate=lambda model, batch: w.loss(model(batch[0]), batch[1]), sampling_method=SGLD,
        optimizer_kwargs=dict(w.settings), num_draws=draws, num_chains=chains, num_burnin_steps=burn_in,
        init_loss=init_loss, device="cpu", seed=0, verbose=False,
    )  # fmt: skip


def agree(name, a, b):
    """Two sets of per-chain estimates of the same quantity, within 5 of their joint standard errors."""
    error = math.hypot(np.std(a, ddof=1) / math.sqrt(len(a)), np.std(b, ddof=1) / math.sqrt(len(b)))
    assert abs(np.mean(a) - np.mean(b)) < 5 * error + 1e-3, (name, np.mean(a), np.mean(b), error)


def cpu(run):
    start = time.process_time()
    run()
    return time.process_time() - start


def measure(w):
    with torch.no_grad():
        init_loss = float(w.loss(w.model(w.x), w.y))
    mine = ours(w, w.check_draws).per_chain
    # Steps of each contestant in a round: enough of ours that its fixed costs, some 15 ms, do not count.
    steps = {"devinterp_fast": w.draws * (100 if w.name == "W1" else 20), "jax": w.draws * 4}
    runs = {"devinterp_fast": lambda: ours(w, steps["devinterp_fast"], thin=10)}
    row = {}
    if importlib.util.find_spec("jax"):
        sampler = jax_sampler(w)
        losses = sampler(0, w.check_draws)
        agree(f"{w.name} jax", mine, w.settings["nbeta"] * (losses.mean(0) - init_loss))
        start = time.perf_counter()
        sampler(0, steps["jax"])
        first = time.perf_counter() - start
        runs["jax"] = lambda: sampler(1, steps["jax"])
        row["jax first call, s"] = first
    else:
        print("jax: not installed here, not raced")
    if importlib.util.find_spec("devinterp"):
        loader = DataLoader(TensorDataset(w.x, w.y), batch_size=w.batch, shuffle=True)
        few = 8
        other = theirs(w, loader, init_loss, w.check_draws, few)
        agree(f"{w.name} devinterp", mine, [other[f"llc-chain/{c}"] for c in range(few)])
        steps["devinterp 1.3.2"] = max(w.draws // 5, 8)
        runs["devinterp 1.3.2"] = lambda: theirs(w, loader, init_loss, steps["devinterp 1.3.2"], CHAINS)
    else:
        print("devinterp: not installed here, not raced")
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(ROUNDS + 1):
        for name, run in runs.items():
            each = cpu(run) / (CHAINS * steps[name])
            if turn:
                seconds[name].append(each)
    row["us per chain and step"] = {name: 1e6 * statistics.median(times) for name, times in seconds.items()}
    row["over devinterp_fast"] = harness.ratios(seconds, "devinterp_fast")
    print(w.name, row, flush=True)
    return row


if __name__ == "__main__":
    torch.set_num_threads(1)
    made = {"W1": workloads.w1, "W2": w2, "W3": workloads.w3}
    rows = {name: measure(make()) for name, make in made.items() if not sys.argv[1:] or name in sys.argv[1:]}
    harness.record("peers", rows)
    for name, row in rows.items():
        for peer, bar in BARS[name].items():
            got = row["over devinterp_fast"].get(peer)
            print(f"{name} against {peer}: {'not raced' if got is None else f'{got:.1f}x'}, at least {bar}x wanted")
