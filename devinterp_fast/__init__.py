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
from devinterp_fast.curvature.density import SpectralDensity, spectral_density
from devinterp_fast.curvature.eigen import Eigen, eigsh
from devinterp_fast.curvature.escape import Escape, escape
from devinterp_fast.curvature.fisher import fisher
from devinterp_fast.curvature.operators import Operator, ggn, hessian, ntk
from devinterp_fast.curvature.trace import Diagonal, Trace, diagonal, trace
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
    "Diagonal",
    "Eigen",
    "Escape",
    "Focus",
    "Localization",
    "Monitor",
    "Observable",
    "Operator",
    "Schedule",
    "Segmentation",
    "SpectralDensity",
    "Stages",
    "Trace",
    "Transition",
    "__version__",
    "diagonal",
    "eigsh",
    "escape",
    "estimate_llc",
    "explain",
    "fisher",
    "ggn",
    "hessian",
    "localize",
    "next_token_loss",
    "ntk",
    "segment",
    "spectral_density",
    "trace",
]
