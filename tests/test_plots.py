"""Figures and the report page: they draw without a display, are equal for equal runs, and lack nothing."""

from __future__ import annotations

import base64
import io
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import xarray as xr
from matplotlib.colors import to_hex

from devinterp_fast import plots
from devinterp_fast.errors import MissingExtraError
from devinterp_fast.report import write_report
from devinterp_fast.store import RunFolder

STEP = np.arange(0, 101, 5)
TRACE = xr.Dataset(
    {
        "loss": ("step", np.linspace(1, 0, 21)),
        "loss 0": ("step", np.linspace(2, 0, 21)),
        "loss 1": ("step", np.where(STEP % 10 == 0, np.linspace(1, 2, 21), np.nan)),
        "llc": ("step", np.where(STEP % 20 == 0, 3.0 + STEP / 50, np.nan)),
        "llc_se": ("step", np.where(STEP % 20 == 0, 0.25, np.nan)),
        "llc_escaped": ("step", np.where(STEP % 20 == 0, np.where(STEP == 40, 1.0, 0.0), np.nan)),
    },
    coords={"step": STEP},
)
TRACE["llc"][8] = -500.0  # at step 40, where the weights are no minimum
ROWS = [
    {
        "onset": 20.4, "midpoint": 30.0, "end": 40.0, "alarm": 25, "provisional": False,
        "observables": {"loss": {}, "loss 0": {}}, "marker": "class <3> & more",
        "checkpoints": {"after": "checkpoints/c", "alarm": "checkpoints/b", "before": "checkpoints/a"},
    },
    {
        "onset": 60.0, "midpoint": 70.0, "end": 80.0, "alarm": 65, "provisional": True, "observables": {"llc": {}},
        "marker": None, "checkpoints": {},
    },
]  # fmt: skip
TRUTH = [{"name": "class <3> & more", "onset": 21.0, "midpoint": 31.0, "end": 41.0}]
PANELS = {"loss": ["loss"], "loss of each": ["loss 0", "loss 1"], "LLC": ["llc"]}


def figure(**settings):
    return plots.run_figure(TRACE, ROWS, TRUTH, PANELS, **settings)


def test_one_panel_for_each_family_of_curves():
    axes = figure().axes
    assert [ax.get_ylabel() for ax in axes] == list(PANELS)
    assert axes[-1].get_xlabel() == "training step"
    assert axes[-1].get_xlim() == (0.0, 100.0)
    assert axes[0].get_xscale() == "linear"  # the detector's clock
    assert [text.get_text() for text in axes[1].get_legend().get_texts()] == ["0", "1"]
    assert axes[0].get_legend() is None


def test_curves_are_the_trace_without_its_gaps():
    lines = {line.get_label(): line for line in figure().axes[1].lines if line.get_label() in ("0", "1")}
    np.testing.assert_array_equal(lines["0"].get_xydata(), np.stack([STEP, TRACE["loss 0"]], 1))
    seen = STEP % 10 == 0
    np.testing.assert_array_equal(lines["1"].get_xydata(), np.stack([STEP[seen], TRACE["loss 1"][seen]], 1))


def test_stages_alarms_and_known_midpoints_are_marked():
    for ax in figure().axes:
        bands = [patch for patch in ax.patches if to_hex(patch.get_facecolor()) == plots.BAND]
        assert [(b.get_x(), b.get_x() + b.get_width()) for b in bands] == [(20.4, 40.0), (60.0, 80.0)]
        assert [text.get_text() for text in ax.texts] == ["1", "2"]
        assert [text.get_position()[0] for text in ax.texts] == [30.0, 70.0]
        dotted = [line for line in ax.lines if line.get_linestyle() == ":"]
        assert [line.get_xdata()[0] for line in dotted] == [25, 65]
        ticks = [line for line in ax.lines if line.get_color() == plots.TRUTH]
        assert [list(line.get_xdata()) for line in ticks] == [[31.0, 31.0]]


def test_estimates_have_error_bars_and_escapes_are_hollow():
    ax = figure().axes[2]
    solid, hollow = ax.containers
    assert list(solid.lines[0].get_xdata()) == [0, 20, 60, 80, 100]
    assert solid.lines[0].get_markerfacecolor() == plots.INK
    assert list(hollow.lines[0].get_xdata()) == [40]
    assert hollow.lines[0].get_markerfacecolor() == "white"
    (low, high) = solid.lines[2][0].get_segments()[0][:, 1]
    assert (low, high) == (3.0 - 2 * 0.25, 3.0 + 2 * 0.25)
    bottom, top = ax.get_ylim()  # an escaped estimate does not set the scale: 3 to 5 and 15 % of room
    assert bottom == 0.0
    assert top == pytest.approx(5.0 + 0.15 * 2.0)


