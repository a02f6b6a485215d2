"""The widest directions of the local posterior, and of the functions along a row of checkpoints."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, overload

import numpy as np
import torch
from torch import Tensor, nn

from devinterp_fast import _native
from devinterp_fast.errors import ModelError
from devinterp_fast.estimators.draws import (
    Chains,
    Floats,
    Watched,
    jackknife,
    line,
    one_or_all,
    pm,
    prepare_each,
    watch_prepared,
)
from devinterp_fast.estimators.llc import LLC
from devinterp_fast.sampling.batches import as_data
from devinterp_fast.sampling.checkpoints import as_models
from devinterp_fast.sampling.objective import LossFn
from devinterp_fast.sampling.observers import Draw, Function, grown
from devinterp_fast.sampling.prepare import Prepared, RunOptions
from devinterp_fast.sampling.torch_engine import undisturbed

if TYPE_CHECKING:
    from typing_extensions import Unpack

_SPARE = 8  # directions beyond those asked for: they hold what an iteration has not sorted yet


@dataclass(frozen=True)
class PosteriorCovariance:
    """Principal directions of the weights around the center.

    Attributes:
        values: the largest eigenvalues of the draws' covariance, falling.
        mcse: the Monte Carlo standard error of the variance along each direction.
        vectors: the directions, one a column.
        residuals: ``|S v - value v| / value`` for each: small where enough passes were made.
        mean: of the draws, less the center.
        warnings: what casts doubt, one sentence each.
        llc: the learning coefficient of the same draws.

    Shape:
        values, mcse, residuals: (k,); vectors: (dim, k); mean: (dim,).

    Units:
        Squared weights; the coordinates are those of ``named_parameters()``, each flattened row by row.
    """

    values: Floats
    mcse: Floats
    vectors: Floats = field(repr=False)
    residuals: Floats
    mean: Floats = field(repr=False)
    warnings: tuple[str, ...]
    llc: LLC

    def __str__(self) -> str:
        found = ", ".join(pm(v, e) for v, e in zip(self.values[:3], self.mcse[:3], strict=True))
        return line(f"variances {found}{', ...' if len(self.values) > 3 else ''}", self.llc, self.warnings)


class _Product:
    """One pass of the chains as a product with their covariance: S Q, and the draws in the basis Q.

    Sums run over chains left out later too, so a chain that diverges is skipped from a later pass on.
    """

    def __init__(self, job: Prepared, basis: Tensor, chains: Chains):
        self.center, self.basis, self.chains = job.center.double(), basis, set(chains.tolist())
        self.product, self.mean, self.count = torch.zeros_like(basis), torch.zeros_like(self.center), 0
        self.seen = np.full((job.settings.chains, job.settings.draws, basis.shape[1]), np.nan)

    def see(self, draw: Draw) -> None:
        """Takes in one draw."""
        rows = [i for i, c in enumerate(range(draw.chains.start, draw.chains.stop)) if c in self.chains]
        rows = [i for i in rows if np.isfinite(draw.loss[i])]
        away = draw.w[rows].double() - self.center
        inside = away @ self.basis
        self.product.addmm_(away.t(), inside)
        self.mean += away.sum(0)
        self.count += len(rows)
        self.seen = grown(self.seen, draw.number)
        self.seen[[draw.chains.start + i for i in rows], draw.number] = inside.numpy()

    def centered(self) -> tuple[Tensor, Tensor]:
        """S Q, and the mean of the draws less the center."""
        mean = self.mean / self.count
        return self.product / self.count - torch.outer(mean, mean @ self.basis), mean


@overload
def posterior_covariance(
    model: nn.Module, loss_fn: LossFn, data: object, *, k: int = 5, passes: int = 3, **settings: Unpack[RunOptions]
) -> PosteriorCovariance: ...
@overload
def posterior_covariance(
    model: Sequence[nn.Module],
    loss_fn: LossFn,
    data: object,
    *,
    k: int = 5,
    passes: int = 3,
    **settings: Unpack[RunOptions],
) -> list[PosteriorCovariance]: ...
def posterior_covariance(
    model: nn.Module | Sequence[nn.Module],
    loss_fn: LossFn,
    data: object,
    *,
    k: int = 5,
    passes: int = 3,
    **settings: Unpack[RunOptions],
) -> PosteriorCovariance | list[PosteriorCovariance]:
    """Finds the directions in which the local posterior is widest.

    S = Cov(w) over the draws, S v = value v, by subspace iteration: the chains take the same path each time they run,
    so one pass of them multiplies k + 8 vectors by S, exactly and with no draw stored. The last pass gives values,
    directions and residuals.
    Cost: ``passes`` runs, and 2 (k + 8) dim multiply-adds a draw. Memory: 16 (k + 8) dim bytes, and 8 (k + 8) a draw.

    Args:
        model: as in ``estimate_llc``; a sequence of checkpoints gives a list.
        loss_fn: as in ``estimate_llc``.
        data: as in ``estimate_llc``.
        k: how many directions; at most the number of coordinates that move.
        passes: how often the chains run, at least 2; ``residuals`` say whether it was enough.
        settings: of the run, as in ``estimate_llc``.

    Returns:
        A ``PosteriorCovariance``. Errors are the jackknife's over chains, NaN for one chain.

    Raises:
        ValueError: ``k`` or ``passes`` is out of range, or a setting is.
        KeyboardInterrupt: Ctrl-C before the last pass.
        ShapeError, DTypeError, DeviceError, DataError, LossError, ModelError: as in ``estimate_llc``.

    Source:
        Halko, Martinsson, Tropp (2011), Finding structure with randomness, SIAM Review 53(2).
    """
    if isinstance(passes, bool) or not isinstance(passes, int) or passes < 2:
        raise ValueError(f"passes: expected an integer of at least 2, got {passes!r}")
    began = time.perf_counter()
    prepared = prepare_each(model, loss_fn, data, dict(settings))
    # Of each job the basis, and the chains that count.
    known = {id(job): (_start(job, k), np.arange(job.settings.chains)) for job in prepared}
    for number in range(passes):
        found = watch_prepared(
            prepared, f"covariance, pass {number + 1}", lambda job: [_Product(job, *known[id(job)])],
            progress=settings.get("progress", True), began=began,
        )  # fmt: skip
        if number == passes - 1:
            break
        if any(run.llc.interrupted for run, _ in found) or len(found) < len(prepared):
            raise KeyboardInterrupt
        for run, (product,) in found:
            known[id(run.job)] = torch.linalg.qr(product.centered()[0])[0], run.chains
    return one_or_all(model, [_principal(run, product, k) for run, (product,) in found])


def _start(job: Prepared, k: int) -> Tensor:
    """Random directions among the coordinates that move, orthonormal. Shape: (dim, k + spare)."""
    moving = job.where.dim if job.mask is None else int(job.mask.sum())
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= moving:
        raise ValueError(f"k: expected an integer from 1 to the {moving} coordinates that move, got {k!r}")
    rows = torch.empty(min(k + _SPARE, moving), job.where.dim)
    _native.normals_(rows, seed=job.settings.seed, step=0, stream=_native.PROBES)
    if job.mask is not None:
        rows *= job.mask
    basis: Tensor = torch.linalg.qr(rows.double().t())[0]
    return basis


def _principal(run: Watched, product: _Product, k: int) -> PosteriorCovariance:
    image, mean = product.centered()
    inside = product.basis.t() @ image
    values, turned = torch.linalg.eigh((inside + inside.t()) / 2)
    values, turned = values.flip(0)[:k], turned.flip(1)[:, :k]
    vectors = product.basis @ turned
    residuals = (image @ turned - vectors * values).norm(dim=0) / values
    along = product.seen[:, : run.llc.trace.sizes["draw"]] @ turned.numpy()

    def variances(chains: Chains) -> Floats:
        found: Floats = along[chains].var((0, 1))
        return found

    return PosteriorCovariance(
        values=values.numpy(), mcse=jackknife(variances, run.chains)[1], vectors=vectors.numpy(),
        residuals=residuals.numpy(), mean=mean.numpy(), warnings=run.warnings, llc=run.llc,
    )  # fmt: skip


@dataclass(frozen=True)
class EssentialDynamics:
    """Principal components of a model's functions along training.

    Attributes:
        scores: where each checkpoint lies, (checkpoints, k).
        explained: the share of all movement that each component carries, falling.
        mcse: its standard error, from leaving out tenths of the samples.
        components: the directions in function space, (k, samples x outputs).
        mean: the mean function, (samples x outputs,).

    Units:
        Those of the outputs; none for ``explained``.
    """

    scores: Floats = field(repr=False)
    explained: Floats
    mcse: Floats
    components: Floats = field(repr=False)
    mean: Floats = field(repr=False)

    def __str__(self) -> str:
        shares = ", ".join(pm(100 * v, 100 * e) + " %" for v, e in zip(self.explained, self.mcse, strict=True))
        return f"essential dynamics of {len(self.scores)} checkpoints: {shares}"


def essential_dynamics(
    models: Sequence[nn.Module], data: object, *, k: int = 3, function: Function | None = None
) -> EssentialDynamics:
    """Finds the few directions along which a model's functions moved during training.

    Rows are the outputs f_t on fixed samples; scores U S and components V of the centered matrix U S V'. Turning points
    of the scores mark the forms that training passes through.
    Cost: a forward pass over the samples for each checkpoint. Memory: 8 bytes x checkpoints x outputs.

    Args:
        models: checkpoints in order, at least 2 (see ``Checkpoints``).
        data: fixed samples; for a tuple, its first tensor is the model's input.
        k: how many components; at most one less than checkpoints.
        function: f(model, batch) -> (B, ...); None is ``model(x)``.

    Returns:
        ``EssentialDynamics``. The sign of each component makes its largest entry positive.

    Raises:
        ValueError: there are too few checkpoints for ``k``.
        ModelError: an output is not finite.
        DataError: the data do not fit.

    Source:
        Carroll, Hoogland, Farrugia-Roberts, Murfet (2025), Dynamics of transient structure in in-context linear
        regression transformers, arXiv 2501.17745; Amadei, Linssen, Berendsen (1993).
    """
    samples, checkpoints = as_data(data), as_models(models)
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k < len(checkpoints):
        raise ValueError(f"k: expected an integer from 1 to {len(checkpoints) - 1} (checkpoints - 1), got {k!r}")
    first = next(iter(samples.tensors))
    rows = []
    for number, model in enumerate(checkpoints):
        with undisturbed(sum(p.numel() for p in model.parameters()), samples.n), torch.no_grad():
            out = model(samples.tensors[first]) if function is None else function(model, samples.all())
        if not torch.isfinite(out).all():
            raise ModelError(f"models[{number}]: expected finite outputs, got NaN or infinity")
        rows.append(out.detach().double().reshape(samples.n, -1).numpy())
    functions = np.stack(rows)  # (checkpoints, samples, outputs)
    away = functions - functions.mean(0)
    gram = np.einsum("asi,bsi->sab", away, away)
    tenths: Chains = np.arange(min(10, samples.n))
    part = np.arange(samples.n) * len(tenths) // samples.n

    def shares(kept: Chains) -> Floats:
        whole = np.linalg.eigvalsh(gram[np.isin(part, kept)].sum(0))[::-1]
        return whole[:k] / max(float(whole.sum()), np.finfo(float).tiny)

    explained, mcse = jackknife(shares, tenths, unbias=False)
    left, size, right = np.linalg.svd(away.reshape(len(away), -1), full_matrices=False)
    sign = np.sign(np.take_along_axis(right[:k], np.abs(right[:k]).argmax(1)[:, None], 1))[:, 0]
    sign[sign == 0] = 1.0
    return EssentialDynamics(
        scores=left[:, :k] * size[:k] * sign, explained=explained, mcse=mcse, components=right[:k] * sign[:, None],
        mean=functions.mean(0).reshape(-1),
    )  # fmt: skip
