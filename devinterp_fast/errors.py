"""The exceptions users meet. Each message is one sentence: argument, expected, got."""


class ShapeError(ValueError):
    """A tensor has the wrong shape."""


class DTypeError(ValueError):
    """A tensor has the wrong element type."""


class DeviceError(ValueError):
    """A tensor lives on a device that cannot serve the call."""


class DataError(ValueError):
    """The data are empty, not finite, or of a kind that cannot be batched."""


class LossError(ValueError):
    """The loss function does not give per-sample losses or their mean."""


class ModelError(ValueError):
    """The model cannot be sampled as it stands (not finite, random or changed by its own forward)."""


class RunFolderError(ValueError):
    """A run's folder or checkpoint is not one, is damaged, or belongs to other settings."""


class NumericalError(RuntimeError):
    """Every chain left the finite numbers; names chain and step."""


class CudaError(RuntimeError):
    """A CUDA kernel could not be started, or this build has none."""


class MissingExtraError(ImportError):
    """An optional dependency is absent; names the extra that brings it."""
