"""A finished run as one page: ``report.html`` with its figures inside, and the same figures as PNG files."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import xarray as xr

from devinterp_fast import plots
from devinterp_fast.errors import MissingExtraError
from devinterp_fast.store import RunFolder


def write_report(
    folder: RunFolder,
    *,
    title: str,
    summary: str,
    settings: Mapping[str, Any],
    trace: xr.Dataset,
    rows: Sequence[Mapping[str, Any]],
    truth: Sequence[Mapping[str, Any]],
    verdict: str,
    panels: Mapping[str, Sequence[str]],
) -> Path:
    """Writes ``report.html`` and ``plots/run.png``.

    Args:
        folder: of the run.
        title: of the page.
        summary: one sentence on what was trained.
        settings: shown as a table.
        trace: of the monitor.
        rows: transitions as dicts.
        truth: known transitions as dicts.
        verdict: one sentence on how the two compare.
        panels: {title: channels} of the figure.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    try:
        import jinja2
    except ImportError as error:
        raise MissingExtraError("the report needs jinja2: pip install 'devinterp-fast[demo]'") from error
    image = io.BytesIO()
    # No software version or date in the file: equal runs write equal bytes.
    plots.run_figure(trace, rows, truth, panels).savefig(image, format="png", metadata={"Software": None})
    folder.write_bytes("plots/run.png", image.getvalue())
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string(files(__package__).joinpath("page.html").read_text(encoding="utf-8"))
    page = template.render(
        title=title, summary=summary, settings=settings, rows=rows, truth=truth, verdict=verdict,
        figure=base64.b64encode(image.getvalue()).decode(), folder=folder.path.name,
    )  # fmt: skip
    return folder.write_bytes("report.html", page.encode())
