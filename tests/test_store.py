"""The run folder: whole files or none, and one sentence for whatever else lies there."""

from __future__ import annotations

import json
import os
import sys
import warnings

import numpy as np
import pytest
import torch
import xarray as xr
from safetensors.torch import load_file

from devinterp_fast.errors import MissingExtraError, RunFolderError
from devinterp_fast.store import RunFolder, environment, read_json, read_settings


def names(path):
    return sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file())


def test_a_new_folder_holds_its_settings(tmp_path):
    folder = RunFolder(tmp_path / "a" / "b", {"seed": 1, "nested": {"x": [1, 2.5, None]}})
    assert names(folder.path) == ["run.json"]
    assert read_settings(folder.path) == {"format": 1, "seed": 1, "nested": {"x": [1, 2.5, None]}}
    again = RunFolder(str(tmp_path / "a" / "b"), {"nested": {"x": (1, 2.5, None)}, "seed": 1})  # as JSON sees them
    assert again.path == folder.path


def test_json_is_bytes_of_its_content(tmp_path):
    folder = RunFolder(tmp_path, {})
    one = folder.write_json("one.json", {"b": 1, "a": [0.1]}).read_bytes()
    assert one == folder.write_json("two.json", {"a": [0.1], "b": 1}).read_bytes()
    assert one == b'{\n "a": [\n  0.1\n ],\n "b": 1\n}\n'
    assert read_json(tmp_path, "one.json") == {"a": [0.1], "b": 1}


def test_tensors_come_back_equal_bit_for_bit(tmp_path):
    folder = RunFolder(tmp_path, {})
    base = torch.arange(12, dtype=torch.float32).view(3, 4)
    given = {
        "view": base[1:], "transposed": base.T, "shared": base, "scalar": torch.tensor(3), "empty": torch.zeros(0, 2),
        "half": base.bfloat16(), "odd": torch.tensor([float("nan"), float("inf"), -0.0], dtype=torch.float64),
        "graph": base.clone().requires_grad_() * 2, "bool": base > 3,
    }  # fmt: skip
    folder.write_tensors("deep/in/t.safetensors", given)
    found = folder.read_tensors("deep/in/t.safetensors")
    assert found.keys() == given.keys() == load_file(tmp_path / "deep/in/t.safetensors").keys()
    for name, tensor in given.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        torch.testing.assert_close(found[name], tensor.detach(), rtol=0, atol=0, equal_nan=True)
    assert torch.signbit(found["odd"][2])
    assert folder.read_tensors("absent.safetensors") is None


