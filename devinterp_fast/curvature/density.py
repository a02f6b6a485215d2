"""The whole spectrum at once: stochastic Lanczos quadrature, with the spread over probes as its error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from devinterp_fast.curvature.eigen import before_largest_ratio
from devinterp_fast.curvature.krylov import BASIS_BYTES, Krylov, rademacher
from devinterp_fast.curvature.operators import Matrix, Operator, as_operator
from devinterp_fast.errors import ShapeError

_WIDTH = 0.01  # of the spectrum's range: the default kernel
_POINTS = 400
_CONVERGED = 1e-2  # a node whose residual is below this part of it is taken for an eigenvalue


@dataclass(frozen=True)
class Curve:
    """A smoothed density with its band.

    Attributes:
        x: eigenvalues.
        density: share of the eigenvalues per unit of x: its integral is 1.
        lower: of the confidence band, pointwise.
        upper: of the confidence band.

    Shape:
        all (points,), float64.
    """

    x: Tensor
    density: Tensor
    lower: Tensor
    upper: Tensor


@dataclass(frozen=True)
class SpectralDensity:
    """The spectrum of a symmetric matrix as quadrature nodes and weights, one rule for each probe.

    For any function f, (1 / m) sum_i f(lambda_i) is estimated by the mean over probes of sum_j weight_j f(node_j);
    the probes are independent, so their spread is the error.

    Attributes:
        nodes: Ritz values of each probe, rising. Shape: (probes, steps), with a leading K for a stack.
        weights: of the nodes, summing to 1 for each probe. Shape: as ``nodes``.
        residuals: of the nodes: within it of each lies an eigenvalue. Shape: as ``nodes``.
        dim: number of eigenvalues m.
        engine: which engine computed the products.

    Units:
        nodes, residuals: those of the matrix.
    """

    nodes: Tensor = field(repr=False)
    weights: Tensor = field(repr=False)
    residuals: Tensor = field(repr=False)
    dim: int
    engine: str

    def __str__(self) -> str:
        probes, steps = self.nodes.shape[-2:]
        low, high = float(self.nodes.min()), float(self.nodes.max())
        return f"{self.dim} eigenvalues in [{low:.3g}, {high:.3g}]   {probes} probes x {steps} steps   {self.engine}"

    def total(self, function: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """The sum of a function over all eigenvalues, and its standard error.

        sum_i f(lambda_i) = m E[sum_j weight_j f(node_j)].

        Args:
            function: of a tensor of eigenvalues, elementwise.

        Returns:
            Value and standard error, float64; NaN for the error of a single probe.

        Shape:
            (), or (K,) for a stack.
        """
        return _mean(self.dim * (self.weights * function(self.nodes)).sum(-1))

    def moments(self, order: int = 4) -> tuple[Tensor, Tensor]:
        """The means of lambda, lambda^2, ..., lambda^order over all eigenvalues, and their standard errors.

        Exact for each probe up to the order 2 steps - 1. Shape: (order,), with a leading K for a stack.
        """
        pairs = [self.total(lambda x, p=p: x**p / self.dim) for p in range(1, order + 1)]  # type: ignore[misc]
        return torch.stack([v for v, _ in pairs], -1), torch.stack([e for _, e in pairs], -1)

    def entropy(self) -> tuple[Tensor, Tensor]:
        """The spectral entropy -sum_i p_i ln p_i, p_i = abs(lambda_i) over their sum, and its standard error in nats.

        exp of it is the effective number of eigenvalues. With A = sum_i s_i and B = sum_i s_i ln s_i of the sizes
        s_i = abs(lambda_i) it is ln A - B / A; the error is that of its linearization in A and B over the probes.
        """
        size = self.nodes.abs()
        a = self.dim * (self.weights * size).sum(-1)
        b = self.dim * (self.weights * torch.special.xlogy(size, size)).sum(-1)
        mean_a, mean_b = a.mean(-1, keepdim=True), b.mean(-1, keepdim=True)
        value = (mean_a.log() - mean_b / mean_a)[..., 0]
        return value, _mean(a / mean_a - b / mean_a + mean_b * a / mean_a.square())[1]

    def outliers(self) -> Tensor:
        """How many eigenvalues stand above the bulk: those before the largest ratio of two neighbors from the top.

        Looked for among the nodes that have converged to an eigenvalue; the median over probes. A run of ratios that
        are all alike has no outliers worth the name: look at the curve. Shape: int64 (), or (K,).
        """
        certain = (self.residuals <= _CONVERGED * self.nodes.abs()) & (self.nodes > 0)
        # The first node that has not converged ends the list from above and stands for the bulk's edge.
        falling, certain = self.nodes.flip(-1), certain.flip(-1)
        ends = certain.long().cumprod(-1)
        ends = torch.cat([torch.ones_like(ends[..., :1]), ends[..., :-1]], -1)
        listed = torch.where(ends.bool() & (falling > 0), falling, torch.nan)
        last = torch.where(torch.isnan(listed), torch.inf, listed).min(-1, keepdim=True).values
        return before_largest_ratio(torch.where(torch.isnan(listed), last, listed)).median(-1).values

    def curve(self, width: float | None = None, points: int = _POINTS, level: float = 0.95) -> Curve:
        """The density smoothed by a Gaussian, with a pointwise confidence band.

        rho(x) = (1 / m) sum_i N(x; lambda_i, width^2); the band is Student's t over the probes.

        Args:
            width: of the Gaussian; None is a hundredth of the spectrum's range.
            points: of the grid, which reaches four widths beyond the outermost nodes.
            level: of the band.

        Raises:
            ShapeError: it is a stack of checkpoints: take ``density[c]``.
            ValueError: the width is not positive.
        """
        if self.nodes.dim() != 2:
            raise ShapeError(f"curve: expected the density of one checkpoint, got {len(self.nodes)}: index it first")
        low, high = float(self.nodes.min()), float(self.nodes.max())
        width = (_WIDTH * (high - low) or 1e-12) if width is None else width
        if not width > 0:
            raise ValueError(f"width: expected a positive number, got {width!r}")
        x = torch.linspace(low - 4 * width, high + 4 * width, points, dtype=torch.float64)
        kernel = (-0.5 * ((x[:, None, None] - self.nodes) / width).square()).exp() / (width * (2 * np.pi) ** 0.5)
        value, error = _mean((kernel * self.weights).sum(-1))
        reach = float(stats.t.ppf(0.5 + level / 2, max(self.nodes.shape[0] - 1, 1))) * error
        return Curve(x, value, (value - reach).clamp_min(0), value + reach)

    def __getitem__(self, c: int) -> SpectralDensity:
        """The density of one checkpoint of a stack."""
        return SpectralDensity(self.nodes[c], self.weights[c], self.residuals[c], self.dim, self.engine)


def _mean(samples: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over the last dimension, and its standard error; NaN below two samples."""
    n = samples.shape[-1]
    error = samples.std(-1) / n**0.5 if n > 1 else torch.full_like(samples[..., 0], torch.nan)
    return samples.mean(-1), error


