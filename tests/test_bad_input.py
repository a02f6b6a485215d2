"""Every error path of the sampling core: exact type and full sentence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import devinterp_fast as dif
from devinterp_fast import _native
from devinterp_fast.errors import DataError, DeviceError, DTypeError, LossError, ModelError, ShapeError
from devinterp_fast.sampling.samplers import KINDS

X, Y = torch.zeros(10, 3), torch.zeros(10, 2)


def refused(kind, text, call):
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    assert caught.value.args == (text,)


SETTINGS = [
    ({"chains": 0}, "chains: expected an integer of at least 1, got 0"),
    ({"chains": 2.0}, "chains: expected an integer of at least 1, got 2.0"),
    ({"chains": True}, "chains: expected an integer of at least 1, got True"),
    ({"draws": 0}, "draws: expected an integer of at least 1, got 0"),
    ({"draws": "many"}, "draws: expected one of ('auto',), got 'many'"),
    ({"burn_in": -1}, "burn_in: expected an integer of at least 0, got -1"),
    ({"burn_in": "long"}, "burn_in: expected one of ('auto',), got 'long'"),
    ({"thin": 0}, "thin: expected an integer of at least 1, got 0"),
    ({"seed": -1}, "seed: expected an integer of at least 0, got -1"),
    ({"seed": None}, "seed: expected an integer of at least 0, got None"),
    ({"seed": 2**64}, f"seed: expected an integer below 2^64, got {2**64}"),
    ({"batch_size": 0}, "batch_size: expected an integer of at least 1, got 0"),
    ({"batches": "own"}, "batches: expected one of ('independent', 'shared', 'epoch', 'full'), got 'own'"),
    ({"sampler": "nuts"}, f"sampler: expected one of {('auto', *KINDS)}, got 'nuts'"),
    ({"sampler": "hmc", "batches": "shared"}, "batches: expected 'full' for 'hmc', got 'shared'"),
    ({"backend": "cuda"}, "backend: expected one of ('auto', 'native', 'torch'), got 'cuda'"),
    ({"lr": 0.0}, "lr: expected finite numbers above 0, got 0.0"),
    ({"lr": -1e-3}, "lr: expected finite numbers above 0, got -0.001"),
    ({"lr": float("nan")}, "lr: expected finite numbers above 0, got nan"),
    ({"lr": "big"}, "lr: expected one of ('auto',), got 'big'"),
    ({"lr": [1e-3, 1e-3], "chains": 3}, "lr: expected a number or 3 numbers, got [0.001, 0.001]"),
    ({"lr": {}}, "lr: expected a number or 8 numbers, got {}"),
    ({"localization": -1.0}, "localization: expected finite numbers at least 0, got -1.0"),
    ({"localization": float("inf")}, "localization: expected finite numbers at least 0, got inf"),
    ({"localization": "weak"}, "localization: expected one of ('auto',), got 'weak'"),
    ({"nbeta": 0}, "nbeta: expected finite numbers above 0, got 0"),
    ({"nbeta": "auto"}, "nbeta: expected a number or 8 numbers, got 'auto'"),
    ({"nbeta": 3.0, "n": 5}, "nbeta: expected nbeta or n, got both"),
    ({"n": 1}, "n: expected an integer of at least 2, got 1"),
    ({"n": 3.5}, "n: expected an integer of at least 2, got 3.5"),
]


@pytest.mark.parametrize(("options", "text"), SETTINGS, ids=[str(options) for options, _ in SETTINGS])
def test_settings(options, text):
    options = {"progress": False, **options}
    refused(ValueError, text, lambda: dif.estimate_llc(nn.Linear(3, 2), nn.MSELoss(), (X, Y), **options))


def test_one_sample_has_no_default_temperature():
    text = "n: expected at least 2 training samples for nbeta = n / ln n, got 1: pass n or nbeta"
    refused(ValueError, text, lambda: dif.estimate_llc(nn.Linear(3, 2), nn.MSELoss(), (X[:1], Y[:1]), progress=False))
    one = dif.estimate_llc(nn.Linear(3, 2), nn.MSELoss(), (X[:1], Y[:1]), n=100, draws=4, lr=1e-3, progress=False)
    assert np.isfinite(one.value)


def test_a_step_cannot_be_found_where_nothing_sets_it():
    text = "lr: expected a number where neither curvature nor localization sets the step, got 'auto'"
    refused(
        ValueError,
        text,
        lambda: dif.estimate_llc(
            nn.Linear(3, 2), lambda model, batch: 0 * model(batch).mean(1), X, localization=0.0, progress=False
        ),
    )


def test_errors_of_model_data_and_loss_reach_the_caller():
    def call(model, loss_fn, data, **options):
        return lambda: dif.estimate_llc(model, loss_fn, data, progress=False, **options)

    refused(
        ModelError,
        "model: expected at least one parameter that requires a gradient, got none",
        call(nn.ReLU(), nn.MSELoss(), (X, X)),
    )
    refused(
        DeviceError,
        "model: expected parameters on cpu, got 'weight' on meta",
        call(nn.Linear(3, 2, device="meta"), nn.MSELoss(), (X, Y)),
    )
    refused(
        DTypeError,
        "model: expected float32 or float64 parameters, got torch.bfloat16 in 'weight'",
        call(nn.Linear(3, 2).bfloat16(), nn.MSELoss(), (X, Y)),
    )
    refused(
        DataError,
        "data[1]: expected 10 samples like the first, got 4",
        call(nn.Linear(3, 2), nn.MSELoss(), (X, Y[:4])),
    )
    refused(
        ShapeError,
        "mask: expected bool (8,), got (3,)",
        call(nn.Linear(3, 2), nn.MSELoss(), (X, Y), mask=torch.ones(3, dtype=torch.bool)),
    )
    refused(
        KeyError,
        "mask: expected names of trainable parameters, got 'elsewhere'",
        call(nn.Linear(3, 2), nn.MSELoss(), (X, Y), mask={"elsewhere": torch.ones(2, 3, dtype=torch.bool)}),
    )


def test_one_bad_sample_far_from_the_first_is_named():
    # The check looks at 64 samples spread over the data; the pass over all of them finds the rest.
    def loss(model, batch):
        return model(batch).sum(1) / (batch[:, 0] != 7)

    data = torch.ones(1000, 3)
    data[501, 0] = data[777, 0] = 7.0
    model = nn.Linear(3, 2)
    model.weight.data.fill_(1.0)
    refused(
        LossError,
        "loss_fn: expected finite losses at the model's weights, got inf on sample 501 (2 of 1000 samples)",
        lambda: dif.estimate_llc(model, loss, data, progress=False),
    )


def arguments(chains=2, dim=6):
    each = [torch.ones(chains, dtype=torch.float64) for _ in range(3)]
    return {
        "w": torch.zeros(chains, dim),
        "gradients": [torch.zeros(chains, dim)],
        "center": torch.zeros(dim),
        **dict(zip(("lr", "localization", "nbeta"), each, strict=True)),
    }


FULL = "expected float32 (2, 6) on cpu"
STEP = [
    (ShapeError, {"w": torch.zeros(6)}, "w: expected float32 (chains, dim) on cpu, got float32 (6,) on cpu"),
    (DTypeError, {"w": torch.zeros(2, 6).double()}, f"w: {FULL}, got float64 (2, 6) on cpu"),
    (DeviceError, {"w": torch.zeros(2, 6, device="meta")}, f"w: {FULL}, got float32 (2, 6) on meta"),
    (
        ShapeError,
        {"w": torch.zeros(6, 2).t()},
        f"w: {FULL} with stride 1 in its last dimension, got stride 2",
    ),
    (
        ShapeError,
        {"w": torch.zeros(1, 6).expand(2, 6)},
        "w: expected rows apart in memory, got row stride 0 below 6 columns",
    ),
    (
        ShapeError,
        {"w": torch.zeros(11).as_strided((2, 6), (5, 1))},
        "w: expected rows apart in memory, got row stride 5 below 6 columns",
    ),
    (ShapeError, {"center": torch.zeros(5)}, "center: expected float32 (6,) on cpu, got float32 (5,) on cpu"),
    (ShapeError, {"center": torch.zeros(3, 6)}, f"center: {FULL}, got float32 (3, 6) on cpu"),
    (
        DTypeError,
        {"center": torch.zeros(6).half()},
        "center: expected float32 (6,) on cpu, got float16 (6,) on cpu",
    ),
    (
        ShapeError,
        {"center": torch.zeros(12)[::2]},
        "center: expected float32 (6,) on cpu with stride 1 in its last dimension, got stride 2",
    ),
    (DTypeError, {"lr": torch.ones(2)}, "lr: expected float64 (2,) on cpu, got float32 (2,) on cpu"),
    (
        ShapeError,
        {"nbeta": torch.ones(3).double()},
        "nbeta: expected float64 (2,) on cpu, got float64 (3,) on cpu",
    ),
    (
        ShapeError,
        {"localization": torch.ones(1).double().expand(2)},
        "localization: expected float64 (2,) on cpu with stride 1 in its last dimension, got stride 0",
    ),
    (ShapeError, {"energy": torch.ones(1).double()}, "energy: expected float64 (2,) on cpu, got float64 (1,) on cpu"),
    (DTypeError, {"mask": torch.ones(6)}, "mask: expected bool (6,) on cpu, got float32 (6,) on cpu"),
    (ShapeError, {"mask": torch.ones(6, 2) > 0}, "mask: expected bool (2, 6) on cpu, got bool (6, 2) on cpu"),
    (DTypeError, {"gradients": [torch.zeros(2, 6).double()]}, f"g: {FULL}, got float64 (2, 6) on cpu"),
    (
        ShapeError,
        {"gradients": [torch.zeros(6, 2).t()]},
        "g: expected contiguous float32 (2, ...) on cpu, got float32 (2, 6) on cpu",
    ),
    (
        ShapeError,
        {"gradients": [torch.zeros(7)]},
        "g: expected contiguous float32 (2, ...) on cpu, got float32 (7,) on cpu",
    ),
    (ShapeError, {"gradients": [torch.zeros(2, 5)]}, "g: expected float32 (2, 6) in all, got 5 columns"),
    (ShapeError, {"gradients": []}, "g: expected float32 (2, 6) in all, got 0 columns"),
]


@pytest.mark.parametrize(("kind", "change", "text"), STEP, ids=[text for _, _, text in STEP])
def test_steps(kind, change, text):
    refused(kind, text, lambda: _native.sgld_step_(**{**arguments(), **change}, seed=0, step=0))


def test_normals():
    def call(out):
        return lambda: _native.normals_(out, seed=0, step=0)

    refused(ShapeError, "out: expected float32 (chains, dim) on cpu, got float32 (4,) on cpu", call(torch.empty(4)))
    refused(
        DTypeError,
        "out: expected float32 (2, 4) on cpu, got float64 (2, 4) on cpu",
        call(torch.empty(2, 4, dtype=torch.float64)),
    )
    refused(
        ShapeError,
        "out: expected rows apart in memory, got row stride 0 below 4 columns",
        call(torch.empty(1, 4).expand(2, 4)),
    )
    refused(
        DeviceError,
        "out: expected float32 (2, 4) on cpu, got float32 (2, 4) on meta",
        call(torch.empty(2, 4, device="meta")),
    )
