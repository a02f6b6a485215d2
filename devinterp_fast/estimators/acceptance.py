"""How often a Metropolis step would accept: a check of the step size that needs no second run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, overload

import numpy as np
from torch import nn

from devinterp_fast.estimators.draws import Floats, Watched, line, one_or_all, pm, watch
from devinterp_fast.estimators.llc import LLC
from devinterp_fast.sampling.diagnostics import diagnose
from devinterp_fast.sampling.objective import LossFn
from devinterp_fast.sampling.prepare import RunOptions
from devinterp_fast.sampling.proposals import Proposals

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclass(frozen=True)
class Acceptance:
    """The acceptance rate of Metropolis-adjusted Langevin steps.

    Attributes:
        value: the mean over chains and draws.
        mcse: its Monte Carlo standard error.
        per_chain: the mean of each chain, NaN for one left out: with a step size for each chain, a curve over steps.
        probabilities: of each draw, (chains, draws); NaN where nothing was recorded.
        warnings: what casts doubt, one sentence each.
        llc: the learning coefficient of the same draws.

    Units:
        none
    """

    value: float
    mcse: float
    per_chain: Floats
    probabilities: Floats = field(repr=False)
    warnings: tuple[str, ...]
    llc: LLC

    def __str__(self) -> str:
        return line(f"MALA acceptance {pm(self.value, self.mcse)}", self.llc, self.warnings)


@overload
def mala_acceptance(model: nn.Module, loss_fn: LossFn, data: object, **settings: Unpack[RunOptions]) -> Acceptance: ...
@overload
def mala_acceptance(
    model: Sequence[nn.Module], loss_fn: LossFn, data: object, **settings: Unpack[RunOptions]
) -> list[Acceptance]: ...
def mala_acceptance(
    model: nn.Module | Sequence[nn.Module], loss_fn: LossFn, data: object, **settings: Unpack[RunOptions]
) -> Acceptance | list[Acceptance]:
    """Estimates how often a Metropolis correction would accept a step of the chains' size.

    ``a = min(1, exp(U(w) - U(w') + log q(w | w') - log q(w' | w)))``, ``U = nbeta L + localization / 2 |w - w0|^2``
    over all samples, ``q(w' | w) = N(w - lr / 2 grad U(w), lr)``: at each draw w, for a proposal w' of its own. Near 1
    the step size casts no doubt; 0.9 to 0.95 is what the established package aims at.
    Cost: beside the run, two gradients over all samples a draw. Memory: 4 vectors of dim a chain.

    Args:
        model: as in ``estimate_llc``; a sequence of checkpoints gives a list.
        loss_fn: as in ``estimate_llc``.
        data: as in ``estimate_llc``.
        settings: of the run, as in ``estimate_llc``.

    Returns:
        An ``Acceptance``.

    Raises:
        ValueError: a setting is out of range.
        ShapeError, DTypeError, DeviceError, DataError, LossError, ModelError: as in ``estimate_llc``.

    Source:
        Roberts, Tweedie (1996), Exponential convergence of Langevin distributions, Bernoulli 2(4).
    """
    found = watch(model, loss_fn, data, "MALA", lambda job: [Proposals(job)], dict(settings))
    return one_or_all(model, [_acceptance(run, seen) for run, (seen,) in found])


def _acceptance(run: Watched, seen: Proposals) -> Acceptance:
    found = seen.probabilities[:, : run.llc.trace.sizes["draw"]]
    kept, per_chain = found[run.finished], np.full(len(found), np.nan)
    per_chain[run.finished] = kept.mean(1)
    return Acceptance(float(kept.mean()), diagnose(kept).mcse, per_chain, found, run.llc.warnings, run.llc)
