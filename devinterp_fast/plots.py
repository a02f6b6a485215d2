"""Figures of runs and estimates. Needs matplotlib: ``pip install 'devinterp-fast[demo]'``."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from devinterp_fast.curvature.density import SpectralDensity
from devinterp_fast.curvature.eigen import Eigen
from devinterp_fast.errors import MissingExtraError, ShapeError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, BAND, ACCENT, TRUTH = "#1f2937", "#9ca3af", "#fde68a", "#b91c1c", "#2563eb"
_LINES = ("#1f2937", "#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#17becf")


def matplotlib(module: str) -> Any:
    """A module of matplotlib, which only plots import.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        return importlib.import_module(f"matplotlib.{module}")
    except ImportError as error:
        raise MissingExtraError("plots need matplotlib: pip install 'devinterp-fast[demo]'") from error


def _figure(rows: int, height: float) -> tuple[Figure, list[Axes]]:
    Figure = matplotlib("figure").Figure
    figure = Figure(figsize=(9.0, height), layout="constrained", dpi=120)
    axes = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(colors=INK, labelsize=8)
        ax.grid(True, color="#f3f4f6", linewidth=0.8)
    return figure, list(axes)


def _curve(trace: xr.Dataset, name: str) -> tuple[Any, Any, Any]:
    value = trace[name].values
    error = trace[f"{name}_se"].values if f"{name}_se" in trace else np.full_like(value, np.nan)
    seen = ~np.isnan(value)
    return trace["step"].values[seen], value[seen], error[seen]


def _bands(ax: Axes, rows: Sequence[Mapping[str, Any]], truth: Sequence[Any]) -> None:
    """Stages as bands from onset to end, a number at each midpoint's top; known midpoints as blue ticks below."""
    for i, row in enumerate(rows, 1):
        ax.axvspan(row["onset"], row["end"], color=BAND, alpha=0.45, linewidth=0)
        ax.axvline(row["alarm"], color=ACCENT, linewidth=0.8, linestyle=":")
        ax.text(
            row["midpoint"], 1.01, str(i), transform=ax.get_xaxis_transform(), ha="center", va="bottom", fontsize=8,
            color=ACCENT,
        )  # fmt: skip
    for marker in truth:
        ax.plot(
            [marker["midpoint"]] * 2, [0.0, 0.045], transform=ax.get_xaxis_transform(), color=TRUTH, linewidth=2.0,
            solid_capstyle="butt",
        )  # fmt: skip


