"""What every estimator does before its chains run: settings, baseline, choice of engine.

Settings are checked and "auto" filled in, the loss of each sample at the center is computed once, an engine is chosen.
Nothing of the user's changes: the chains walk on copies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from devinterp_fast import _flat
from devinterp_fast.errors import LossError
from devinterp_fast.sampling import defaults, engines, warmup
from devinterp_fast.sampling.batches import Data, as_data, check_batches
from devinterp_fast.sampling.diagnostics import diagnose, leaving
from devinterp_fast.sampling.masks import Mask, mask_of
from devinterp_fast.sampling.objective import LossFn, Objective
from devinterp_fast.sampling.prior import GaussianPrior, Pull
from devinterp_fast.sampling.run import Goal, Settings, Trace
from devinterp_fast.sampling.samplers import KINDS, Sampler
from devinterp_fast.sampling.torch_engine import VMAP_LIMIT, private_copy, undisturbed

Floats = npt.NDArray[np.float64]
PerChain = float | Sequence[float]


class RunOptions(TypedDict, total=False):
    """The settings that every estimator takes, described at ``estimate_llc``."""

    chains: int
    draws: int | str
    burn_in: int | str
    thin: int
    lr: PerChain | str
    localization: PerChain | str
    nbeta: PerChain | None
    n: int | None
    sampler: str | Sampler
    batch_size: int
    batches: str
    mask: Tensor | dict[str, Tensor] | None
    backend: str
    seed: int
    mcse: float | None
    gradients: int | None
    prior: GaussianPrior | None
    progress: bool


SAMPLERS = ("auto", *KINDS)
_MOST_DRAWS = 125_000  # of each chain, where nothing else ends a run: 4 MB a chain


@dataclass(frozen=True)
class Prepared:
    """A run that has not begun.

    Attributes:
        model: the user's, at the center.
        objective: the loss.
        data: all samples.
        where: layout of the parameters.
        center: what the chains start from and are localized at.
        baseline: the loss of each sample at the center.
        mask: coordinates that move, or None for all.
        settings: "auto" resolved.
        auto_lr: whether the step size was left to us.
        choice: which engine runs, and why.
        goal: until when the run goes on, or None: as many draws as the settings say.
        tenth: whether a few chains go on at a tenth of the localization.
        left: a weaker localization at which the warm-up's chains left the basin, or 0.
        pull: a prior beside the localization, or None.

    Shape:
        center: (dim,) in the model's dtype; baseline: float64 (n,); mask: bool (dim,).
    """

    model: nn.Module
    objective: Objective
    data: Data
    where: _flat.Layout
    center: Tensor
    baseline: Tensor
    mask: Tensor | None
    settings: Settings
    auto_lr: bool
    choice: engines.Choice
    goal: Goal | None = None
    tenth: bool = False
    left: float = 0.0
    pull: Pull | None = None

    @property
    def moving(self) -> int:
        """The number of coordinates that move."""
        return self.where.dim if self.mask is None else int(self.mask.sum())

    def engine(self, settings: Settings | None = None, threads: int | None = None) -> engines.Engine:
        """The engine of ``choice``, for the run's own settings or others, on torch's threads or as many as said."""
        return engines.make(
            self.choice, self.model, self.objective, self.data, self.where, self.center, self.baseline, self.mask,
            self.settings if settings is None else settings, threads, self.pull,
        )  # fmt: skip


def prepare(
    model: nn.Module,
    loss_fn: LossFn,
    data: object,
    *,
    chains: int = 8,
    draws: int | str = "auto",
    burn_in: int | str = "auto",
    thin: int = 1,
    lr: PerChain | str = "auto",
    localization: PerChain | str = "auto",
    nbeta: PerChain | None = None,
    n: int | None = None,
    sampler: str | Sampler = "auto",
    batch_size: int = 256,
    batches: str = "auto",
    mask: Mask | None = None,
    backend: str = "auto",
    seed: int = 0,
    mcse: float | None = None,
    gradients: int | None = None,
    prior: GaussianPrior | None = None,
    tenth: bool = False,
    one_step: bool = False,
) -> Prepared:
    """Checks everything, fills in what is "auto", and chooses the engine; see ``estimate_llc`` for the arguments.

    ``tenth`` asks for chains at a tenth of an "auto" localization, ``one_step`` that no chain has another step size
    than the others unless ``lr`` says so.

    Raises:
        ShapeError, DTypeError, DeviceError, DataError, LossError, ModelError: an input does not fit; one sentence.
        ValueError: a setting is out of range.
    """
    samples = as_data(data)
    where = _flat.layout(model)
    moves = None if mask is None else mask_of(mask, model, where)
    _choice("backend", backend, engines.BACKENDS)
    chosen = _sampler(sampler)
    _check_goal(draws, mcse, gradients)
    settings = _settings(
        samples.n, chains=chains, draws=draws, burn_in=burn_in, thin=thin, localization=localization,
        nbeta=nbeta, n=n, batch_size=batch_size, batches=_batches(batches, chosen), seed=seed, lr=lr, sampler=chosen,
    )  # fmt: skip
    center = _flat.flatten(model, where)
    pull = None if prior is None else _pull(Pull(prior, where, center), settings)
    with undisturbed(where.dim, settings.batch_size):
        objective = Objective(loss_fn, model, samples)
        baseline = objective.per_sample(model, samples)
        _check_baseline(baseline)
        choice = engines.choose(backend, model, objective, samples, pull=pull, batch=settings.batch_size)
        curvature = stiff = None
        if isinstance(lr, str):
            curvature = defaults.Curvature(private_copy(model), objective, samples, where, moves, seed=settings.seed)
            nbeta_, held = float(settings.nbeta.max()), _held(settings, pull)
            stiff = defaults.stiffness(curvature, center, nbeta=nbeta_, localization=held)
            settings.lr[:] = defaults.STEP / stiff
    ready = Prepared(
        model, objective, samples, where, center, baseline, moves, settings, isinstance(lr, str), choice, pull=pull
    )
    work = _budget(ready, gradients)
    open_ = all(isinstance(x, str) for x in (lr, draws, burn_in)) and thin == 1
    spent = settings.burn_in
    if open_ and curvature is not None and stiff is not None and (sampler == "auto") <= (batches == "auto"):
        ready, spent = _warmed(ready, curvature, stiff, sampler, work, ladder=isinstance(localization, str))
    if isinstance(draws, str):
        ready = replace(ready, goal=_goal(ready.settings, work, samples.n, spent, mcse))
    return replace(
        ready,
        settings=_of_one_step(ready.settings) if one_step and isinstance(lr, str) else ready.settings,
        tenth=tenth and isinstance(localization, str),
    )


def _budget(ready: Prepared, gradients: int | None) -> warmup.Budget:
    """What the run may cost: the default of its engine, or that many gradients of a minibatch."""
    s, dim, program = ready.settings, ready.where.dim, ready.choice.program
    if program is not None:
        budget = warmup.Budget(max(program.description.multiply_adds, dim), 0.0, warmup.NATIVE_WORK)
    else:
        alone = dim * ready.data.n > VMAP_LIMIT
        budget = warmup.Budget(3.0 * dim, warmup.CALL * (s.chains if alone else 1), warmup.TORCH_WORK)
    if gradients is None:
        return budget
    size = min(s.batch_size, ready.data.n)
    return replace(budget, work=gradients * (budget.call + budget.sample * size * s.chains))


def _goal(s: Settings, work: warmup.Budget, n: int, spent: int, mcse: float | None) -> Goal:
    """The error to reach, and the draws that the gradients allow after those spent already."""
    allowed = work.gradients(n if s.batches == "full" else s.batch_size, s.chains) - spent
    most = min(allowed // (s.thin * s.sampler.trajectory), _MOST_DRAWS)
    return Goal(0.05 if mcse is None else float(mcse), max(s.draws, most))


def _of_one_step(s: Settings) -> Settings:
    """All chains at the smallest step of any."""
    return replace(s, lr=np.full(s.chains, s.lr.min()))


def _warmed(
    ready: Prepared,
    curvature: defaults.Curvature,
    stiff: float,
    sampler: str | Sampler,
    budget: warmup.Budget,
    *,
    ladder: bool,
) -> tuple[Prepared, int]:
    """Lets ``warmup`` choose the sampler, if that is open, and runs what it needs to; and says what that took.

    With ``ladder`` the localization is open: the warm-up is run again at ten and a hundred times the pull where its
    chains leave the basin; where they leave at all of them, the first stands.

    Returns:
        The run, and the gradients that each chain of its warm-up has taken.
    """
    for pull in (1.0, 10.0, 100.0) if ladder else (1.0,):
        s = replace(ready.settings, localization=pull * ready.settings.localization)
        more = float((s.localization - ready.settings.localization).max())
        found, spent, late = _warm(replace(ready, settings=s), curvature, stiff + more, sampler, budget)
        stays = not len(late) or not leaving(late, diagnose(late))
        if pull == 1.0:
            first = found, spent
        if stays:
            return replace(found, left=0.1 * float(s.localization[0]) if pull > 1 else 0.0), spent
    return first


def _warm(
    ready: Prepared, curvature: defaults.Curvature, stiff: float, sampler: str | Sampler, budget: warmup.Budget
) -> tuple[Prepared, int, Floats]:
    """The warm-up at one localization: the run, the gradients taken, and the later half of nbeta (L(w) - L(w0))."""
    s, dim = ready.settings, ready.where.dim
    if sampler == "auto":
        name, limit = warmup.automatic(s.sampler, budget, ready.data.n, s.batch_size, s.chains)
    else:
        name, limit = s.sampler.name, warmup.limit(sampler, budget, ready.data.n, s.batch_size, s.chains)
    spent, seen = 0, []

    def run(settings: Settings) -> Trace:
        nonlocal spent
        trace = ready.engine(settings).run(lambda done, note: None)
        spent += settings.steps * settings.sampler.trajectory
        seen.append(settings.nbeta[:, None] * (trace.loss - trace.baseline))
        return trace

    def stiffness_at(w: Tensor) -> float:
        with undisturbed(dim, s.batch_size):
            return float(s.nbeta.max()) * curvature.at(w, 0) + _held(s, ready.pull)

    if name in ("hmc", "mala"):
        full = replace(s, batches="full", batch_size=ready.data.n, sampler=replace(s.sampler, name=name))
        s = warmup.hmc(run, full, stiff, limit, budget.gradients(ready.data.n, s.chains))
    elif name == "sgnht" and limit:
        s = warmup.sgnht(run, s, stiff, limit, stiffness_at)
        spent += s.burn_in
    else:
        return ready, s.burn_in, np.zeros((0, 0))
    late = np.concatenate(seen, 1)
    late = late[:, late.shape[1] // 2 :]
    return replace(ready, settings=s), spent, late[np.isfinite(late).all(1)]


def _held(s: Settings, pull: Pull | None) -> float:
    """The largest curvature of localization and prior."""
    return float(s.localization.max()) + (0.0 if pull is None else pull.stiffness)


def _pull(pull: Pull, s: Settings) -> Pull:
    """The prior, if the other settings go with it."""
    if math.isfinite(s.sampler.box):
        raise ValueError(f"box: expected none with a prior, whose center it would be around, got {s.sampler.box:g}")
    if s.sampler.control_variate and np.ptp(s.localization) > 0:
        raise ValueError("localization: expected one number with a prior and control variates, got several")
    return pull


def _choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {choices}, got {value!r}")


def _count(name: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name}: expected an integer of at least {least}, got {value!r}")
    return int(value)


def _seed(seed: object) -> int:
    number = _count("seed", seed, 0)
    if number >= 2**64:
        raise ValueError(f"seed: expected an integer below 2^64, got {seed!r}")
    return number


def _per_chain(name: str, value: PerChain, chains: int, *, zero: bool = False) -> Floats:
    try:
        out = np.array(np.broadcast_to(np.asarray(value, dtype=np.float64), (chains,)))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected a number or {chains} numbers, got {value!r}") from error
    if not np.isfinite(out).all() or (out < 0).any() or (not zero and (out == 0).any()):
        least = "at least 0" if zero else "above 0"
        raise ValueError(f"{name}: expected finite numbers {least}, got {value!r}")
    return out


def _check_goal(draws: int | str, mcse: float | None, gradients: int | None) -> None:
    for name, value in (("mcse", mcse), ("gradients", gradients)):
        if value is not None and not isinstance(draws, str):
            raise ValueError(f"{name}: expected none where draws says how many, got {value!r} and draws={draws!r}")
    if mcse is not None and not (isinstance(mcse, int | float) and 0 < mcse < math.inf):
        raise ValueError(f"mcse: expected a share of the value above 0, got {mcse!r}")
    if gradients is not None:
        _count("gradients", gradients, 1)


def _sampler(sampler: str | Sampler) -> Sampler:
    if isinstance(sampler, Sampler):
        return sampler
    _choice("sampler", sampler, SAMPLERS)
    return Sampler("sgld" if sampler == "auto" else sampler)


def _batches(batches: str, sampler: Sampler) -> str:
    if batches == "auto":
        return "full" if sampler.corrected else "independent"
    if sampler.corrected and batches != "full":
        raise ValueError(f"batches: expected 'full' for {sampler.name!r}, got {batches!r}")
    return batches


def _settings(
    samples: int,
    *,
    chains: int,
    draws: int | str,
    burn_in: int | str,
    thin: int,
    lr: PerChain | str,
    localization: PerChain | str,
    nbeta: PerChain | None,
    n: int | None,
    batch_size: int,
    batches: str,
    seed: int,
    sampler: Sampler,
) -> Settings:
    """Checks the settings of a run and fills in the defaults; ``lr="auto"`` is left at 1 for the caller to set."""
    chains, thin = _count("chains", chains, 1), _count("thin", thin, 1)
    for name, value in (("draws", draws), ("burn_in", burn_in), ("lr", lr), ("localization", localization)):
        if isinstance(value, str):
            _choice(name, value, ("auto",))
    draws = defaults.DRAWS if isinstance(draws, str) else _count("draws", draws, 1)
    burn_in = draws // 2 if isinstance(burn_in, str) else _count("burn_in", burn_in, 0)
    if nbeta is not None and n is not None:
        raise ValueError("nbeta: expected nbeta or n, got both")
    if nbeta is None:
        n = samples if n is None else _count("n", n, 2)
        if n < 2:
            raise ValueError("n: expected at least 2 training samples for nbeta = n / ln n, got 1: pass n or nbeta")
        nbeta = n / math.log(n)
    return Settings(
        chains=chains,
        draws=draws,
        burn_in=burn_in,
        thin=thin,
        lr=_per_chain("lr", 1.0 if isinstance(lr, str) else lr, chains),
        localization=_per_chain(
            "localization",
            defaults.LOCALIZATION if isinstance(localization, str) else localization,
            chains,
            zero=True,
        ),
        nbeta=_per_chain("nbeta", nbeta, chains),
        batches=batches,
        batch_size=check_batches(batches, _count("batch_size", batch_size, 1), samples),
        seed=_seed(seed),
        sampler=sampler,
    )


def _check_baseline(baseline: Tensor) -> None:
    bad = torch.nonzero(~torch.isfinite(baseline))
    if len(bad):
        raise LossError(
            f"loss_fn: expected finite losses at the model's weights, got {baseline[bad[0, 0]]:g} "
            f"on sample {int(bad[0, 0])} ({len(bad)} of {len(baseline)} samples)"
        )
