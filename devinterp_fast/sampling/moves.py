"""How the torch engine moves its chains: SGLD by the fused kernel, the other samplers as the reference states them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from devinterp_fast import _native, _reference
from devinterp_fast.sampling.run import Floats, Settings, State
from devinterp_fast.sampling.samplers import HMC, LANGEVIN, PRECONDITIONED, SGLD

RARE = 2**18
"""Above this many coordinates the virial is taken at every eighth step."""

Gradients = Callable[[Tensor | slice], tuple[Tensor, list[Tensor]]]
"""gradients(index) -> the mean loss of each chain on its samples, float64 (count,), and its gradients."""


def flat(gradients: list[Tensor], count: int) -> Tensor:
    """Joins gradients (count, ...) of parameters into rows. Shape: (count, dim)."""
    return torch.cat([g.reshape(count, -1) for g in gradients], 1)


class Mover:
    """Moves some chains.

    Args:
        rows: where they are; moved in place.
        center: of the localization.
        mask: coordinates that move, or None for all.
        settings: of the run.
        state: of all chains; momenta, means and thermostats of these are kept in it.
        low: the number of the first of them.
        gradients: at ``rows``.
        anchor: the full gradient at the center (1, dim) and ``gradients`` there, for control variates; or None.
        pull: the localization of these chains, or None: that of the settings.

    Shape:
        rows: (count, dim); center: (dim,) or (count, dim); mask: (dim,); pull: (count,) or (count, dim).
    """

    def __init__(
        self,
        rows: Tensor,
        center: Tensor,
        mask: Tensor | None,
        settings: Settings,
        state: State | None,
        low: int,
        gradients: Gradients,
        anchor: tuple[Tensor, Gradients] | None,
        pull: Tensor | None = None,
    ):
        assert state is not None
        self.rows, self.center, self.mask, self.settings, self.low = rows, center, mask, settings, low
        self.count, high = len(rows), low + len(rows)
        self.lr, self.localization, self.nbeta = (
            torch.from_numpy(np.ascontiguousarray(x[low:high]))
            for x in (settings.lr, settings.localization, settings.nbeta)
        )
        if pull is not None:
            self.localization = pull
        self.first, self.second = state.first[low:high], state.second[low:high]
        self.thermostat = state.thermostat[low:high]
        self.friction = torch.full((self.count,), settings.sampler.damping, dtype=torch.float64)
        self.raw, self.anchor = gradients, anchor
        self.energy, self.gauge = (torch.zeros(self.count, dtype=torch.float64) for _ in range(2))
        self.moving = rows.shape[1] if mask is None else int(mask.sum())
        self.threads = torch.get_num_threads()
        self.known: tuple[Tensor, list[Tensor]] | None = None

    def gradients(self, index: Tensor | slice) -> tuple[Tensor, list[Tensor]]:
        """Losses and gradients at the rows; those that the last step of HMC left need no new pass."""
        if self.known is not None:
            known, self.known = self.known, None
            return known
        losses, grads = self.raw(index)
        if self.anchor is None:
            return losses, grads
        full, at_center = self.anchor
        there = flat(at_center(index)[1], 1 if isinstance(index, slice) else index.shape[0])
        return losses, [flat(grads, self.count) - there + full]

    def step(self, losses: Tensor, grads: list[Tensor], step: int) -> tuple[Floats, Floats]:
        """Takes step ``step`` of every chain; returns energy and gauge (see ``Trace``)."""
        s, kind = self.settings, self.settings.sampler.kind
        if kind in (SGLD, PRECONDITIONED):
            self._virial(grads, step)
        if kind == HMC:
            return self._trajectory(losses, flat(grads, self.count), step)
        if kind == SGLD:
            self._sgld(grads, step)
        elif kind == LANGEVIN:
            self._langevin(flat(grads, self.count), step)
        else:
            self._preconditioned(flat(grads, self.count), step)
        if np.isfinite(s.sampler.box):
            box = s.sampler.box
            inside = torch.minimum(self.center + box, torch.maximum(self.center - box, self.rows))
            self.rows.copy_(inside if self.mask is None else torch.where(self.mask, inside, self.rows))
        return self.energy.numpy().copy(), self.gauge.numpy().copy()

    def _virial(self, grads: list[Tensor], step: int) -> None:
        """Gauge: sum (w - center) . (nbeta g); of large models at every eighth step, where it would cost a share."""
        if self.rows.shape[1] > RARE and (step - self.settings.first_step - self.settings.burn_in) % 8:
            self.gauge.fill_(torch.nan)
            return
        away = (self.rows - self.center).double()
        away = away if self.mask is None else away * self.mask
        at, total = 0, torch.zeros(self.count, dtype=torch.float64)
        for g in grads:
            rows = g.reshape(self.count, -1)
            total += (away[:, at : at + rows.shape[1]] * rows).sum(1)
            at += rows.shape[1]
        self.gauge.copy_(self.nbeta * total)

    def _noise(self, step: int, stream: int) -> Tensor:
        count, dim = self.rows.shape
        if self.rows.dtype == torch.float32:
            out = torch.empty(count, dim)
            return _native.normals_(
                out, seed=self.settings.seed, step=step, first_chain=self.low, stream=stream, threads=self.threads
            )
        each = [
            _reference.normals(self.low + c, dim, seed=self.settings.seed, step=step, stream=stream)
            for c in range(count)
        ]
        return torch.stack(each).to(self.rows.dtype)

    def _sgld(self, grads: list[Tensor], step: int) -> None:
        settings = self.lr, self.localization, self.nbeta
        if self.rows.dtype == torch.float32 and self.localization.dim() == 1:
            _native.sgld_step_(
                self.rows, [g.contiguous() for g in grads], self.center, *settings, seed=self.settings.seed, step=step,
                first_chain=self.low, mask=self.mask, energy=self.energy, threads=self.threads,
            )  # fmt: skip
            return
        xi = self._noise(step, _native.UPDATE_NOISE)
        moved, energy, _ = _reference.sgld_step(
            self.rows, flat(grads, self.count), self.center, *settings, xi, mask=self.mask
        )
        self._keep(moved, energy)

    def _keep(self, moved: Tensor, energy: Tensor) -> None:
        self.rows.copy_(moved)
        self.energy.copy_(energy)

    def _langevin(self, g: Tensor, step: int) -> None:
        sampler, thermostat = self.settings.sampler, torch.from_numpy(self.thermostat)
        moved, p, energy = _reference.langevin_step(
            self.rows, self.first, g, self.center, self.lr.sqrt(), self.localization, self.nbeta, self.friction,
            thermostat, self._noise(step, _native.UPDATE_NOISE), mask=self.mask,
        )  # fmt: skip
        self.first.copy_(p)
        temperature = p.double().square().sum(1) / self.moving
        if sampler.thermostat_inertia > 0:
            self.thermostat += ((temperature - 1) / sampler.thermostat_inertia).numpy()
        self._keep(moved, energy)
        self.gauge.copy_(temperature)

    def _preconditioned(self, g: Tensor, step: int) -> None:
        s = self.settings
        held = not s.sampler.adapt and step >= s.adapts_until
        moved, m, v, energy, _ = _reference.preconditioned_step(
            self.rows, self.first, self.second, g, self.center, self.lr, self.localization, self.nbeta,
            self._noise(step, _native.UPDATE_NOISE), s.sampler.momentum_decay, 1.0 if held else s.sampler.beta2,
            s.sampler.epsilon, mask=self.mask,
        )  # fmt: skip
        self.first.copy_(m)
        self.second.copy_(v)
        self._keep(moved, energy)

    def _trajectory(self, losses: Tensor, g: Tensor, step: int) -> tuple[Floats, Floats]:
        """One trajectory of Hamiltonian dynamics from fresh momenta, accepted with probability min(1, exp(H - H'))."""
        s, dtype = self.settings, self.rows.dtype
        h, pull, nbeta = (x.to(dtype).reshape(self.count, -1) for x in (self.lr.sqrt(), self.localization, self.nbeta))
        moves = None if self.mask is None else self.mask.to(dtype)
        p = self._noise(step, _native.MOMENTA)
        p = p if moves is None else p * moves

        def force(gradient: Tensor) -> Tensor:
            d = nbeta * gradient + pull * (self.rows - self.center)
            return d if moves is None else d * moves

        def energy(loss: Tensor) -> Tensor:
            far = (self.rows - self.center).double().square()
            far = far if self.mask is None else far * self.mask
            each = self.localization.dim() > 1
            held = (self.localization * far).sum(1) if each else self.localization * far.sum(1)
            return self.nbeta * loss + 0.5 * held + 0.5 * p.double().square().sum(1)

        kept, before = self.rows.clone(), energy(losses)
        d = force(g)
        work = (d.double() * (nbeta * g).double()).sum(1)
        there, gradient = losses, g
        for _ in range(_reference.trajectory_length(s.sampler.trajectory, seed=s.seed, step=step)):
            p = p - h / 2 * d
            self.rows += h * p
            there, grads = self.raw(slice(None))
            gradient = flat(grads, self.count)
            d = force(gradient)
            p = p - h / 2 * d
        after = energy(there)
        chance = torch.nan_to_num((before - after).clamp(max=0.0).exp(), nan=0.0)
        if np.isfinite(s.sampler.box):
            inside = (self.rows - self.center).abs() <= s.sampler.box
            chance = chance * (inside if self.mask is None else inside | ~self.mask).all(1)
        words = _reference.uniforms(self.low, self.count, seed=s.seed, step=step)[:, 0]
        accepted = (torch.from_numpy((words.astype(np.float64) + 0.5) / 2.0**32) < chance)[:, None]
        self.rows.copy_(torch.where(accepted, self.rows, kept))
        self.known = torch.where(accepted[:, 0], there, losses), [torch.where(accepted, gradient, g)]
        return work.numpy(), chance.numpy()