@pytest.mark.parametrize("point", ["open", "fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch, point):
    folder = RunFolder(tmp_path, {})
    folder.write_bytes("x.bin", b"old")

    def full(*args, **settings):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if point == "open":
            patch.setattr("builtins.open", full)
        else:
            patch.setattr(os, point, full)
        with pytest.raises(RunFolderError, match=r"^out: expected a folder that can be written, got .*No space left"):
            folder.write_bytes("x.bin", b"new and longer")
        assert (tmp_path / "x.bin").read_bytes() == b"old"
    folder.write_bytes("x.bin", b"new and longer")
    assert (tmp_path / "x.bin").read_bytes() == b"new and longer"
    assert names(tmp_path) == ["run.json", "x.bin"]


def test_content_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path, {})
    calls = []
    fsync, replace = os.fsync, os.replace

    def synced(fd):
        calls.append(("fsync", os.fstat(fd).st_size))
        fsync(fd)

    def replaced(source, target):
        calls.append(("replace", os.path.basename(source), os.path.basename(target)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    folder.write_bytes("x.bin", b"12345")
    assert calls == [("fsync", 5), ("replace", "x.bin.partial", "x.bin")]


def test_another_folder_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(
        RunFolderError, match=r"^out: expected a run folder or an empty one, got .* with 'thesis.tex' and no run.json$"
    ):
        RunFolder(tmp_path, {})
    assert names(tmp_path) == ["thesis.tex"]


def test_partial_files_are_nothing(tmp_path):
    (tmp_path / "run.json.partial").write_text("{")
    assert RunFolder(tmp_path, {"seed": 3}).path == tmp_path
    assert read_settings(tmp_path)["seed"] == 3


@pytest.mark.parametrize("given", [{"seed": 2}, {"seed": 1, "more": 0}, {}])
def test_other_settings_are_refused(tmp_path, given):
    RunFolder(tmp_path, {"seed": 1})
    with pytest.raises(RunFolderError, match=r"^out: expected a run with \w+ = .*; choose another folder$"):
        RunFolder(tmp_path, given)
    assert read_settings(tmp_path)["seed"] == 1


@pytest.mark.parametrize("bad", [b"", b"{", b'{"format": 1', b"\xff\xfe\x00", b"\x00" * 50])
def test_damaged_settings(tmp_path, bad):
    (tmp_path / "run.json").write_bytes(bad)
    with pytest.raises(RunFolderError, match=r"run.json: expected JSON, got "):
        RunFolder(tmp_path, {})
    assert (tmp_path / "run.json").read_bytes() == bad


@pytest.mark.parametrize("other", [[], 3, None, {}, {"format": 2}, {"format": "1"}])
def test_settings_of_another_format(tmp_path, other):
    (tmp_path / "run.json").write_text(json.dumps(other))
    with pytest.raises(RunFolderError, match=r"run.json: expected settings of format 1, got "):
        RunFolder(tmp_path, {})


def test_not_a_run_folder(tmp_path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(RunFolderError, match=rf"^{path}: expected a run folder, got one without run.json$"):
            read_settings(path)


@pytest.mark.parametrize("bad", [b"", b"\x00" * 7, b"\xff" * 64, "half"])
def test_damaged_tensors(tmp_path, bad):
    folder = RunFolder(tmp_path, {})
    good = folder.write_tensors("t.safetensors", {"x": torch.zeros(100)}).read_bytes()
    (tmp_path / "t.safetensors").write_bytes(good[: len(good) // 2] if bad == "half" else bad)
    with pytest.raises(RunFolderError, match=r"t.safetensors: expected whole safetensors, got "):
        folder.read_tensors("t.safetensors")


def test_nothing_is_unpickled(tmp_path):
    torch.save({"x": torch.zeros(2)}, tmp_path / "t.safetensors")
    (tmp_path / "run.json").write_text('{"format": 1}')
    with pytest.raises(RunFolderError, match="expected whole safetensors"):
        RunFolder(tmp_path, {}).read_tensors("t.safetensors")


@pytest.mark.parametrize("below", ["file/run", "file", "/proc/devinterp_fast/run", "a\0b"])
def test_a_folder_that_cannot_be_written(tmp_path, below):
    """A path below a regular file, or where the kernel makes no folders; rights do not stop a root user."""
    if below.startswith("/proc") and not os.path.isdir("/proc"):
        pytest.skip("no /proc on this system")
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(RunFolderError, match=r"^out: expected a folder that can be written, got "):
        RunFolder(tmp_path / below, {})
    assert (tmp_path / "file").read_text() == "not a folder"


TRACE = xr.Dataset(
    {"loss": ("step", np.array([1.0, np.nan])), "loss 0": ("step", np.zeros(2))}, coords={"step": np.array([0, 10])}
)


def test_trace_is_zarr_that_xarray_opens_without_a_word(tmp_path):
    folder = RunFolder(tmp_path, {})
    (tmp_path / "trace.zarr.partial").mkdir()
    (tmp_path / "trace.zarr.partial" / "half").write_text("of an older attempt")
    for _ in range(2):  # a second time over the first
        folder.write_trace(TRACE)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with xr.open_zarr(tmp_path / "trace.zarr") as found:
                xr.testing.assert_identical(found.load(), TRACE)
    assert not (tmp_path / "trace.zarr.partial").exists()


def test_trace_that_cannot_be_written(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path, {})

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RunFolderError, match=r"^out: expected a folder that can be written, got .*No space left"):
        folder.write_trace(TRACE)


def test_trace_needs_zarr(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(MissingExtraError, match=r"^writing traces needs zarr: pip install 'devinterp-fast\[demo\]'$"):
        RunFolder(tmp_path, {}).write_trace(TRACE)


def test_environment_is_json():
    found = environment()
    assert json.loads(json.dumps(found)) == found
    assert {"devinterp_fast", "isa", "python", "torch", "threads"} <= set(found)
