"""Moments, Gram matrices and Gram-Schmidt against the same sums in numpy, in the order that the kernels promise."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
from builds import kernels
from case import SIZES, Case, aligned, expected, normal, rows, uniform
from ptx_arithmetic import fma32
from shim import Call, Library

from devinterp_fast import _cpu

HERE = {"device": 0, "stream": 0}
BLOCK, TILE = 8192, 2048
"""csrc/core/blocks.hpp; what lanczos.cu works on at a time"""


@cache
def library() -> Library:
    return Library(kernels(), module="_cuda")


def moments() -> Iterator[Case]:
    """mean += (w - mean) / n; scatter += (w - old mean) (w - new mean), in float64."""
    plans = [(size, chains) for size in SIZES for chains in (1, 2, 3, 5)] + [(8193, 2)]
    for number, (size, chains) in enumerate(plans):
        random = np.random.default_rng(number)
        w = rows(normal(random, chains, size), number % 2 == 0)
        mean, scatter = (rows(uniform(random, chains, size), number % 3 == 0) for _ in range(2))
        draws = aligned(np.array([number + 1]))
        call = Call(
            "add_draws_f64",
            {**HERE, "w": w, "w_ld": w.shape[1], "mean": mean, "scatter": scatter, "ld": mean.shape[1]}
            | {"chains": chains, "dim": size, "draws": draws},
        )
        after, scatter_after = mean.copy(), scatter.copy()
        off = w[:, :size].astype(np.float64) - mean[:, :size]
        after[:, :size] += off / (number + 1)
        scatter_after[:, :size] += off * (w[:, :size].astype(np.float64) - after[:, :size])
        changed: dict[str, np.ndarray | None] = {"mean": after, "scatter": scatter_after}
        yield Case(f"moments {size} x {chains}", call, expected(call, changed), size in (5, 8193))


def dots(a: np.ndarray) -> np.ndarray:
    """(n, m) -> (n, n): float32 sums of products, in the order of the columns."""
    sums = np.zeros((len(a), len(a)), np.float32)
    for column in a.T:
        sums = fma32(column[:, None], column[None, :], sums)
    return sums


def gram() -> Iterator[Case]:
    """G_ij = sum over positions (t, u) of (d_it . d_ju) (x_it . x_ju + [b])."""
    plans = [(1, 1, 1, 1), (2, 3, 5, 2), (5, 1, 31, 33), (16, 1, 32, 3), (17, 2, 33, 5), (33, 1, 3, 40)]
    for number, (samples, positions, inputs, outputs) in enumerate(plans):
        random = np.random.default_rng(number)
        x, d = normal(random, samples, positions, inputs), normal(random, samples, positions, outputs)
        old = rows(uniform(random, samples, samples), number % 2 == 0)
        old[:, :samples] += old[:, :samples].T.copy()
        call = Call(
            "add_gram_f64",
            {**HERE, "x": x, "d": d, "samples": samples, "positions": positions, "inputs": inputs}
            | {"outputs": outputs, "bias": number % 2 == 1, "gram": old, "ld": old.shape[1]},
        )
        # rows in the order (position, sample), so that [t, :, u, :] is a table of samples
        flat_x, flat_d = (v.swapaxes(0, 1).reshape(positions * samples, -1) for v in (x, d))
        shape = (positions, samples, positions, samples)
        xx, dd = dots(flat_x).reshape(shape), dots(flat_d).reshape(shape)
        if number % 2 == 1:
            xx = xx + np.float32(1)
        total = np.zeros((samples, samples))
        for t in range(positions):
            for u in range(positions):
                total += dd[t, :, u].astype(np.float64) * xx[t, :, u].astype(np.float64)
        after = old.copy()
        lower = np.tril(old[:, :samples] + total)
        after[:, :samples] = lower + np.tril(lower, -1).T
        yield Case(f"gram {samples}", call, expected(call, {"gram": after}), samples in (5, 17))


def orthogonalize() -> Iterator[Case]:
    """Two passes of classical Gram-Schmidt, the products' newest row, and what is left of the vector: the CPU's own."""
    plans = [(1, 1, 0), (3, 2, 1), (5, 2, 2), (31, 3, 4), (33, 5, 3), (257, 1, 9), (4003, 2, 2), (8193, 2, 3)]
    for number, (size, chains, vectors) in enumerate([*plans, (40, 1, 260)]):
        random = np.random.default_rng(number)
        room = max(vectors, 1)
        basis = normal(random, chains, room, -(-size // 32) * 32)
        basis[:, :, :size] *= np.float32(0.1)
        v = rows(normal(random, chains, size), number % 2 == 0)
        gram = aligned(basis[:, :, :size].astype(np.float64) @ basis[:, :, :size].astype(np.float64).swapaxes(1, 2))
        gram[:, -1] = gram[:, :, -1] = np.nan
        tiles, blocks = -(-size // TILE), -(-size // BLOCK)
        partial = aligned(np.full(chains * (2 * tiles * room + blocks), np.nan))
        c = aligned(np.full((chains, room), np.nan))
        call = Call(
            "orthogonalize_f32",
            {**HERE, "basis": basis, "chain_ld": basis[0].size, "ld": basis.shape[2], "chains": chains}
            | {"vectors": vectors, "dim": size, "v": v, "v_ld": v.shape[1], "partial": partial, "gram": gram}
            | {"gram_ld": room, "gram_chain_ld": room * room, "coefficients": c},
        )
        unit, gram_after, c_after, norms = cpu(v, basis, gram, vectors, size)
        left = library().run(call)
        after = left[call_number(call, "v")]
        # The CPU divides by the length at once, `normalize` does so here; the CPU's subtraction is seen through that.
        inverse = np.divide(1.0, norms, out=np.zeros(chains), where=norms > 0)
        assert ((inverse[:, None] * after[:, :size]).astype(np.float32) == unit).all()
        squares = left[call_number(call, "partial")][: chains * blocks].reshape(blocks, chains)
        assert (np.sqrt(np.add.accumulate(squares)[-1]) == norms).all()
        changed: dict[str, np.ndarray | None] = {"v": after, "partial": None}
        if vectors:
            changed |= {"gram": gram_after, "coefficients": c_after}
        watched = size in (5, 33, 8193) and chains == 2
        yield Case(f"orthogonalize {size} x {chains}, {vectors}", call, expected(call, changed), watched)


def call_number(call: Call, name: str) -> int:
    """The number of an argument among the arrays of a call."""
    assert isinstance(call.arguments, dict)
    return [k for k, a in call.arguments.items() if isinstance(a, np.ndarray)].index(name)


def cpu(
    v: np.ndarray, basis: np.ndarray, gram: np.ndarray, vectors: int, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The CPU's Gram-Schmidt: the unit vectors, the products, the coefficients, the lengths."""
    chains, room = basis.shape[:2]
    u, g, c, norms = v[:, :size].copy(), gram.copy(), np.full((chains, room), np.nan), np.zeros(chains)
    _cpu.gram_schmidt_f32(
        u.ctypes.data, size, basis.ctypes.data, basis[0].size, basis.shape[2], chains, size, vectors,
        max(vectors - 1, 0), g.ctypes.data, room * room, room, c.ctypes.data, room, norms.ctypes.data, 1,
    )  # fmt: skip
    return u, g, c, norms


