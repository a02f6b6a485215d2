"""Curvature against the established packages: top-10 eigenvalues, spectral density, empirical Fisher, one thread.

    python benchmarks/bench_curvature.py [W3 W4 W5 W3:fisher ...]

W3: the MLP on digits of the other tables. W4: a two-layer attention-only transformer, 53 k parameters, 32 sequences of
64 tokens. W5: ten million parameters, ours alone: time and peak memory. Contestants take turns in one process; medians
of process CPU time, which a busy machine stretches less, and of the ratios within a round. Each starts from the model:
making the operator counts. Before the clock starts, who is off by more than 1e-3 of an eigenvalue of a run at tol=1e-5
is left out; ours may not be. The longest task, the density of W4, takes about four minutes.

Needs ``curvlinops-for-pytorch`` and ``hessian-eigenthings``, and ``pyhessian`` (install it with ``--no-deps``); one
that is absent is named and left out. PyHessian calls ``torch.eig``, which torch no longer has: a shim stands in.
"""

from __future__ import annotations

import importlib
import math
import resource
import subprocess
import sys
import time
import warnings

import harness
import numpy as np
import torch
import workloads
from torch import Tensor, nn

import devinterp_fast as dif

K, PROBES, STEPS, ROUNDS = 10, 10, 30, 5


