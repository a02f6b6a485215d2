"""Training runs whose stages are known, to try a detector or an estimator on."""

from collections.abc import Callable

from devinterp_fast.changepoint.channel import Channel
from devinterp_fast.transitions.digits import Digits
from devinterp_fast.transitions.system import Marker, System
from devinterp_fast.transitions.tms import ToyModelsOfSuperposition

__all__ = ["Channel", "Marker", "System", "systems"]


def systems() -> dict[str, Callable[..., System]]:
    """The library by name: ``systems()["tms"](seed=0, steps=None)``; None is the system's own length."""
    return {"digits": Digits, "tms": ToyModelsOfSuperposition}
