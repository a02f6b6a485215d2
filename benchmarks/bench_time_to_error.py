"""Time to a standard error of 5 % of the LLC: devinterp 1.3.2 at its best step, ours at its best, and ours untuned.

    python benchmarks/bench_time_to_error.py [W1 W2 W3]

All sample the same posterior, one thread. "Best" is what a hand that knows the answer would set: of a grid of steps
those whose value lies within 5 % of the reference (a long run of ours, HMC where it can be had), and of these the one
that takes the fewest steps, burn-in and draws together, of 4 chains. The burn-in ends where the mean of 32 chains has
come within 5 % of where it stays; the number of draws follows from the standard error of a long run. devinterp's SGLD
makes our steps (``bench_peers.py`` asserts it), so its step is found by our engine and its time measured by
running it with what was found. "Untuned": nothing set but nbeta and localization.
"""

from __future__ import annotations

import math
import statistics
import sys
import time

import numpy as np
import torch
import workloads
from bench_peers import theirs, w2
from harness import record
from torch.utils.data import DataLoader, TensorDataset

import devinterp_fast as dif
from devinterp_fast.sampling import defaults
from devinterp_fast.sampling.diagnostics import diagnose
from devinterp_fast.sampling.prepare import prepare
from devinterp_fast.sampling.samplers import Sampler

BARS = {"W1": 50, "W2": 20, "W3": 8}
ERROR, BIAS = 0.05, 0.05  # of the value
STEPS = (0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)  # over the stiffness at the center
CHAINS, PILOTS, ROUNDS = 4, 32, 5
LENGTH = {"W1": 12_000, "W2": 4_000, "W3": 600}  # steps of the pilots


def ours(w, **settings):
    """An estimate of the workload's posterior."""
    common = {"batch_size": w.batch, "progress": False} | {k: w.settings[k] for k in ("nbeta", "localization")}
    return dif.estimate_llc(w.model, w.loss, (w.x, w.y), **(common | settings))


def tuned(w, sampler, reference):
    """Settings of the run of fewest steps that meets both limits; None if no step of the grid does."""
    pull, nbeta = w.settings["localization"], w.settings["nbeta"]
    auto = prepare(w.model, w.loss, (w.x, w.y), nbeta=nbeta, localization=pull, draws=1)
    stiffness = defaults.STEP / float(auto.settings.lr[0])
    found = None
    for step in STEPS:
        length = LENGTH[w.name]
        try:
            pilot = ours(w, lr=step / stiffness, sampler=sampler, chains=PILOTS, draws=length, burn_in=0, seed=1)
        except dif.errors.NumericalError:
            continue
        if pilot.diverged:
            continue
        scaled = pilot.trace["llc"].values
        late = scaled[:, length // 2 :]
        value, error = late.mean(), diagnose(late).mcse
        print(f"  {sampler.name} {step:g}: {value:.3f} ± {error:.3f}", flush=True)
        if abs(value / reference - 1) > BIAS:
            continue
        window = max(1, length // 600)
        curve = np.convolve(scaled.mean(0), np.ones(window) / window, "valid")
        burn_in = window + int(np.argmax(curve >= (1 - ERROR) * value))
        draws = math.ceil(late.size * (error / (ERROR * value)) ** 2 / CHAINS)
        if found is None or burn_in + draws < found["burn_in"] + found["draws"]:
            found = {"lr": step / stiffness, "sampler": sampler, "burn_in": burn_in, "draws": max(draws, 16)}
    return found


def clocked(run, rounds=ROUNDS):
    """Median wall seconds over seeds, since each finds its own burn-in, and the last answer."""
    seconds = []
    for seed in range(rounds):
        began = time.perf_counter()
        answer = run(seed)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds), answer


def measure(w):
    # HMC's burn-in follows its own rules; of W3 a long, small-stepped SGLD on minibatches is what can be had.
    if w.name == "W3":
        reference = ours(w, lr=4e-5, chains=16, draws=1500, burn_in=1000)
        value = reference.value - reference.step_bias
    else:
        reference = ours(w, sampler="hmc", chains=16, mcse=0.01)
        value = reference.value
    print(w.name, "reference", value, reference.mcse, reference.settings["sampler"], reference.warnings, flush=True)
    sgld = tuned(w, Sampler("sgld"), value)
    if sgld is None:
        raise RuntimeError(f"{w.name}: no step of the grid meets the reference")
    options = [sgld, *(tuned(w, Sampler("sgnht", friction=f), value) for f in (0.1, 0.3))]
    best = min((o for o in options if o is not None), key=lambda o: o["burn_in"] + o["draws"])
    loader = DataLoader(TensorDataset(w.x, w.y), batch_size=w.batch, shuffle=True)
    with torch.no_grad():
        init_loss = float(w.loss(w.model(w.x), w.y))
    w.settings = w.settings | {"lr": sgld["lr"]}
    peer, answer = clocked(lambda seed: theirs_for(w, loader, init_loss, sgld), 1)
    theirs_draws = w.settings["nbeta"] * (
        np.asarray(answer["loss/trace"], dtype=float)[:, sgld["burn_in"] :] - init_loss
    )
    row = {
        "reference": {"llc": value, "mcse": reference.mcse, "sampler": reference.settings["sampler"]},
        "devinterp 1.3.2": {
            "seconds": peer, "llc": float(theirs_draws.mean()), "mcse": diagnose(theirs_draws).mcse,
            "sampler": "SGLD", **{k: sgld[k] for k in ("lr", "burn_in", "draws")},
        },
    }  # fmt: skip
    for name, settings in (
        ("same step", {**sgld, "chains": CHAINS}),
        ("best", {**best, "chains": CHAINS}),
        ("untuned", {}),
    ):
        seconds, llc = clocked(lambda seed, settings=settings: ours(w, seed=seed, **settings))
        row[name] = {
            "seconds": seconds, "llc": llc.value, "mcse": llc.mcse, "sampler": llc.settings["sampler"],
            "lr": llc.settings["lr"][0], "burn_in": llc.settings["burn_in"], "draws": llc.trace.sizes["draw"],
            "faster": peer / seconds,
        }  # fmt: skip
    for name, each in row.items():
        print(" ", name, each, flush=True)
    return row


def theirs_for(w, loader, init_loss, sgld):
    return theirs(w, loader, init_loss, sgld["draws"], CHAINS, burn_in=sgld["burn_in"])


if __name__ == "__main__":
    torch.set_num_threads(1)

    def deep():
        w = w2()  # at localization 1 SGLD would need a million steps to where its posterior lies
        w.settings = w.settings | {"localization": 100.0}
        return w

    for name, make in {"W1": workloads.w1, "W2": deep, "W3": workloads.w3}.items():
        if not sys.argv[1:] or name in sys.argv[1:]:
            row = measure(make())
            record("time_to_error", {name: row})
            print(f"{name}: {row['best']['faster']:.0f}x, at least {BARS[name]}x wanted", flush=True)
