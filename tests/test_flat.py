"""Layout: which parameter lies where, views that share memory, and masks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from devinterp_fast import _flat
from devinterp_fast.errors import DTypeError, ModelError, ShapeError


class Mixed(nn.Module):
    """A scalar, a matrix stored by columns, a frozen and an empty parameter, and one weight under two names."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.matrix = nn.Parameter(torch.arange(6.0).view(3, 2).t())
        self.frozen = nn.Parameter(torch.ones(4), requires_grad=False)
        self.empty = nn.Parameter(torch.zeros(0, 3))
        self.bias = nn.Parameter(torch.tensor([7.0, 8.0]))
        self.tied = self.bias


def test_layout_lists_trainable_parameters_once_in_order():
    where = _flat.layout(Mixed())
    assert where.names == ("scale", "matrix", "empty", "bias")
    assert where.offsets == (0, 1, 7, 7)
    assert where.shapes == ((), (2, 3), (0, 3), (2,))
    assert (where.dim, where.dtype) == (9, torch.float32)


def test_flatten_is_row_major():
    model = Mixed()
    assert _flat.flatten(model, _flat.layout(model)).tolist() == [2, 0, 2, 4, 1, 3, 5, 7, 8]


def test_views_cut_what_flatten_joined_and_share_memory():
    model = Mixed()
    where = _flat.layout(model)
    rows = where.block(3)
    rows[1] = _flat.flatten(model, where)
    views = where.views(rows)
    assert [tuple(view.shape) for view in views] == [(3,), (3, 2, 3), (3, 0, 3), (3, 2)]
    own = dict(model.named_parameters())
    for name, view in zip(where.names, views, strict=True):
        assert torch.equal(view[1], own[name])
    for view in views:
        view.fill_(5.0)
    assert (rows == 5).all()
    assert [tuple(view.shape) for view in where.views(rows[0])] == [(), (2, 3), (0, 3), (2,)]


@pytest.mark.parametrize("dim", [1, 31, 32, 33, 1000])
def test_rows_are_aligned(dim):
    where = _flat.layout(nn.Linear(dim, 1, bias=False))
    rows = where.block(4)
    assert rows.shape == (4, dim)
    assert rows.stride(0) % _flat.PAD == 0
    assert rows.stride(0) >= dim
    assert not rows.any()


def test_masks_in_both_forms():
    where = _flat.layout(Mixed())
    flat = torch.tensor([False, True, False, True, False, True, False, False, True])
    assert torch.equal(_flat.flat_mask(flat, where), flat)
    parts = {"matrix": torch.tensor([[True, False, True], [False, True, False]]), "bias": torch.tensor([False, True])}
    assert torch.equal(_flat.flat_mask(parts, where), flat)
    assert _flat.flat_mask({"scale": torch.tensor(True)}, where).nonzero().tolist() == [[0]]


def message(kind, call):
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    return caught.value.args[0]


def test_bad_masks():
    where = _flat.layout(Mixed())
    bad = [
        (DTypeError, torch.ones(9), "mask: expected bool (9,), got torch.float32"),
        (ShapeError, torch.ones(8, dtype=torch.bool), "mask: expected bool (9,), got (8,)"),
        (KeyError, {"frozen": torch.ones(4) > 0}, "mask: expected names of trainable parameters, got 'frozen'"),
        (DTypeError, {"bias": torch.ones(2)}, "mask['bias']: expected bool (2,), got torch.float32"),
        (ShapeError, {"bias": torch.ones(3) > 0}, "mask['bias']: expected (2,), got (3,)"),
        (ValueError, {}, "mask: expected at least one True, got none: nothing would be sampled"),
        (ValueError, torch.zeros(9) > 0, "mask: expected at least one True, got none: nothing would be sampled"),
    ]
    for kind, mask, text in bad:
        assert message(kind, lambda mask=mask: _flat.flat_mask(mask, where)) == text


def test_models_that_have_no_layout():
    two = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1).double())
    broken = nn.Linear(2, 1)
    broken.weight.data[0, 1] = float("inf")
    bad = [
        (ModelError, nn.ReLU(), "model: expected at least one parameter that requires a gradient, got none"),
        (
            DTypeError,
            nn.Linear(2, 2).half(),
            "model: expected float32 or float64 parameters, got torch.float16 in 'weight'",
        ),
        (
            DTypeError,
            two,
            "model: expected parameters of one dtype, got torch.float32 and torch.float64 ('1.weight')",
        ),
        (ModelError, broken, "model: expected finite parameters, got NaN or infinity in 'weight'"),
    ]
    for kind, model, text in bad:
        assert message(kind, lambda model=model: _flat.layout(model)) == text


def test_a_model_elsewhere_is_refused():
    text = message(_flat.DeviceError, lambda: _flat.layout(nn.Linear(2, 2, device="meta")))
    assert text == "model: expected parameters on cpu, got 'weight' on meta"