def spectral_density(H: Operator | Tensor, *, probes: int = 8, steps: int = 64, seed: int = 0) -> SpectralDensity:
    """The density of the eigenvalues by stochastic Lanczos quadrature.

    rho(x) = (1 / m) sum_i delta(x - lambda_i). Each probe of random signs starts a Lanczos recurrence; the Ritz values
    are the nodes, and the squared first components of the Ritz vectors the weights, of a quadrature rule exact to
    degree 2 steps - 1. All probes and checkpoints go in lock-step, reorthogonalized in full.

    Args:
        H: an operator, or a symmetric tensor.
        probes: independent random vectors; the same for every checkpoint, so that differences are less noisy.
        steps: of each recurrence.
        seed: of the probes.

    Returns:
        A ``SpectralDensity``: ``.curve()`` with its band, ``.moments()``, ``.entropy()``, ``.outliers()``,
        ``.total(f)``.

    Shape:
        nodes: (probes, steps), or (K, probes, steps).

    Units:
        those of the matrix

    Raises:
        ValueError: a count is not positive, or one recurrence would take more than 2.5 GiB.
        NumericalError: a product is not finite.

    Source:
        Ubaru, Chen, Saad (2017), Fast estimation of tr(f(A)); Chen, Trogdon, Ubaru (2021), arXiv 2105.06595.
    """
    op = as_operator(H)
    for name, value in (("probes", probes), ("steps", steps)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: expected an integer of at least 1, got {value!r}")
    steps = min(steps, op.dim)
    each = (steps + 1) * op.dim * torch.finfo(op.dtype).bits // 8
    if each > BASIS_BYTES:
        raise ValueError(
            f"steps: expected at most {BASIS_BYTES * steps // each - 1} of vectors of {op.dim} coordinates, got {steps}"
        )
    together = max(1, BASIS_BYTES // each)
    signs = rademacher(probes, op.dim, seed=seed, dtype=op.dtype)
    chains = [(c, p) for c in range(op.count) for p in range(probes)]
    rules = []
    for low in range(0, len(chains), together):
        rules += _recurrences(op, signs, chains[low : low + together], steps, seed)
    shape = (op.count, probes, steps) if op.stacked else (probes, steps)
    nodes, weights, residuals = (torch.stack(column).view(shape) for column in zip(*rules, strict=True))
    return SpectralDensity(nodes, weights, residuals, op.dim, op.engine)


def _recurrences(
    op: Operator | Matrix, signs: Tensor, chains: list[tuple[int, int]], steps: int, seed: int
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Nodes, weights and residuals of (checkpoint, probe) pairs, ordered by checkpoint."""
    krylov = Krylov(signs[[p for _, p in chains]], steps, seed)
    first, last = chains[0][0], chains[-1][0]
    most = max(p for _, p in chains) + 1
    whole = [(c - first) * most + p for c, p in chains]
    for _ in range(steps):
        rows = krylov.last
        if len(chains) == (last - first + 1) * most:
            images = op.products(rows.view(last - first + 1, most, op.dim), first).view(rows.shape)
        else:  # a ragged piece of the list: zeros in the places of the others
            wide = rows.new_zeros((last - first + 1) * most, op.dim)
            wide[whole] = rows
            images = op.products(wide.view(-1, most, op.dim), first).view(-1, op.dim)[whole]
        krylov.extend(images)
    rules = []
    for i in range(len(chains)):
        theta, s = krylov.ritz(i)
        rules.append((theta, s[0].square(), krylov.beta[i] * s[-1].abs()))
    return rules
