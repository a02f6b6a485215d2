"""The escape indicator: the exact acceleration of the loss along a direction, and who carries it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from devinterp_fast.curvature.operators import Operator, hessian
from devinterp_fast.curvature.problem import Checkpoints
from devinterp_fast.errors import DTypeError, NumericalError, ShapeError
from devinterp_fast.sampling.masks import Mask
from devinterp_fast.sampling.objective import LossFn


@dataclass(frozen=True)
class Escape:
    """Curvature along a direction v, and the share of each weight in it.

    Attributes:
        value: kappa = v'Hv / v'v; negative while a saddle is being left.
        drive: g'(dv/dt) / v'v where the change of v was given, else None. Under an optimizer with a velocity v of
            its own the acceleration of the loss is (value + drive) v'v.
        shares: {parameter: v_i (Hv)_i / v'v}; over all parameters they sum to ``value``.
        modules: {module: the sum of its own parameters' shares}.
        loss_slope: g'v, the speed of the loss along v.
        engine: which engine computed the product.

    Shape:
        value, drive, loss_slope, each module: float64 (), or (K,) for a stack; shares: like the parameter, with a
        leading K for a stack.

    Units:
        loss over the square of the parameters'; loss_slope: loss over the time of v.
    """

    value: Tensor
    drive: Tensor | None
    shares: dict[str, Tensor] = field(repr=False)
    modules: dict[str, Tensor]
    loss_slope: Tensor
    engine: str

    def __str__(self) -> str:
        first = [float(x) for x in self.value.reshape(-1)]
        parts = {name: float(x.reshape(-1)[0]) for name, x in self.modules.items()}
        top = sorted(parts, key=lambda name: -abs(parts[name]))[:4]
        named = "  ".join(f"{name or 'model'} {parts[name]:.3g}" for name in top)
        return f"kappa {'  '.join(f'{x:.4g}' for x in first)}   {named}   {self.engine}"


def escape(
    model: nn.Module,
    loss_fn: LossFn,
    data: object,
    *,
    direction: Tensor | dict[str, Tensor] | None = None,
    direction_change: Tensor | dict[str, Tensor] | None = None,
    checkpoints: Checkpoints | None = None,
    mask: Mask | None = None,
    batch_size: int | None = None,
    backend: str = "auto",
) -> Escape:
    """Kappa = v'Hv / v'v, with v the gradient unless another direction is given: one Hessian-vector product.

    Under gradient flow d2L/dt2 = 2 g'Hg, so kappa along the gradient is negative exactly while a saddle is being left.
    Its shares g_i (Hg)_i / g'g say which weights leave. Under minibatch noise the gradient at the noisy weights is
    swamped by stiff directions: pass as direction the difference of a fast and a slow moving average of the weights,
    at the weights of the fast one. Under Adam the velocity itself changes: L'' = v'Hv + g'(dv/dt); with
    v = dw/dt as direction and its change as ``direction_change`` both terms are given.

    Args:
        model: as in ``hessian``.
        loss_fn: as in ``hessian``.
        data: a fixed probe set, as in ``hessian``.
        direction: v, as a vector or {parameter: tensor}; None is the gradient.
        direction_change: dv/dt, in the same form; the time is that of v.
        checkpoints: as in ``hessian``.
        mask: the coordinates that count; the direction is restricted to them.
        batch_size: as in ``hessian``.
        backend: as in ``hessian``.

    Returns:
        An ``Escape``.

    Shape:
        direction, direction_change: (m,), or (K, m) for a stack; in a dict like the parameters, K leading.

    Units:
        loss over the square of the parameters'

    Raises:
        ShapeError, DTypeError, DeviceError, DataError, LossError, ModelError: an input does not fit; one sentence.
        ValueError: a setting is out of range.
        KeyError: a direction, checkpoint or mask lacks a parameter, or names none.
        NumericalError: the direction is zero, as the gradient at a critical point is.

    Source:
        L'' = 2 g'Hg: elementary. Pearlmutter (1994) for the product.
    """
    H = hessian(
        model, loss_fn, data, checkpoints=checkpoints, mask=mask, batch_size=batch_size, backend=backend
    )  # fmt: skip
    g = H.gradient()
    v = g if direction is None else _vector("direction", direction, H, g)
    size = v.double().square().sum(-1)
    if bool((size == 0).any()):
        what = "gradient: the weights are a critical point" if direction is None else "direction"
        raise NumericalError(f"direction: expected a direction along which to look, got a zero {what}")
    parts = v.double() * (H @ v).double() / size.unsqueeze(-1)
    shares = H.named(parts)
    drive = None
    if direction_change is not None:
        drive = (g.double() * _vector("direction_change", direction_change, H, g).double()).sum(-1) / size
    lead = 1 if H.stacked else 0
    modules: dict[str, Tensor] = {}
    for name, share in shares.items():
        owner = name.rpartition(".")[0]
        total = share.reshape(*share.shape[:lead], -1).sum(-1)
        modules[owner] = modules[owner] + total if owner in modules else total
    slope = (g.double() * v.double()).sum(-1)
    return Escape(parts.sum(-1), drive, shares, modules, slope, H.engine)


def _vector(name: str, given: Tensor | dict[str, Tensor], H: Operator, like: Tensor) -> Tensor:
    """A direction over the coordinates that count. Shape: as ``like``."""
    if isinstance(given, Tensor):
        rows = given
    else:
        where, lead = H.problem.where, like.dim() - 1
        missing = sorted(set(where.names) ^ set(given))
        if missing:
            raise KeyError(f"{name}: expected a tensor for each trainable parameter, got others at {missing[0]!r}")
        for key, shape in zip(where.names, where.shapes, strict=True):
            if tuple(given[key].shape[lead:]) != tuple(shape):
                raise ShapeError(f"{name}[{key!r}]: expected (..., *{tuple(shape)}), got {tuple(given[key].shape)}")
        parts = [given[key].reshape(*given[key].shape[:lead], -1) for key in where.names]
        rows = H.problem.narrow(torch.cat(parts, -1))
    if rows.shape != like.shape:
        raise ShapeError(f"{name}: expected {tuple(like.shape)}, got {tuple(rows.shape)}")
    if rows.dtype != like.dtype:
        raise DTypeError(f"{name}: expected {like.dtype} like the model, got {rows.dtype}")
    return rows.detach()
