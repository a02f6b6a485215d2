"""The fused step: equal to its specification up to rounding, and to itself bit for bit however it is called."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from conftest import SIZES

from devinterp_fast import _cpu, _native, _reference

UNIT = 2.0**-24  # the largest relative error of one float32 rounding


def aligned(chains, dim):
    """Zeros (chains, dim) with a row stride above dim, as the engine lays them out."""
    return torch.zeros(chains, -(-max(dim, 1) // 32) * 32)[:, :dim]


def problem(chains, dim, *, seed=0):
    """A state, gradient, center and per-chain settings of unequal size."""
    draw = torch.Generator().manual_seed(seed)
    w = aligned(chains, dim)
    w.copy_(torch.randn(chains, dim, generator=draw))
    g, center = torch.randn(chains, dim, generator=draw), torch.randn(dim, generator=draw)
    each = torch.arange(1, chains + 1, dtype=torch.float64)
    return w, g, center, 1e-3 * each, 7.0 / each, 30.0 * each


def step(w, gradients, center, lr, localization, nbeta, **options):
    """One native step of a copy of w, and its energy."""
    out, energy = aligned(*w.shape), torch.full((len(w),), -1.0, dtype=torch.float64)
    out.copy_(w)
    _native.sgld_step_(
        out, gradients, center, lr, localization, nbeta, energy=energy, **{"seed": 9, "step": 4, **options}
    )
    return out, energy


def reference(w, g, center, lr, localization, nbeta, dtype, *, mask=None, noise=True):
    xi = _native.normals_(torch.empty(w.shape), seed=9, step=4) * noise
    w, g, center, xi = (x.to(dtype) for x in (w, g, center, xi))
    return _reference.sgld_step(w, g, center, lr, localization, nbeta, xi, mask=mask)


@pytest.mark.parametrize("noise", [True, False])
@pytest.mark.parametrize("dim", SIZES)
def test_native_is_within_rounding_of_the_reference(dim, noise, isa):
    args = w, g, center, lr, localization, nbeta = problem(3, dim)
    got, energy = step(w, [g], *args[2:], noise=noise)
    want, want_energy, _ = reference(*args, torch.float64, noise=noise)
    plain, *_ = reference(*args, torch.float32, noise=noise)
    # Roundings on the way of each term: nbeta g: 4 (nbeta, product, fma, lr / 2); localization (w - center): 4;
    # noise: 1 (sqrt(lr)); then one of w before and one after the noise. 1.001 covers their products.
    xi = _native.normals_(torch.empty(3, dim), seed=9, step=4).double() * noise
    force, pull = nbeta[:, None] * g, localization[:, None] * (w - center).double()
    half, root = lr[:, None] / 2, lr.sqrt()[:, None]
    before = w - half * (force + pull)
    bound = 1.001 * UNIT * (4 * half * (force.abs() + pull.abs()) + root * xi.abs() + before.abs() + want.abs())
    assert ((got - want).abs() <= bound).all()
    # The energy: 2 roundings in the force and 3 in each part of the drift, and a float32 sum of at most
    # 8192 / 32 terms in each of 32 lanes and of the ragged tiles beside them.
    terms = force.abs() * (force.abs() + pull.abs())
    assert ((energy - want_energy).abs() <= 1.001 * UNIT * (6 + 256 + 8) * terms.sum(1)).all()
    if dim >= 63:  # with fewer numbers torch may be exact by luck
        assert (got - want).abs().max() <= 2 * (plain - want).abs().max()


@pytest.mark.parametrize("chains", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("dim", [1, 17, 129, 8193, 20000])
def test_sets_and_threads_give_the_same_bits(chains, dim):
    args = problem(chains, dim)
    mask = torch.arange(dim) % 3 != 1
    want = step(args[0], [args[1]], *args[2:], mask=mask)
    try:
        for name in _cpu.isa_available():
            assert _cpu.use_isa(name)
            for threads in (1, 2, 5):
                got = step(args[0], [args[1]], *args[2:], mask=mask, threads=threads)
                assert torch.equal(got[0], want[0])
                assert torch.equal(got[1], want[1])
    finally:
        _cpu.use_isa("")


def test_a_chain_alone_equals_the_chain_among_many(isa):
    w, g, center, lr, localization, nbeta = problem(5, 8200)
    many, energy = step(w, [g], center, lr, localization, nbeta)
    for c in range(5):
        one = slice(c, c + 1)
        alone, own = step(w[one], [g[one]], center, lr[one], localization[one], nbeta[one], first_chain=c)
        assert torch.equal(alone[0], many[c])
        assert torch.equal(own, energy[one])


@pytest.mark.parametrize(
    "cuts", [(1, 2), (0, 0, 5), (127, 129, 1000), (8191, 8193), (8192, 16384), (3, 3, 8190, 12345)]
)
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_in_pieces_equal_one_flat_gradient(cuts, masked, isa):
    dim = 20001
    w, g, *rest = problem(3, dim)
    mask = torch.arange(dim) % 7 != 0 if masked else None
    want, energy = step(w, [g], *rest, mask=mask)
    edges = [0, *cuts, dim]
    pieces = [g[:, a:b].contiguous() for a, b in pairwise(edges)]
    got, other = step(w, pieces, *rest, mask=mask)
    assert torch.equal(got, want)
    # The energy sums the same terms in another order: below n roundings of their sizes, n as in the bound above.
    torch.testing.assert_close(other, energy, rtol=1e-4, atol=0)


def test_gradient_pieces_may_have_any_shape_behind_the_chains():
    w, g, *rest = problem(2, 30)
    want, _ = step(w, [g], *rest)
    pieces = [g[:, :6].reshape(2, 2, 3), g[:, 6:6].reshape(2, 0), g[:, 6:].reshape(2, 1, 24)]
    got, _ = step(w, [piece.contiguous() for piece in pieces], *rest)
    assert torch.equal(got, want)


def test_each_chain_has_its_own_settings():
    w, g, center, lr, localization, nbeta = problem(4, 100)
    same = torch.ones(4, dtype=torch.float64)
    for c in range(4):
        together, _ = step(w, [g], center, lr, localization, nbeta)
        uniform, _ = step(w, [g], center, lr[c] * same, localization[c] * same, nbeta[c] * same)
        assert torch.equal(uniform[c], together[c])


@pytest.mark.parametrize("dim", [5, 127, 300])
def test_a_center_and_a_mask_for_each_chain(dim, isa):
    w, g, center, *rest = problem(3, dim)
    mask = torch.arange(dim) % 2 == 0
    want, energy = step(w, [g], center, *rest, mask=mask)
    got, other = step(w, [g], center.repeat(3, 1), *rest, mask=mask.repeat(3, 1))
    assert torch.equal(got, want)
    assert torch.equal(other, energy)
    shared, _ = step(w, [g], center.expand(3, dim), *rest, mask=mask.expand(3, dim))
    assert torch.equal(shared, want)
    centers = torch.stack([center, center + 1, center - 1])
    masks = torch.stack([mask, ~mask, torch.ones_like(mask)])
    each, _ = step(w, [g], centers, *rest, mask=masks)
    for c in range(3):
        alone, _ = step(w, [g], centers[c], *rest, mask=masks[c])
        assert torch.equal(each[c], alone[c])


@pytest.mark.parametrize("dim", [3, 128, 1000])
def test_masked_coordinates_keep_their_bits(dim, isa):
    w, g, center, *rest = problem(2, dim)
    mask = torch.arange(dim) % 3 != 0
    w[:, ~mask] = torch.tensor(float("nan"))
    w[1, ~mask] = -0.0
    g[:, ~mask] = float("inf")
    g[1, ~mask] = float("nan")
    got, energy = step(w, [g], center, *rest, mask=mask)
    assert torch.equal(got[:, ~mask].view(torch.int32), w[:, ~mask].contiguous().view(torch.int32))
    assert (got[:, mask] != w[:, mask]).all()
    keep = torch.where(mask, g, 0), torch.where(mask, w, 0)
    _, want, _ = reference(keep[1], keep[0], center * mask, *rest, torch.float64)
    torch.testing.assert_close(energy, want, rtol=UNIT * (6 + 256), atol=0)


def test_nothing_moves_without_a_step():
    w, g, center, lr, localization, nbeta = problem(3, 1000)
    still, _ = step(w, [g], center, 0 * lr, localization, nbeta)
    assert torch.equal(still, w)
    w[:] = center
    for_free, energy = step(w, [0 * g], center, lr, localization, nbeta, noise=False)
    assert torch.equal(for_free, w)
    assert torch.equal(energy, torch.zeros(3, dtype=torch.float64))


def test_without_noise_the_step_does_not_depend_on_the_seed():
    w, g, *rest = problem(3, 1000)
    assert torch.equal(step(w, [g], *rest, noise=False)[0], step(w, [g], *rest, noise=False, seed=1, step=1)[0])
    assert not torch.equal(step(w, [g], *rest)[0], step(w, [g], *rest, seed=1)[0])


def test_rows_may_lie_apart_and_unaligned(isa):
    w, g, *rest = problem(3, 130)
    want, _ = step(w, [g], *rest)
    store = torch.full((3 * 137 + 1,), -9.0)
    odd = store[1:].view(3, 137)[:, :130]
    odd.copy_(w)
    _native.sgld_step_(odd, [g], *rest, seed=9, step=4)
    assert torch.equal(odd, want)
    odd.fill_(-9.0)
    assert (store == -9.0).all()


def test_energy_is_optional_and_no_chain_is_fine():
    w, g, *rest = problem(2, 40)
    want, _ = step(w, [g], *rest)
    got = w.clone()
    _native.sgld_step_(got, [g], *rest, seed=9, step=4)
    assert torch.equal(got, want)
    none = torch.empty(0, dtype=torch.float64)
    _native.sgld_step_(torch.empty(0, 5), [torch.empty(0, 5)], torch.zeros(5), none, none, none, seed=0, step=0)
