"""The score of found transitions: one to one, nearest in log step first."""

from __future__ import annotations

import math

import pytest

from devinterp_fast.transitions.score import score
from devinterp_fast.transitions.system import Marker

A = Marker("a", 80.0, 100.0, 130.0)
B = Marker("b", 120.0, 200.0, 260.0)
NARROW = Marker("narrow", 995.0, 1000.0, 1005.0)


@pytest.mark.parametrize(
    ("midpoints", "markers", "expected"),
    [
        ([], [], []),
        ([50.0], [], [None]),
        ([], [A], []),
        ([100.0], [A], [A]),
        ([79.9], [A], [None]),  # outside the window and more than a tenth away
        ([80.0], [A], [A]),  # the window's ends belong to it
        ([130.0], [A], [A]),
        ([130.1], [A], [None]),
        ([900.0], [NARROW], [NARROW]),  # a tenth of the midpoint, although outside the window
        ([899.0], [NARROW], [None]),
        ([1100.0], [NARROW], [NARROW]),
        ([1101.0], [NARROW], [None]),
        ([110.0, 101.0], [A], [None, A]),  # one marker, two rows: the nearest
        ([100.0, 200.0], [A, B], [A, B]),
        ([100.0, 200.0], [B, A], [A, B]),  # in whatever order
        ([125.0], [A, B], [A]),  # inside both windows: ln(125/100) = .22 < ln(200/125) = .47
        # Both rows fit both markers. 122 is nearer to a (.20) than to b (.49); 128 has .25 to a and .45 to b: the
        # pair (122, a) is matched first, then (128, b).
        ([128.0, 122.0], [A, B], [B, A]),
    ],
)
def test_matching(midpoints, markers, expected):
    assert list(score(midpoints, markers).found) == expected


def test_distance_is_in_log_step():
    wide = Marker("wide", 10.0, 100.0, 1000.0)
    # 300 is 200 steps away and a factor 3; 20 is 80 steps away and a factor 5
    assert score([300.0, 20.0], [wide]).found == (wide, None)


def test_equal_distances_are_settled_by_order():
    twins = [Marker("first", 50.0, 100.0, 200.0), Marker("second", 50.0, 100.0, 200.0)]
    assert score([100.0, 100.0], twins).found == tuple(twins)


def test_numbers():
    result = score([100.0, 500.0, 199.0], [A, B, NARROW])
    assert result.hits == 2
    assert result.precision == pytest.approx(2 / 3)
    assert result.recall == pytest.approx(2 / 3)
    assert str(result) == "2 of 3 known transitions found, in 3 rows"
    assert str(score([100.0], [A])) == "1 of 1 known transitions found, in 1 row"
    assert str(score([], [])) == "no known transition in this run, 0 rows"
    assert math.isnan(score([], [A]).precision)
    assert score([], [A]).recall == 0.0
    assert math.isnan(score([5.0], []).recall)
    assert score([5.0], []).precision == 0.0
