"""Which coordinates move, by name: parameters, slices of them, attention heads, blocks, or a regular expression.

"l1h0" is head 0 of the second attention layer, "l1 attn" and "l1 mlp" are the attention and the rest of its block,
"layer.weight[0:2, 3]" is a slice, and anything else a regular expression searched for in the names of parameters.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from devinterp_fast import _flat
from devinterp_fast.errors import ModelError

Mask = Tensor | dict[str, Tensor] | str | Sequence[str]

_HEADS = ("num_heads", "n_heads", "n_head", "heads")
_JOINT = ("in_proj", "qkv", "c_attn")
_OUT = {"o", "out", "out_proj", "o_proj", "c_proj", "proj", "output", "w_o"}
_IN = re.compile(r"(?:^|[._])(?:q|k|v|query|key|value|w_[qkv])(?:_proj)?(?:$|[._])", re.IGNORECASE)
_SLICE = re.compile(r"(?P<name>[\w.]+)\[(?P<index>[\d:,\s-]+)\]")


def mask_of(mask: Mask, model: nn.Module, where: _flat.Layout) -> Tensor:
    """One bool for each coordinate.

    Args:
        mask: bool (dim,), {parameter name: bool tensor}, or a name as above; of several names the union.
        model: whose modules tell where heads and blocks are.
        where: layout of its parameters.

    Raises:
        ValueError: nothing matches.
        ModelError: heads or blocks are asked for where the model has none that we know.
        KeyError, ShapeError, DTypeError: as ``_flat.flat_mask``.
    """
    if isinstance(mask, Tensor | dict):
        return _flat.flat_mask(mask, where)
    names = [mask] if isinstance(mask, str) else list(mask)
    parts: dict[str, Tensor] = {}
    for name in names:
        for key, part in _named(name, model, where).items():
            parts[key] = part | parts[key] if key in parts else part
    return _flat.flat_mask(parts, where)


def _named(name: str, model: nn.Module, where: _flat.Layout) -> dict[str, Tensor]:
    shapes = dict(zip(where.names, where.shapes, strict=True))
    if head := re.fullmatch(r"l(\d+)h(\d+)", name):
        return _head(int(head[1]), int(head[2]), model, shapes)
    if block := re.fullmatch(r"l(\d+) (attn|mlp)", name):
        return _block(int(block[1]), block[2], model, shapes)
    if (cut := _SLICE.fullmatch(name)) and cut["name"] in shapes:
        part = torch.zeros(shapes[cut["name"]], dtype=torch.bool)
        part[tuple(_index(piece) for piece in cut["index"].split(","))] = True
        return {cut["name"]: part}
    try:
        found = [key for key in shapes if re.search(name, key)]
    except re.error as error:
        raise ValueError(f"mask: expected a regular expression, got {name!r} ({error})") from None
    if not found:
        raise ValueError(f"mask: expected a name that matches a parameter of {list(shapes)}, got {name!r}")
    return {key: torch.ones(shapes[key], dtype=torch.bool) for key in found}


def _index(piece: str) -> int | slice:
    numbers = [int(x) if x.strip() else None for x in piece.split(":")]
    return slice(*numbers) if len(numbers) > 1 or numbers[0] is None else numbers[0]


def _attention(layer: int, model: nn.Module) -> tuple[str, int]:
    """The name of an attention layer's module, and its number of heads."""
    found: list[tuple[str, int]] = []
    for name, module in model.named_modules():
        heads = next((getattr(module, key) for key in _HEADS if isinstance(getattr(module, key, None), int)), None)
        own = any(_IN.search(key) or any(j in key for j in _JOINT) for key, _ in module.named_parameters())
        if heads and own and not any(module is not part and _is_attention(part) for part in module.modules()):
            found.append((name, heads))
    if layer >= len(found):
        raise ModelError(f"mask: expected a model with attention layer {layer}, got {len(found)} attention layers")
    return found[layer]


def _is_attention(module: nn.Module) -> bool:
    return any(isinstance(getattr(module, key, None), int) for key in _HEADS)


def _under(prefix: str, shapes: dict[str, torch.Size]) -> dict[str, str]:
    """{parameter name: the rest of it} of those under a module."""
    start = f"{prefix}." if prefix else ""
    return {key: key[len(start) :] for key in shapes if key.startswith(start)}


def _head(layer: int, head: int, model: nn.Module, shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    prefix, heads = _attention(layer, model)
    if head >= heads:
        raise ValueError(f"mask: expected a head below {heads} in attention layer {layer}, got {head}")
    parts = {}
    for key, rest in _under(prefix, shapes).items():
        shape = shapes[key]
        part = torch.zeros(shape, dtype=torch.bool)
        stem = rest.removesuffix(".weight").removesuffix(".bias").removesuffix("_weight").removesuffix("_bias")
        if len(shape) == 3 and shape[0] == heads:
            part[head] = True
        elif any(joint in rest for joint in _JOINT):
            axis = 0 if len(shape) == 1 or shape[0] >= shape[1] else 1  # rows of a Linear, columns of a Conv1D
            rows = part.movedim(axis, 0).unflatten(0, (3, heads, -1))
            rows[:, head] = True
        elif stem.split(".")[-1].lower() in _OUT and len(shape) == 2:
            part.unflatten(1, (heads, -1))[:, head] = True
        elif _IN.search(rest):
            part.unflatten(0, (heads, -1))[head] = True
        if part.any():
            parts[key] = part
    return parts


def _block(layer: int, kind: str, model: nn.Module, shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    prefix, _ = _attention(layer, model)
    attention = _under(prefix, shapes)
    block = prefix.rpartition(".")[0]
    if kind == "mlp":
        rest = {key: part for key, part in _under(block, shapes).items() if key not in attention}
        chosen = [key for key, part in rest.items() if re.search(r"mlp|ff|feed|fc|linear[12]", part)]
        if not block or not chosen:
            raise ModelError(
                f"mask: expected a block with an mlp beside attention layer {layer}, got none that we know"
            )
    else:
        chosen = list(attention)
    return {key: torch.ones(shapes[key], dtype=torch.bool) for key in chosen}
