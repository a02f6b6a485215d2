"""Local learning coefficients, their error bars, and the transitions of a training run while they happen."""

from devinterp_fast import _ops as _ops  # registers torch.ops.devinterp_fast
from devinterp_fast.estimators.llc import LLC, estimate_llc
from devinterp_fast.sampling.objective import next_token_loss

__version__ = "0.1.0"

__all__ = ["LLC", "__version__", "estimate_llc", "next_token_loss"]
