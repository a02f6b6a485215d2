"""Digits: a small convolutional network acquires classes of unequal frequency one after another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from devinterp_fast.changepoint.channel import Channel
from devinterp_fast.errors import MissingExtraError
from devinterp_fast.transitions.system import (
    Marker,
    check_run,
    check_state,
    read_curves,
    rise,
    squared_error,
)

CLASSES = 10
TRAIN = 1300  # of 1,797 images; the other 497 are held out
EXPONENT = 1.5  # frequency ~ rank^-1.5: below 1 the modes crowd together, at 2 the rare ones outlast the run
INIT = 0.5  # times the usual bound: five layers at half width begin near the saddle at zero
LR = 0.1  # no momentum: with .9 the first mode overshoots and rings
PER_CLASS = 12  # images of each class in a batch
STEPS = 2400
PROBE = 1000
LEVEL = 0.15  # half of sqrt(1/10), the singular value of one perfectly learned class of ten
LOSSES = tuple(f"loss {c}" for c in range(CLASSES))
MODES = tuple(f"mode {k}" for k in range(1, CLASSES + 1))


@lru_cache(maxsize=1)
def _images() -> tuple[Tensor, Tensor]:
    """The 1,797 images (., 1, 8, 8), less the training mean, and their classes, in one fixed random order."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError(
            "digits: expected scikit-learn, got none: pip install 'devinterp-fast[demo]'"
        ) from error
    raw = load_digits()
    order = np.random.default_rng(0).permutation(len(raw.target))
    x = torch.tensor(raw.images[order] / 16, dtype=torch.float32)[:, None]
    return x - x[:TRAIN].mean(0), torch.tensor(raw.target[order], dtype=torch.int64)


def _blank(layer: Callable[..., nn.Module], *args: int, **settings: Any) -> nn.Module:
    """A layer with memory for its weights but no values: the default ones come from the global generator."""
    settings |= {"bias": False, "dtype": torch.float32, "device": "meta"}
    return layer(*args, **settings).to_empty(device="cpu")


