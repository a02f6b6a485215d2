"""Local learning coefficients, their error bars, and the transitions of a training run while they happen."""

__version__ = "0.1.0"
