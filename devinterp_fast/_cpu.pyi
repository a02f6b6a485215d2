"""Native code of devinterp_fast. Use it through devinterp_fast._native, which checks what is passed."""

from __future__ import annotations

import collections.abc
import typing

import numpy
import numpy.typing

__all__: list[str] = [
    "Batches",
    "Curvature32",
    "Curvature64",
    "FEW_ROWS",
    "Focus",
    "GlrDetector",
    "LARGE_MODEL",
    "Program",
    "StageDetector",
    "compiler",
    "gram_schmidt_f32",
    "gram_schmidt_f64",
    "has_second",
    "isa",
    "isa_available",
    "multiply_adds",
    "normals_f32",
    "rademacher_dot_f32",
    "rademacher_dot_f64",
    "rademacher_f32",
    "rademacher_f64",
    "sampler_step_f32",
    "sgld_step_f32",
    "use_isa",
    "words_u32",
]

class Batches:
    """Which samples a step sees; modes 0 independent, 1 shared, 2 epoch, 3 full."""
    def __init__(
        self,
        mode: typing.SupportsInt | typing.SupportsIndex,
        seed: typing.SupportsInt | typing.SupportsIndex,
        first_chain: typing.SupportsInt | typing.SupportsIndex,
        chains: typing.SupportsInt | typing.SupportsIndex,
        n: typing.SupportsInt | typing.SupportsIndex,
        size: typing.SupportsInt | typing.SupportsIndex,
    ) -> None: ...
    def fill(
        self, step: typing.SupportsInt | typing.SupportsIndex, out: typing.SupportsInt | typing.SupportsIndex
    ) -> None:
        """Out (chains, size) int64."""

class StageDetector:
    def __init__(
        self,
        loss: bool,
        delta: typing.SupportsFloat | typing.SupportsIndex,
        z: typing.SupportsFloat | typing.SupportsIndex,
        z_own: typing.SupportsFloat | typing.SupportsIndex,
        z_given: typing.SupportsFloat | typing.SupportsIndex,
        kappa: typing.SupportsFloat | typing.SupportsIndex,
        size: typing.SupportsFloat | typing.SupportsIndex,
        skip: typing.SupportsFloat | typing.SupportsIndex,
        eps: typing.SupportsFloat | typing.SupportsIndex,
        scale: typing.SupportsFloat | typing.SupportsIndex,
    ) -> None: ...
    def extend(
        self,
        step: typing.Annotated[numpy.typing.ArrayLike, numpy.float64],
        value: typing.Annotated[numpy.typing.ArrayLike, numpy.float64],
        se: typing.Annotated[numpy.typing.ArrayLike, numpy.float64],
    ) -> list:
        """Alarms of whole arrays (n,); se may be empty."""
    def observations(
        self,
    ) -> tuple[
        numpy.typing.NDArray[numpy.float64], numpy.typing.NDArray[numpy.float64], numpy.typing.NDArray[numpy.float64]
    ]: ...
    def rows(self) -> list: ...
    def update(
        self,
        step: typing.SupportsFloat | typing.SupportsIndex,
        value: typing.SupportsFloat | typing.SupportsIndex,
        se: typing.SupportsFloat | typing.SupportsIndex,
    ) -> typing.Any:
        """(step, onset, excess, block, direction) or None."""
    @property
    def open_alarm(self) -> float: ...

class Focus:
    def __init__(self, family: typing.SupportsInt | typing.SupportsIndex = 0) -> None: ...
    def load(self, arg0: tuple, arg1: tuple, arg2: typing.Annotated[numpy.typing.ArrayLike, numpy.float64]) -> None: ...
    def restart(self) -> None: ...
    def run(
        self,
        y: typing.Annotated[numpy.typing.ArrayLike, numpy.float64],
        weight: typing.Annotated[numpy.typing.ArrayLike, numpy.float64],
        threshold: typing.SupportsFloat | typing.SupportsIndex,
        alarm: bool,
    ) -> tuple[
        numpy.typing.NDArray[numpy.float64],
        numpy.typing.NDArray[numpy.int64],
        numpy.typing.NDArray[numpy.int8],
        list[int],
    ]:
        """(statistic, changepoint, direction) after each of y (n,), and the alarms; weight (n,) or empty; alarm: start anew with the first value."""
    def state(self) -> tuple[tuple, tuple, numpy.typing.NDArray[numpy.float64]]: ...
    def update(
        self, y: typing.SupportsFloat | typing.SupportsIndex, weight: typing.SupportsFloat | typing.SupportsIndex
    ) -> float: ...
    @property
    def changepoint(self) -> int: ...
    @property
    def count(self) -> int: ...
    @property
    def direction(self) -> int: ...
    @property
    def statistic(self) -> float: ...

