"""A grid over step size, localization and temperature as one run: where the estimate is on a plateau, where not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from torch import nn

from devinterp_fast.sampling import defaults, jobs
from devinterp_fast.sampling.batches import as_data
from devinterp_fast.sampling.diagnostics import DOUBT, diagnose, leaving, lost_at, step_biases
from devinterp_fast.sampling.objective import LossFn
from devinterp_fast.sampling.observers import Observer, Probe
from devinterp_fast.sampling.prepare import Prepared, prepare
from devinterp_fast.sampling.proposals import Proposals
from devinterp_fast.sampling.run import Floats
from devinterp_fast.sampling.samplers import Sampler

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STEPS = (0.02, 0.06, 0.2, 0.6)
"""Step sizes of the default grid, over the stiffness nbeta h + localization."""

PULLS = (0.1, 1.0, 10.0, 100.0)
_BIAS = 0.05  # of the value
_RHAT = 1.1  # of few chains
_PROPOSALS = 20  # a chain
_PROPOSED = 4096  # samples


@dataclass(frozen=True)
class Sweep:
    """What a grid of settings gave.

    Attributes:
        table: dims (nbeta, localization, lr): ``llc``, ``mcse``, ``step_bias``, ``acceptance`` (of Metropolis steps of
            that size, see ``mala_acceptance``; of the sampler's own steps where it has accept-reject), ``rhat``,
            ``drift`` (second half less first, in standard errors), ``lost`` and ``escaped`` (shares of the chains).
        settings: what ``estimate_llc(..., **sweep.settings)`` takes: the weakest localization that keeps chains in the
            basin, and with it the largest step of a bias below 5 %.
        value: the estimate there, without its step bias.
        weaker: the estimate at the next weaker localization of the grid, NaN if there is none.
        warnings: what casts doubt, one sentence each.

    Units:
        None.
    """

    table: xr.Dataset = field(repr=False)
    settings: dict[str, Any]
    value: float
    weaker: float
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        chosen = ", ".join(f"{key}={value:.3g}" for key, value in self.settings.items() if isinstance(value, float))
        line = f"LLC {self.value:.3g} at {chosen} (at the next weaker localization {self.weaker:.3g})"
        return "\n  ! ".join([line, *self.warnings])

    def plot(self) -> Figure:
        """Draws maps over step size and localization: estimate, acceptance, R-hat, escapes; a row a temperature.

        On a plateau of the estimate neighbors have the same color; the cell of ``settings`` is framed.

        Returns:
            A matplotlib figure.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        from devinterp_fast.errors import MissingExtraError

        try:
            from matplotlib.figure import Figure as NewFigure
        except ImportError as error:
            raise MissingExtraError("plots need matplotlib: pip install 'devinterp-fast[demo]'") from error
        rows = self.table.sizes["nbeta"]
        figure = NewFigure(figsize=(14.0, 0.6 + 3.0 * rows), layout="constrained", dpi=120)
        every = figure.subplots(rows, len(_MAPS), squeeze=False, sharex=True, sharey=True)
        for axes, beta in zip(every, self.table["nbeta"].values, strict=True):
            for ax, (name, (title, colors, low, high)) in zip(axes, _MAPS.items(), strict=True):
                cells = self.table[name].sel(nbeta=beta).transpose("localization", "lr")
                _map(ax, cells, colors, low, high)
                ax.set_title(title + (f", nbeta {beta:.3g}" if rows > 1 else ""), fontsize=10)
                if math.isclose(beta, self.settings["nbeta"]):
                    x, y = (list(cells[dim].values).index(self.settings[dim]) for dim in ("lr", "localization"))
                    ax.plot(
                        x + np.array([-0.5, 0.5, 0.5, -0.5, -0.5]), y + np.array([-0.5, -0.5, 0.5, 0.5, -0.5]),
                        color="#b91c1c", linewidth=2.5,
                    )  # fmt: skip
            axes[0].set_ylabel("localization")
        for ax in every[-1]:
            ax.set_xlabel("lr")
        return figure


_MAPS = {
    "llc": ("LLC", "viridis", None, None),
    "acceptance": ("Metropolis acceptance", "RdYlGn", 0.0, 1.0),
    "rhat": ("R-hat", "RdYlGn_r", 1.0, 1.2),
    "escaped": ("escaped, share of chains", "RdYlGn_r", 0.0, 1.0),
}
"""What is drawn: {column of the table: title, colors, lowest and highest}."""


def _map(ax: Axes, cells: xr.DataArray, colors: str, low: float | None, high: float | None) -> None:
    """One map with its numbers; a cell where every chain was lost is gray."""
    image = ax.imshow(cells.values, origin="lower", aspect="auto", cmap=colors, vmin=low, vmax=high)
    ax.set_facecolor("#d1d5db")
    for axis, dim in ((ax.xaxis, "lr"), (ax.yaxis, "localization")):
        axis.set_ticks(range(cells.sizes[dim]), [f"{v:.3g}" for v in cells[dim].values], fontsize=8)
    for (y, x), value in np.ndenumerate(cells.values):
        text = "lost" if math.isnan(value) else f"{value:.3g}"
        red, green, blue, _ = image.to_rgba(value) if not math.isnan(value) else (1.0, 1.0, 1.0, 1.0)
        dark = 0.3 * red + 0.6 * green + 0.1 * blue < 0.5
        ax.text(x, y, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")


def calibrate(
    model: nn.Module,
    loss_fn: LossFn,
    data: object,
    *,
    lr: Sequence[float] | None = None,
    localization: Sequence[float] = PULLS,
    nbeta: Sequence[float] | None = None,
    chains: int = 4,
    draws: int = 400,
    burn_in: int | None = None,
    sampler: str | Sampler = "sgld",
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> Sweep:
    """Runs a grid of step sizes, localizations and temperatures at once and says which to use.

    Every cell of the grid is a few more chains of one run; cells are never pooled. On the plateau the estimate does not
    depend on lr; below it chains have not arrived, above it the step biases them. Nothing of this is needed where
    ``lr="auto"`` is left alone: it is there to look.

    Args:
        model: as in ``estimate_llc``.
        loss_fn: as in ``estimate_llc``.
        data: as in ``estimate_llc``.
        lr: step sizes; None is 0.02, 0.06, 0.2 and 0.6 over the largest curvature of the posterior.
        localization: pulls to the weights.
        nbeta: inverse temperatures times sample count; None is n / ln n.
        chains: of each cell.
        draws: of each chain.
        burn_in: steps before them; None is as many as draws.
        sampler: "sgld", or any other that a grid of lr is asked for.
        seed: names all noise.
        progress: show a bar on the terminal.
        options: further settings of ``estimate_llc``.

    Returns:
        A ``Sweep``.

    Raises:
        ValueError: a setting is out of range.

    Source:
        Lau et al. (2023), arXiv 2308.12108, for reading the LLC off a plateau in lr.
    """
    betas = None if nbeta is None else [float(b) for b in nbeta]
    pulls = sorted(float(p) for p in localization)
    if not pulls or (lr is not None and not len(lr)) or (betas is not None and not betas):
        raise ValueError("lr, localization, nbeta: expected at least one value of each, got an empty list")
    first = prepare(
        model, loss_fn, data, nbeta=None if betas is None else max(betas), localization=max(pulls), lr="auto", draws=1,
        burn_in=0, seed=seed, sampler=sampler, **options,
    )  # fmt: skip
    betas = [float(first.settings.nbeta[0])] if betas is None else sorted(betas)
    steps = [float(first.settings.lr[0]) * s / defaults.STEP for s in STEPS] if lr is None else sorted(map(float, lr))
    cells = [(b, p, s) for b in betas for p in pulls for s in steps]
    each = np.repeat(np.array(cells), chains, axis=0)
    options = {key: value for key, value in options.items() if key != "n"}  # nbeta is known by now
    prepared = prepare(
        model, loss_fn, data, chains=len(each), draws=draws, burn_in=draws if burn_in is None else burn_in,
        nbeta=each[:, 0].tolist(), localization=each[:, 1].tolist(), lr=each[:, 2].tolist(), sampler=sampler, seed=seed,
        **options,
    )  # fmt: skip
    asked = Proposals(prepared, _some(prepared), max(1, draws // _PROPOSALS))
    seeing: list[Observer] = [] if prepared.settings.sampler.corrected else [asked]
    trace, _ = jobs.run([prepared], "calibrate", progress=progress, observers=[seeing])[0]
    accepted = asked.probabilities if seeing else trace.gauge
    scaled = prepared.settings.nbeta[:, None] * (trace.loss - trace.baseline)
    biases = step_biases(trace, prepared.settings, scaled)
    moving = prepared.where.dim if prepared.mask is None else int(prepared.mask.sum())
    lost = lost_at(trace, prepared.settings, scaled, moving) >= 0
    rows = [
        _cell(scaled[i : i + chains], biases[i : i + chains], lost[i : i + chains], accepted[i : i + chains])
        for i in range(0, len(each), chains)
    ]  # fmt: skip
    shape = (len(betas), len(pulls), len(steps))
    dims = ("nbeta", "localization", "lr")
    table = xr.Dataset(
        {key: (dims, np.array([row[key] for row in rows]).reshape(shape)) for key in rows[0]},
        coords={"nbeta": betas, "localization": pulls, "lr": steps},
    )
    return _chosen(table, prepared, draws)


def _some(prepared: Prepared) -> Probe:
    """What acceptance is asked on: whole gradients would cost more than the grid where samples are many."""
    data = prepared.data
    return Probe(as_data(data.select(slice(0, _PROPOSED))) if data.n > _PROPOSED else data)


def _cell(scaled: Floats, biases: Floats, lost: npt.NDArray[np.bool_], accepted: Floats) -> dict[str, float]:
    kept = scaled[~lost]
    if not len(kept):
        nothing = dict.fromkeys(("llc", "mcse", "step_bias", "acceptance", "rhat", "drift", "escaped"), math.nan)
        return {**nothing, "lost": 1.0}
    doubt = diagnose(kept)
    below = kept.mean(1) < -DOUBT * kept.std(1) / math.sqrt(kept.shape[1])
    return {
        "llc": float(kept.mean()), "mcse": doubt.mcse, "step_bias": float(biases[~lost].mean()),
        "acceptance": float(np.nanmean(accepted[~lost])), "rhat": doubt.rhat, "drift": doubt.drift,
        "escaped": 1.0 if leaving(kept, doubt) else float(below.mean()), "lost": float(lost.mean()),
    }  # fmt: skip


def _chosen(table: xr.Dataset, prepared: Prepared, draws: int) -> Sweep:
    """The weakest localization with a usable step; of its usable steps the largest."""
    cells = table.isel(nbeta=0)
    bias = np.abs(cells["step_bias"]) <= _BIAS * np.abs(cells["llc"])
    stays = (cells["escaped"] == 0) & (cells["lost"] == 0)
    still = (np.abs(cells["drift"]) <= DOUBT) & ~(cells["rhat"] > _RHAT)
    warnings = []
    for usable, complaint in (
        (stays & still & bias, ""),
        (stays & bias, "at no setting have the chains settled; take more draws or a longer burn_in"),
        (stays, "at every step size that settles, the step biases the value; add smaller lr"),
        (
            cells["lost"] < 1,
            "not a local minimum at any setting of the grid, or every step too large; train further, add smaller lr "
            "or raise localization",
        ),
    ):
        places = np.argwhere(usable.transpose("localization", "lr").values)
        if len(places):
            warnings += [complaint] if complaint else []
            break
    else:
        raise ValueError("lr: expected a step size at which chains stay finite, got none in the grid")
    pull = int(places[:, 0].min())
    step = int(places[places[:, 0] == pull, 1].max())
    cell = cells.isel(localization=pull, lr=step)
    value = float(cell["llc"] - cell["step_bias"])
    weaker = math.nan
    if pull > 0:
        beside = cells.isel(localization=pull - 1, lr=step)
        weaker = float(beside["llc"] - beside["step_bias"])
    settings = {
        "lr": float(cell["lr"]), "localization": float(cell["localization"]), "nbeta": float(cell["nbeta"]),
        "burn_in": prepared.settings.burn_in, "draws": draws, "sampler": prepared.settings.sampler,
    }  # fmt: skip
    return Sweep(table, settings, value, weaker, tuple(warnings))
