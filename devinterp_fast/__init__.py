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
from devinterp_fast.estimators.acceptance import Acceptance, mala_acceptance
from devinterp_fast.estimators.covariance import (
    EssentialDynamics,
    PosteriorCovariance,
    essential_dynamics,
    posterior_covariance,
)
from devinterp_fast.estimators.fluctuation import TwoTemperatureLLC, VarianceLLC, two_temperature_llc, variance_llc
from devinterp_fast.estimators.influence import Influence, influence, loss_kernel
from devinterp_fast.estimators.llc import LLC, estimate_llc, explain
from devinterp_fast.estimators.saved import load_llc
from devinterp_fast.estimators.susceptibility import Susceptibilities, susceptibilities
from devinterp_fast.estimators.waic import WAIC, WBIC, estimate_waic, estimate_wbic
from devinterp_fast.monitor.monitor import Change, Monitor, Transition
from devinterp_fast.monitor.observables import Observable
from devinterp_fast.monitor.schedule import Schedule
from devinterp_fast.sampling.checkpoints import Checkpoints
from devinterp_fast.sampling.objective import next_token_loss

__version__ = version("devinterp-fast")

__all__ = [
    "LLC",
    "WAIC",
    "WBIC",
    "Acceptance",
    "Boundary",
    "Change",
    "Channel",
    "ChannelAlarm",
    "Checkpoints",
    "Detector",
    "EssentialDynamics",
    "Focus",
    "Influence",
    "Localization",
    "Monitor",
    "Observable",
    "PosteriorCovariance",
    "Schedule",
    "Segmentation",
    "Stages",
    "Susceptibilities",
    "Transition",
    "TwoTemperatureLLC",
    "VarianceLLC",
    "__version__",
    "essential_dynamics",
    "estimate_llc",
    "estimate_waic",
    "estimate_wbic",
    "explain",
    "influence",
    "load_llc",
    "localize",
    "loss_kernel",
    "mala_acceptance",
    "next_token_loss",
    "posterior_covariance",
    "segment",
    "susceptibilities",
    "two_temperature_llc",
    "variance_llc",
]