class Program:
    """A model as a list of operations, laid out in memory."""
    def __init__(
        self,
        values: collections.abc.Sequence[
            typing.Annotated[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], "FixedSize(4)"]
        ],
        ops: collections.abc.Sequence[
            tuple[
                typing.Annotated[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], "FixedSize(13)"],
                typing.SupportsFloat | typing.SupportsIndex,
            ]
        ],
        maps: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        loss: tuple[
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsFloat | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
        ],
        dim: typing.SupportsInt | typing.SupportsIndex,
        total: typing.SupportsInt | typing.SupportsIndex,
    ) -> None: ...
    def chain_losses(
        self,
        data: tuple[
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
        ],
        w: typing.SupportsInt | typing.SupportsIndex,
        w_ld: typing.SupportsInt | typing.SupportsIndex,
        chains: typing.SupportsInt | typing.SupportsIndex,
        frozen: typing.SupportsInt | typing.SupportsIndex,
        index: typing.SupportsInt | typing.SupportsIndex,
        count: typing.SupportsInt | typing.SupportsIndex,
        losses: typing.SupportsInt | typing.SupportsIndex,
        g: typing.SupportsInt | typing.SupportsIndex,
        g_ld: typing.SupportsInt | typing.SupportsIndex,
        threads: typing.SupportsInt | typing.SupportsIndex,
    ) -> None:
        """Losses (chains, count) of chains w (chains, dim), and unless g is 0 the gradients of their means."""
    def layout(self, mode: typing.SupportsInt | typing.SupportsIndex) -> int:
        """0 matrix, 1 samples in the lanes, 2 chains in the lanes."""
    def pass_f32(
        self,
        layout: typing.SupportsInt | typing.SupportsIndex,
        w: typing.SupportsInt | typing.SupportsIndex,
        data: tuple[
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
        ],
        index: typing.SupportsInt | typing.SupportsIndex,
        count: typing.SupportsInt | typing.SupportsIndex,
        g: typing.SupportsInt | typing.SupportsIndex,
        losses: typing.SupportsInt | typing.SupportsIndex,
    ) -> None:
        """Losses (count), g (total) or null, at w (total), in the layout 0 or 1."""
    def pass_f64(
        self,
        w: typing.SupportsInt | typing.SupportsIndex,
        data: tuple[
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
        ],
        index: typing.SupportsInt | typing.SupportsIndex,
        count: typing.SupportsInt | typing.SupportsIndex,
        g: typing.SupportsInt | typing.SupportsIndex,
        losses: typing.SupportsInt | typing.SupportsIndex,
    ) -> None:
        """The same in double."""
    def run(
        self,
        data: tuple[
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
        ],
        chains: typing.SupportsInt | typing.SupportsIndex,
        first_chain: typing.SupportsInt | typing.SupportsIndex,
        seed: typing.SupportsInt | typing.SupportsIndex,
        mode: typing.SupportsInt | typing.SupportsIndex,
        batch_size: typing.SupportsInt | typing.SupportsIndex,
        burn_in: typing.SupportsInt | typing.SupportsIndex,
        thin: typing.SupportsInt | typing.SupportsIndex,
        lr: typing.SupportsInt | typing.SupportsIndex,
        localization: typing.SupportsInt | typing.SupportsIndex,
        nbeta: typing.SupportsInt | typing.SupportsIndex,
        center: typing.SupportsInt | typing.SupportsIndex,
        center_ld: typing.SupportsInt | typing.SupportsIndex,
        mask: typing.SupportsInt | typing.SupportsIndex,
        frozen: typing.SupportsInt | typing.SupportsIndex,
        baseline: typing.SupportsInt | typing.SupportsIndex,
        w: typing.SupportsInt | typing.SupportsIndex,
        w_ld: typing.SupportsInt | typing.SupportsIndex,
        first_step: typing.SupportsInt | typing.SupportsIndex,
        steps: typing.SupportsInt | typing.SupportsIndex,
        trace_loss: typing.SupportsInt | typing.SupportsIndex,
        trace_baseline: typing.SupportsInt | typing.SupportsIndex,
        trace_energy: typing.SupportsInt | typing.SupportsIndex,
        trace_gauge: typing.SupportsInt | typing.SupportsIndex,
        trace_ld: typing.SupportsInt | typing.SupportsIndex,
        diverged: typing.SupportsInt | typing.SupportsIndex,
        mean: typing.SupportsInt | typing.SupportsIndex,
        scatter: typing.SupportsInt | typing.SupportsIndex,
        sampler: tuple[
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsFloat | typing.SupportsIndex,
            typing.SupportsFloat | typing.SupportsIndex,
            typing.SupportsFloat | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsFloat | typing.SupportsIndex,
            typing.SupportsFloat | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
        ],
        threads: typing.SupportsInt | typing.SupportsIndex,
    ) -> None:
        """Advances all chains by `steps` steps."""
    def scratch(self, layout: typing.SupportsInt | typing.SupportsIndex) -> int:
        """Floats that a thread needs beside a chain's own vectors."""

