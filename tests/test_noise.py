"""Noise: the right words, the right normals, the same bits everywhere, and the right distribution."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import SIZES
from scipy import stats

from devinterp_fast import _cpu, _native, _reference

ONES = 0xFFFFFFFF

# Known answers of Random123 (Salmon et al. 2011): counter, key, words.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def rows(chains, size, *, pad=0, offset=0):
    """A (chains, size) block inside a larger one filled with a sentinel: odd row stride, unaligned first element."""
    store = torch.full((offset + chains * (size + pad) + 16,), -9.0)
    return store, store[offset : offset + chains * (size + pad)].view(chains, size + pad)[:, :size]


def normals(chains, size, **address):
    return _native.normals_(torch.empty(chains, size), **address)


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_reference_philox_gives_the_known_answers(counter, key, words):
    got = _reference.philox(np.array(counter, dtype=np.uint64), key[0] | key[1] << 32)
    assert got.tolist() == list(words)


def test_native_words_give_the_known_answer(isa):
    # Counters whose quad is above 2^31 need more coordinates than memory holds: tests/native/core.cpp covers these.
    assert _native.words(1, 4, seed=0, step=0)[0].tolist() == list(KNOWN[0][2])


def test_native_words_equal_the_reference(isa):
    address = {"seed": 0x299F31D0A4093822, "step": 0x13198A2E, "stream": 0x03707344}
    got = _native.words(2, 1003, first_chain=0x85A308D3, **address)
    for c in range(2):
        np.testing.assert_array_equal(got[c].numpy(), _reference.words(0x85A308D3 + c, 1003, **address))


def test_normals_are_within_rounding_of_the_reference(isa):
    # u = (word + 1/2) / 2^32 is rounded twice: relative error 2^-23, so -2 ln u is off by 2^-22, and its root by
    # min(2^-22 / r, 2^-11). Relative errors, in units of 2^-23: logarithm 1.5 (0.75 after the root), root 0.5, sine
    # and cosine 1.25 (both measured over all mantissas by tests/native/core.cpp), product 0.5; the rounded angle adds
    # pi / 4 * 2^-24, 0.4 units. Their sum is below 3.5 units of r.
    size = 400_000
    got = normals(1, size, seed=11, step=5)[0].double()
    want = _reference.normals(0, size, seed=11, step=5)
    r = want.view(-1, 2).norm(dim=1).repeat_interleave(2)
    bound = 1.01 * torch.clamp(2.0**-22 / r, max=2.0**-11) + 3.5 * 2.0**-23 * r
    assert (got - want).abs().le(bound).all()


@pytest.mark.parametrize("size", SIZES)
def test_bits_do_not_depend_on_set_threads_or_place(size):
    want = normals(3, size, seed=2**64 - 1, step=7)
    try:
        for name in _cpu.isa_available():
            assert _cpu.use_isa(name)
            for pad, offset, threads in ((0, 0, 1), (1, 1, 2), (5, 3, 5), (32, 0, 3)):
                store, out = rows(3, size, pad=pad, offset=offset)
                _native.normals_(out, seed=2**64 - 1, step=7, threads=threads)
                assert torch.equal(out, want)
                out.fill_(-9.0)
                assert (store == -9.0).all()  # nothing was written outside the rows
    finally:
        _cpu.use_isa("")


@pytest.mark.parametrize("size", SIZES)
def test_a_chain_alone_equals_the_chain_among_many(size, isa):
    many = normals(5, size, seed=3, step=2, first_chain=10)
    for c in range(5):
        assert torch.equal(normals(1, size, seed=3, step=2, first_chain=10 + c)[0], many[c])


def test_a_longer_row_begins_with_the_shorter_one():
    assert torch.equal(normals(2, 20000, seed=3, step=2)[:, :129], normals(2, 129, seed=3, step=2))


@pytest.mark.parametrize(
    "other",
    [{"seed": 1 << 32}, {"seed": 1}, {"step": 1}, {"step": ONES}, {"stream": 1}, {"stream": 3}, {"first_chain": 2}],
)
def test_another_address_gives_other_noise(other):
    # Two independent 32-bit words agree once in 2^32; 2,000 pairs agree anywhere with probability 5e-7.
    plain = {"seed": 0, "step": 0, "stream": 0, "first_chain": 0}
    a, b = (_native.words(2, 1000, **address) for address in (plain, plain | other))
    assert not (a == b).any()
    # Correlation of 2,000 independent pairs: standard deviation 1 / sqrt(2000); 5 of them.
    x, y = (normals(2, 1000, **address).reshape(-1) for address in (plain, plain | other))
    assert abs(float((x * y).mean())) < 5 / math.sqrt(2000)


def test_negative_seeds_are_their_two_complement():
    assert torch.equal(normals(1, 9, seed=-1, step=0), normals(1, 9, seed=2**64 - 1, step=0))


def test_ten_million_draws_are_standard_normal():
    n = 10_000_000
    z = normals(10, n // 10, seed=2024, step=0).double()
    flat = z.reshape(-1)
    # Moment k has mean m_k and variance m_2k - m_k^2 over n; each within 5 standard errors (5.7e-7 two-sided).
    moments = [1, 0, 1, 0, 3, 0, 15, 0, 105, 0, 945, 0, 10395]
    power = torch.ones_like(flat)
    for k in range(1, 7):
        power *= flat
        error = math.sqrt((moments[2 * k] - moments[k] ** 2) / n)
        assert abs(float(power.mean()) - moments[k]) < 5 * error, k
    # Tails are binomial counts.
    for edge in (3.0, 4.0, 5.0):
        p = 2 * stats.norm.sf(edge)
        assert abs(int((flat.abs() > edge).sum()) - n * p) < 5 * math.sqrt(n * p), edge
    # P(max |z| < 4.6 or > 6.6) over 1e7 draws: exp(-42), and 4e-11 * 1e7 = 4e-4.
    assert 4.6 < float(flat.abs().max()) < 6.6
    # Kolmogorov-Smirnov at level 1e-4. Rounding moves the distribution function by 1e-7, far below 1 / sqrt(n).
    assert stats.kstest(flat.numpy(), stats.norm.cdf).pvalue > 1e-4
    # Neighbors in a quad, across quads, rows and half a row away: products of unit variance.
    for lag in (1, 2, 3, 4, 5, 64, 8192):
        product = z[:, lag:] * z[:, :-lag]
        assert abs(float(product.mean())) < 5 / math.sqrt(product.numel()), lag
        # Squares too: a radius shared by mistake shows here. The product of centered squares has variance 4.
        square = (z[:, lag:] ** 2 - 1) * (z[:, :-lag] ** 2 - 1)
        assert abs(float(square.mean())) < 5 * 2 / math.sqrt(square.numel()), lag
    across = torch.corrcoef(z) - torch.eye(10)
    assert float(across.abs().max()) < 5 / math.sqrt(n // 10)


def test_steps_of_one_coordinate_are_independent():
    z = torch.stack([normals(4, 64, seed=5, step=t).double() for t in range(2000)])
    product = z[1:] * z[:-1]
    assert abs(float(product.mean())) < 5 / math.sqrt(product.numel())
    assert stats.kstest(z[:, 2, 33].numpy(), stats.norm.cdf).pvalue > 1e-4