def test_a_later_start():
    ax = figure(start=50.0).axes[0]
    assert ax.get_xlim() == (50.0, 100.0)
    curve = next(line for line in ax.lines if len(line.get_xdata()) > 2)
    assert curve.get_xdata().min() == 50


@pytest.mark.parametrize("escaped", [0.0, 1.0, None])
def test_curves_of_one_kind_or_none(escaped):
    """All estimates good, all escaped, or no curve seen at all: still a figure."""
    trace = TRACE.copy(deep=True)
    if escaped is None:
        trace["llc"][:] = np.nan
        trace["loss"][:] = np.nan
    else:
        trace["llc_escaped"][:] = escaped
    image = io.BytesIO()
    plots.run_figure(trace, [], [], PANELS).savefig(image, format="png")
    assert image.getvalue().startswith(b"\x89PNG")


def test_no_display_is_asked_for(tmp_path):
    """pyplot chooses a window system and keeps figures for ever; a backend that needs a display must not matter."""
    code = (
        "import sys, numpy, xarray; from devinterp_fast import plots\n"
        "t = xarray.Dataset({'y': ('step', numpy.arange(3.0))}, coords={'step': numpy.arange(3)})\n"
        f"plots.run_figure(t, [], [], {{'y': ['y']}}).savefig({str(tmp_path / 'y.png')!r})\n"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    bare = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    done = subprocess.run([sys.executable, "-c", code], env=bare | {"MPLBACKEND": "TkAgg"}, check=False)
    assert done.returncode == 0
    assert (tmp_path / "y.png").read_bytes().startswith(b"\x89PNG")


# --- the page ----------------------------------------------------------------------------------------------

VOID = {"meta", "img", "br", "link", "hr"}


class Page(HTMLParser):
    """Walks the page: balanced tags, all text, all addresses."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.addresses, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("href", "src")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.words.append(" ".join(data.split()))


def report(path, **changes):
    settings = {
        "title": "A run & its stages", "summary": "Of <what>.", "settings": {"seed": 0, "llc lr": 1e-4},
        "trace": TRACE, "rows": ROWS, "truth": TRUTH, "verdict": "1 of 1 found.", "panels": PANELS,
    }  # fmt: skip
    return write_report(RunFolder(path, {}), **(settings | changes))


def test_the_page_is_whole_and_names_each_transition(tmp_path):
    path = report(tmp_path)
    assert path == tmp_path / "report.html"
    text = path.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    page = Page(text)
    assert page.tags.count("html") == page.tags.count("body") == page.tags.count("h1") == page.tags.count("img") == 1
    words = page.words
    for expected in ("A run & its stages", "Of <what>.", "class <3> & more", "loss, loss 0", "1 of 1 found.", "llc lr"):
        assert expected in words
    start = words.index("1")
    assert words[start : start + 5] == ["1", "20", "30", "40", "25"]
    start = words.index("2", start)
    assert words[start : start + 7] == ["2", "60", "70", "80", "65", "llc", "(still going on)"]
    # in the order of time, relative to the folder
    assert page.addresses[:3] == ["checkpoints/a", "checkpoints/b", "checkpoints/c"]


def test_the_page_is_self_contained(tmp_path):
    text = report(tmp_path).read_text(encoding="utf-8")
    assert re.search(r"(https?:)?//[a-z]", re.sub(r"base64,[\w+/=]+", "", text)) is None
    assert "@import" not in text
    assert "<script" not in text
    (image,) = [a for a in Page(text).addresses if a.startswith("data:")]
    kind, data = image.split(",", 1)
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data) == (tmp_path / "plots" / "run.png").read_bytes()
    assert base64.b64decode(data).startswith(b"\x89PNG")


def test_equal_runs_write_equal_bytes(tmp_path):
    one, two = report(tmp_path / "one"), report(tmp_path / "two")
    assert one.read_bytes() == two.read_bytes()
    assert (tmp_path / "one/plots/run.png").read_bytes() == (tmp_path / "two/plots/run.png").read_bytes()


def test_a_page_without_transitions(tmp_path):
    words = Page(report(tmp_path, rows=[], truth=[]).read_text(encoding="utf-8")).words
    assert "None was detected." in words
    assert "What is known of this run" not in words


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("jinja2", r"^the report needs jinja2: pip install 'devinterp-fast\[demo\]'$"),
        ("matplotlib.figure", r"^plots need matplotlib: pip install 'devinterp-fast\[demo\]'$"),
    ],
)
def test_absent_extras(tmp_path, monkeypatch, module, message):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=message):
        report(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]  # nothing half written
