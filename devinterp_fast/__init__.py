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
from devinterp_fast.sampling.calibrate import Sweep, calibrate
from devinterp_fast.sampling.checkpoints import Checkpoints
from devinterp_fast.sampling.objective import next_token_loss
from devinterp_fast.sampling.prior import GaussianPrior
from devinterp_fast.sampling.samplers import Sampler

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
    "Diagonal",
    "Eigen",
    "Escape",
    "EssentialDynamics",
    "Focus",
    "GaussianPrior",
    "Influence",
    "Localization",
    "Monitor",
    "Observable",
    "Operator",
    "PosteriorCovariance",
    "Sampler",
    "Schedule",
    "Segmentation",
    "SpectralDensity",
    "Stages",
    "Susceptibilities",
    "Sweep",
    "Trace",
    "Transition",
    "TwoTemperatureLLC",
    "VarianceLLC",
    "__version__",
    "calibrate",
    "diagonal",
    "eigsh",
    "escape",
    "essential_dynamics",
    "estimate_llc",
    "estimate_waic",
    "estimate_wbic",
    "explain",
    "fisher",
    "ggn",
    "hessian",
    "influence",
    "load_llc",
    "localize",
    "loss_kernel",
    "mala_acceptance",
    "next_token_loss",
    "ntk",
    "posterior_covariance",
    "segment",
    "spectral_density",
    "susceptibilities",
    "trace",
    "two_temperature_llc",
    "variance_llc",
]
