"""Krylov bases of many symmetric matrices, grown in lock-step, and the addressed vectors they begin with.

A basis is reorthogonalized in full against itself at every step, by two passes of classical Gram-Schmidt; the
coefficients are the new column of the projected matrix T = V^T A V, kept in float64. With full reorthogonalization T
is what the vectors say it is, after a restart as before one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from devinterp_fast import _native

BASIS_BYTES = 5 * 2**29
"""What the bases that grow together may take: 2.5 GiB, 64 vectors of ten million float32 coordinates."""

PROBE, START, FRESH = range(3)
"""The third word (step) of a probe's address: what the vector is for."""

_BREAKDOWN = 16.0  # remainders below this many roundings of the image are noise


def rademacher(count: int, dim: int, *, seed: int, dtype: torch.dtype, first: int = 0) -> Tensor:
    """Random signs: coordinate i of probe p is bit i % 32 of word i // 32 at (seed; p, step 0, stream 3).

    Shape:
        Returns (count, dim).
    """
    out = torch.empty(count, dim, dtype=dtype)
    shifts = torch.arange(32)
    for row in range(count):
        words = _native.words(1, -(-dim // 32), seed=seed, step=PROBE, first_chain=first + row, stream=_native.PROBES)
        out[row] = (((words[0, :, None] >> shifts) & 1) * 2 - 1).reshape(-1)[:dim]
    return out


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

    @property
    def last(self) -> Tensor:
        """The vectors whose images come next. Shape: (C, dim)."""
        return self.basis[:, self.size]

    def extend(self, image: Tensor, active: list[int] | None = None) -> None:
        """Takes A times ``last``; of all bases, or of the active ones. Shape: (C, dim)."""
        j = self.size
        eps = torch.finfo(image.dtype).eps
        for c in range(len(image)) if active is None else active:
            w = self.basis[c, j + 1].copy_(image[c])
            norm = float(torch.linalg.vector_norm(w, dtype=torch.float64))
            h, beta = orthogonalize_(w, self.basis[c, : j + 1])
            self.T[c, : j + 1, j] = h
            self.T[c, j, : j + 1] = h
            self._scale[c] = max(float(self._scale[c]), norm)
            if j + 1 == self.dim:
                beta = 0.0
            elif beta <= _BREAKDOWN * eps * float(self._scale[c]):
                beta = 0.0
                w.copy_(gaussian(j, self.dim, seed=self.seed, step=FRESH, dtype=w.dtype))
                left = orthogonalize_(w, self.basis[c, : j + 1])[1]
                w.div_(left)
            else:
                w.div_(beta)
            self.beta[c] = beta
        self.size = j + 1

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
        self.size = kept


_TILE = 1 << 16


def orthogonalize_(w: Tensor, basis: Tensor) -> tuple[Tensor, float]:
    """Takes from ``w``, in place, its part in the span of ``basis``: two passes of classical Gram-Schmidt.

    Returns:
        The coefficients, float64 (size,), and the norm of what is left.

    Shape:
        w: (dim,); basis: (size, dim), orthonormal rows.

    Source:
        Giraud, Langou, Rozložník, van den Eshof (2005): twice is enough.
    """
    first = torch.mv(basis, w)
    w.addmv_(basis.T, first, alpha=-1)
    second = torch.mv(basis, w)
    w.addmv_(basis.T, second, alpha=-1)
    return first.double() + second.double(), float(torch.linalg.vector_norm(w, dtype=torch.float64))
