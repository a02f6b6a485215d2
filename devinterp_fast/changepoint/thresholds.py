r"""Thresholds for a requested average run length (ARL), by Monte Carlo.

Let r(h) be the rate, per update, at which one channel without any change first reaches the level h. Alarms of M
independent channels are nearly a Poisson process of rate M r(h), so the mean number of updates to the first one is

    ARL(h) = 1 / (M r(h)),    hence    h = r^{-1}(1 / (M ARL)).

The statistics are pivotal for white Gaussian noise of known scale, hence r depends on the model and the grid alone.
It is tabulated from the largest statistics of simulated null channels; beyond the table its logarithm continues as a
straight line of slope -1/2, the exponent of a chi-square tail. Where a scale was estimated, `inflated` raises h.

The table is made by ``python -m devinterp_fast.changepoint.thresholds``.
"""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path

import numpy as np

from devinterp_fast import _cpu

__all__ = ["inflated", "simulate", "threshold"]

MODELS = ("mean", "kink", "jump+kink", "meanvar")
PER_OCTAVE = 4
_TABLE = Path(__file__).with_name("thresholds.json")
_STEPS, _CHANNELS = 2048, 8192


@cache
def _table() -> dict[str, dict[str, list[float]]]:
    tables: dict[str, dict[str, list[float]]] = json.loads(_TABLE.read_text())["tables"]
    return tables


def _key(model: str, side: str) -> str:
    return model if side == "both" or model in ("jump+kink", "meanvar") else f"{model}, one side"


def threshold(arl: float, *, channels: int = 1, model: str = "kink", side: str = "both") -> float:
    """Level of one channel's statistic at which ``channels`` quiet ones alarm once in ``arl`` updates on average.

    Args:
        arl: mean number of updates to a false alarm, over all channels.
        channels: how many independent channels are watched.
        model: ``"mean"``, ``"kink"``, ``"jump+kink"`` or ``"meanvar"``.
        side: ``"both"``, or ``"rise"`` or ``"fall"`` (mean and kink).

    Raises:
        ValueError: ``arl`` is not above 1, ``channels`` not positive, or ``model`` is unknown.

    Source:
        Siegmund, Venkatraman (1995), Annals of Statistics 23(1), for the exponential run length.

    Example:
        >>> threshold(1e5) < threshold(1e5, channels=1000)
        True
    """
    if not arl > 1 or math.isinf(arl):
        raise ValueError(f"arl: expected a finite number above 1, got {arl}")
    if channels < 1:
        raise ValueError(f"channels: expected a positive number, got {channels}")
    if model not in MODELS:
        raise ValueError(f"model: expected one of {', '.join(MODELS)}, got {model}")
    row = _table()[_key(model, side)]
    wanted = -math.log(arl) - math.log(channels)
    levels, rates = np.array(row["level"]), np.array(row["log_rate"])
    if wanted < rates[-1]:
        return float(levels[-1] + 2 * (rates[-1] - wanted))
    return float(np.interp(-wanted, -rates, levels))


def inflated(level: float, variance: float) -> float:
    """Raises a level for a scale that was estimated.

    A statistic that is divided by q, an estimate of 1 with variance v, exceeds h at a rate proportional to
    E exp(-h q / 2) ~ exp(-h / 2 + h^2 v / 8). So h - h^2 v / 4 must equal the level of a known scale:
    h = 2 (1 - sqrt(1 - v level)) / v. Where v level > 1 there is none; twice the level is the limit.

    Args:
        level: for a known scale.
        variance: relative variance v of the estimated noise variance.
    """
    if variance <= 0:
        return level
    return 2 * (1 - math.sqrt(max(1 - variance * level, 0))) / variance if variance * level < 1 else 2 * level


def simulate(model: str, side: str, rounds: int, seed: int) -> tuple[list[float], list[float]]:
    """Rates of first crossing of a rising row of levels, from ``rounds`` x 8192 null channels of 2048 steps.

    Returns:
        levels, and the logarithm of the rate per update: -log(1 - F(h)) / steps, F of the largest statistic.
    """
    generator = np.random.default_rng([seed, MODELS.index(model), ("both", "rise").index(side)])
    largest = []
    for _ in range(rounds):
        test = _cpu.GlrDetector(_CHANNELS, MODELS.index(model), PER_OCTAVE, int(side == "rise"), math.inf, 0.0, False)
        top = np.zeros(_CHANNELS, dtype=np.float32)
        for start in range(0, _STEPS, 32):
            y = generator.standard_normal((32, _CHANNELS), dtype=np.float32)
            test.update(np.arange(start, start + 32, dtype=np.float64), y, None, None, 1)
            np.maximum(top, test.peak, out=top)
        largest.append(top)
    values = np.sort(np.concatenate(largest))
    levels, rates = [], []
    for rate in 10.0 ** np.arange(-1.5, -9, -0.25):
        quiet = math.exp(-rate * _STEPS)
        exceed = -math.expm1(-rate * _STEPS) * values.size
        if quiet * values.size >= 100 and exceed >= 50:  # 14 % of the rarest rate: 0.3 of the level
            levels.append(round(float(np.quantile(values, quiet)), 3))
            rates.append(round(math.log(rate), 4))
    return levels, rates


def main(rounds: int = 24, seed: int = 0) -> None:
    """Writes the table."""
    tables = {}
    for model in MODELS:
        for side in ("both", "rise") if model in ("mean", "kink") else ("both",):
            level, rate = simulate(model, side, rounds if model != "meanvar" else max(rounds // 12, 1), seed)
            tables[_key(model, side)] = {"level": level, "log_rate": rate}
            print(f"{_key(model, side):16} {len(level)} levels, {level[0]:.2f} to {level[-1]:.2f}", flush=True)
    made = {"per_octave": PER_OCTAVE, "steps": _STEPS, "channels": _CHANNELS * rounds, "seed": seed}
    _TABLE.write_text(json.dumps({"made with": made, "tables": tables}, indent=1) + "\n")


if __name__ == "__main__":
    main()
