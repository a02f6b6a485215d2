"""Reads estimates back."""

from __future__ import annotations

import json
import os

import numpy as np
import xarray as xr

from devinterp_fast.errors import MissingExtraError, RunFolderError
from devinterp_fast.estimators.llc import LLC


def load_llc(path: str | os.PathLike[str]) -> LLC:
    """Reads an estimate that ``LLC.save`` wrote.

    Args:
        path: of the Zarr folder.

    Returns:
        The ``LLC``, equal in every number and word.

    Raises:
        MissingExtraError: zarr is not installed.
        RunFolderError: there is no such folder, or it holds something else.
    """
    try:
        import zarr  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("reading traces needs zarr: pip install 'devinterp-fast[demo]'") from error
    try:
        with xr.open_zarr(path, consolidated=True) as opened:
            data = opened.load()
        kept = json.loads(data.attrs.pop("result"))
        per_chain = np.asarray(data["per_chain"], dtype=np.float64)
        kept["warnings"] = tuple(kept["warnings"])
        kept["diverged"] = {int(chain): step for chain, step in kept["diverged"].items()}
        return LLC(**kept, per_chain=per_chain, trace=data.drop_vars("per_chain"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunFolderError(f"path: expected an estimate written by LLC.save, got {path} ({error})") from error
