"""An ordinary ``nn.Module`` and its criterion as a Program: the operations that the native engine runs.

The model runs once on two samples under a dispatch mode that sees every tensor operation. Each tensor is
followed by *where its elements come from*: an integer tensor of the same shape that numbers the elements of a
parameter, of the data or of a Program value. Views, permutations and copies are applied to that tensor as
they are, so any way of writing the same arithmetic (``nn.Linear``, ``x @ W.T``, ``einsum``, heads split in
whatever order) ends in the same few operations. What is not understood is opaque; it matters only if the loss
depends on it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from devinterp_fast._program.description import Description, Loss, Source, Unsupported, number, simplify
from devinterp_fast._program.follow import Tracked
from devinterp_fast._program.losses import Losses
from devinterp_fast._program.products import Products


class _Recorder(Products, Losses):
    """All that is understood."""


def describe(
    model: nn.Module, loss_fn: Callable[[Any, Any], Tensor], x: Tensor, y: Tensor, dtype: torch.dtype = torch.float32
) -> Description:
    """The Program of ``loss_fn(model(x), y)``, read off one run on two samples.

    Args:
        model: any module; its parameters are read, its buffers are copied for the run, nothing is changed.
        loss_fn: a criterion that averages over samples, or gives one loss for each.
        x: inputs.
        y: targets; may be ``x`` itself.
        dtype: what the parameters must have: the precision that the engine will run.

    Returns:
        The operations, not yet compared with autograd.

    Shape:
        x: (n, ...), of this dtype or integer tokens; y: (n, ...).

    Units:
        none

    Raises:
        Unsupported: the arithmetic has no native form; the message says which part.

    Source:
        none
    """
    for name, p in model.named_parameters():
        if p.device.type != "cpu" or p.dtype != dtype:
            raise Unsupported(f"parameter {name} is {p.dtype} on {p.device}, the engine runs {dtype} on cpu")
    samples = min(2, x.shape[0])
    recorder = _Recorder(model, samples)
    few_x, few_y = x[:samples].detach().clone(), y[:samples].detach().clone()
    if y is x:
        few_y = few_x
    recorder.data_size = {"x": few_x[0].numel(), "y": few_y[0].numel()}
    recorder.integer = {"x": not x.is_floating_point(), "y": not y.is_floating_point()}
    recorder.vocabulary = 2**31
    recorder.follow(few_y, "y")
    recorder.follow(few_x, "x")
    buffers = {name: b.detach().clone() for name, b in model.named_buffers()}
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad(), recorder:
            out = loss_fn(torch.func.functional_call(model, buffers, (few_x,)), few_y)
    except Exception as error:  # the user's code, on fewer samples than it may expect
        reason = str(error).strip().split("\n")[0]
        raise Unsupported(f"the model does not run on {samples} samples: {type(error).__name__}: {reason}") from error
    if not isinstance(out, Tensor):
        raise Unsupported(f"the loss is a {type(out).__name__}, not a tensor")
    end = recorder.get(out)
    if end is None:
        raise Unsupported("the loss does not depend on the parameters by operations the engine can follow")
    if end.kind == "opaque":
        raise Unsupported(end.note["reason"])
    if end.kind in ("squared", "binary"):  # one number a sample, or a single output
        end = Tracked("loss", end.index, end, {"factor": end.note["factor"]})
    if end.kind != "loss" or out.numel() not in (1, samples):
        raise Unsupported("the loss is neither a squared error nor a cross-entropy averaged over samples")
    return _finish(recorder, end, out)


def _finish(r: _Recorder, end: Tracked, out: Tensor) -> Description:
    root: Tracked = end.ref
    prediction, target = root.note["prediction"], root.note["target"]
    kind = root.kind if root.kind in ("squared", "binary") else "cross_entropy"
    value = r.values[prediction.ref]
    whole = prediction.index.numel() == r.samples * r.size(prediction.ref) and prediction.index.shape[-1] != value.cols
    cols = value.cols if kind != "cross_entropy" and whole else prediction.index.shape[-1]
    index, wanted = prediction.index.reshape(-1), target.index.reshape(-1)
    importance = root.note.get("importance")
    if kind != "cross_entropy" and whole:  # the order of a value's own elements
        order = torch.argsort(index)
        index, wanted = index[order], wanted[order]
        importance = None if importance is None else importance.reshape(-1)[order].reshape(-1, cols)
    output, place = r.matrix(replace(prediction, index=index.view(-1, cols)), cols)
    wanted = wanted.view(-1, cols) if kind != "cross_entropy" else wanted.view(-1, 1)
    grouped = torch.empty_like(wanted)
    grouped[place] = wanted
    pattern, again = r.local(grouped, r.size(target.ref))
    if not torch.equal(again, torch.arange(len(again))):
        raise Unsupported("the loss pairs predictions of one sample with targets of another")
    offset = -1
    if importance is not None:
        weights = torch.empty(grouped.shape, dtype=torch.double)
        weights[place] = importance.reshape(-1, cols).double()
        weights = weights.view(r.samples, -1)
        if not (weights == weights[0]).all():
            raise Unsupported("importance weights differ between samples")
        offset = r.total
        r.total += weights.shape[1]
        r.constants.append(weights[0].clone())
    factor = end.note["factor"] * (r.samples if out.numel() == 1 else 1)
    loss = Loss(kind, output, factor, offset)
    ops, values, loss = number(simplify(r.ops, r.values, loss), r.values, loss)
    ignore = root.note.get("ignore_index", -100)
    inputs = Source("x", torch.cat(r.reads["x"])) if r.reads["x"] else None
    tokens = Source("x", torch.cat(r.reads["tokens"])) if r.reads["tokens"] else None
    frozen = torch.cat(r.constants) if r.constants else torch.zeros(0, dtype=torch.double)
    wants = Source(target.ref, pattern.reshape(-1), ignore)
    return Description(
        tuple(values), tuple(ops), tuple(r.maps), loss, r.dim, tuple(r.names), frozen, inputs, tokens, wants
    )
