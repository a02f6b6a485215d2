"""The known learning coefficients against each other and against published cases."""

from __future__ import annotations

from itertools import pairwise, permutations

import numpy as np
import pytest

from devinterp_fast.estimators import exact


def test_two_layers_are_reduced_rank_regression():
    for m in range(1, 8):
        for h in range(1, 8):
            for n in range(1, 8):
                for r in range(min(m, h, n) + 1):
                    assert exact.deep_linear([m, h, n], r) == pytest.approx(exact.reduced_rank(m, h, n, r)), (
                        m,
                        h,
                        n,
                        r,
                    )


@pytest.mark.parametrize(
    ("widths", "rank", "want"),
    [
        # printed in the experiments of the deep linear estimates, or worked from the paper's theorem
        ([16] * 5, 0, (80, 1)),
        ([16] * 5, 4, (101, 1)),
        ([16] * 5, 8, (116, 1)),
        ([16] * 5, 16, (128, 1)),
        ([64] * 4, 20, (1725.5, 3)),
        ([185, 259, 286, 885, 235, 204, 274, 252], 92, (20564, 4)),
        ([6, 6, 6], 3, (17, 2)),
        ([2, 2, 2], 0, (1.5, 1)),
        ([2, 2, 2, 2], 0, (1.5, 3)),
    ],
)
def test_published_cases(widths, rank, want):
    assert exact.deep_linear(widths, rank) == pytest.approx(want)


@pytest.mark.parametrize(("hidden", "want"), [(3, 13.5), (4, 15), (5, 16), (6, 17)])
def test_the_reduced_rank_cases_of_the_wbic_paper(hidden, want):
    assert exact.reduced_rank(6, hidden, 6, 3)[0] == want


def test_limits():
    for layers in range(1, 7):
        assert exact.deep_linear([1] * (layers + 1), 0) == (0.5, layers) == exact.normal_crossing([1] * layers)
    assert exact.deep_linear([5, 7], 3) == (35 / 2, 1) == exact.regular(35)
    assert exact.normal_crossing([1, 2, 2, 0]) == (0.25, 2)
    rng = np.random.default_rng(0)
    for _ in range(300):
        widths = rng.integers(1, 9, size=rng.integers(2, 6)).tolist()
        rank = int(rng.integers(0, min(widths) + 1))
        value, m = exact.deep_linear(widths, rank)
        dim = sum(a * b for a, b in pairwise(widths))
        assert value <= min(widths[0] * widths[-1], dim) / 2 + 1e-12
        assert m >= 1
        if rank == min(widths):  # the product is then a smooth map onto matrices of that rank
            assert value == pytest.approx(rank * (widths[0] + widths[-1] - rank) / 2)
    for widths in permutations([3, 5, 4, 6]):
        assert exact.deep_linear(widths, 0) == exact.deep_linear([3, 5, 4, 6], 0)


def test_at_temperature():
    assert exact.at_temperature(3.0, 1, 100.0) == 3.0
    assert exact.at_temperature(0.5, 2, np.exp(10.0)) == pytest.approx(0.4)


def test_bad_input():
    with pytest.raises(ValueError, match="powers: expected integers"):
        exact.normal_crossing([0, 0])
    with pytest.raises(ValueError, match="rank: expected an integer from 0 to 2, got 3"):
        exact.reduced_rank(2, 5, 5, 3)
    with pytest.raises(ValueError, match="widths, rank: expected two widths"):
        exact.deep_linear([4], 0)