class DigitsNet(nn.Module):
    """Two convolutions and three linear layers with relu between, without biases: zero weights are a saddle.

    Shape:
        (samples, 1, 8, 8) -> (samples, 10)
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _blank(nn.Conv2d, 1, 8, 3, padding=1),
            nn.ReLU(),
            _blank(nn.Conv2d, 8, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.head = nn.Sequential(
            _blank(nn.Linear, 256, 48),
            nn.ReLU(),
            _blank(nn.Linear, 48, 48),
            nn.ReLU(),
            _blank(nn.Linear, 48, CLASSES),
        )
        with torch.no_grad():
            for weight in self.parameters():
                bound = INIT / weight[0].numel() ** 0.5
                weight.uniform_(-bound, bound, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """The ten outputs."""
        output: Tensor = self.head(self.features(x))
        return output


class Digits:
    """A convolutional network on scikit-learn's digits: power-law class frequencies, squared error.

    From small weights the network leaves one saddle after another: the singular values of its held-out output
    matrix rise one at a time, roughly in order of class frequency. Each mode is one true transition. A batch
    holds 12 images of every class, weighted by the class frequencies: the expected loss is that of sampling
    by frequency, and the rare classes are spared their sampling noise.

    The seed gives the initial weights, the batches and the order of the classes; images and split are fixed.

    Args:
        seed: 0 to 2⁶³ - 1; same seed, same bits.
        steps: length of the run; 2,400 by default.

    Raises:
        ValueError: ``seed`` is out of range or ``steps`` below 1.
        MissingExtraError: scikit-learn is absent.

    Source:
        The images: scikit-learn. Modes one at a time from small weights: Saxe, McClelland, Ganguli (2014),
        arXiv:1312.6120.
    """

    name = "digits"
    title = "Digits: a small CNN acquires ten classes of unequal frequency one after another"
    skip = 0  # no momentum, no warm-up

    def __init__(self, seed: int = 0, steps: int | None = None) -> None:
        self.steps = STEPS if steps is None else steps
        check_run(seed, self.steps)
        x, y = _images()
        self._generator = torch.Generator().manual_seed(seed)
        rank = torch.randperm(CLASSES, generator=self._generator) + 1
        share = rank.to(torch.float32) ** -EXPONENT
        self.frequency = share / share.sum()
        self.model: nn.Module = DigitsNet(self._generator)
        self.loss_fn: Callable[[Tensor, Tensor], Tensor] = squared_error
        self._inputs = [x[:TRAIN][y[:TRAIN] == c] for c in range(CLASSES)]
        self._sizes = torch.tensor([len(images) for images in self._inputs])[:, None]
        self._targets = torch.eye(CLASSES, dtype=torch.float32).repeat_interleave(PER_CLASS, 0)
        self._weights = (self.frequency / PER_CLASS).repeat_interleave(PER_CLASS)
        self._held_out = (x[TRAIN:], y[TRAIN:])
        self.probe: tuple[Tensor, ...] = self._probe()
        self.channels = {"loss": Channel("loss"), **{name: Channel("loss", size=0.2) for name in LOSSES}}
        self.channels["accuracy"] = Channel("metric", scale=1.0)
        self.channels |= {name: Channel("marker") for name in MODES}
        self.llc: dict[str, object] = {
            "n": TRAIN,  # the images trained on; the probe repeats some of them
            "lr": 1e-4,  # nbeta * 20 (the largest curvature at the end) * lr / 4 = .09: a small step bias
            "localization": 100.0,  # relaxes in 2 / (lr * 100) = 200 steps; at 1,000 the values fall fourfold
            "chains": 4,
            "burn_in": 100,  # half a relaxation time; draws 101-150 and 151-200 then agree within 10 %
            "draws": 100,  # a second for each checkpoint, so that a whole run can be watched in a minute
            "batch_size": 128,
        }

    def _probe(self) -> tuple[Tensor, Tensor]:
        """1,000 training images, classes as frequent as trained (largest remainders), and one-hot targets.

        Repeating images stands for the weights, so a plain mean over samples is the trained loss; a class's
        images are taken in turn, none twice more often than another of its class.
        """
        share = self.frequency.double() * PROBE
        count = share.floor().long()
        count[(share - count).argsort(descending=True)[: PROBE - int(count.sum())]] += 1
        picked = [images[torch.arange(int(m)) % len(images)] for images, m in zip(self._inputs, count, strict=True)]
        return torch.cat(picked), torch.eye(CLASSES, dtype=torch.float32).repeat_interleave(count, 0)

    def train_step(self, step: int) -> None:
        """One step of plain SGD on a batch of 12 images of each class, weighted by the class frequencies."""
        draw = torch.rand(CLASSES, PER_CLASS, generator=self._generator, dtype=torch.float32)
        index = (draw * self._sizes).long().minimum(self._sizes - 1)
        x = torch.cat([images[i] for images, i in zip(self._inputs, index, strict=True)])
        weights = list(self.model.parameters())
        with torch.enable_grad():
            loss = ((self.model(x) - self._targets).square().sum(1) * self._weights).sum()
            gradient = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            for w, g in zip(weights, gradient, strict=True):
                w.sub_(LR * g)

    @torch.no_grad()
    def observe(self, model: nn.Module) -> dict[str, float]:
        """Held-out losses, accuracy and the singular values of the output matrix.

        ``loss c`` is the mean squared error on class c, ``loss`` their mean by class frequency. An image is
        right if its own class is the largest output and above 1/2, that is, nearest among the ten targets and
        zero: the sign of tiny outputs near the saddle at zero is not an answer. ``mode k`` is the k-th
        singular value of the outputs divided by the square root of the number of images.
        """
        x, y = self._held_out
        output = model(x).double()
        error = (output - torch.eye(CLASSES, dtype=torch.float64)[y]).square().sum(1)
        losses = torch.stack([error[y == c].mean() for c in range(CLASSES)])
        top = output.max(1)
        curves = {"loss": float(losses @ self.frequency.double())}
        curves |= dict(zip(LOSSES, losses.tolist(), strict=True))
        curves["accuracy"] = float(((top.indices == y) & (top.values > 0.5)).double().mean())
        singular = torch.linalg.svdvals(output / len(y) ** 0.5)
        return curves | dict(zip(MODES, singular.tolist(), strict=True))

    def truth(self, steps: Sequence[int], curves: Mapping[str, Any]) -> list[Marker]:
        """One marker for each mode that ends above .15: 10, 50 and 90 % of its final singular value.

        The final value is the median of the last tenth of the observations. The class named is the one whose
        held-out loss fell most from onset to end, among those not named by an earlier mode; neighbouring
        windows overlap, so the mode is the truth and the class a label.

        Raises:
            ValueError: a curve is absent.
            ShapeError: a curve has another length than ``steps``.
        """
        x, rows = read_curves(steps, curves, (*MODES, *LOSSES))
        found = []
        for k, mode in enumerate(rows[:CLASSES], start=1):
            final = float(np.median(mode[-max(1, len(x) // 10) :])) if len(x) else 0.0
            times = rise(x, mode / final) if final > LEVEL else None
            if times is not None:
                found.append((times, k))
        markers = []
        free = set(range(CLASSES))
        for times, k in sorted(found, key=lambda row: row[0][1]):
            fall = [np.interp(times[0], x, row) - np.interp(times[2], x, row) for row in rows[CLASSES:]]
            c = max(free, key=lambda c: float(fall[c]))
            free.remove(c)
            markers.append(Marker(f"class {c} enters (mode {k})", *times))
        return markers

    def state_dict(self) -> dict[str, Tensor]:
        """The weights and the generator's state."""
        state = {name: w.detach().clone() for name, w in self.model.state_dict().items()}
        return state | {"generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from ``state``, a ``state_dict`` of this system.

        Raises:
            ValueError: other names; ShapeError, DTypeError: other tensors.
        """
        check_state(state, self.state_dict())
        self.model.load_state_dict({name: w for name, w in state.items() if name != "generator"})
        self._generator.set_state(state["generator"])
