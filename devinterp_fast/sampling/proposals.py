"""Metropolis proposals from where chains are: what a step of their size would be accepted with."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from devinterp_fast import _native
from devinterp_fast.sampling.observers import Draw, Probe, grown
from devinterp_fast.sampling.prepare import Prepared


class Proposals:
    """From draws one step of the chain's own size on the loss of a probe, and its acceptance probability.

    Args:
        job: whose chains they are.
        probe: what the loss is taken on; None is all samples.
        every: 1 looks at each draw, 2 at every other, and so on.
    """

    def __init__(self, job: Prepared, probe: Probe | None = None, every: int = 1):
        s = job.settings
        self.job, self.probe, self.every = job, Probe(job.data) if probe is None else probe, every
        self.probabilities = np.full((s.chains, s.draws), np.nan)

    def see(self, draw: Draw) -> None:
        """Takes in one draw."""
        if draw.number % self.every:
            return
        s, c = self.job.settings, draw.chains
        lr, localization, nbeta = (torch.from_numpy(x[c])[:, None] for x in (s.lr, s.localization, s.nbeta))
        center, pull = self.job.center.double(), self.job.pull
        moves = torch.ones(len(center)) if self.job.mask is None else self.job.mask.double()
        if pull is not None:
            center, localization = pull.center(s)[c], pull.strength(s)[c].reshape(len(localization), -1)

        def energy(w: Tensor) -> tuple[Tensor, Tensor]:
            losses, g = draw.evaluator.gradients(w.to(self.job.where.dtype), self.probe)
            away = (w - center) * moves
            slope = nbeta * g.double() * moves + localization * away
            return nbeta[:, 0] * torch.from_numpy(losses) + (localization * away**2).sum(1) / 2, slope

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
        self.probabilities = grown(self.probabilities, draw.number)
        self.probabilities[c, draw.number] = accepted.nan_to_num(nan=0.0).numpy()  # where the energy overflows: never