def normalize() -> Iterator[Case]:
    """beta = |v|, next = v / beta, alpha = the last coefficients."""
    for number, (size, chains) in enumerate([(1, 1), (3, 2), (5, 2), (33, 5), (4003, 3), (8193, 2)]):
        random = np.random.default_rng(number)
        v, out = (rows(normal(random, chains, size), number % 2 == 0) for _ in range(2))
        vectors, blocks = number % 3, -(-size // BLOCK)
        c = uniform(random, chains, max(vectors, 1))
        squares, alpha, beta = uniform(random, blocks, chains), uniform(random, chains), uniform(random, chains)
        squares[:, 0] = 0.0  # nothing left of v: a row of zeros, not of NaN
        call = Call(
            "normalize_f32",
            {**HERE, "chains": chains, "vectors": vectors, "dim": size, "v": v, "v_ld": v.shape[1], "partial": squares}
            | {"coefficients": c, "next": out, "next_ld": out.shape[1], "alpha": alpha, "beta": beta},
        )
        length = np.sqrt(np.add.accumulate(squares)[-1])
        inverse = np.divide(1.0, length, out=np.zeros(chains), where=length > 0)
        after = out.copy()
        after[:, :size] = inverse[:, None] * v[:, :size]
        changed: dict[str, np.ndarray | None] = {"next": after, "beta": length}
        changed["alpha"] = c[:, -1] if vectors else np.zeros(chains)
        yield Case(f"normalize {size} x {chains}", call, expected(call, changed), size in (5, 33))
