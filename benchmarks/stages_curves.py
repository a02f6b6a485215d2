"""Trains small networks and keeps the curves that `stages_score` reads, in results/stages_curves.npz.

Run: python benchmarks/stages_curves.py [SYSTEM ...]        (about five minutes for all, on one thread)

Each run is a table: observed steps, the curves a user would watch, and the order parameters from which the truth is
read. Even seeds are for choosing defaults, odd seeds for scoring them. Keys: ``SYSTEM/SEED/CURVE``.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from devinterp_fast.transitions.tms import population_loss

CURVES = Path(__file__).parent / "results" / "stages_curves.npz"
Table = dict[str, list[float]]


def log_steps(last: int, points: int) -> list[int]:
    """0, then about ``points`` log-spaced steps up to ``last``."""
    return sorted({0, *(round(last ** (i / points)) for i in range(points + 1))})


def tms(init: float, steps: int, seeds: int) -> Iterator[tuple[int, Table]]:
    """Six features in two dimensions by plain SGD; exact loss, the loss of 1,024 samples, column norms."""
    generator = torch.Generator().manual_seed(round(100 * init))
    W = init * torch.randn(seeds, 2, 6, generator=generator)
    b = torch.zeros(seeds, 6)
    observed, rows = set(log_steps(steps, 150)), []

    def draw(size: int) -> Tensor:
        feature = torch.randint(6, (seeds, size, 1), generator=generator)
        return torch.zeros(seeds, size, 6).scatter_(2, feature, torch.rand(seeds, size, 1, generator=generator))

    for step in range(steps + 1):
        if step in observed:
            x = draw(1024)
            sampled = ((x @ W.mT @ W + b[:, None]).relu() - x).square().sum(2).mean(1)
            exact = population_loss(W.double(), b.double())
            rows.append((step, exact.tolist(), sampled.tolist(), W.norm(dim=1).tolist()))
        x = draw(64)
        hidden = x @ W.mT
        z = hidden @ W + b[:, None]
        d = (z.relu() - x) * (z > 0) * (2 / 64)
        W = W - 0.05 * (hidden.mT @ d + (d @ W.mT).mT @ x)
        b = b - 0.05 * d.sum(1)
    for seed in range(seeds):
        table = {
            "step": [r[0] for r in rows],
            "loss": [r[1][seed] for r in rows],
            "sampled": [r[2][seed] for r in rows],
        }
        yield seed, table | {f"norm{j}": [r[3][seed][j] for r in rows] for j in range(6)}


def barlow(seed: int, images: bool) -> Table:
    """Linear Barlow twins, full batch: planted power-law spectrum, or the pixels of digits with noise added."""
    generator = torch.Generator().manual_seed(seed)
    if images:
        from sklearn.datasets import load_digits

        x = torch.tensor(load_digits().data) / 16
        x = x - x.mean(0)
        gamma = torch.linalg.eigvalsh(x.mT @ x / len(x)).flip(0)
    else:
        gamma = torch.tensor([2.0 ** (-i / 2) for i in range(20)], dtype=torch.float64)
    W = 1e-3 * torch.randn(6, len(gamma), generator=generator, dtype=torch.float64) / math.sqrt(len(gamma))
    eye, lr = torch.eye(6, dtype=torch.float64), 0.01 / float(gamma[0])
    steps = round(2.1 / float(gamma[5]) / lr)
    every, table = max(1, steps // 300), {"step": [], "loss": []} | {f"mode{j}": [] for j in range(6)}
    for step in range(steps + 1):
        C = (W * gamma) @ W.mT
        if step % every == 0:
            table["step"].append(step)
            table["loss"].append(float((C - eye).square().sum()))
            for j, value in enumerate(torch.linalg.eigvalsh(C).flip(0).tolist()):
                table[f"mode{j}"].append(value)
        W = W - 4 * lr * (C - eye) @ (W * gamma)
    return table


def parity(seed: int, tasks: int = 12, bits: int = 24, steps: int = 3000) -> Table:
    """Sparse parities of three bits each, task i as frequent as i^-1.4: each task's loss on 300 fixed samples."""
    generator = torch.Generator().manual_seed(seed)
    share = (torch.arange(tasks) + 1.0) ** -1.4
    share /= share.sum()
    chosen = torch.stack([torch.randperm(bits, generator=generator)[:3] for _ in range(tasks)])

    def layer(fan_in: int, fan_out: int) -> list[Tensor]:
        bound = fan_in**-0.5
        shapes = [(fan_in, fan_out), (fan_out,)]
        return [(torch.rand(s, generator=generator) * 2 * bound - bound).requires_grad_() for s in shapes]

    weights = [*layer(tasks + bits, 128), *layer(128, 2)]
    optimizer = torch.optim.Adam(weights, lr=2e-3)

    def forward(x: Tensor) -> Tensor:
        return (x @ weights[0] + weights[1]).relu() @ weights[2] + weights[3]

    def batch(task: Tensor) -> tuple[Tensor, Tensor]:
        bit = torch.randint(2, (len(task), bits), generator=generator)
        return torch.cat([F.one_hot(task, tasks), bit], 1).float(), bit.gather(1, chosen[task]).sum(1) % 2

    held_out = batch(torch.arange(tasks).repeat_interleave(300))
    table: Table = {name: [] for name in ("step", "total", *(f"task{i}" for i in range(tasks)))}
    for step in range(steps + 1):
        if step % 20 == 0:
            with torch.no_grad():
                losses = F.cross_entropy(forward(held_out[0]), held_out[1], reduction="none").view(tasks, -1).mean(1)
            table["step"].append(step)
            table["total"].append(float(losses @ share))
            for i, value in enumerate(losses.tolist()):
                table[f"task{i}"].append(value)
        x, y = batch(torch.multinomial(share, 1024, True, generator=generator))
        optimizer.zero_grad()
        F.cross_entropy(forward(x), y).backward()
        optimizer.step()
    return table


