"""A change planted in some of 400 channels, alarmed on and localized: what the benchmark counts and a test asserts."""

import numpy as np

from devinterp_fast.changepoint.detectors import Detector
from devinterp_fast.changepoint.localize import localize

CHANNELS = 400


def named(rng, model, changed, size):
    """False share among the channels named at a nominal tenth after an alarm, and the share of the changed ones."""
    n, at = 240, 120
    t = np.arange(n)
    y = rng.normal(size=(n, CHANNELS))
    y[:, :changed] += size * (t >= at)[:, None] if model == "mean" else size * np.clip(t - at, 0, None)[:, None]
    det = Detector(CHANNELS, model=model, noise="unit", arl=1e4, groups=np.zeros(CHANNELS, dtype=int))
    alarm = next(a for i in t for a in det.update(i, y[i]))
    stop = int(alarm.step) + 1 + (20 if model == "mean" else 60)
    channels = localize(t[:stop], y[:stop], alarm.onset, alarm.step, model=model).channels
    false = int((channels >= changed).sum())
    return false / max(channels.size, 1), (channels.size - false) / changed
