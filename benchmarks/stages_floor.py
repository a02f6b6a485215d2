"""How far the planted steps of the LLC-like curves are from any curve that only slows down: what no test can beat.

Run: python benchmarks/stages_floor.py        (seconds)

A rising metric without a transition is concave in linear step. For each group of transitions the noise-free curve, from
the midpoint of the group before to that of the group after, is compared with the concave curve nearest to it. Their
distance in standard errors is the signal-to-noise ratio of the best test there is, one that knows shape and time. An
alarm asks for 5.
"""

from __future__ import annotations

import numpy as np
from harness import record
from scipy.optimize import nnls
from stages_score import grouped
from stages_systems import SPECTRA, Array, clocks, llc_like, mode, mode_time

ERROR = 0.175  # mean of the standard errors of these curves


def distance(steps: Array, values: Array) -> float:
    """Root sum of squares of values less their nearest concave curve: a line less a sum of rising hinges."""
    x = (steps - steps[0]) / (steps[-1] - steps[0])
    hinges = np.maximum(x[:, None] - x[None, 1:-1], 0)
    design = np.column_stack([np.ones_like(x), -np.ones_like(x), x, -x, -hinges])
    return float(nnls(design, values, maxiter=20 * design.shape[1])[1])


def main() -> None:
    """Prints and records the distances of the half that defaults were chosen on."""
    first: list[float] = []
    later: list[float] = []
    for i, spectrum in enumerate(SPECTRA):
        for j, a0 in enumerate((1e-2, 1e-3, 1e-4)):
            if (i + j) % 2:
                continue
            clock = ("log200", "log400", "linear")[(i + 2 * j) % 3]
            steps = clocks(1.5 * mode_time(min(spectrum), a0, 0.95 * min(spectrum)))[clock]
            rank = len(spectrum)
            values = np.sum([(rank - k - 0.5) * mode(s, a0, steps) / s for k, s in enumerate(spectrum)], axis=0)
            groups = grouped(llc_like(spectrum, a0, clock, np.random.default_rng(0)).truths)
            for k in range(len(groups)):
                start = groups[k - 1][-1].t50 if k else 10.0
                end = groups[k + 1][0].t50 if k + 1 < len(groups) else steps[-1]
                inside = (steps >= start) & (steps <= end)
                (later if k else first).append(distance(steps[inside], values[inside]) / ERROR)
    print("first", np.round(first, 1), "later", np.round(later, 1))
    record(
        "stages_floor",
        {"first": len(first), "later": len(later), "least first": min(first), "largest later": max(later)},
    )


if __name__ == "__main__":
    main()