class Curvature32:
    """The mean loss of a Program at a stack of checkpoints: gradients and curvature products."""
    def __init__(
        self,
        program: Program,
        data: tuple[
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
        ],
        index: typing.SupportsInt | typing.SupportsIndex,
        count: typing.SupportsInt | typing.SupportsIndex,
        w: typing.SupportsInt | typing.SupportsIndex,
        checkpoints: typing.SupportsInt | typing.SupportsIndex,
        cache: typing.SupportsInt | typing.SupportsIndex,
        threads: typing.SupportsInt | typing.SupportsIndex,
    ) -> None: ...
    def gradient(
        self, out: typing.SupportsInt | typing.SupportsIndex, count: typing.SupportsInt | typing.SupportsIndex
    ) -> None:
        """Out (checkpoints, total): gradients of the mean loss."""
    def gram(
        self, out: typing.SupportsInt | typing.SupportsIndex, threads: typing.SupportsInt | typing.SupportsIndex
    ) -> None:
        """Out (checkpoints, n, n): products of per-sample gradients over n."""
    def losses(self, out: typing.SupportsInt | typing.SupportsIndex) -> None:
        """Out (checkpoints, count) float64: per-sample losses."""
    def product(
        self,
        kind: typing.SupportsInt | typing.SupportsIndex,
        v: typing.SupportsInt | typing.SupportsIndex,
        probes: typing.SupportsInt | typing.SupportsIndex,
        out: typing.SupportsInt | typing.SupportsIndex,
        threads: typing.SupportsInt | typing.SupportsIndex,
    ) -> None:
        """Out = A v, both (checkpoints, probes, dim); kind 0 Hessian, 1 Gauss-Newton, 2 empirical Fisher."""
    @property
    def cached(self) -> int:
        """Blocks of samples whose values and gradients are kept."""
    @property
    def states(self) -> int:
        """Blocks of samples, over all checkpoints."""

