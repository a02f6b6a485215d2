"""What is measured of a model while it trains."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from devinterp_fast.changepoint.channel import Channel
from devinterp_fast.errors import NumericalError
from devinterp_fast.estimators.llc import LLC, estimate_llc
from devinterp_fast.monitor.schedule import Schedule
from devinterp_fast.sampling import defaults
from devinterp_fast.sampling.batches import as_data
from devinterp_fast.sampling.objective import LossFn, Objective

_SHORT: dict[str, Any] = {"progress": False, "draws": defaults.DRAWS, "burn_in": defaults.DRAWS // 2}
"""Beside a training run an estimate is short, and of stated cost, unless ``llc`` says otherwise."""

Value = float | tuple[float, float]
"""A number, or a number and its standard error."""


@dataclass(frozen=True)
class Observable:
    """A measurement that gives one value for each of its channels.

    Attributes:
        measure: model, step -> {channel: value or (value, standard error)}; without side effects.
        channels: how each curve is read.
        schedule: when it is measured.
        draws: filled by ``measure`` with arrays to keep for this step (an LLC's trace).
        folder: where in the run folder they are kept.
        keeps_last: only those of the newest observation are kept, and a resumed run finds them in ``draws`` again.
    """

    measure: Callable[[nn.Module, int], Mapping[str, Value]]
    channels: Mapping[str, Channel]
    schedule: Schedule
    draws: dict[str, Tensor] = field(default_factory=dict)
    folder: str = "llc"
    keeps_last: bool = False


def numbers(found: Mapping[str, Any], channels: Mapping[str, Channel]) -> dict[str, tuple[float, float]]:
    """What an observable gave, as (value, standard error) for each of its channels; NaN for no error.

    Raises:
        ValueError: the channels are others.
        TypeError: something is not a number.
    """
    if set(found) != set(channels):
        raise ValueError(f"observables: expected values for {sorted(channels)}, got {sorted(map(str, found))}")
    out = {}
    for name, given in found.items():
        pair = given if isinstance(given, tuple) else (given, math.nan)
        try:
            value, error = (float(x.detach() if isinstance(x, Tensor) else x) for x in pair)
        except (TypeError, ValueError, RuntimeError) as problem:
            raise TypeError(
                f"observables: expected a number, or one and its standard error, for {name!r}, got {given!r:.80}"
            ) from problem
        out[name] = (value, error)
    return out


def of_function(
    function: Callable[[nn.Module], Any], channels: Mapping[str, Channel], schedule: Schedule
) -> Observable:
    """An observable from a function of the model alone that returns a number or {channel: number}."""

    def measure(model: nn.Module, step: int) -> Mapping[str, Value]:
        value = function(model)
        return value if isinstance(value, Mapping) else {next(iter(channels)): value}

    return Observable(measure, channels, schedule)


def probe_loss(loss_fn: LossFn, probe: object, schedule: Schedule) -> Observable:
    """The mean loss on the probe set: the same samples at every step, so it has no sampling noise."""
    data = as_data(probe)

    def measure(model: nn.Module, step: int) -> Mapping[str, Value]:
        return {"loss": float(Objective(loss_fn, model, data).per_sample(model, data).mean())}

    return Observable(measure, {"loss": Channel("loss")}, schedule)


def probe_llc(loss_fn: LossFn, probe: object, settings: Mapping[str, Any], seed: int, schedule: Schedule) -> Observable:
    """The local learning coefficient on the probe set, with its standard error.

    While a saddle is being left the weights are no minimum and the estimate is marked: ``llc_escaped`` is 1 there, and
    the detector does not see the value.
    """
    draws: dict[str, Tensor] = {}

    def measure(model: nn.Module, step: int) -> Mapping[str, Value]:
        draws.clear()
        try:
            llc: LLC = estimate_llc(model, loss_fn, probe, seed=_seed_at(seed, step), **{**_SHORT, **settings})
        except NumericalError:  # a diverged estimate is a gap in the curve, not the end of the user's training
            return {"llc": math.nan, "llc_escaped": math.nan}
        draws["loss"] = torch.from_numpy(np.array(llc.trace["loss"].values))
        draws["baseline"] = torch.from_numpy(np.array(llc.trace["baseline"].values))
        escaped = float(llc.verdict != "local minimum")
        return {"llc": (llc.value, llc.mcse), "llc_escaped": escaped}

    return Observable(measure, {"llc": Channel("metric"), "llc_escaped": Channel("marker")}, schedule, draws)


def _seed_at(seed: int, step: int) -> int:
    """A seed of its own for each step of a run: 64 bits of a hash, so that no two runs share their noise by a shift."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {step}".encode(), digest_size=8).digest(), "little")


NAMES = ("loss", "llc", "kappa", "hessian_top", "hessian_spectrum")


def resolve(
    wanted: Sequence[str | Observable | Callable[[nn.Module], Any]],
    loss_fn: LossFn,
    probe: object,
    *,
    schedule: Schedule,
    llc: Mapping[str, Any],
    llc_schedule: Schedule,
    seed: int,
    model: nn.Module,
) -> list[Observable]:
    """Turns names and functions into observables.

    Raises:
        ValueError: a name is unknown, two observables share a channel, a channel's name is taken by the trace, or
            ``llc`` has a setting that ``estimate_llc`` does not take.
        TypeError: an entry is neither a name, a function nor an Observable.
    """
    from devinterp_fast.monitor import curvature  # which builds on the Observable above

    known = set(inspect.signature(estimate_llc).parameters) - {"model", "loss_fn", "data", "seed"}
    if not set(llc) <= known:
        raise ValueError(f"llc: expected settings of estimate_llc, got {min(set(llc) - known)!r}")
    found: list[Observable] = []
    for entry in wanted:
        if isinstance(entry, Observable):
            found.append(entry)
        elif entry == "loss":
            found.append(probe_loss(loss_fn, probe, schedule))
        elif entry == "llc":
            found.append(probe_llc(loss_fn, probe, llc, seed, llc_schedule))
        elif entry == "kappa":
            found.append(curvature.probe_kappa(loss_fn, probe, model, schedule))
        elif entry == "hessian_top":
            found.append(curvature.probe_top(loss_fn, probe, model, llc_schedule))
        elif entry == "hessian_spectrum":
            found.append(curvature.probe_spectrum(loss_fn, probe, seed, llc_schedule))
        elif isinstance(entry, str):
            raise ValueError(f"observables: expected one of {NAMES} or a function of the model, got {entry!r}")
        elif callable(entry):
            name = getattr(entry, "__name__", type(entry).__name__)
            found.append(of_function(entry, {name: Channel("metric")}, schedule))
        else:
            raise TypeError(f"observables: expected names, functions or Observables, got {type(entry).__name__}")
    names = [name for observable in found for name in observable.channels]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"observables: expected each channel once, got {name!r} twice")
        if name == "step" or name.removesuffix("_se") in set(names) - {name}:
            raise ValueError(f"observables: expected names that the trace does not use itself, got {name!r}")
    return found
