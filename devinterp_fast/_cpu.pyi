"""Native code of devinterp_fast. Use it through devinterp_fast._native, which checks what is passed."""

from __future__ import annotations

import collections.abc
import typing

__all__: list[str] = [
    "batch_indices_i64",
    "compiler",
    "isa",
    "isa_available",
    "normals_f32",
    "sgld_step_f32",
    "use_isa",
    "words_u32",
]

def batch_indices_i64(
    out: typing.SupportsInt | typing.SupportsIndex,
    chains: typing.SupportsInt | typing.SupportsIndex,
    size: typing.SupportsInt | typing.SupportsIndex,
    n: typing.SupportsInt | typing.SupportsIndex,
    seed: typing.SupportsInt | typing.SupportsIndex,
    first_chain: typing.SupportsInt | typing.SupportsIndex,
    step: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """Out (chains, size): samples of a step's batches."""

def compiler() -> str:
    """The compiler that built this module."""

def isa() -> str:
    """Name of the instruction set in use."""

def isa_available() -> list[str]:
    """Instruction sets that this build has and this processor runs, narrowest first."""

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
