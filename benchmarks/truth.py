"""Estimates against known learning coefficients: ``python benchmarks/truth.py [--part NAME] [--nets N]``.

Scored as the field's benchmark is (Hitchcock, Hoogland 2025, arXiv 2507.21449): relative error, share of pairs ranked
rightly (among those whose true values differ by a tenth), failures; and here whether an error bar holds what it
promises, and whether a failure says so. Nets that a rule was chosen on have seeds below 1,000; those scored here not.

Parts: "default" (nothing set but nbeta), "minibatch" (the default on 100,000 samples, HMC barred), "coverage" (many
seeds against exact finite-n values), "samplers" (each at three step sizes).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from itertools import combinations
from typing import Any

import numpy as np
import torch
from harness import record
from truth_systems import NBETA, System, crossing, deep_linear, random_deep_linear, regular, superposition

import devinterp_fast as dif
from devinterp_fast.sampling.prepare import prepare
from devinterp_fast.sampling.samplers import Sampler

HELD_OUT = 1000  # first seed of the scored nets
SAMPLES = 100_000
STEPS = (0.02, 0.1, 0.5)  # over the stiffness
REDUCED_RANK = ([6, 6, 6], 3), ([8, 4, 8], 2), ([5, 7, 6], 3), ([10, 10, 10], 2), ([12, 5, 4], 1)


def run(system: System, seed: int = 0, **settings: Any) -> dict[str, Any]:
    began = time.perf_counter()
    llc = dif.estimate_llc(system.model, system.loss, system.data, nbeta=NBETA, seed=seed, progress=False, **settings)
    return {
        "system": system.name, "family": system.family, "parameters": system.dim, "lambda": system.coefficient,
        "m": system.multiplicity, "target": system.target, "target from": system.kind, "value": llc.value,
        "mcse": llc.mcse, "rhat": llc.rhat, "step bias": llc.step_bias, "sampler": llc.settings["sampler"],
        "warnings": list(llc.warnings), "verdict": llc.verdict, "seconds": time.perf_counter() - began,
    }  # fmt: skip


def attempt(system: System, seed: int = 0, **settings: Any) -> dict[str, Any]:
    """A run; where all chains diverged, a row that says so."""
    try:
        return run(system, seed, **settings)
    except dif.errors.NumericalError as error:
        return {
            "system": system.name, "family": system.family, "lambda": system.coefficient, "target": system.target,
            "value": float("nan"), "mcse": float("nan"), "warnings": [str(error)], "seconds": 0.0,
        }  # fmt: skip


def score(rows: list[dict[str, Any]], against: str = "target") -> dict[str, Any]:
    truth, value = (np.array([row[key] for row in rows]) for key in (against, "value"))
    error = np.abs(value / truth - 1)
    ok = np.isfinite(value)
    pairs = [
        (value[i] < value[j]) == (truth[i] < truth[j])
        for i, j in combinations(np.flatnonzero(ok), 2)
        if max(truth[i], truth[j]) > 1.1 * min(truth[i], truth[j])
    ]
    off = (error > 0.2) | ~ok
    silent = [row["system"] for row, bad in zip(rows, off, strict=True) if bad and not row["warnings"]]
    return {
        "runs": len(rows),
        "median relative error": float(np.median(error[ok])) if ok.any() else None,
        "90th percentile": float(np.quantile(error[ok], 0.9)) if ok.any() else None,
        "median signed": float(np.median((value / truth - 1)[ok])) if ok.any() else None,
        "order preserved": float(np.mean(pairs)) if pairs else None,
        "failures": int(off.sum()),
        "failures unreported": len(silent),
        "longest, seconds": float(max(row["seconds"] for row in rows)),
    }


def show(title: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    result = {"against the target": score(rows), "against lambda": score(rows, "lambda")}
    print(title, result["against the target"], "| lambda:", result["against lambda"], flush=True)
    return result


def report(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    kept = []
    for row in rows:
        kept.append(row)
        print(
            f"  {row['system']:<40} lambda {row['lambda']:8.2f} target {row['target']:8.2f} "
            f"value {row['value']:8.2f} ± {row['mcse']:.2f} ({100 * (row['value'] / row['target'] - 1):+.1f} %) "
            f"{row.get('sampler', '')} {row['seconds']:.1f} s {row['warnings']}",
            flush=True,
        )
    return kept


def default(nets: int) -> None:
    """Nothing set but nbeta."""
    families: dict[str, list[System]] = {
        "regular": [regular(d, d) for d in (2, 4, 16, 64)],
        "normal crossings": [crossing(p) for p in ([1, 1], [1, 1, 1], [1, 2], [2, 2], [2, 3])],
        "reduced rank": [
            deep_linear(w, r, HELD_OUT + i, family="reduced rank") for i, (w, r) in enumerate(REDUCED_RANK)
        ],
        "random deep linear": [random_deep_linear(HELD_OUT + i) for i in range(nets)],
        "superposition": [superposition(name) for name in ("5-", "5+", "6")],
    }
    results = {}
    for family, systems in families.items():
        rows = report(run(system) for system in systems)
        results[family] = {**show(family, rows), "rows": rows}
    record("truth", {"default": results})


def minibatch(nets: int) -> None:
    rows = report(run(random_deep_linear(HELD_OUT + i, SAMPLES), sampler="sgnht") for i in range(nets))
    record("truth", {"minibatch": {**show("minibatches", rows), "rows": rows}})


def coverage(nets: int) -> None:
    """The 95 % interval against exact finite-n values, over seeds."""
    systems = [regular(d, d) for d in (2, 4, 16)] + [crossing(p) for p in ([1, 1], [1, 1, 1])]
    found = {}
    for system in systems:
        rows = [run(system, seed) for seed in range(nets)]
        z = np.array([(row["value"] - row["target"]) / row["mcse"] for row in rows])
        found[system.name] = {
            "runs": len(z), "covered": float((np.abs(z) < 1.96).mean()), "mean z": float(z.mean()),
            "sd z": float(z.std()),
        }  # fmt: skip
        print(system.name, found[system.name], flush=True)
    all_runs = sum(row["runs"] for row in found.values())
    covered = sum(row["runs"] * row["covered"] for row in found.values()) / all_runs
    print("coverage", covered, "of", all_runs)
    record("truth", {"coverage": {"systems": found, "covered": covered, "runs": all_runs}})


def samplers(nets: int) -> None:
    """Each sampler at three step sizes, 4,000 steps of burn-in and 4,000 draws of 8 chains (HMC: a tenth, of 16)."""
    results = {}
    for name in ("sgld", "rmsprop_sgld", "adam_sgld", "sghmc", "sgnht", "mala", "hmc"):
        corrected = name in ("mala", "hmc")
        count = 400 if name == "hmc" else 4000
        for step in STEPS:
            rows = []
            for i in range(nets):
                system = random_deep_linear(HELD_OUT + i, None if corrected else SAMPLES)
                auto = prepare(system.model, system.loss, system.data, nbeta=NBETA, draws=1)
                metric = 0.1 if name in ("rmsprop_sgld", "adam_sgld") else 1.0  # the metric is 1 / epsilon at w0
                lr = step / 0.2 * float(auto.settings.lr[0]) * metric
                rows.append(attempt(system, lr=lr, sampler=Sampler(name), draws=count, burn_in=count))
            results[f"{name} {step:g}"] = show(f"{name} {step:g}", rows)
    record("truth", {"samplers": results})


PARTS = {"default": (default, 40), "minibatch": (minibatch, 20), "coverage": (coverage, 40), "samplers": (samplers, 8)}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--nets", type=int)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    for part in chosen.part or PARTS:
        call, count = PARTS[part]
        call(chosen.nets or count)
