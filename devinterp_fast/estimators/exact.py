"""Learning coefficients known exactly: what an estimate can be held against.

Each function returns (lambda, m), the learning coefficient and its multiplicity, of the population loss at the point
named. At a finite inverse temperature a perfect sampler returns less: see ``at_temperature``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations


def regular(dim: int) -> tuple[float, int]:
    """A loss whose Hessian has full rank: (dim / 2, 1)."""
    return dim / 2, 1


def normal_crossing(powers: Sequence[int]) -> tuple[float, int]:
    """K(w) = prod w_i^(2 k_i) at 0: lambda = min 1 / (2 k_i), m = how many attain it.

    Args:
        powers: the k_i.

    Returns:
        (lambda, m)

    Raises:
        ValueError: no power is above 0.

    Source:
        Watanabe (2009), Algebraic Geometry and Statistical Learning Theory.
    """
    if not powers or min(powers) < 0 or max(powers) == 0:
        raise ValueError(f"powers: expected integers of at least 0, one above, got {tuple(powers)}")
    most = max(powers)
    return 1 / (2 * most), sum(k == most for k in powers)


def reduced_rank(inputs: int, hidden: int, outputs: int, rank: int) -> tuple[float, int]:
    """Y = B A x with A (hidden, inputs), B (outputs, hidden), the true product of rank ``rank``.

    Args:
        inputs: M.
        hidden: H.
        outputs: N.
        rank: r of the true product.

    Returns:
        (lambda, m)

    Raises:
        ValueError: the rank is above a width.

    Source:
        Aoyagi, Watanabe (2005), Stochastic complexities of reduced rank regression in Bayesian estimation.
    """
    M, H, N, r = inputs, hidden, outputs, rank
    if not 0 <= r <= min(M, H, N):
        raise ValueError(f"rank: expected an integer from 0 to {min(M, H, N)}, got {r}")
    if N + r > M + H:
        return (H * M - H * r + N * r) / 2, 1
    if M + r > N + H:
        return (H * N - H * r + M * r) / 2, 1
    if H + r > M + N:
        return M * N / 2, 1
    odd = (M + H + N + r) % 2
    twice = 2 * (H + r) * (M + N) + 2 * M * N - (H + r) ** 2 - M**2 - N**2
    return (twice + odd) / 8, 1 + odd


def deep_linear(widths: Sequence[int], rank: int) -> tuple[float, int]:
    """Deep linear nets W_L ... W_1 x, the true product of rank ``rank``.

    With M_i = widths_i - rank, sorted,
    lambda = (r (H_0 + H_L) - r^2) / 2 + a (l - a) / (4 l) - (l - 1) / (4 l) s^2 + 1/2 sum_{i<j in S} M_i M_j,
    m = a (l - a) + 1, where S are the l + 1 smallest M with l max S <= s = sum S < l min of the others, and
    a = s - (ceil(s / l) - 1) l.

    Args:
        widths: H_0 (inputs), ..., H_L (outputs).
        rank: r of the true product.

    Returns:
        (lambda, m)

    Raises:
        ValueError: the rank is above a width, or there is no layer.

    Source:
        Aoyagi (2024), Consideration on the learning efficiency of multiple-layered neural networks with linear units.
    """
    if len(widths) < 2 or not 0 <= rank <= min(widths):
        raise ValueError(f"widths, rank: expected two widths or more and a rank within them, got {widths}, {rank}")
    spare = sorted(width - rank for width in widths)
    for count in range(len(spare), 1, -1):
        chosen, others, layers = spare[:count], spare[count:], count - 1
        total = sum(chosen)
        if total >= layers * chosen[-1] and all(total < layers * other for other in others):
            break
    a = total - (math.ceil(total / layers) - 1) * layers
    pairs = sum(x * y for x, y in combinations(chosen, 2))
    free = (rank * (widths[0] + widths[-1]) - rank**2) / 2
    coefficient = free + a * (layers - a) / (4 * layers) - (layers - 1) / (4 * layers) * total**2 + pairs / 2
    return coefficient, a * (layers - a) + 1


def at_temperature(coefficient: float, multiplicity: int, nbeta: float) -> float:
    """E[nbeta K] to the order that the multiplicity sets: lambda - (m - 1) / ln nbeta.

    From the free energy lambda ln nbeta - (m - 1) ln ln nbeta, differentiated by ln nbeta.

    Args:
        coefficient: lambda.
        multiplicity: m.
        nbeta: inverse temperature times sample count, above 1.

    Returns:
        What a perfect sampler returns, but for terms that vanish as nbeta grows.

    Source:
        Watanabe (2013), A widely applicable Bayesian information criterion.
    """
    return coefficient - (multiplicity - 1) / math.log(nbeta)
