"""The caller's global random states, which nothing here may advance."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Puts the global generators of torch (CPU), Python and numpy back as they were, whatever ran in between."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 (the state that others use)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002
