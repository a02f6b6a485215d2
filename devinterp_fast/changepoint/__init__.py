"""Change points of training curves: stages of one curve and their joining, and one change of a mean."""

from devinterp_fast.changepoint.focus import Focus, FocusRun
from devinterp_fast.changepoint.stages import Alarm, JointStage, Stage, Stages, join

__all__ = ["Alarm", "Focus", "FocusRun", "JointStage", "Stage", "Stages", "join"]
