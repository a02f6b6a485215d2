"""Rows of `devinterp-fast watch digits` against the known transitions, over ten seeds.

Run: python benchmarks/stages_digits.py [FOLDER]        (half a minute a seed; FOLDER/digits-SEED is read if finished)

A true transition is the rise of a singular value of the outputs on held-out images. Rows and transitions are matched
one to one, in the 10-90 window or within 10 % of the midpoint (`devinterp_fast.transitions.score`).
"""

from __future__ import annotations

import sys

from harness import record

from devinterp_fast.watch import watch

SEEDS = range(4, 14)


def main() -> None:
    """Prints and records rows, hits and known transitions of each seed."""
    folder = sys.argv[1] if len(sys.argv) > 1 else "runs"
    rows: dict[str, object] = {}
    for seed in SEEDS:
        run = watch("digits", seed=seed, out=f"{folder}/digits-{seed}")
        hits = sum(row["marker"] is not None for row in run.rows)
        rows[f"seed {seed}"] = {"hits": hits, "known": len(run.truth), "rows": len(run.rows)}
        print(f"seed {seed}: {run.verdict}", flush=True)
    record("stages_digits", rows)


if __name__ == "__main__":
    main()