class AttentionOnly(nn.Module):
    """Tokens (B, T) -> logits (B, vocabulary, T), causal; the peers need its softmax written out."""

    def __init__(self, vocabulary=128, length=64, width=64, heads=4, layers=2):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Parameter(0.1 * torch.randn(length, width))
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width, bias=False) for _ in range(layers))
        self.out = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(layers))
        self.read = nn.Linear(width, vocabulary, bias=False)
        self.heads = heads
        self.register_buffer("later", torch.ones(length, length).triu(1).bool(), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.places
        for qkv, out in zip(self.qkv, self.out, strict=True):
            q, k, v = (z.unflatten(-1, (self.heads, -1)).transpose(1, 2) for z in qkv(x).chunk(3, -1))
            scores = (q @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
            mixed = scores.masked_fill(self.later, -math.inf).softmax(-1) @ v
            x = x + out(mixed.transpose(1, 2).flatten(-2))
        return self.read(x).transpose(1, 2)


def w4() -> workloads.Workload:
    torch.manual_seed(0)
    model, tokens = AttentionOnly(), torch.randint(128, (32, 65))
    x, y = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    loss, optimizer = nn.CrossEntropyLoss(), torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    return workloads.Workload("W4", model, loss, x, y, 32, {}, 0, 0)


def found(name: str):
    """A peer, or None with a word about it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        print(f"{name} is left out: {error}")
        return None


def eig(matrix, eigenvectors):
    """What torch.eig was, for a symmetric matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return torch.stack([values, torch.zeros_like(values)], 1), vectors


curvlinops, eigenthings, pyhessian = (found(name) for name in ("curvlinops", "hessian_eigenthings", "pyhessian"))
if pyhessian is not None and not hasattr(torch, "eig"):
    torch.eig = eig
elif pyhessian is not None:
    torch.eig = eig  # the name is there and raises


def fast(values) -> np.ndarray:
    return np.sort(np.abs(np.asarray(values, dtype=np.float64)))[::-1][:K]


def eigen_contestants(w, k=K):
    from scipy.sparse.linalg import eigsh

    arguments = (w.model, w.loss, (w.x, w.y))
    out = {
        "devinterp_fast": lambda: dif.eigsh(dif.hessian(*arguments), k).values,
        "devinterp_fast, torch engine": lambda: dif.eigsh(dif.hessian(*arguments, backend="torch"), k).values,
    }
    if curvlinops is not None:

        def theirs():
            H = curvlinops.HessianLinearOperator(
                w.model, w.loss, list(w.model.parameters()), [(w.x, w.y)], check_deterministic=False
            )
            return eigsh(H.to_scipy(), k=k, which="LM", tol=1e-3, return_eigenvectors=False)

        out["curvlinops + eigsh"] = theirs
    if eigenthings is not None:
        for steps in (2 * k, 4 * k):  # its default, and where that is not accurate the double

            def others(steps=steps):
                H = eigenthings.HessianOperator(w.model, [(w.x, w.y)], eigenthings.supervised_loss(w.loss))
                return eigenthings.lanczos(H, k=k, max_iter=steps, tol=1e-3, seed=0).eigenvalues

            out[f"hessian-eigenthings, {steps} steps"] = others
    return out


def density_contestants(w):
    arguments = (w.model, w.loss, (w.x, w.y))

    def ours(backend):
        return dif.spectral_density(dif.hessian(*arguments, backend=backend), probes=PROBES, steps=STEPS).nodes

    out = {"devinterp_fast": lambda: ours("auto"), "devinterp_fast, torch engine": lambda: ours("torch")}
    if curvlinops is not None and w.name == "W3":  # not the fastest peer, and a minute a run on W4
        top = float(dif.eigsh(dif.hessian(*arguments), 1, which="LA").values[0])
        low = float(dif.eigsh(dif.hessian(*arguments), 1, which="SA").values[0])

        def theirs():
            H = curvlinops.HessianLinearOperator(
                w.model, w.loss, list(w.model.parameters()), [(w.x, w.y)], check_deterministic=False
            )
            return curvlinops.lanczos_approximate_spectrum(H, STEPS, num_repeats=PROBES, boundaries=(low, top))[0]

        out["curvlinops"] = theirs
    if eigenthings is not None:

        def others():
            H = eigenthings.HessianOperator(w.model, [(w.x, w.y)], eigenthings.supervised_loss(w.loss))
            return eigenthings.spectral_density(H, num_runs=PROBES, lanczos_steps=STEPS, seed=0).raw_eigenvalues

        out["hessian-eigenthings"] = others
    if pyhessian is not None:

        def shimmed():
            H = pyhessian.hessian(w.model, w.loss, data=(w.x, w.y), cuda=False)
            return torch.tensor(H.density(iter=STEPS, n_v=PROBES)[0])

        out["pyhessian, with a shim"] = shimmed
    return out


def fisher_contestants(w):
    from scipy.sparse.linalg import eigsh

    arguments = (w.model, w.loss, (w.x, w.y))
    out = {
        "devinterp_fast": lambda: dif.eigsh(dif.fisher(*arguments), K).values,
        "devinterp_fast, torch engine": lambda: dif.eigsh(dif.fisher(*arguments, backend="torch"), K).values,
    }
    if curvlinops is not None:

        def theirs():
            F = curvlinops.EFLinearOperator(
                w.model, w.loss, list(w.model.parameters()), [(w.x, w.y)], check_deterministic=False
            )
            return eigsh(F.to_scipy(), k=K, which="LM", tol=1e-3, return_eigenvectors=False)

        out["curvlinops + eigsh"] = theirs
    return out


def timed(contestants):
    seconds = harness.race(contestants, ROUNDS, warmup=0, clock=time.process_time)  # the check was the warm-up
    of = harness.ratios(seconds, "devinterp_fast")
    return {"ms": {k: 1e3 * v for k, v in harness.medians(seconds).items()}, "over devinterp_fast": of}


def checked(contestants, exact, keep_inexact=()):
    """Leaves out whose values are off by more than 1e-3 of themselves; ours may not be."""
    errors = {}
    for name, run in contestants.items():
        errors[name] = float(np.max(np.abs(fast(run()) / exact - 1)))
        assert errors[name] < 1e-3 or not name.startswith("devinterp_fast"), (name, errors[name])
    return {k: v for k, v in contestants.items() if errors[k] < 1e-3 or k in keep_inexact}, errors


def eigenvalues(w):
    arguments = (w.model, w.loss, (w.x, w.y))
    exact = fast(dif.eigsh(dif.hessian(*arguments), K + 4, tol=1e-5, matvecs=600).values)
    contestants, errors = checked(eigen_contestants(w), exact)
    if f"hessian-eigenthings, {2 * K} steps" in contestants:
        contestants.pop(f"hessian-eigenthings, {4 * K} steps", None)
    found_by_us = dif.eigsh(dif.hessian(*arguments), K)
    about = {"products": found_by_us.matvecs[0], "engine": found_by_us.engine, "largest relative error": errors}
    return timed(contestants) | about


def density(w):
    top = float(dif.eigsh(dif.hessian(w.model, w.loss, (w.x, w.y)), 1, which="LA").values[0])
    contestants = density_contestants(w)
    for name, run in contestants.items():
        node = float(run().max())  # every probe's largest node is the largest eigenvalue; curvlinops gives a grid
        assert name == "curvlinops" or abs(node / top - 1) < 1e-3, (name, node, top)
    return timed(contestants)


def fisher(w):
    exact = fast(dif.eigsh(dif.fisher(w.model, w.loss, (w.x, w.y)), K + 4, tol=1e-5, matvecs=600).values)
    contestants, errors = checked(fisher_contestants(w), exact)
    return timed(contestants) | {"largest relative error": errors}


def stack(w):
    """Eight checkpoints in one call against the same eight one by one: products, and eigenvalues to the same bits.

    One checkpoint alone would be no measure of eight: each asks for its own number of products.
    """
    arguments = (w.model, w.loss, (w.x, w.y))
    row = torch.cat([p.detach().reshape(-1) for p in w.model.parameters()])
    rows = row * (1 + 1e-3 * torch.arange(8)[:, None])
    eight = dif.hessian(*arguments, checkpoints=rows)
    each = [dif.hessian(*arguments, checkpoints=rows[c : c + 1]) for c in range(8)]
    v = torch.ones(8, eight.dim)
    together, alone = dif.eigsh(eight, K), [dif.eigsh(one, K) for one in each]
    assert torch.equal(together.values, torch.cat([one.values for one in alone]))
    contestants = {
        "alone": lambda: [one @ v[:1] for one in each], "together": lambda: eight @ v,
        "alone, eigenvalues": lambda: [dif.eigsh(one, K) for one in each],
        "together, eigenvalues": lambda: dif.eigsh(eight, K),
    }  # fmt: skip
    seconds = harness.race(contestants, ROUNDS, clock=time.process_time)
    products, values = (harness.ratios(seconds, f"alone{what}")[f"together{what}"] for what in ("", ", eigenvalues"))
    return {
        "eight over eight times one": products,
        "eight over eight times one, eigenvalues": values,
        "products": together.matvecs,
    }


TASKS = {"eigenvalues": eigenvalues, "density": density, "fisher": fisher, "stack": stack}


def large() -> dict[str, float]:
    """Ten million parameters in a process of its own, whose peak memory is its own."""
    w = workloads.w5()
    torch.set_num_threads(2)
    start = time.perf_counter()
    found = dif.eigsh(dif.hessian(w.model, w.loss, (w.x, w.y)), K)
    seconds = time.perf_counter() - start
    assert not found.warnings, found.warnings
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "parameters": sum(p.numel() for p in w.model.parameters()), "seconds": seconds, "peak GiB": peak,
        "products": found.matvecs[0], "engine": found.engine, "threads": 2, "tol": 1e-3,
    }  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if sys.argv[1:] == ["large"]:
        harness.record("curvature", {"W5": large()})
        return
    for name in sys.argv[1:] or ("W5", "W3", "W4"):
        if name == "W5":
            subprocess.run([sys.executable, __file__, "large"], check=True)
            continue
        workload, _, task = name.partition(":")
        w = {"W3": workloads.w3, "W4": w4}[workload]()
        for what in [task] if task else TASKS:
            row = TASKS[what](w)
            harness.record("curvature", {f"{workload} {what}": row})
            print(workload, what, row, flush=True)


if __name__ == "__main__":
    main()
