"""The door to the CUDA kernels that reduce: moments, Gram matrices, Gram-Schmidt, Hessian products, the detector.

As ``_native_cuda``: checked here, on PyTorch's current stream, nothing allocated by the functions that run every step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from devinterp_fast._native import describe
from devinterp_fast._native_cuda import _block, _expect, _rows, _rows_of, launch, module, stream_of
from devinterp_fast.errors import CudaError, ShapeError

__all__ = ["GlrChannels", "Krylov", "add_draw_", "add_gram_", "resident_hvp_"]


def add_draw_(mean: Tensor, scatter: Tensor, w: Tensor, draws: Tensor) -> None:
    """Adds every chain's present draw to its running mean and scatter; scatter / (draws - 1) is the variance.

    mean <- mean + (w - mean) / n,  scatter <- scatter + (w - old mean) (w - new mean), as csrc/core/moments.hpp.

    Args:
        mean: of the draws so far, changed in place.
        scatter: likewise.
        w: the draw.
        draws: how many there are with this one.

    Shape:
        w: float32 (chains, dim); mean, scatter: float64, alike, with one row stride; draws: int64 (1). On one GPU.

    Raises:
        ShapeError, DTypeError, DeviceError: an argument is not as above.
        CudaError: the kernel could not be started.

    Source:
        Welford (1962), Technometrics 4(3).
    """
    chains, dim, device = _block("w", w)
    ld = _rows_of("mean", mean, torch.float64, (chains, dim), device)
    if _rows_of("scatter", scatter, torch.float64, (chains, dim), device) != ld:
        raise ShapeError(f"scatter: expected the row stride of mean, {ld}, got {scatter.stride(0)}")
    _expect("draws", draws, torch.int64, (1,), device)
    launch(
        "add_draws_f64", device, w=w.data_ptr(), w_ld=w.stride(0), mean=mean.data_ptr(), scatter=scatter.data_ptr(),
        ld=ld, chains=chains, dim=dim, draws=draws.data_ptr(),
    )  # fmt: skip


def add_gram_(gram: Tensor, x: Tensor, d: Tensor, *, bias: bool = True) -> Tensor:
    """Adds one layer's products of per-sample gradients, none of which is formed.

    gram_ij += sum over positions t, u of (d_it . d_ju) (x_it . x_ju + [bias]), for a layer out = W x + b.

    Args:
        gram: changed in place.
        x: the layer's inputs.
        d: gradients of each sample's loss by the layer's output.
        bias: whether b is among the parameters.

    Shape:
        gram: float64 (samples, samples); x: float32 (samples, inputs) or (samples, positions, inputs), contiguous;
        d: likewise with outputs. On one GPU.

    Raises:
        ShapeError, DTypeError, DeviceError: an argument is not as above.
        CudaError: the kernel could not be started.
    """
    device, samples = gram.device, len(gram)
    x3, d3 = (v if v.dim() == 3 else v[:, None] for v in (x, d))
    positions, inputs = x3.shape[-2], x3.shape[-1]
    outputs = d3.shape[-1]
    _expect("x", x3, torch.float32, (samples, positions, inputs), device)
    _expect("d", d3, torch.float32, (samples, positions, outputs), device)
    if not (x3.is_contiguous() and d3.is_contiguous()):
        raise ShapeError("x, d: expected contiguous tensors, got others")
    ld = _rows_of("gram", gram, torch.float64, (samples, samples), device)
    launch(
        "add_gram_f64", device, x=x3.data_ptr(), d=d3.data_ptr(), samples=samples, positions=positions, inputs=inputs,
        outputs=outputs, bias=bias, gram=gram.data_ptr(), ld=ld,
    )  # fmt: skip
    return gram


def resident_hvp_(
    out: Tensor, v: Tensor, w: Tensor, x: Tensor, y: Tensor, classes: Tensor, frozen: Tensor, plan: Tensor,
    partial: Tensor | None = None,
) -> None:  # fmt: skip
    """Products with the Hessian of a small Program's mean loss, in shared memory: out = H v for each row.

    The R-operator: R{f}(w) = d/de f(w + e v) at e = 0, of the gradient. ``ResidentCurvature`` keeps what this is given.

    Args:
        out: filled.
        v: directions.
        w: checkpoints.
        x: inputs of all samples.
        y: targets of a squared error, or empty.
        classes: of a cross-entropy, or empty.
        frozen: parameters behind the trainable ones.
        plan: the Program as ``ResidentProducts.packed`` gives it, in the processor's memory.
        partial: room for the sums of segments where ``segments(n)`` is above 1.

    Shape:
        out, v: float32 (checkpoints, probes, dim), contiguous; w: float32 (checkpoints, dim); x: float32 (n, inputs);
        y: float32 (n, outputs); classes: int32 (n, 1); frozen: float32 (total - dim); plan: uint8;
        partial: float32 (segments, checkpoints, probes, dim). All but ``plan`` on one GPU.

    Raises:
        ShapeError, DTypeError, DeviceError: an argument is not as above.
        CudaError: a kernel could not be started.

    Source:
        Pearlmutter (1994), Fast exact multiplication by the Hessian.
    """
    device, shape = v.device, tuple(v.shape)
    if v.dim() != 3:
        raise ShapeError(f"v: expected float32 (checkpoints, probes, dim) on {device}, got {describe(v)}")
    program, n = module().ResidentProducts.unpacked(plan.data_ptr()), len(x)
    segments = program.segments(n)
    given = [("v", v, shape), ("out", out, shape)]
    if partial is not None:
        given.append(("partial", partial, (segments, *shape)))
    elif segments > 1:
        raise ShapeError(f"partial: expected float32 {(segments, *shape)} on {device}, got none")
    for name, tensor, wanted in given:
        _expect(name, tensor, torch.float32, wanted, device)
        if not tensor.is_contiguous():
            raise ShapeError(f"{name}: expected a contiguous tensor, got another")
    if shape[2] != program.dim:
        raise ShapeError(f"v: expected {program.dim} columns, got {shape[2]}")
    w_ld = _rows("w", w, torch.float32, shape[0], shape[2], device)
    for name, tensor, dtype in (("x", x, torch.float32), ("y", y, torch.float32), ("classes", classes, torch.int32)):
        if tensor.numel():
            _expect(name, tensor, dtype, (n, tensor.shape[-1]), device)
    _expect("frozen", frozen, torch.float32, (frozen.numel(),), device)
    error = program.run(
        device=device.index or 0, stream=stream_of(device), x=x.data_ptr(), y=y.data_ptr(), classes=classes.data_ptr(),
        x_size=x.stride(0), y_size=y.stride(0), class_size=classes.stride(0), n=n, w=w.data_ptr(), w_ld=w_ld,
        frozen=frozen.data_ptr(), v=v.data_ptr(), out=out.data_ptr(),
        partial=0 if partial is None else partial.data_ptr(), checkpoints=shape[0], probes=shape[1],
    )  # fmt: skip
    if error is not None:
        raise CudaError(f"cuda: {error}")


class Krylov:
    """A basis for each chain, grown by the products that Lanczos makes; the scalars stay on the GPU.

    Two passes of classical Gram-Schmidt have together the coefficients c = (2 I - Q Q^T) Q v: the basis is read once
    for them and once for v <- v - Q^T c. Sums are double: the CPU's bits.

    Args:
        start: the first vectors; their lengths do not matter.
        steps: how many vectors there will be.

    Attributes:
        basis: float32 (chains, steps, dim).
        alpha, beta: float64 (steps, chains), the diagonals of the tridiagonal matrices so far.
        vectors: how many columns of the basis are there.

    Shape:
        start: float32 (chains, dim) on a GPU.

    Raises:
        ShapeError: ``start`` is not as above, or the basis is full.
        CudaError: a kernel could not be started.
    """

    def __init__(self, start: Tensor, steps: int) -> None:
        chains, dim, device = _block("start", start)
        padded = -(-dim // 32) * 32
        self.basis = torch.zeros(chains, steps, padded, device=device)[:, :, :dim]
        self.alpha, self.beta = (torch.zeros(steps, chains, dtype=torch.float64, device=device) for _ in range(2))
        self.vectors = 0
        room = module().orthogonalize_partial(chains, steps, dim)
        self._partial = torch.empty(max(room, 1), dtype=torch.float64, device=device)
        self._gram = torch.zeros(chains, steps, steps, dtype=torch.float64, device=device)
        self._coefficients = torch.zeros(chains * max(steps, 1), dtype=torch.float64, device=device)
        self._unused = torch.zeros(chains, dtype=torch.float64, device=device)
        self.extend_(start.clone())

    def extend_(self, v: Tensor) -> None:
        """Orthogonalizes v (chains, dim) in place and appends it; v = H q gives alpha of q and the beta after it."""
        chains, dim, device = _block("v", v)
        m, steps = self.vectors, self.basis.shape[1]
        if m > 0 and (chains, dim) != (self.basis.shape[0], self.basis.shape[2]):
            raise ShapeError(f"v: expected {(self.basis.shape[0], self.basis.shape[2])}, got {(chains, dim)}")
        launch(
            "orthogonalize_f32", device, basis=self.basis.data_ptr(), chain_ld=self.basis.stride(0),
            ld=self.basis.stride(1), chains=chains, vectors=m, dim=dim, v=v.data_ptr(), v_ld=v.stride(0),
            partial=self._partial.data_ptr(), gram=self._gram.data_ptr(), gram_ld=steps, gram_chain_ld=steps * steps,
            coefficients=self._coefficients.data_ptr(),
        )  # fmt: skip
        following = 0 if m == steps else self.basis[:, m].data_ptr()
        alpha = self.alpha[m - 1] if m > 0 else self._unused
        beta = self.beta[m - 1] if m > 0 else self._unused
        launch(
            "normalize_f32", device, chains=chains, vectors=m, dim=dim, v=v.data_ptr(), v_ld=v.stride(0),
            partial=self._partial.data_ptr(), coefficients=self._coefficients.data_ptr(), next=following,
            next_ld=self.basis.stride(0), alpha=alpha.data_ptr(), beta=beta.data_ptr(),
        )  # fmt: skip
        self.vectors = min(m + 1, steps)


MODELS = {"mean": 0, "kink": 1, "jump+kink": 2}


@dataclass(frozen=True)
class GroupSums:
    """Of each candidate and group, (candidates, groups): largest and sum of the statistics, log mixture ratio."""

    largest: Tensor
    total: Tensor
    mixture: Tensor


class GlrChannels:
    """The grid likelihood-ratio detector for many channels on a GPU, bit for bit the CPU's, without its restarts.

    Which candidate times are kept is planned on the host, where no observation is needed: of a step that all channels
    miss, say so by weight 0.

    Args:
        channels: how many.
        model: "mean", "kink" or "jump+kink".
        per_octave: candidates an octave of age.
        side: 0, or +1 for rises and -1 for falls.
        missing: whether channels may miss observations (not finite) or have weights of their own, which costs 24 bytes
            more for each channel and candidate time. Without it all channels share the weights, and one that misses an
            observation has statistic NaN from there on.
        device: of the sums.

    Attributes:
        statistic: float32 (channels), after the last step.
        peak: float32 (channels), the largest so far.
    """

    def __init__(
        self, channels: int, *, model: str = "kink", per_octave: int = 8, side: int = 0,
        missing: bool = False, device: str = "cuda",
    ) -> None:  # fmt: skip
        if model not in MODELS:
            raise ValueError(f"model: expected one of {sorted(MODELS)}, got {model!r}")
        self.channels, self.model, self.side = channels, MODELS[model], side
        self.kinds = 1 if model == "mean" else 2
        self.planner = module().GlrPlanner(self.model, per_octave, side)
        self.rows = torch.zeros(0, device=device)
        self.totals, self.base = (torch.zeros(2, channels, dtype=torch.float64, device=device) for _ in range(2))
        self.base[0] = float("nan")
        self.statistic, self.peak = (torch.zeros(channels, device=device) for _ in range(2))
        self.missing = missing
        self._own = torch.zeros(0, dtype=torch.float64, device=device)
        self._own_totals = torch.zeros(3 * channels * missing, dtype=torch.float64, device=device)
        self._is_own = torch.zeros(channels * missing, dtype=torch.int32, device=device)
        self._plan, self._steps = torch.zeros(0, dtype=torch.uint8), 0

    def update(self, x: list[float], y: Tensor, weight: list[float] | Tensor | None = None) -> None:
        """Follows len(x) steps.

        Args:
            x: coordinate of each step.
            y: observations.
            weight: 1 / se^2 of each step, or of each observation, 0 where it is missing.

        Shape:
            y: float32 (steps, channels); weight: a list of steps, or float64 (steps, channels) on the GPU.

        Raises:
            ShapeError, DTypeError, DeviceError: an argument is not as above.
            ValueError: weights of each observation, but ``missing`` is not set.
            CudaError: the kernel could not be started.
        """
        device = self.totals.device
        _expect("y", y, torch.float32, (len(x), self.channels), device)
        own = weight if isinstance(weight, Tensor) else None
        if own is not None:
            if not self.missing:
                raise ValueError("weight: expected one for each step, got one for each observation without `missing`")
            _expect("weight", own, torch.float64, (len(x), self.channels), device)
            own = own.contiguous()
        shared = [1.0] * len(x) if weight is None or isinstance(weight, Tensor) else weight
        plan = self.planner.plan(x, shared, self.missing)
        self._plan = torch.frombuffer(bytearray(plan), dtype=torch.uint8).to(device)
        self._steps = len(x)
        need = self.planner.slots * self.kinds * self.channels
        if self.rows.numel() < need:
            self.rows = torch.cat([self.rows, torch.zeros(need - self.rows.numel(), device=device)])
        need = 3 * self.planner.slots * self.channels * self.missing
        if self._own.numel() < max(need, self.missing):  # an address at least
            self._own = torch.cat([self._own, self.totals.new_zeros(max(need, 1) - self._own.numel())])
        weights = 0 if own is None else own.data_ptr()
        launch("glr_follow_f32", device, **self._where(), y=y.data_ptr(), ld=y.stride(0), weights=weights)

    def _where(self) -> dict[str, int | bool]:
        return {
            "model": self.model, "side": self.side, "channels": self.channels, "rows": self.rows.data_ptr(),
            "totals": self.totals.data_ptr(), "base": self.base.data_ptr(), "statistic": self.statistic.data_ptr(),
            "peak": self.peak.data_ptr(), "own": self._own.data_ptr() if self.missing else 0,
            "own_totals": self._own_totals.data_ptr() if self.missing else 0,
            "is_own": self._is_own.data_ptr() if self.missing else 0, "plan": self._plan.data_ptr(),
            "steps": self._steps,
        }  # fmt: skip

    def squares(self) -> Tensor:
        """Statistics of the candidates that the last step looked at, youngest first: float32 (candidates, channels)."""
        out = torch.zeros(self.planner.candidates, self.channels, device=self.totals.device)
        launch("glr_squares_f32", out.device, **self._where(), candidates=len(out), squares=out.data_ptr())
        return out

    def groups(self, members: Tensor, start: Tensor) -> GroupSums:
        """Sums over groups: members int64 (channels) lists them group by group, group g from start[g] on."""
        squares = self.squares()
        device, count = squares.device, len(start) - 1
        _expect("members", members, torch.int64, (self.channels,), device)
        _expect("start", start, torch.int64, (count + 1,), device)
        out = torch.zeros(3, len(squares), count, dtype=torch.float64, device=device)
        launch(
            "glr_reduce_f32", device, groups=count, members=members.data_ptr(), start=start.data_ptr(),
            squares=squares.data_ptr(), rows=len(squares), channels=self.channels, largest=out[0].data_ptr(),
            total=out[1].data_ptr(), mixture=out[2].data_ptr(),
        )  # fmt: skip
        return GroupSums(*out)
