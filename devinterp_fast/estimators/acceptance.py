"""How often a Metropolis step would accept: a check of the step size that needs no second run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, overload

import numpy as np
import torch
from torch import Tensor, nn

from devinterp_fast import _native
from devinterp_fast.estimators.draws import Floats, Watched, line, one_or_all, pm, watch
from devinterp_fast.estimators.llc import LLC
from devinterp_fast.sampling.diagnostics import diagnose
from devinterp_fast.sampling.objective import LossFn
from devinterp_fast.sampling.observers import Draw, Probe
from devinterp_fast.sampling.prepare import Prepared, RunOptions

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


class Proposals:
    """From each draw one step of the chain's own size on the whole loss, and its acceptance probability."""

    def __init__(self, job: Prepared):
        s = job.settings
        self.job, self.probe = job, Probe(job.data)
        self.probabilities = np.full((s.chains, s.draws), np.nan)

    def see(self, draw: Draw) -> None:
        """Takes in one draw."""
        s, c = self.job.settings, draw.chains
        lr, localization, nbeta = (torch.from_numpy(x[c])[:, None] for x in (s.lr, s.localization, s.nbeta))
        center = self.job.center.double()
        moves = torch.ones(len(center)) if self.job.mask is None else self.job.mask.double()

        def energy(w: Tensor) -> tuple[Tensor, Tensor]:
            losses, g = draw.evaluator.gradients(w.to(self.job.where.dtype), self.probe)
            away = (w - center) * moves
            slope = nbeta * g.double() * moves + localization * away
            return nbeta[:, 0] * torch.from_numpy(losses) + localization[:, 0] / 2 * (away**2).sum(1), slope

        w = draw.w.double()
        xi = torch.empty(w.shape)
        _native.normals_(xi, seed=s.seed, step=draw.number, first_chain=c.start, stream=_native.MOMENTA)
        before, slope = energy(w)
        # What the loss is evaluated at is the rounded proposal, so that is what the densities are of.
        to = (w + moves * (lr.sqrt() * xi.double() - lr / 2 * slope)).to(self.job.where.dtype).double()
        after, back = energy(to)
        there = ((to - w + lr / 2 * slope) ** 2 * moves).sum(1) / (2 * lr[:, 0])
        home = ((w - to + lr / 2 * back) ** 2 * moves).sum(1) / (2 * lr[:, 0])
        accepted = torch.exp((before - after + there - home).clamp(max=0.0))
        self.probabilities[c, draw.number] = accepted.nan_to_num(nan=0.0).numpy()  # where the energy overflows: never


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

    a = min(1, exp(U(w) - U(w') + log q(w | w') - log q(w' | w))), U = nbeta L + localization / 2 |w - w0|^2 over all
    samples, q(w' | w) = N(w - lr / 2 grad U(w), lr): at each draw w, for a proposal w' of its own. Near 1 the step size
    casts no doubt; 0.9 to 0.95 is what the established package aims at.
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
    kept = seen.probabilities[run.chains, : run.llc.trace.sizes["draw"]]
    per_chain = np.full(len(seen.probabilities), np.nan)
    per_chain[run.chains] = kept.mean(1)
    return Acceptance(float(kept.mean()), diagnose(kept).mcse, per_chain, seen.probabilities, run.llc.warnings, run.llc)