class Curvature64:
    """The mean loss of a Program at a stack of checkpoints: gradients and curvature products."""
    def __init__(
        self,
        program: Program,
        data: tuple[
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
        ],
        index: typing.SupportsInt | typing.SupportsIndex,
        count: typing.SupportsInt | typing.SupportsIndex,
        w: typing.SupportsInt | typing.SupportsIndex,
        checkpoints: typing.SupportsInt | typing.SupportsIndex,
        cache: typing.SupportsInt | typing.SupportsIndex,
        threads: typing.SupportsInt | typing.SupportsIndex,
    ) -> None: ...
    def gradient(
        self, out: typing.SupportsInt | typing.SupportsIndex, count: typing.SupportsInt | typing.SupportsIndex
    ) -> None:
        """Out (checkpoints, total): gradients of the mean loss."""
    def gram(
        self, out: typing.SupportsInt | typing.SupportsIndex, threads: typing.SupportsInt | typing.SupportsIndex
    ) -> None:
        """Out (checkpoints, n, n): products of per-sample gradients over n."""
    def losses(self, out: typing.SupportsInt | typing.SupportsIndex) -> None:
        """Out (checkpoints, count) float64: per-sample losses."""
    def product(
        self,
        kind: typing.SupportsInt | typing.SupportsIndex,
        v: typing.SupportsInt | typing.SupportsIndex,
        probes: typing.SupportsInt | typing.SupportsIndex,
        out: typing.SupportsInt | typing.SupportsIndex,
        threads: typing.SupportsInt | typing.SupportsIndex,
    ) -> None:
        """Out = A v, both (checkpoints, probes, dim); kind 0 Hessian, 1 Gauss-Newton, 2 empirical Fisher."""
    @property
    def cached(self) -> int:
        """Blocks of samples whose values and gradients are kept."""
    @property
    def states(self) -> int:
        """Blocks of samples, over all checkpoints."""

class GlrDetector:
    def __init__(
        self,
        channels: typing.SupportsInt | typing.SupportsIndex,
        model: typing.SupportsInt | typing.SupportsIndex,
        per_octave: typing.SupportsInt | typing.SupportsIndex,
        side: typing.SupportsInt | typing.SupportsIndex,
        threshold: typing.SupportsFloat | typing.SupportsIndex,
        drop: typing.SupportsFloat | typing.SupportsIndex,
        restart: bool,
    ) -> None: ...
    def load(self, state: dict) -> None: ...
    def profile(self, channel: typing.SupportsInt | typing.SupportsIndex) -> numpy.typing.NDArray[numpy.float64]:
        """Candidates (k, 4), youngest first: tau, x, statistic, direction."""
    def restart(
        self, channel: typing.SupportsInt | typing.SupportsIndex, tau: typing.SupportsInt | typing.SupportsIndex
    ) -> None: ...
    def squares(self) -> numpy.typing.NDArray[numpy.float32]:
        """Statistics (candidates, channels) of what the last step looked at, youngest first."""
    def state(self) -> dict: ...
    def update(
        self,
        x: typing.Annotated[numpy.typing.ArrayLike, numpy.float64],
        y: numpy.typing.NDArray[numpy.float32],
        w: typing.Annotated[numpy.typing.ArrayLike, numpy.float64] | None,
        own_x: typing.Annotated[numpy.typing.ArrayLike, numpy.float64] | None,
        threads: typing.SupportsInt | typing.SupportsIndex,
    ) -> numpy.typing.NDArray[numpy.float64]:
        """Alarms (k, 10): n, channel, statistic, tau, low, high, x, x_low, x_high, direction."""
    @property
    def bytes(self) -> int: ...
    @property
    def count(self) -> int: ...
    @property
    def peak(self) -> numpy.typing.NDArray[numpy.float32]: ...
    @property
    def statistic(self) -> numpy.typing.NDArray[numpy.float32]: ...

def compiler() -> str:
    """The compiler that built this module."""