def run_figure(
    trace: xr.Dataset,
    rows: Sequence[Mapping[str, Any]],
    truth: Sequence[Mapping[str, Any]],
    panels: Mapping[str, Sequence[str]],
    *,
    start: float = 0.0,
) -> Figure:
    """Curves of a run above each other, with the detected stages and the known ones.

    Args:
        trace: one variable for each channel, over ``step``, as ``Monitor.trace``.
        rows: transitions as dicts with onset, midpoint, end, alarm.
        truth: known transitions as dicts with midpoint.
        panels: {title: channels drawn in it}.
        start: first step shown. The axis is linear in the step, as the detector's clock is.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure, axes = _figure(len(panels), 2.1 * len(panels) + 0.6)
    for ax, (title, names) in zip(axes, panels.items(), strict=True):
        _bands(ax, rows, truth)
        for i, name in enumerate(names):
            step, value, error = _curve(trace, name)
            shown = step >= start
            label = name.rsplit(" ", 1)[-1] if len(names) > 1 else None
            color = _LINES[i % len(_LINES)]
            if np.isfinite(error).any():
                _estimates(ax, trace, name, step[shown], value[shown], error[shown])
            else:
                ax.plot(step[shown], value[shown], color=color, linewidth=1.3, label=label)
        if len(names) > 1:
            ax.legend(fontsize=7, ncols=min(len(names), 5), frameon=False, loc="best")
        ax.set_ylabel(title, fontsize=9, color=INK)
    figure.align_ylabels(axes)
    axes[-1].set_xlabel("training step", fontsize=9, color=INK)
    axes[-1].set_xlim(start, float(trace["step"].values.max()))
    return figure


def _estimates(ax: Axes, trace: xr.Dataset, name: str, step: Any, value: Any, error: Any) -> None:
    """A curve with error bars of two standard errors; hollow where the weights were no local minimum."""
    escaped = np.zeros(len(step), dtype=bool)
    if f"{name}_escaped" in trace:
        escaped = trace[f"{name}_escaped"].sel(step=step).values == 1.0
    for which, face in ((~escaped, INK), (escaped, "white")):
        ax.errorbar(
            step[which], value[which], yerr=2 * error[which], fmt="o", markersize=3.5, markerfacecolor=face,
            markeredgecolor=INK, ecolor=MUTED, elinewidth=0.9,
        )  # fmt: skip
    ax.plot(step, value, color=MUTED, linewidth=0.8, zorder=0)
    inside = value[~escaped] if (~escaped).any() else value
    if len(inside):
        low, high = float(np.min(inside)), float(np.max(inside))
        room = 0.15 * max(high - low, 1e-9)
        ax.set_ylim(min(low - room, 0.0), high + room)


_FLOOR = 0.1  # eigenvalues per unit: where there are fewer, nothing is drawn


def density_figure(density: SpectralDensity, *, width: float | None = None) -> Figure:
    """A spectral density with its confidence band, as eigenvalues per unit of the matrix, on a logarithmic scale.

    Args:
        density: of one checkpoint.
        width: of the smoothing, as in ``SpectralDensity.curve``.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ShapeError: it is a stack of checkpoints.
    """
    curve = density.curve(width)
    figure, (ax,) = _figure(1, 3.2)
    count, lower, upper = (np.asarray(y) * density.dim for y in (curve.density, curve.lower, curve.upper))
    ax.fill_between(curve.x, np.maximum(lower, _FLOOR), upper, color=BAND, linewidth=0)
    ax.plot(curve.x, count, color=INK, linewidth=1.2)
    ax.set_yscale("log")
    ax.set_ylim(bottom=_FLOOR * min(1.0, float(count.max())), top=2 * float(upper.max()))
    ax.set_xlabel("eigenvalue", fontsize=9, color=INK)
    ax.set_ylabel("eigenvalues per unit", fontsize=9, color=INK)
    return figure


def eigenvalue_figure(steps: Sequence[float], eigen: Eigen) -> Figure:
    """Eigenvalues over training, one line for each rank, with their error bounds where these can be seen.

    Args:
        steps: of the checkpoints.
        eigen: of a stack of as many checkpoints.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ShapeError: the numbers of steps and checkpoints differ.
    """
    values, bounds = np.asarray(eigen.values), np.asarray(eigen.bounds)
    if values.ndim != 2 or len(values) != len(steps):
        raise ShapeError(f"eigen: expected the eigenvalues of {len(steps)} checkpoints, got shape {values.shape}")
    figure, (ax,) = _figure(1, 3.2)
    for i in range(values.shape[1]):
        ax.fill_between(steps, values[:, i] - bounds[:, i], values[:, i] + bounds[:, i], color=BAND, linewidth=0)
        ax.plot(steps, values[:, i], color=INK if i == 0 else MUTED, linewidth=1.3 if i == 0 else 0.9)
    ax.set_xlabel("training step", fontsize=9, color=INK)
    ax.set_ylabel("eigenvalues", fontsize=9, color=INK)
    return figure


def escape_figure(steps: Sequence[float], loss: Sequence[float], kappa: Sequence[float]) -> Figure:
    """A loss above its escape indicator, with the spells in which the indicator is negative.

    Args:
        steps: of the observations.
        loss: at each.
        kappa: at each, as ``escape(...).value``.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure, (above, below) = _figure(2, 4.2)
    x, value = np.asarray(steps, dtype=float), np.asarray(kappa)
    negative = np.concatenate([[False], value < 0, [False]])
    edges = np.flatnonzero(negative[1:] != negative[:-1]).reshape(-1, 2)
    for ax, y in ((above, np.asarray(loss)), (below, value)):
        for first, end in edges:
            ax.axvspan(x[first], x[min(end, len(x) - 1)], color=BAND, alpha=0.45, linewidth=0)
        ax.plot(x, y, color=INK, linewidth=1.3)
    below.axhline(0, color=MUTED, linewidth=0.8)
    above.set_ylabel("loss", fontsize=9, color=INK)
    below.set_ylabel("kappa", fontsize=9, color=INK)
    below.set_xlabel("training step", fontsize=9, color=INK)
    return figure
