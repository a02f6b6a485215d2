"""A run on disk: a folder whose files are whole or absent, and which is refused if it belongs to other settings.

``run.json`` holds the settings, ``observations.safetensors`` what was seen so far, ``checkpoints/`` the model at
steps that matter, ``llc/`` the draws behind each estimate, ``trace.zarr`` all curves of a finished run,
``transitions.json`` its result. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from devinterp_fast import _cpu
from devinterp_fast.errors import MissingExtraError, RunFolderError

FORMAT = 1


class RunFolder:
    """Opens a run folder, making it if it is absent or empty.

    Args:
        path: of the folder.
        settings: JSON-ready; what makes this run this run. A folder made with others is refused.

    Raises:
        RunFolderError: the folder holds something else, its ``run.json`` cannot be read, its settings differ, or it
            cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], settings: Mapping[str, Any]):
        self.path = Path(path)
        try:
            wanted = json.loads(json.dumps({"format": FORMAT, **settings}))
        except (TypeError, ValueError) as error:
            raise RunFolderError(f"out: expected settings that JSON can hold in a run folder, got {error}") from error
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            present = {entry.name for entry in self.path.iterdir() if not entry.name.endswith(".partial")}
        except (OSError, ValueError) as error:
            raise RunFolderError(f"out: expected a folder that can be written, got {error}") from error
        if "run.json" in present:
            _compare(self.path, read_settings(self.path), wanted)
        elif present:
            raise RunFolderError(
                f"out: expected a run folder or an empty one, got {self.path} with {min(present)!r} and no run.json"
            )
        else:
            self.write_json("run.json", wanted)

    def write_bytes(self, name: str, content: bytes) -> Path:
        """Writes a file so that a reader finds the old one or the new one, whole."""
        target = self.path / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            write_whole(target, content)
        except OSError as error:
            raise RunFolderError(f"out: expected a folder that can be written, got {error}") from error
        return target

    def write_json(self, name: str, content: object) -> Path:
        """Writes JSON with sorted keys, so that equal content is equal bytes."""
        return self.write_bytes(name, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor]) -> Path:
        """Writes safetensors. Views and shared storage are copied apart first."""
        return self.write_bytes(
            name, save({key: value.detach().clone().contiguous() for key, value in tensors.items()})
        )

    def read_tensors(self, name: str) -> dict[str, Tensor] | None:
        """Reads safetensors, or None if the file is absent.

        Raises:
            RunFolderError: the file is damaged.
        """
        try:
            return load((self.path / name).read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError) as error:
            raise RunFolderError(f"{self.path / name}: expected whole safetensors, got {error}") from error

    def write_trace(self, trace: xr.Dataset) -> Path:
        """Writes a dataset as Zarr: see ``write_zarr``."""
        return write_zarr("out", trace, self.path / "trace.zarr")


def write_whole(target: Path, content: bytes) -> None:
    """Writes a file so that a reader finds the old one or the new one, whole: beside ``target``, then in its place.

    Raises:
        OSError: it could not be written; ``target`` is as before.
    """
    partial = target.with_name(target.name + ".partial")
    with open(partial, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, target)


def write_zarr(name: str, data: xr.Dataset, target: Path) -> Path:
    """Writes a dataset as Zarr, whole or not at all; ``xarray.open_zarr`` and ArviZ read it.

    Args:
        name: what the message calls the argument.
        data: what to write.
        target: where; what is there is replaced.

    Raises:
        MissingExtraError: zarr is not installed.
        RunFolderError: the folder cannot be written.
    """
    try:
        import zarr  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("writing traces needs zarr: pip install 'devinterp-fast[demo]'") from error
    partial = target.with_name(target.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        # Without consolidated metadata a plain ``xarray.open_zarr`` warns its reader; with it, zarr 3 warns us.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
            data.to_zarr(partial, mode="w", consolidated=True)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(partial, target)
    except OSError as error:
        raise RunFolderError(f"{name}: expected a folder that can be written, got {error}") from error
    return target


def read_settings(path: Path) -> dict[str, Any]:
    """Reads ``run.json`` of a run folder.

    Raises:
        RunFolderError: there is none, or it is damaged.
    """
    settings = read_json(path, "run.json")
    if not isinstance(settings, dict) or settings.get("format") != FORMAT:
        raise RunFolderError(f"{path / 'run.json'}: expected settings of format {FORMAT}, got {str(settings)[:80]}")
    return settings


def read_json(path: Path, name: str) -> Any:
    """Reads a JSON file of a run folder.

    Raises:
        RunFolderError: it is absent or damaged.
    """
    try:
        return json.loads((path / name).read_text())
    except FileNotFoundError as error:
        raise RunFolderError(f"{path}: expected a run folder, got one without {name}") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RunFolderError(f"{path / name}: expected JSON, got {error}") from error


def _compare(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for key in sorted({*found, *wanted}, key=lambda key: (key != "run", key)):  # what the user chose says most
        if found.get(key) != wanted.get(key):
            expected, got = (json.dumps(settings.get(key), sort_keys=True) for settings in (wanted, found))
            raise RunFolderError(
                f"out: expected a run with {key} = {expected}, got {path} with {key} = {got}; choose another folder"
            )


def environment() -> dict[str, Any]:
    """What the run ran on: kept apart from its results, which do not depend on it."""
    return {
        "devinterp_fast": version("devinterp-fast"),
        "isa": _cpu.isa(),
        "machine": platform.machine(),
        "numpy": np.__version__,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "xarray": xr.__version__,
    }