def gram_schmidt_f32(
    u: typing.SupportsInt | typing.SupportsIndex,
    u_ld: typing.SupportsInt | typing.SupportsIndex,
    basis: typing.SupportsInt | typing.SupportsIndex,
    chain_ld: typing.SupportsInt | typing.SupportsIndex,
    vector_ld: typing.SupportsInt | typing.SupportsIndex,
    chains: typing.SupportsInt | typing.SupportsIndex,
    dim: typing.SupportsInt | typing.SupportsIndex,
    count: typing.SupportsInt | typing.SupportsIndex,
    known: typing.SupportsInt | typing.SupportsIndex,
    gram: typing.SupportsInt | typing.SupportsIndex,
    gram_chain_ld: typing.SupportsInt | typing.SupportsIndex,
    gram_ld: typing.SupportsInt | typing.SupportsIndex,
    coefficients: typing.SupportsInt | typing.SupportsIndex,
    coefficients_ld: typing.SupportsInt | typing.SupportsIndex,
    norms: typing.SupportsInt | typing.SupportsIndex,
    threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """U (chains, dim) made orthogonal to the first `count` rows of its chain's basis, and normalized."""

def gram_schmidt_f64(
    u: typing.SupportsInt | typing.SupportsIndex,
    u_ld: typing.SupportsInt | typing.SupportsIndex,
    basis: typing.SupportsInt | typing.SupportsIndex,
    chain_ld: typing.SupportsInt | typing.SupportsIndex,
    vector_ld: typing.SupportsInt | typing.SupportsIndex,
    chains: typing.SupportsInt | typing.SupportsIndex,
    dim: typing.SupportsInt | typing.SupportsIndex,
    count: typing.SupportsInt | typing.SupportsIndex,
    known: typing.SupportsInt | typing.SupportsIndex,
    gram: typing.SupportsInt | typing.SupportsIndex,
    gram_chain_ld: typing.SupportsInt | typing.SupportsIndex,
    gram_ld: typing.SupportsInt | typing.SupportsIndex,
    coefficients: typing.SupportsInt | typing.SupportsIndex,
    coefficients_ld: typing.SupportsInt | typing.SupportsIndex,
    norms: typing.SupportsInt | typing.SupportsIndex,
    threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """U (chains, dim) made orthogonal to the first `count` rows of its chain's basis, and normalized."""

def has_second(program: Program) -> bool:
    """Whether every operation has a second derivative here."""

def isa() -> str:
    """Name of the instruction set in use."""

def isa_available() -> list[str]:
    """Instruction sets that this build has and this processor runs, narrowest first."""

def multiply_adds(rounds: typing.SupportsInt | typing.SupportsIndex) -> float:
    """Independent fused multiply-adds and nothing else; returns how many flops they are."""

def normals_f32(
    out: typing.SupportsInt | typing.SupportsIndex,
    chains: typing.SupportsInt | typing.SupportsIndex,
    size: typing.SupportsInt | typing.SupportsIndex,
    ld: typing.SupportsInt | typing.SupportsIndex,
    seed: typing.SupportsInt | typing.SupportsIndex,
    first_chain: typing.SupportsInt | typing.SupportsIndex,
    step: typing.SupportsInt | typing.SupportsIndex,
    stream: typing.SupportsInt | typing.SupportsIndex,
    threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """Out (chains, size): standard normals."""

def rademacher_dot_f32(
    x: typing.SupportsInt | typing.SupportsIndex,
    probes: typing.SupportsInt | typing.SupportsIndex,
    dim: typing.SupportsInt | typing.SupportsIndex,
    ld: typing.SupportsInt | typing.SupportsIndex,
    seed: typing.SupportsInt | typing.SupportsIndex,
    first_probe: typing.SupportsInt | typing.SupportsIndex,
    step: typing.SupportsInt | typing.SupportsIndex,
    out: typing.SupportsInt | typing.SupportsIndex,
    threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """Out (probes): each row's sum with random signs."""

def rademacher_dot_f64(
    x: typing.SupportsInt | typing.SupportsIndex,
    probes: typing.SupportsInt | typing.SupportsIndex,
    dim: typing.SupportsInt | typing.SupportsIndex,
    ld: typing.SupportsInt | typing.SupportsIndex,
    seed: typing.SupportsInt | typing.SupportsIndex,
    first_probe: typing.SupportsInt | typing.SupportsIndex,
    step: typing.SupportsInt | typing.SupportsIndex,
    out: typing.SupportsInt | typing.SupportsIndex,
    threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """Out (probes): each row's sum with random signs."""

def rademacher_f32(
    out: typing.SupportsInt | typing.SupportsIndex,
    probes: typing.SupportsInt | typing.SupportsIndex,
    dim: typing.SupportsInt | typing.SupportsIndex,
    ld: typing.SupportsInt | typing.SupportsIndex,
    seed: typing.SupportsInt | typing.SupportsIndex,
    first_probe: typing.SupportsInt | typing.SupportsIndex,
    step: typing.SupportsInt | typing.SupportsIndex,
    threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """Out (probes, dim): random signs."""

def rademacher_f64(
    out: typing.SupportsInt | typing.SupportsIndex,
    probes: typing.SupportsInt | typing.SupportsIndex,
    dim: typing.SupportsInt | typing.SupportsIndex,
    ld: typing.SupportsInt | typing.SupportsIndex,
    seed: typing.SupportsInt | typing.SupportsIndex,
    first_probe: typing.SupportsInt | typing.SupportsIndex,
    step: typing.SupportsInt | typing.SupportsIndex,
    threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """Out (probes, dim): random signs."""

def sampler_step_f32(
    sampler: typing.SupportsInt | typing.SupportsIndex,
    w: typing.SupportsInt | typing.SupportsIndex,
    w_ld: typing.SupportsInt | typing.SupportsIndex,
    center: typing.SupportsInt | typing.SupportsIndex,
    center_ld: typing.SupportsInt | typing.SupportsIndex,
    mask: typing.SupportsInt | typing.SupportsIndex,
    mask_ld: typing.SupportsInt | typing.SupportsIndex,
    first: typing.SupportsInt | typing.SupportsIndex,
    second: typing.SupportsInt | typing.SupportsIndex,
    state_ld: typing.SupportsInt | typing.SupportsIndex,
    chains: typing.SupportsInt | typing.SupportsIndex,
    gradients: collections.abc.Sequence[
        tuple[
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
        ]
    ],
    coefficients: typing.SupportsInt | typing.SupportsIndex,
    seed: typing.SupportsInt | typing.SupportsIndex,
    step: typing.SupportsInt | typing.SupportsIndex,
    first_chain: typing.SupportsInt | typing.SupportsIndex,
    noise: bool,
    work: typing.SupportsInt | typing.SupportsIndex,
    gauge: typing.SupportsInt | typing.SupportsIndex,
    threads: typing.SupportsInt | typing.SupportsIndex,
) -> bool:
    """One step of a sampler with ready coefficients; False if there is no such sampler."""

def sgld_step_f32(
    w: typing.SupportsInt | typing.SupportsIndex,
    w_ld: typing.SupportsInt | typing.SupportsIndex,
    center: typing.SupportsInt | typing.SupportsIndex,
    center_ld: typing.SupportsInt | typing.SupportsIndex,
    mask: typing.SupportsInt | typing.SupportsIndex,
    mask_ld: typing.SupportsInt | typing.SupportsIndex,
    chains: typing.SupportsInt | typing.SupportsIndex,
    gradients: collections.abc.Sequence[
        tuple[
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
        ]
    ],
    lr: typing.SupportsInt | typing.SupportsIndex,
    localization: typing.SupportsInt | typing.SupportsIndex,
    nbeta: typing.SupportsInt | typing.SupportsIndex,
    seed: typing.SupportsInt | typing.SupportsIndex,
    step: typing.SupportsInt | typing.SupportsIndex,
    first_chain: typing.SupportsInt | typing.SupportsIndex,
    noise: bool,
    energy: typing.SupportsInt | typing.SupportsIndex,
    square: typing.SupportsInt | typing.SupportsIndex,
    threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """One SGLD step of `chains` rows; gradients = [(first, size, address, ld), ...]."""

def use_isa(name: str) -> bool:
    """Use the named set, or the widest for ''. False if it is not available. All sets give the same bits."""

def words_u32(
    out: typing.SupportsInt | typing.SupportsIndex,
    chains: typing.SupportsInt | typing.SupportsIndex,
    size: typing.SupportsInt | typing.SupportsIndex,
    ld: typing.SupportsInt | typing.SupportsIndex,
    seed: typing.SupportsInt | typing.SupportsIndex,
    first_chain: typing.SupportsInt | typing.SupportsIndex,
    step: typing.SupportsInt | typing.SupportsIndex,
    stream: typing.SupportsInt | typing.SupportsIndex,
    threads: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """Out (chains, size): Philox words."""

FEW_ROWS: int = 32
LARGE_MODEL: int = 4000000
