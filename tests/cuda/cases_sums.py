"""Moments, Gram matrices and Gram-Schmidt against the same sums in numpy, in the order that the kernels promise."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from case import SIZES, Case, aligned, expected, normal, rows, uniform
from ptx_arithmetic import fma32
from shim import Call

HERE = {"device": 0, "stream": 0}
BLOCK, SUMS = 8192, 32
"""csrc/core/blocks.hpp"""


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


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Sums over the last dimension in the order of core/blocks.hpp: float32 sums i mod 32, then doubles."""
    total = np.zeros(a.shape[:-1])
    for start in range(0, a.shape[-1], BLOCK):
        sums = np.zeros((*a.shape[:-1], SUMS), np.float32)
        for at in range(start, min(start + BLOCK, a.shape[-1]), SUMS):
            stop = min(at + SUMS, a.shape[-1])
            n = stop - at
            sums[..., :n] = fma32(a[..., at:stop], b[..., at:stop], sums[..., :n])
        block = np.zeros(a.shape[:-1])
        for i in range(SUMS):
            block += sums[..., i].astype(np.float64)
        total += block
    return total


def subtract(v: np.ndarray, basis: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    for j in range(basis.shape[1]):
        v = fma32(-coefficients[:, j, None].astype(np.float32), basis[:, j], v)
    return v


def orthogonalize() -> Iterator[Case]:
    """Two passes of classical Gram-Schmidt, and the length of what is left."""
    plans = [(1, 1, 0), (3, 2, 1), (5, 2, 2), (31, 3, 4), (33, 5, 3), (257, 1, 9), (4003, 2, 2), (8193, 2, 3)]
    for number, (size, chains, vectors) in enumerate([*plans, (40, 1, 260)]):
        random = np.random.default_rng(number)
        basis = normal(random, chains, max(vectors, 1), -(-size // 32) * 32)
        q, v = basis[:, :vectors, :size] * np.float32(0.1), rows(normal(random, chains, size), number % 2 == 0)
        basis[:, :vectors, :size] = q
        partial = aligned(np.full(-(-size // BLOCK) * chains * max(vectors, 1), np.nan))
        first, second = (aligned(np.full((chains, max(vectors, 1)), np.nan)) for _ in range(2))
        square = aligned(np.zeros(chains))
        call = Call(
            "orthogonalize_f32",
            {**HERE, "basis": basis, "chain_ld": basis[0].size, "ld": basis.shape[2], "chains": chains}
            | {"vectors": vectors, "dim": size, "v": v, "v_ld": v.shape[1], "partial": partial, "first": first}
            | {"second": second, "square": square},
        )
        now, found = v[:, :size].copy(), []
        for _ in range(2):
            c = product(q, np.broadcast_to(now[:, None], q.shape)) if vectors else first
            now = subtract(now, q, c)
            found.append(c)
        after = v.copy()
        after[:, :size] = now
        changed: dict[str, np.ndarray | None] = {"v": after, "partial": None, "square": product(now, now)}
        changed |= {"first": found[0], "second": found[1]}
        watched = size in (5, 33, 8193) and chains == 2
        yield Case(f"orthogonalize {size} x {chains}, {vectors}", call, expected(call, changed), watched)


def normalize() -> Iterator[Case]:
    """beta = |v|, next = v / beta, alpha = the last coefficients of both passes."""
    for number, (size, chains) in enumerate([(1, 1), (3, 2), (5, 2), (33, 5), (4003, 3), (8193, 2)]):
        random = np.random.default_rng(number)
        v, out = (rows(normal(random, chains, size), number % 2 == 0) for _ in range(2))
        vectors = number % 3
        first, second = (uniform(random, chains, max(vectors, 1)) for _ in range(2))
        square, alpha, beta = uniform(random, chains), uniform(random, chains), uniform(random, chains)
        square[0] = 0.0  # nothing left of v: a row of zeros, not of NaN
        call = Call(
            "normalize_f32",
            {**HERE, "chains": chains, "vectors": vectors, "dim": size, "v": v, "v_ld": v.shape[1], "first": first}
            | {"second": second, "square": square, "next": out, "next_ld": out.shape[1], "alpha": alpha, "beta": beta},
        )
        length = np.sqrt(square)
        scale = np.divide(1.0, length, out=np.zeros(chains), where=length > 0).astype(np.float32)
        after = out.copy()
        after[:, :size] = scale[:, None] * v[:, :size]
        changed: dict[str, np.ndarray | None] = {"next": after, "beta": length}
        changed["alpha"] = first[:, -1] + second[:, -1] if vectors else np.zeros(chains)
        yield Case(f"normalize {size} x {chains}", call, expected(call, changed), size in (5, 33))
