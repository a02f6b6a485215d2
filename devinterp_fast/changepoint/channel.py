"""How a recorded curve is read by a detector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Channel:
    """One recorded curve.

    Attributes:
        kind: "loss" is positive and watched for falls, relative to its level; "metric" is watched for falls and
            rises, relative to its range; "marker" is recorded and never given to a detector.
        scale: the range of a metric where it is known (an accuracy: 1).
        size: least fall of a loss that is listed, as a share of its range. Raise it for curves that only matter when
            they fall for good (the loss of one class among ten wavers while others are learned).
        noise: "curve" estimates the noise from the curve itself; "given" takes the recorded standard errors to be
            all of it. An estimate's own error is not all: weights under SGD waver, and an LLC with them.
    """

    kind: Literal["loss", "metric", "marker"]
    scale: float | None = None
    size: float = 0.01
    noise: Literal["curve", "given"] = "curve"
