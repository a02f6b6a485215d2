"""Krylov bases of many symmetric matrices, grown in lock-step, and the addressed vectors they begin with.

A basis is reorthogonalized in full against itself at every step, by two passes of classical Gram-Schmidt that read it
twice; where little is left of a vector its rounding errors are too, and it goes through once more. The coefficients are
the new column of the projected matrix T = V^T A V, kept in float64: with full reorthogonalization T is what the vectors
say it is, after a restart as before one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from devinterp_fast import _native

BASIS_BYTES = 5 * 2**29
"""What the bases that grow together may take: 2.5 GiB, 64 vectors of ten million float32 coordinates."""

PROBE, START, FRESH = range(3)
"""The third word (step) of a probe's address: what the vector is for."""

_LITTLE = 0.1  # of a vector is left: its errors in the basis's directions have grown by ten
_BREAKDOWN = 16.0  # remainders below this many roundings of the image are noise


def rademacher(count: int, dim: int, *, seed: int, dtype: torch.dtype, first: int = 0) -> Tensor:
    """Random signs: coordinate i of probe p is bit i % 32 of word i // 32 at (seed; p, step 0, stream 3), a set bit -1.

    Shape:
        Returns (count, dim).
    """
    return _native.rademacher_(torch.empty(count, dim, dtype=dtype), seed=seed, step=PROBE, first_probe=first)


def gaussian(number: int, dim: int, *, seed: int, step: int, dtype: torch.dtype) -> Tensor:
    """A direction uniform on the sphere, of norm 1. Shape: (dim,)."""
    z = torch.empty(1, dim)
    _native.normals_(z, seed=seed, step=step, first_chain=number, stream=_native.PROBES)
    norm = float(torch.linalg.vector_norm(z, dtype=torch.float64))
    return z[0].to(dtype) / norm


class Krylov:
    """C orthonormal bases V, grown by one vector at a time, and their projected matrices.

    Args:
        start: first vectors, not zero. Shape: (C, dim).
        room: vectors that each basis can hold.
        seed: of the vectors that go on after a basis has become invariant.

    Attributes:
        size: vectors whose images are known.
        T: V^T A V. Shape: float64 (C, room, room); the leading ``size`` rows and columns count.
        beta: norm of what was left of the last image; 0 for an invariant basis. Shape: float64 (C,).
    """

    def __init__(self, start: Tensor, room: int, seed: int):
        count, self.dim = start.shape
        self.room, self.seed, self.size = min(room, self.dim), seed, 0
        self.basis = torch.empty(count, self.room + 1, self.dim, dtype=start.dtype)
        norm = torch.linalg.vector_norm(start, dim=1, keepdim=True, dtype=torch.float64)
        self.basis[:, 0] = start / norm.to(start.dtype)
        self.T = torch.zeros(count, self.room, self.room, dtype=torch.float64)
        self.beta = torch.zeros(count, dtype=torch.float64)
        self._scale = torch.zeros(count, dtype=torch.float64)
        self._gram = torch.zeros(count, self.room + 1, self.room + 1, dtype=torch.float64)
        self._known = 0

    @property
    def last(self) -> Tensor:
        """The vectors whose images come next. Shape: (C, dim)."""
        return self.basis[:, self.size]

    def extend(self, image: Tensor, active: list[int] | None = None) -> None:
        """Takes A times ``last``; of all bases, or of the active ones. Shape: (C, dim)."""
        count = self.size + 1
        self.basis[:, count] = image
        if active is None or len(active) == len(image):
            self._orthogonalize(slice(None), count, self._known)
        else:
            for c in active:
                self._orthogonalize(slice(c, c + 1), count, self._known)
        self.size, self._known = count, count
        for c in torch.nonzero(self.beta == 0)[:, 0].tolist() if count < self.dim else ():
            if active is None or c in active:
                self._renew(c)

    def _orthogonalize(self, which: slice, count: int, known: int) -> None:
        """Splits the new images into a column of T, a norm, and the next vector."""
        basis, eps = self.basis[which], torch.finfo(self.basis.dtype).eps
        h, norm = _native.gram_schmidt_(
            basis[:, count], basis, count, self._gram[which], known=known, threads=torch.get_num_threads()
        )
        size = (h.square().sum(1) + norm.square()).sqrt()
        for i in torch.nonzero(norm < _LITTLE * size)[:, 0].tolist():
            one = slice(i, i + 1)
            more, left = _native.gram_schmidt_(
                basis[one, count],
                basis[one],
                count,
                self._gram[which][one],
                known=count,
                threads=torch.get_num_threads(),
            )
            h[i] += norm[i] * more[0]
            norm[i] *= left[0]
        self.T[which, :count, count - 1] = h
        self.T[which, count - 1, :count] = h
        self._scale[which] = torch.maximum(self._scale[which], size)
        # What is left below a few roundings of the images is noise: the basis is invariant.
        self.beta[which] = torch.where(norm <= _BREAKDOWN * eps * self._scale[which], 0.0, norm)
        if count == self.dim:
            self.beta[which] = 0.0

    def _renew(self, c: int) -> None:
        """A fresh vector after an invariant basis: other copies of its eigenvalues, and other ones, lie there."""
        count, basis = self.size, self.basis[c : c + 1]
        basis[0, count] = gaussian(count, self.dim, seed=self.seed, step=FRESH, dtype=basis.dtype)
        for _ in range(3):  # little may be left of it at first: its rounding errors are taken off too
            _native.gram_schmidt_(basis[:, count], basis, count, self._gram[c : c + 1], known=count)

    def ritz(self, c: int) -> tuple[Tensor, Tensor]:
        """Eigenvalues and eigenvectors of one projected matrix, ascending. Shape: (size,), (size, size)."""
        theta, s = torch.linalg.eigh(self.T[c, : self.size, : self.size])
        return theta, s

    def combine(self, c: int, s: Tensor) -> Tensor:
        """The vectors V s as rows. Shape: (size, k) -> (k, dim)."""
        return s.T.to(self.basis.dtype) @ self.basis[c, : self.size]

    def restart(self, c: int, theta: Tensor, s: Tensor) -> None:
        """Keeps the Ritz pairs (theta, V s) and the remainder of one basis; ``resize`` follows for all.

        Source:
            Wu, Simon (2000), Thick-restart Lanczos method for large symmetric eigenvalue problems.
        """
        kept, full = len(theta), self.size
        rows = self.basis[c]
        weights = s.T.to(rows.dtype)
        for start in range(0, self.dim, _TILE):  # in place, a tile of coordinates at a time
            tile = slice(start, min(start + _TILE, self.dim))
            rows[:kept, tile] = weights @ rows[:full, tile]
        rows[kept] = rows[full]
        self.T[c] = 0
        self.T[c, :kept, :kept] = torch.diag(theta)

    def resize(self, kept: int) -> None:
        """Says how many pairs each basis kept."""
        self.size, self._known = kept, 0


_TILE = 1 << 16