class Attention:
    """Two layers of attention, positions added to queries and keys alone."""

    def __init__(self, vocabulary: int, length: int, generator: torch.Generator, width: int = 64, heads: int = 4):
        def normal(*shape: int, scale: float) -> Tensor:
            return (scale * torch.randn(*shape, generator=generator)).requires_grad_()

        self.heads = heads
        self.embed, self.position = normal(vocabulary, width, scale=0.1), normal(length, width, scale=1.0)
        self.maps = [[normal(width, width, scale=s * width**-0.5) for s in (1, 1, 1, 0.5)] for _ in range(2)]
        self.unembed = normal(width, vocabulary, scale=width**-0.5)
        self.gains = [torch.ones(width, requires_grad=True) for _ in range(3)]
        self.shifts = [torch.zeros(width, requires_grad=True) for _ in range(3)]
        self.weights = [
            self.embed,
            self.position,
            self.unembed,
            *self.gains,
            *self.shifts,
            *self.maps[0],
            *self.maps[1],
        ]

    def __call__(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (batch, length, vocabulary) and the second layer's attention (batch, heads, length, length)."""
        batch, length = tokens.shape
        r = self.embed[tokens]
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        for (q, k, v, o), gain, shift in zip(self.maps, self.gains, self.shifts, strict=False):
            h = F.layer_norm(r, r.shape[-1:], gain, shift)
            at = h + self.position[:length]
            query, key, value = (x.view(batch, length, self.heads, -1).transpose(1, 2) for x in (at @ q, at @ k, h @ v))
            score = (query @ key.mT / query.shape[-1] ** 0.5).masked_fill(future, -1e9).softmax(-1)
            r = r + (score @ value).transpose(1, 2).reshape(batch, length, -1) @ o
        return F.layer_norm(r, r.shape[-1:], self.gains[2], self.shifts[2]) @ self.unembed, score


def induction(seed: int, steps: int = 1300, vocabulary: int = 32, length: int = 48) -> Table:
    """Half bigram text, half random segments that repeat: bigrams first, then induction heads."""
    world = torch.Generator().manual_seed(123)
    bigram = (2 * torch.randn(vocabulary, vocabulary, generator=world)).softmax(1)
    cumulative = bigram.cumsum(1)
    generator = torch.Generator().manual_seed(seed)
    net = Attention(vocabulary, length, generator)
    optimizer = torch.optim.AdamW(net.weights, lr=3e-3, weight_decay=0.01, betas=(0.9, 0.98))

    def text(size: int, g: torch.Generator) -> Tensor:
        x = torch.randint(vocabulary, (size, length), generator=g)
        period = torch.randint(8, length // 2 + 1, (size // 2, 1), generator=g)
        x[: size // 2] = x[: size // 2].gather(1, torch.arange(length)[None] % period)
        u = torch.rand(size, length, 1, generator=g)
        for t in range(1, length):
            x[size // 2 :, t] = (cumulative[x[size // 2 :, t - 1]] < u[size // 2 :, t]).sum(1).clamp(max=vocabulary - 1)
        return x

    def loss(logits: Tensor, x: Tensor) -> Tensor:
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), x[:, 1:].flatten())

    held_out = text(256, world)
    repeated = torch.randint(vocabulary, (32, length // 2), generator=world).repeat(1, 2)
    half = torch.arange(length // 2, length - 1)
    table: Table = {name: [] for name in ("step", "loss", "batch", "prefix", "accuracy", "bigram")}
    for step in range(steps + 1):
        x = text(32, generator)
        value = loss(net(x)[0], x)
        if step % 10 == 0:
            with torch.no_grad():
                logits, _ = net(held_out)
                again, attention = net(repeated)
                kl = (logits.softmax(-1) * (logits.log_softmax(-1) - bigram.log()[held_out])).sum(-1).mean()
                prefix = attention[:, :, half, half - length // 2 + 1].mean((0, 2)).max()
                accuracy = (again[:, half].argmax(-1) == repeated[:, half + 1]).float().mean()
            row = (step, loss(logits, held_out), value, prefix, accuracy, kl)
            for name, number in zip(table, row, strict=True):
                table[name].append(float(number))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return table


def addition(seed: int, p: int = 53, steps: int = 800, width: int = 64) -> Table:
    """A + b modulo p by one transformer layer, 40 % of the pairs, strong weight decay: memory, then grokking."""
    generator = torch.Generator().manual_seed(seed)

    def normal(fan_in: int, *shape: int) -> Tensor:
        return (torch.randn(*shape, generator=generator) * fan_in**-0.5).requires_grad_()

    embed, position = normal(width, p + 1, width), normal(width, 3, width)
    q, k, v, o = (normal(width, width, width) for _ in range(4))
    up, bias, down = normal(width, width, 4 * width), torch.zeros(4 * width, requires_grad=True), None
    down, unembed = normal(4 * width, 4 * width, width), normal(width, width, p)
    weights = [embed, position, q, k, v, o, up, bias, down, unembed]
    optimizer = torch.optim.AdamW(weights, lr=1e-2, weight_decay=1.0, betas=(0.9, 0.98))
    pairs = torch.cartesian_prod(torch.arange(p), torch.arange(p))
    tokens, target = torch.cat([pairs, torch.full((p * p, 1), p)], 1), pairs.sum(1) % p
    order = torch.randperm(p * p, generator=generator)
    train, test = order[: round(0.4 * p * p)], order[round(0.4 * p * p) :]

    def forward(x: Tensor) -> Tensor:
        r = embed[x] + position
        query = (r[:, 2:] @ q).view(len(x), 1, 4, -1).transpose(1, 2)
        key, value = ((r @ m).view(len(x), 3, 4, -1).transpose(1, 2) for m in (k, v))
        mixed = ((query @ key.mT / query.shape[-1] ** 0.5).softmax(-1) @ value).transpose(1, 2).flatten(1)
        s = r[:, 2] + mixed @ o
        return (s + (s @ up + bias).relu() @ down) @ unembed

    table: Table = {name: [] for name in ("step", "train", "test", "accuracy")}
    for step in range(steps + 1):
        loss = F.cross_entropy(forward(tokens[train]), target[train])
        if step % 5 == 0:
            with torch.no_grad():
                out = forward(tokens[test])
            row = (step, loss, F.cross_entropy(out, target[test]), (out.argmax(1) == target[test]).float().mean())
            for name, number in zip(table, row, strict=True):
                table[name].append(float(number))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return table


def digits(seed: int) -> Table:
    """The convolutional network of `devinterp_fast.transitions`: held-out loss and the outputs' singular values."""
    from devinterp_fast.transitions.digits import Digits

    system = Digits(seed)
    table: Table = {"step": [], "loss": []} | {f"mode{j}": [] for j in range(1, 11)}
    for step in range(system.steps + 1):
        if step % 10 == 0:
            seen = system.observe(system.model)
            table["step"].append(step)
            table["loss"].append(seen["loss"])
            for j in range(1, 11):
                table[f"mode{j}"].append(seen[f"mode {j}"])
        system.train_step(step)
    return table


def each(run: Callable[[int], Table], seeds: range) -> Iterator[tuple[int, Table]]:
    """One run a seed."""
    return ((seed, run(seed)) for seed in seeds)


SYSTEMS: dict[str, Callable[[], Iterator[tuple[int, Table]]]] = {
    "tms cascade": lambda: tms(0.1, 6000, 12),
    "tms late": lambda: tms(0.3, 6000, 24),
    "barlow planted": lambda: each(lambda s: barlow(s, images=False), range(4)),
    "barlow digits": lambda: each(lambda s: barlow(s, images=True), range(4)),
    "parity": lambda: each(parity, range(6)),
    "digits": lambda: each(digits, range(6)),
    "addition": lambda: each(addition, range(4)),
    "induction": lambda: each(induction, range(6)),
    "more parity": lambda: each(parity, range(6, 30)),
    "more digits": lambda: each(digits, range(6, 26, 2)),
}


def main() -> None:
    torch.set_num_threads(1)
    known: dict[str, np.ndarray] = dict(np.load(CURVES)) if CURVES.exists() else {}
    for name in sys.argv[1:] or SYSTEMS:
        for seed, table in SYSTEMS[name]():
            known |= {f"{name}/{seed}/{curve}": np.array(v, dtype=np.float32) for curve, v in table.items()}
            print(name, seed, flush=True)
        CURVES.parent.mkdir(exist_ok=True)
        np.savez_compressed(CURVES, **known)


if __name__ == "__main__":
    main()
