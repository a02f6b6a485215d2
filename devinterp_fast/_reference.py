"""The specification: every native operation once more, in plain torch and numpy, to be read.

Noise is computed in float64 from the same Philox words, so native normals differ from these by the rounding of
float32 arithmetic alone. The updates take any float dtype.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Words = npt.NDArray[np.uint64]
_LOW = np.uint64(0xFFFFFFFF)


def philox(counter: Words, seed: int) -> Words:
    """Philox4x32-10: four random words from a counter of four words and a 64-bit key.

    Ten rounds of (c0, c1, c2, c3) <- (hi(M1 c2) ^ c1 ^ k0, lo(M1 c2), hi(M0 c0) ^ c3 ^ k1, lo(M0 c0)).

    Shape:
        counter: (..., 4) words below 2^32; the result alike.

    Source:
        Salmon, Moraes, Dror, Shaw (2011), Parallel random numbers: as easy as 1, 2, 3.
    """
    c0, c1, c2, c3 = (counter[..., i] for i in range(4))
    k0, k1 = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0 = (p1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0)
        c2 = (p0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1)
        c1, c3 = p1 & _LOW, p0 & _LOW
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=-1)


def words(chain: int, size: int, *, seed: int, step: int, stream: int = 0) -> Words:
    """The first ``size`` words of a chain: word i is word i % 4 of the counter (i // 4, chain, step, stream)."""
    quads = -(-size // 4)
    counter = np.zeros((quads, 4), dtype=np.uint64)
    counter[:, 0] = np.arange(quads)
    counter[:, 1:] = chain, step, stream
    return philox(counter, seed & (2**64 - 1)).reshape(-1)[:size]


def normals(chain: int, size: int, *, seed: int, step: int, stream: int = 0) -> Tensor:
    """Standard normals of one chain by Box-Muller, float64 (size,).

    (z0, z1) = sqrt(-2 ln u) (cos, sin)(theta). u = (x0 + 1/2) / 2^32; theta = pi s / 2^33 less a quarter turn for
    bit 0 and plus half a turn for bit 1 of x1, with s the word x1 read as signed. (z2, z3) come from x2, x3.
    """
    x = words(chain, 4 * (-(-size // 4)), seed=seed, step=step, stream=stream).reshape(-1, 2)
    radius = np.sqrt(-2 * np.log((x[:, 0].astype(np.float64) + 0.5) / 2.0**32))
    angle_word = x[:, 1].astype(np.uint32)
    theta = np.pi * angle_word.view(np.int32) / 2.0**33
    theta = theta - np.pi / 2 * (angle_word & 1) + np.pi / 2 * (angle_word & 2)
    pairs = np.stack([radius * np.cos(theta), radius * np.sin(theta)], axis=-1)
    return torch.from_numpy(pairs.reshape(-1)[:size])


def _beside(x: Tensor, w: Tensor) -> Tensor:
    """A number for each chain, or for each coordinate of each, in the dtype of w and ready to multiply it."""
    return x.to(w.dtype) if x.dim() > 1 else x.to(w.dtype)[:, None]


def sgld_step(
    w: Tensor,
    g: Tensor,
    center: Tensor,
    lr: Tensor,
    localization: Tensor,
    nbeta: Tensor,
    xi: Tensor,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """SGLD: returns w - (lr / 2) d + sqrt(lr) xi, d = nbeta g + localization (w - center); and two sums.

    They are sum d . (nbeta g) and sum d . d.

    Where ``mask`` is False, w stays and d counts as zero.

    Shape:
        w, g, xi: (chains, dim); center: (dim) or (chains, dim); mask: bool, (dim) or (chains, dim);
        lr, localization, nbeta: (chains); localization also (chains, dim). The sums are float64 (chains).
    """
    lr, localization, nbeta = (_beside(x, w) for x in (lr, localization, nbeta))
    force = nbeta * g
    d = force + localization * (w - center)
    moved = w - lr / 2 * d + lr.sqrt() * xi
    if mask is not None:
        moved, d, force = torch.where(mask, moved, w), torch.where(mask, d, 0), torch.where(mask, force, 0)
    return moved, (d.double() * force.double()).sum(1), d.double().square().sum(1)


def langevin_step(
    w: Tensor,
    p: Tensor,
    g: Tensor,
    center: Tensor,
    h: Tensor,
    localization: Tensor,
    nbeta: Tensor,
    friction: Tensor,
    thermostat: Tensor,
    xi: Tensor,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Langevin dynamics with momentum: returns w, p and sum d . (nbeta g).

    p <- p - h d, w <- w + (h / 2) p, p <- keep p + noise xi, w <- w + (h / 2) p, with x = max(-1/2, thermostat / 2),
    keep = (1 - x) / (1 + x), noise^2 = 2 friction / (1 + x)^2.

    Shape:
        w, p, g, xi: (chains, dim); center: (dim) or (chains, dim); h, localization, nbeta, friction, thermostat:
        (chains). The sum is float64 (chains).
    """
    x = (thermostat / 2).clamp(min=-0.5)
    keep, noise = (1 - x) / (1 + x), (2 * friction).sqrt() / (1 + x)
    h, localization, nbeta, keep, noise = (_beside(v, w) for v in (h, localization, nbeta, keep, noise))
    force = nbeta * g
    d = force + localization * (w - center)
    kicked = p - h * d
    after = keep * kicked + noise * xi
    moved = w + h / 2 * kicked + h / 2 * after
    if mask is not None:
        moved, after = torch.where(mask, moved, w), torch.where(mask, after, p)
        d, force = torch.where(mask, d, 0), torch.where(mask, force, 0)
    return moved, after, (d.double() * force.double()).sum(1)


def preconditioned_step(
    w: Tensor,
    m: Tensor,
    v: Tensor,
    g: Tensor,
    center: Tensor,
    lr: Tensor,
    localization: Tensor,
    nbeta: Tensor,
    xi: Tensor,
    beta1: float,
    beta2: float,
    epsilon: float,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """SGLD in a diagonal metric: returns w, m, v, sum G d . (nbeta m) and sum G d . d.

    m <- beta1 m + (1 - beta1) g, v <- beta2 v + (1 - beta2) g^2, G = 1 / (sqrt(v) + epsilon),
    d = nbeta m + localization (w - center), w <- w - (lr / 2) G d + sqrt(lr G) xi.

    Shape:
        As in ``sgld_step``; m, v: (chains, dim).
    """
    lr, localization, nbeta = (_beside(x, w) for x in (lr, localization, nbeta))
    mean, square = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
    metric = 1 / (square.sqrt() + epsilon)
    force = nbeta * mean
    d = force + localization * (w - center)
    moved = w - lr / 2 * metric * d + (lr * metric).sqrt() * xi
    if mask is not None:
        moved, mean, square = (torch.where(mask, a, b) for a, b in ((moved, w), (mean, m), (square, v)))
        d, force = torch.where(mask, d, 0), torch.where(mask, force, 0)
    weight = metric.double() * d.double()
    return moved, mean, square, (weight * force.double()).sum(1), (weight * d.double()).sum(1)


def uniforms(first_chain: int, chains: int, *, seed: int, step: int) -> Words:
    """The four words of accept-reject: word 0 accepts, word 1 (of chain 2^32 - 1) is a trajectory's length.

    They are the last quad of the momenta's stream: counter (2^32 - 1, chain, step, 2).

    Shape:
        Returns (chains, 4).
    """
    counter = np.zeros((chains, 4), dtype=np.uint64)
    counter[:] = 0xFFFFFFFF, first_chain, step, 2
    counter[:, 1] += np.arange(chains, dtype=np.uint64)
    return philox(counter, seed & (2**64 - 1))


def trajectory_length(leapfrog: int, *, seed: int, step: int) -> int:
    """Leapfrog steps of a trajectory: uniform in ceil(leapfrog / 2) ... floor(3 leapfrog / 2), alike for all chains."""
    low, high = (leapfrog + 1) // 2, leapfrog + leapfrog // 2
    return low + (int(uniforms(0xFFFFFFFF, 1, seed=seed, step=step)[0, 1]) * (high - low + 1) >> 32)
