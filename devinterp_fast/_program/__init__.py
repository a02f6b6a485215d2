"""From an ``nn.Module`` to the Program that the native engine runs."""

from devinterp_fast._program.capture import describe
from devinterp_fast._program.curvature import Curvature
from devinterp_fast._program.description import Description, Loss, Op, Source, Unsupported, Value

__all__ = ["Curvature", "Description", "Loss", "Op", "Source", "Unsupported", "Value", "describe"]
