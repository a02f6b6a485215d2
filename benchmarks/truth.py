"""Estimates against known learning coefficients: ``python benchmarks/truth.py [--part NAME] [--nets N]``.

Scored as the field's benchmark is (Hitchcock, Hoogland 2025, arXiv 2507.21449): relative error, share of pairs ranked
rightly (among those whose true values differ by a tenth), failures; and here whether an error bar holds what it
promises, and whether a failure says so. Nets that a rule was chosen on have seeds below 1,000; those scored here not.

Parts: "default" (nothing set but nbeta), "minibatch" (the default on 100,000 samples, HMC barred), "coverage" (many
seeds against exact finite-n values), "samplers" (each at three step sizes), "saddles" (no minimum: is it said?).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import torch
from harness import RESULTS, record
from truth_systems import NBETA, System, crossing, deep_linear, random_deep_linear, regular, saddle, superposition

import devinterp_fast as dif
from devinterp_fast.sampling import defaults
from devinterp_fast.sampling.prepare import prepare
from devinterp_fast.sampling.samplers import KINDS, PRECONDITIONED, Sampler

HELD_OUT = 1000  # first seed of the scored nets
SAMPLES = 100_000
STEPS = (0.02, 0.1, 0.5)  # over the stiffness
EPSILON = 1e-3  # of the preconditioned samplers' metric: below the gradients met, or they are plain SGLD
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


class Rows:
    """The rows of one part, written after each: a run that was stopped goes on where it was."""

    def __init__(self, part: str, fresh: bool):
        path = RESULTS / "truth.json"
        known = json.loads(path.read_text()) if path.exists() and not fresh else {}
        self.part, self.rows = part, known.get(part, {}).get("rows", {})

    def add(self, group: str, name: str, call: Callable[[], dict[str, Any]]) -> None:
        rows = self.rows.setdefault(group, {})
        if name in rows:
            return
        row = rows[name] = call()
        scores = {key: scored(list(found.values())) for key, found in self.rows.items()}
        record("truth", {self.part: {"scores": scores, "rows": self.rows}})
        print(
            f"{group:<20} {name:<36} lambda {row['lambda']:8.2f} target {row['target']:8.2f} value {row['value']:8.2f} "
            f"± {row['mcse']:.2f} ({100 * (row['value'] / row['target'] - 1):+.1f} %) {row.get('sampler', '')} "
            f"{row['seconds']:.1f} s {row['warnings']}",
            flush=True,
        )

    def close(self) -> None:
        for key, found in self.rows.items():
            print(key, scored(list(found.values())))


def scored(rows: list[dict[str, Any]]) -> dict[str, Any]:
    if rows[0]["family"] == "saddle":
        told = [row["verdict"] == "not a local minimum at this temperature" and bool(row["warnings"]) for row in rows]
        return {"runs": len(rows), "recognized": sum(told), "longest, seconds": max(row["seconds"] for row in rows)}
    z = np.array([(row["value"] - row["target"]) / row["mcse"] if row["mcse"] > 0 else np.nan for row in rows])
    covered = float((np.abs(z) < 1.96).mean())
    return {
        "target": score(rows),
        "lambda": score(rows, "lambda"),
        "covered": covered,
        "mean z": float(np.nanmean(z)) if np.isfinite(z).any() else None,
    }


def default(rows: Rows, nets: int) -> None:
    """Nothing set but nbeta."""
    for d in (2, 4, 16, 64):
        rows.add("regular", f"d={d}", lambda d=d: run(regular(d, d)))
    for powers in ([1, 1], [1, 1, 1], [1, 1, 1, 1], [1, 2], [2, 2], [1, 3], [2, 3], [1, 1, 2]):
        rows.add("normal crossings", f"{powers}", lambda powers=powers: run(crossing(powers)))
    for i, (widths, rank) in enumerate(REDUCED_RANK):
        system = deep_linear(widths, rank, HELD_OUT + i, family="reduced rank")
        rows.add("reduced rank", system.name, lambda system=system: run(system))
    for name in ("5-", "5+", "6"):
        rows.add("superposition", name, lambda name=name: run(superposition(name)))
    for i in range(nets):
        system = random_deep_linear(HELD_OUT + i)
        rows.add("random deep linear", system.name, lambda system=system: run(system))


def minibatch(rows: Rows, nets: int) -> None:
    for i in range(nets):
        system = random_deep_linear(HELD_OUT + i, SAMPLES)
        rows.add("minibatches", system.name, lambda system=system: run(system, sampler="sgnht"))


def coverage(rows: Rows, nets: int) -> None:
    """The 95 % interval against exact finite-n values, over seeds."""
    for k, system in enumerate(
        [regular(d, d) for d in (2, 4, 16)] + [crossing(p) for p in ([1, 1], [1, 1, 1], [1, 2])]
    ):
        for seed in range(1000 * k, 1000 * k + nets):  # one noise for each run: systems share none
            rows.add(system.name, f"seed {seed}", lambda system=system, seed=seed: run(system, seed))


def samplers(rows: Rows, nets: int) -> None:
    """Each sampler at three step sizes, 4,000 steps of burn-in and 4,000 draws of 8 chains (HMC: a tenth, of 16)."""
    for i in range(nets):
        full, sampled = (random_deep_linear(HELD_OUT + i, samples) for samples in (None, SAMPLES))
        auto = prepare(full.model, full.loss, full.data, nbeta=NBETA, draws=1)
        stiffness = defaults.STEP / float(auto.settings.lr[0])
        for name in KINDS:
            corrected = name in ("mala", "hmc")
            system, count = (full, 400 if name == "hmc" else 4000) if corrected else (sampled, 4000)
            # Where the stiffest direction's rms gradient is sqrt(stiffness) / nbeta, its metric is the inverse of this.
            metric = math.sqrt(stiffness) / NBETA + EPSILON if KINDS[name] == PRECONDITIONED else 1.0
            for step in STEPS:
                options = {"lr": step / stiffness * metric, "sampler": Sampler(name, epsilon=EPSILON)}
                options |= {"draws": count, "burn_in": count}
                rows.add(
                    f"{name} {step:g}", system.name, lambda system=system, options=options: attempt(system, **options)
                )


def saddles(rows: Rows, nets: int) -> None:
    """Nothing set but nbeta, and the minibatch sampler, at saddles."""
    for i in range(nets):
        system = saddle(HELD_OUT + i)
        rows.add("saddles, default", system.name, lambda system=system: run(system))
        rows.add("saddles, SGNHT", system.name, lambda system=system: run(system, sampler="sgnht"))


PARTS = {
    "default": (default, 40), "minibatch": (minibatch, 20), "coverage": (coverage, 40), "samplers": (samplers, 8),
    "saddles": (saddles, 20),
}  # fmt: skip

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--nets", type=int)
    parser.add_argument("--fresh", action="store_true", help="forget the rows of earlier runs")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    for part in chosen.part or PARTS:
        call, count = PARTS[part]
        rows = Rows(part, chosen.fresh)
        call(rows, chosen.nets or count)
        rows.close()
