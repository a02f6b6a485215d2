"""Local learning coefficients, their error bars, and the transitions of a training run while they happen."""

from importlib.metadata import version

from devinterp_fast import _ops as _ops  # registers torch.ops.devinterp_fast
from devinterp_fast import _ops_cuda as _ops_cuda
from devinterp_fast.changepoint.channel import Channel
from devinterp_fast.changepoint.detectors import ChannelAlarm, Detector
from devinterp_fast.changepoint.focus import Focus
from devinterp_fast.changepoint.localize import Localization, localize
from devinterp_fast.changepoint.segmentation import Boundary, Segmentation, segment
from devinterp_fast.changepoint.stages import Stages
from devinterp_fast.estimators.llc import LLC, estimate_llc, explain
from devinterp_fast.monitor.monitor import Change, Monitor, Transition
from devinterp_fast.monitor.observables import Observable
from devinterp_fast.monitor.schedule import Schedule
from devinterp_fast.sampling.objective import next_token_loss

__version__ = version("devinterp-fast")

__all__ = [
    "LLC",
    "Boundary",
    "Change",
    "Channel",
    "ChannelAlarm",
    "Detector",
    "Focus",
    "Localization",
    "Monitor",
    "Observable",
    "Schedule",
    "Segmentation",
    "Stages",
    "Transition",
    "__version__",
    "estimate_llc",
    "explain",
    "localize",
    "next_token_loss",
    "segment",
]
