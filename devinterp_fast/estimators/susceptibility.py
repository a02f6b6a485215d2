"""How a component of the model answers to a change of the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, overload

import numpy as np
import xarray as xr
from torch import Tensor, nn

from devinterp_fast.estimators.accumulators import LossCovariance
from devinterp_fast.estimators.draws import Chains, Floats, Watched, jackknife, one_or_all, watch
from devinterp_fast.estimators.llc import LLC
from devinterp_fast.estimators.waic import one_temperature
from devinterp_fast.sampling.batches import Data, as_data
from devinterp_fast.sampling.checkpoints import as_models
from devinterp_fast.sampling.objective import LossFn
from devinterp_fast.sampling.observers import Function, Probe
from devinterp_fast.sampling.prepare import Prepared, RunOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack

Mask = Tensor | dict[str, Tensor]


@dataclass(frozen=True)
class Susceptibilities:
    """Of each component to each sample (or token) of a probe.

    Attributes:
        values: ``chi`` and its Monte Carlo standard error ``mcse``, dims (component, sample) and more where the probe's
            function gives more than one value a sample.
        warnings: what casts doubt, one sentence each, with the component it is about.
        llcs: {component: its weight-refined learning coefficient, from the same draws}.

    Units:
        Squared nats for a loss in nats.
    """

    values: xr.Dataset = field(repr=False)
    warnings: tuple[str, ...]
    llcs: dict[str, LLC]

    def __str__(self) -> str:
        size = " x ".join(str(length) for length in self.values["chi"].shape)
        ratio = float((abs(self.values["chi"]) / self.values["mcse"]).median())
        text = f"susceptibilities {size}   median |chi| / mcse {ratio:.1f}"
        return "\n  ! ".join([text, *self.warnings])


@overload
def susceptibilities(
    model: nn.Module,
    loss_fn: LossFn,
    data: object,
    components: Mapping[str, Mask],
    *,
    probe: object = None,
    function: Function | None = None,
    **settings: Unpack[RunOptions],
) -> Susceptibilities: ...
@overload
def susceptibilities(
    model: Sequence[nn.Module],
    loss_fn: LossFn,
    data: object,
    components: Mapping[str, Mask],
    *,
    probe: object = None,
    function: Function | None = None,
    **settings: Unpack[RunOptions],
) -> list[Susceptibilities]: ...
def susceptibilities(
    model: nn.Module | Sequence[nn.Module],
    loss_fn: LossFn,
    data: object,
    components: Mapping[str, Mask],
    *,
    probe: object = None,
    function: Function | None = None,
    **settings: Unpack[RunOptions],
) -> Susceptibilities | list[Susceptibilities]:
    """Estimates the susceptibility of components to samples.

    chi_C(z) = (1 / nbeta) d<phi_C> / dh = -Cov(phi_C, loss_z - L) at h = 0, where phi_C = L(w) - L(w0) with all weights
    outside C held at w0, and h tilts the data: L -> L + h (loss_z - L). Each component has chains of its own, which
    move nothing else. Negative: more weight on z lowers what the component's freedom costs.
    Cost: components x (a run + a forward pass over data and probe a draw). Memory: 2 float64 a value and chain.

    Args:
        model: as in ``estimate_llc``; a sequence of checkpoints gives a list.
        loss_fn: as in ``estimate_llc``.
        data: as in ``estimate_llc``; all of it is L.
        components: {name: mask as in ``estimate_llc``}.
        probe: samples z; None is the data.
        function: f(model, batch) -> (B, ...), the losses of the probe, for instance (B, positions) for each token; None
            is the loss of each sample.
        settings: of the run, as in ``estimate_llc``, but for ``mask``; one ``nbeta`` for all chains.

    Returns:
        ``Susceptibilities``. Errors are the jackknife's over chains, NaN for one chain.

    Raises:
        ValueError: there is no component, ``mask`` is given, ``nbeta`` differs between chains, or a setting is out of
            range.
        ShapeError, DTypeError, DeviceError, DataError, LossError, ModelError: as in ``estimate_llc``.

    Source:
        Baker, Wang, Hoogland, Murfet (2025), Structural inference, arXiv 2504.18274; their sign and prefactor differ
        between versions.
    """
    if not components:
        raise ValueError("components: expected at least one {name: mask}, got none")
    if settings.get("mask") is not None:
        raise ValueError("mask: expected none, as each component is a mask, got one")
    samples, models = as_data(data), as_models(model)
    seen = samples if probe is None else as_data(probe)
    runs: dict[str, list[tuple[Watched, LossCovariance]]] = {}
    for name, mask in components.items():
        chosen: dict[str, object] = {**settings, "mask": mask}
        found = watch(models, loss_fn, samples, name, lambda job: [_observer(job, seen, function)], chosen)
        runs[name] = [(run, covariance) for run, (covariance,) in found]
    finished = min(len(each) for each in runs.values())
    results = [_result({name: each[i] for name, each in runs.items()}) for i in range(finished)]
    return one_or_all(model, results)


def _observer(job: Prepared, probe: Data, function: Function | None) -> LossCovariance:
    one_temperature(job)
    whole = Probe(job.data)
    return LossCovariance(
        whole, whole if probe is job.data and function is None else Probe(probe, function), job.settings.chains
    )


def _result(runs: Mapping[str, tuple[Watched, LossCovariance]]) -> Susceptibilities:
    def chi(covariance: LossCovariance, chains: Chains) -> Floats:
        return -covariance.covariance(chains)

    with np.errstate(invalid="ignore"):
        found = [jackknife(lambda chains, c=seen: chi(c, chains), run.chains) for run, seen in runs.values()]  # type: ignore[misc]
    extra = [f"value{i}" for i in range(found[0][0].ndim - 1)]
    dims = ("component", "sample", *extra)
    values = xr.Dataset(
        {"chi": (dims, np.stack([v for v, _ in found])), "mcse": (dims, np.stack([e for _, e in found]))},
        coords={"component": list(runs)},
    )
    warnings = [f"{name}: {sentence}" for name, (run, _) in runs.items() for sentence in run.warnings]
    for name in runs:
        bad = np.argwhere(~np.isfinite(values["chi"].sel(component=name).to_numpy()))
        if len(bad):
            warnings.append(
                f"{name}: {len(bad)} values of the probe were not finite at some draw, sample {bad[0, 0]} among them: "
                "theirs are NaN"
            )
    return Susceptibilities(values, tuple(warnings), {name: run.llc for name, (run, _) in runs.items()})
