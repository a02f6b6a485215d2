"""Curvature matrices as operators: products with vectors and blocks, at one checkpoint or a stack of them."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor, nn

from devinterp_fast.curvature.graphs import Build, Graphs, ggn_graph, hessian_graph, ntk_graph
from devinterp_fast.curvature.native import PRODUCTS, NativeProducts
from devinterp_fast.curvature.problem import Checkpoints, Problem, pose
from devinterp_fast.errors import DTypeError, ModelError, NumericalError, ShapeError
from devinterp_fast.sampling.engines import BACKENDS
from devinterp_fast.sampling.masks import Mask
from devinterp_fast.sampling.native import Unsupported
from devinterp_fast.sampling.objective import LossFn


class Engine(Protocol):
    """Products over all coordinates of the model."""

    @property
    def name(self) -> str:
        """As results quote it."""
        ...

    def gradient(self) -> Tensor:
        """Of the mean loss. Shape: (K, dim)."""
        ...

    def apply(self, V: Tensor, first: int) -> Tensor:
        """The matrices of C checkpoints from ``first`` on, times their vectors. Shape: (C, k, dim) -> (C, k, dim)."""
        ...


class Operator:
    """A symmetric curvature matrix, known by its products: ``H @ v``, ``H @ block``.

    Made by ``hessian``, ``ggn``, ``fisher`` and ``ntk``. The weights are those of the call; later training does not
    move it. Over a stack of K checkpoints a product takes one vector or block for each.

    Args:
        kind: "hessian", "ggn", "fisher" or "ntk".
        problem: what it is taken of.
        engine: computes the products.
        reason: why that engine.

    Attributes:
        shape: (m, m), or (K, m, m) for a stack; m counts the coordinates of the mask.
        dtype: of the model's parameters.
        engine: which engine runs.
        engine_reason: why that one.
        matvecs: products taken so far, one for each vector of one checkpoint.
    """

    def __init__(self, kind: str, problem: Problem, engine: Engine, reason: str):
        self.kind, self.problem, self._engine = kind, problem, engine
        self.dim, self.count, self.stacked = problem.dim, len(problem.weights), problem.stacked
        self.shape = (self.count, self.dim, self.dim) if self.stacked else (self.dim, self.dim)
        self.dtype = problem.where.dtype
        self.engine, self.engine_reason, self.matvecs = engine.name, reason, 0

    def __repr__(self) -> str:
        return f"<{self.kind} {self.shape} {self.dtype} on {self.engine}>"

    def __matmul__(self, v: Tensor) -> Tensor:
        """The product with a vector, or with a block whose columns are vectors.

        Shape:
            (m,) -> (m,), (m, k) -> (m, k); of a stack (K, m) -> (K, m), (K, m, k) -> (K, m, k).

        Raises:
            ShapeError, DTypeError: ``v`` does not fit.
            TypeError: ``v`` is no tensor.
            NumericalError: the product is not finite.
        """
        lead = (self.count,) if self.stacked else ()
        if not isinstance(v, Tensor):
            raise TypeError(f"v: expected a tensor, got {type(v).__name__}")
        vector = v.dim() == len(lead) + 1
        shape = (*lead, self.dim) if vector else (*lead, self.dim, v.shape[-1] if v.dim() else 0)
        if tuple(v.shape) != shape:
            wanted = f"{(*lead, self.dim)} or {(*lead, self.dim, 'k')}".replace("'", "")
            raise ShapeError(f"v: expected {wanted}, got {tuple(v.shape)}")
        if v.dtype != self.dtype:
            raise DTypeError(f"v: expected {self.dtype} like the model, got {v.dtype}")
        rows = (v.unsqueeze(-1) if vector else v).detach().movedim(-1, -2)
        out = self.products(rows if self.stacked else rows[None]).movedim(-1, -2)
        out = out if self.stacked else out[0]
        return out[..., 0] if vector else out

    def products(self, rows: Tensor, first: int = 0) -> Tensor:
        """The products of C checkpoints from ``first`` on with many vectors, as rows. Shape: (C, k, m) -> (C, k, m)."""
        out = self.problem.narrow(self._engine.apply(self.problem.widen(rows).contiguous(), first))
        self.matvecs += rows.shape[0] * rows.shape[1]
        if not torch.isfinite(out.sum()) and not torch.isfinite(out).all():
            raise NumericalError(f"{self.kind}: expected finite products, got NaN or infinity")
        return out

    def gradient(self) -> Tensor:
        """The gradient of the mean loss at the same weights. Shape: (m,), or (K, m)."""
        out = self.problem.narrow(self._engine.gradient())
        return out if self.stacked else out[0]

    def named(self, v: Tensor) -> dict[str, Tensor]:
        """A vector cut into the model's parameters, zero outside the mask.

        Shape:
            (..., m) -> {parameter name: its shape, after the leading dimensions}
        """
        where = self.problem.where
        return dict(zip(where.names, where.views(self.problem.widen(v)), strict=True))

    def to_scipy(self) -> LinearOperator:
        """The same matrix for ``scipy.sparse.linalg``.

        Raises:
            ShapeError: it is a stack of checkpoints.
        """
        if self.stacked:
            raise ShapeError(f"to_scipy: expected an operator at one checkpoint, got shape {self.shape}")
        scalar = np.dtype(np.float32 if self.dtype == torch.float32 else np.float64)

        def product(v: np.ndarray) -> np.ndarray:
            found = self @ torch.from_numpy(np.ascontiguousarray(v, dtype=scalar))
            return found.numpy()

        return LinearOperator(
            self.shape, matvec=lambda v: product(v.reshape(-1)), rmatvec=lambda v: product(v.reshape(-1)),
            matmat=product, rmatmat=product, dtype=scalar,
        )  # fmt: skip


class Matrix:
    """A symmetric matrix held in memory, in the place of an operator. Shape: (dim, dim) or (K, dim, dim)."""

    def __init__(self, matrix: Tensor):
        if matrix.dim() not in (2, 3) or matrix.shape[-1] != matrix.shape[-2] or matrix.shape[-1] == 0:
            raise ShapeError(f"H: expected an operator or a symmetric matrix, got shape {tuple(matrix.shape)}")
        if matrix.dtype not in (torch.float32, torch.float64):
            raise DTypeError(f"H: expected float32 or float64, got {matrix.dtype}")
        skew, size = (matrix - matrix.mT).abs().max(), matrix.abs().max()
        if not skew <= 1e-4 * size:
            raise ShapeError("H: expected a symmetric matrix, got one that differs from its transpose")
        self.stacked = matrix.dim() == 3
        self.matrix = matrix.detach() if self.stacked else matrix.detach()[None]
        self.count, self.dim, self.dtype = self.matrix.shape[0], self.matrix.shape[1], matrix.dtype
        self.engine, self.matvecs = "matrix", 0

    def products(self, rows: Tensor, first: int = 0) -> Tensor:
        """The products of C matrices from ``first`` on with many vectors, as rows. Shape: (C, k, dim) -> the same."""
        self.matvecs += rows.shape[0] * rows.shape[1]
        return rows @ self.matrix[first : first + len(rows)]


def as_operator(H: Operator | Tensor) -> Operator | Matrix:
    """What the spectral methods work on: an operator, or a symmetric tensor in its place."""
    if not isinstance(H, Operator | Matrix | Tensor):
        raise TypeError(f"H: expected an operator or a symmetric tensor, got {type(H).__name__}")
    return Matrix(H) if isinstance(H, Tensor) else H


def check_batch_size(batch_size: int | None) -> None:
    """Raises ValueError unless it is None or a positive integer."""
    if batch_size is not None and (isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1):
        raise ValueError(f"batch_size: expected an integer of at least 1 or None, got {batch_size!r}")


def hessian(
    model: nn.Module,
    loss_fn: LossFn,
    data: object,
    *,
    checkpoints: Checkpoints | None = None,
    mask: Mask | None = None,
    batch_size: int | None = None,
    backend: str = "auto",
) -> Operator:
    """The Hessian of the mean loss over all of ``data``, as an operator.

    (H v)_i = sum_j d^2 L / dw_i dw_j  v_j, exact: no finite differences. The model is left as it was.

    Args:
        model: any module, on the CPU, whose forward is deterministic (``model.eval()``).
        loss_fn: a criterion, applied as ``loss_fn(model(x), y)``, or ``f(model, batch)``; per-sample losses (B,)
            or their mean.
        data: (x, y), a tuple, dict or tensor of samples along the first dimension, a Dataset or a DataLoader.
        checkpoints: weights to take it at, one matrix for each: state dicts, or a tensor of trainable parameters
            in the order of ``named_parameters()``; None is the model as it is.
        mask: the coordinates that count: bool (dim,), {parameter name: bool tensor}, or names as in sampling: "l0h1"
            (a head), "l1 mlp", "layer.weight[0:2]", a regular expression, or several; None is all. The matrix is the
            block of these coordinates.
        batch_size: samples that go through the model at once, weighted by their number; None is what a gigabyte of
            memory allows. It changes rounding alone.
        backend: "native" raises if the model cannot be captured; "torch" runs any module; "auto" is native where it
            can be, and ``engine_reason`` says why not.

    Returns:
        An ``Operator``: ``H @ v``, ``H.shape``, ``H.to_scipy()``.

    Shape:
        checkpoints: (K, dim); products: (m,), (m, k), (K, m), (K, m, k).

    Units:
        loss over the square of the parameters'

    Raises:
        ShapeError, DTypeError, DeviceError, DataError, LossError, ModelError: an input does not fit; one sentence.
        ValueError: a setting is out of range.
        KeyError: a checkpoint lacks a parameter, or a mask names none.

    Source:
        Pearlmutter (1994), Fast exact multiplication by the Hessian.
    """
    return make("hessian", hessian_graph, model, loss_fn, data, checkpoints, mask, batch_size, backend)


def ggn(
    model: nn.Module,
    loss_fn: LossFn,
    data: object,
    *,
    checkpoints: Checkpoints | None = None,
    mask: Mask | None = None,
    batch_size: int | None = None,
    backend: str = "auto",
) -> Operator:
    """The generalized Gauss-Newton matrix of the mean loss, as an operator.

    G = (1 / N) sum_i J_i^T (d^2 loss_i / dz_i^2) J_i, z_i = model(x_i) with Jacobian J_i: the Hessian without the
    curvature of the model. Positive semidefinite for a loss convex in z; tr(G) = tr(H) for piecewise-linear models.

    Args:
        model: as in ``hessian``; its output is a tensor, or has ``.logits``.
        loss_fn: as in ``hessian``; it depends on the parameters through the model's output alone.
        data: as in ``hessian``.
        checkpoints: as in ``hessian``.
        mask: as in ``hessian``.
        batch_size: as in ``hessian``.
        backend: as in ``hessian``.

    Returns:
        An ``Operator``.

    Shape:
        products: (m,), (m, k), (K, m), (K, m, k).

    Units:
        loss over the square of the parameters'

    Raises:
        ShapeError, DTypeError, DeviceError, DataError, LossError, ModelError: an input does not fit; one sentence.
        ValueError: a setting is out of range.
        KeyError: a checkpoint lacks a parameter, or a mask names none.

    Source:
        Schraudolph (2002), Fast curvature matrix-vector products for second-order gradient descent.
    """
    return make("ggn", ggn_graph, model, loss_fn, data, checkpoints, mask, batch_size, backend)


def ntk(
    model: nn.Module,
    loss_fn: LossFn,
    data: object,
    *,
    checkpoints: Checkpoints | None = None,
    mask: Mask | None = None,
    batch_size: int | None = None,
) -> Operator:
    """The operator (1 / N) sum_i J_i^T J_i, whose nonzero eigenvalues are those of the neural tangent kernel over N.

    The kernel J J^T has a row for each sample and output; this matrix has one for each parameter, and the same
    spectrum but for zeros. It is never formed.

    Args:
        model: as in ``hessian``; its output is a tensor, or has ``.logits``.
        loss_fn: as in ``hessian``; the matrix does not depend on it, its ``gradient`` does.
        data: as in ``hessian``.
        checkpoints: as in ``hessian``.
        mask: as in ``hessian``.
        batch_size: as in ``hessian``.

    Returns:
        An ``Operator``, on the torch engine.

    Shape:
        products: (m,), (m, k), (K, m), (K, m, k).

    Units:
        outputs squared over parameters squared

    Raises:
        ShapeError, DTypeError, DeviceError, DataError, LossError, ModelError: an input does not fit; one sentence.
        ValueError: a setting is out of range.
        KeyError: a checkpoint lacks a parameter, or a mask names none.

    Source:
        Jacot, Gabriel, Hongler (2018), Neural tangent kernel.
    """
    return make("ntk", ntk_graph, model, loss_fn, data, checkpoints, mask, batch_size, "torch")


def make(
    kind: str,
    build: Build,
    model: nn.Module,
    loss_fn: LossFn,
    data: object,
    checkpoints: Checkpoints | None,
    mask: Mask | None,
    batch_size: int | None,
    backend: str,
    made: type[Operator] = Operator,
) -> Operator:
    """Poses the problem and puts an engine under it."""
    check_batch_size(batch_size)
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {BACKENDS}, got {backend!r}")
    problem = pose(model, loss_fn, data, checkpoints=checkpoints, mask=mask, backend=backend)
    reason = problem.choice.reason
    if problem.choice.program is not None:
        try:
            if kind not in PRODUCTS:
                raise Unsupported(f"the native engine has no {kind}")
            return made(kind, problem, NativeProducts(kind, problem, problem.choice.program), reason)
        except Unsupported as why:
            if backend == "native":
                raise ModelError(
                    f"backend: expected a matrix that the native engine knows, got one where {why}"
                ) from None
            reason = str(why)
    problem = problem.apart()
    return made(kind, problem, Graphs(problem, build, batch_size), reason)
