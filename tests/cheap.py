"""The library's systems with estimates that take no time: for tests of what happens around them.

Run as a program it is the command line with these systems: ``python cheap.py watch tms --steps 300``.
"""

from __future__ import annotations

from devinterp_fast import transitions, watch
from devinterp_fast.transitions.digits import Digits
from devinterp_fast.transitions.tms import ToyModelsOfSuperposition


class CheapTMS(ToyModelsOfSuperposition):
    """The toy model of superposition."""

    def __init__(self, seed=0, steps=None):
        super().__init__(seed, steps)
        self.llc |= {"chains": 2, "draws": 10, "burn_in": 5}


class CheapDigits(Digits):
    """The digits."""

    def __init__(self, seed=0, steps=None):
        super().__init__(seed, steps)
        self.llc |= {"chains": 2, "draws": 4, "burn_in": 1, "batch_size": 8}


def systems():
    return {"tms": CheapTMS, "digits": CheapDigits}


if __name__ == "__main__":
    from devinterp_fast.cli import main

    transitions.systems = watch.systems = systems
    watch.LLC_TIMES = 10
    main()
