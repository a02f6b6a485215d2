"""Traces: written whole or not at all, read back equal, and what ArviZ makes of them."""

from __future__ import annotations

import dataclasses
import os

import arviz_stats
import numpy as np
import pytest
import torch
import xarray as xr
from arviz_stats.base import array_stats
from torch import nn

import devinterp_fast as dif
from devinterp_fast.errors import MissingExtraError, RunFolderError

DRAW = torch.Generator().manual_seed(0)
X = torch.randn(40, 3, generator=DRAW)


def estimate(**options):
    torch.manual_seed(0)
    settings = {"chains": 4, "draws": 30, "burn_in": 10, "lr": 1e-3, "progress": False}
    return dif.estimate_llc(nn.Linear(3, 1), nn.MSELoss(), (X, X[:, :1]), **{**settings, **options})


@pytest.mark.parametrize("options", [{}, {"lr": [1e-3, 1e-3, 1e-3, 1e30]}, {"draws": 2, "chains": 1}])
def test_an_estimate_comes_back_equal(tmp_path, options):
    llc = estimate(**options)
    for _ in range(2):  # the second time in place of the first
        assert llc.save(tmp_path / "llc.zarr") == tmp_path / "llc.zarr"
    back = dif.load_llc(tmp_path / "llc.zarr")
    assert str(back) == str(llc)
    xr.testing.assert_identical(back.trace, llc.trace)
    for field in dataclasses.fields(llc):
        if field.name != "trace":
            np.testing.assert_array_equal(getattr(back, field.name), getattr(llc, field.name), err_msg=field.name)
            assert type(getattr(back, field.name)) is type(getattr(llc, field.name))
    assert [entry.name for entry in tmp_path.iterdir()] == ["llc.zarr"]


def test_arviz_takes_the_trace_as_it_is(tmp_path):
    llc = estimate()
    llc.save(tmp_path / "llc.zarr")
    with xr.open_zarr(tmp_path / "llc.zarr") as trace:
        summary = arviz_stats.summary(trace[["llc", "loss"]], round_to="none")
    assert list(summary.index) == ["llc", "loss"]
    assert float(summary.loc["llc", "mean"]) == pytest.approx(llc.value)
    assert float(summary.loc["llc", "mcse_mean"]) == pytest.approx(llc.mcse)
    assert float(summary.loc["llc", "r_hat"]) == pytest.approx(llc.rhat)


def test_a_saved_trace_has_what_arviz_asks_for(tmp_path):
    # A Dataset with dims chain and draw, in this order, coordinates for both, and floating point variables.
    llc = estimate()
    llc.save(tmp_path / "llc.zarr")
    with xr.open_zarr(tmp_path / "llc.zarr") as trace:
        for name in ("llc", "loss", "baseline"):
            assert trace[name].dims == ("chain", "draw")
            assert trace[name].dtype == np.float64
        assert trace["chain"].to_numpy().tolist() == [0, 1, 2, 3]
        assert trace["draw"].to_numpy().tolist() == list(range(30))
        mcse = array_stats.mcse(trace["llc"].to_numpy(), chain_axis=0, draw_axis=1)
    assert float(mcse) == pytest.approx(llc.mcse)


def test_what_cannot_be_read_or_written(tmp_path, monkeypatch):
    for make in (lambda p: None, os.mkdir, lambda p: xr.Dataset({"a": 1}).to_zarr(p, consolidated=False)):
        path = tmp_path / f"odd{len(list(tmp_path.iterdir()))}"
        make(path)
        with pytest.raises(RunFolderError) as caught:
            dif.load_llc(path)
        assert str(caught.value).startswith(f"path: expected an estimate written by LLC.save, got {path} (")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="path: expected a folder that can be written, got "):
        estimate().save(tmp_path / "file" / "llc.zarr")
    monkeypatch.setitem(__import__("sys").modules, "zarr", None)
    with pytest.raises(MissingExtraError, match="reading traces needs zarr"):
        dif.load_llc(tmp_path / "llc.zarr")
    with pytest.raises(MissingExtraError, match="writing traces needs zarr"):
        estimate().save(tmp_path / "llc.zarr")


def test_a_failed_write_leaves_the_old_estimate(tmp_path, monkeypatch):
    old = estimate()
    old.save(tmp_path / "llc.zarr")

    def fails(self, *args, **options):
        raise OSError("disk full")

    monkeypatch.setattr(xr.Dataset, "to_zarr", fails)
    with pytest.raises(RunFolderError, match="path: expected a folder that can be written, got disk full"):
        estimate(seed=1).save(tmp_path / "llc.zarr")
    assert dif.load_llc(tmp_path / "llc.zarr").value == old.value
