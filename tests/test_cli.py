"""The command line: what a user sees, and the exit code a script sees."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import cheap
import pytest
from click.testing import CliRunner

from devinterp_fast import __version__, _cpu, transitions
from devinterp_fast import watch as room
from devinterp_fast.cli import cli, main

PROGRAM = [sys.executable, cheap.__file__]


@pytest.fixture(autouse=True)
def _cheap(monkeypatch):
    monkeypatch.setattr(room, "systems", cheap.systems)
    monkeypatch.setattr(transitions, "systems", cheap.systems)
    monkeypatch.setattr(room, "LLC_TIMES", 10)
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def program(monkeypatch, capsys):
    """Runs the entry point in this process: (exit code, standard output, standard error)."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["devinterp-fast", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return call


def one_sentence(err):
    return err.endswith("\n") and err.count("\n") == 1 and "Traceback" not in err


def test_help_names_the_commands(program):
    code, out, err = program("--help")
    assert (code, err) == (0, "")
    for command in ("watch", "transitions", "info"):
        assert re.search(rf"^  {command} ", out, re.MULTILINE)
    code, out, _ = program("watch", "--help")
    assert code == 0
    assert "--steps" in out
    assert "resumes an interrupted run" in " ".join(out.split())


def test_version(program):
    assert program("--version") == (0, f"devinterp-fast, version {__version__}\n", "")


def test_transitions_lists_the_library(program):
    code, out, err = program("transitions")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == ["digits", "tms"]
    assert all(len(line.split()) > 1 for line in out.splitlines())


def test_info_tells_the_machine(program):
    code, out, err = program("info")
    assert (code, err) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in out.splitlines() if not line.startswith("isa available"))
    assert lines["devinterp_fast"] == __version__
    assert lines["isa"] == _cpu.isa()
    assert ", ".join(_cpu.isa_available()) in out
    assert lines["cuda"].startswith("off")


def test_watch_prints_a_table_and_where_the_report_is(program, tmp_path):
    folder = tmp_path / "run"
    code, out, err = program("watch", "tms", "--steps", 2000, "--out", folder)
    assert code == 0
    assert re.fullmatch(r"step \d+: a transition begins \(loss\)\n", err)
    row = json.loads((folder / "transitions.json").read_text())["transitions"][0]
    for part in ("onset", "midpoint", "known at", "seen in", f"step-{row['alarm']:08d}"):
        assert part in out
    assert f"{row['midpoint']:.0f}" in out
    assert out.endswith(f"checkpoints: {folder}/checkpoints/*.safetensors\nreport: {folder}/report.html\n")
    assert (folder / "report.html").exists()
    # the same command again: the same table, nothing announced
    assert program("watch", "tms", "--steps", 2000, "--out", folder) == (0, out, "")


def test_output_that_is_no_terminal_is_plain(tmp_path):
    """No escape codes, no bar; and a terminal that knows no UTF-8 gets no traceback."""
    command = [*PROGRAM, "watch", "tms", "--steps", "60", "--out", str(tmp_path / "run")]
    bare = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "NO_COLOR")}
    for extra in ({}, {"NO_COLOR": "1", "PYTHONIOENCODING": "ascii"}):
        done = subprocess.run(command, env=bare | extra, capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"\x1b" not in done.stdout
        assert b"\r" not in done.stdout
        assert b"report: " in done.stdout
    done.stdout.decode("ascii")


def test_the_folder_has_a_default(program, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert program("watch", "tms", "--steps", 1, "--seed", 5)[0] == 0
    assert (tmp_path / "runs" / "tms-5" / "report.html").exists()


BAD = [
    (("watch", "nope"), r"error: NAME: expected one of \['digits', 'tms'\], got 'nope'\n"),
    (("watch", "tms", "--steps", "0"), r"error: steps: expected an integer >= 1, got 0\n"),
    (("watch", "tms", "--steps", "-3"), r"error: steps: expected an integer >= 1, got -3\n"),
    (("watch", "tms", "--seed", "-1"), r"error: seed: expected an integer from 0 to 2\*\*63 - 1, got -1\n"),
    (("watch", "tms", "--seed", str(2**63)), r"error: seed: expected an integer from 0 to 2\*\*63 - 1, got \d+\n"),
]


@pytest.mark.parametrize(("words", "message"), BAD)
def test_a_bad_value_is_one_sentence_and_2(program, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = program(*words)
    assert (code, out) == (2, "")
    assert re.fullmatch(message, err)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("watch", "tms", "--steps", "many"), "Invalid value for '--steps': 'many' is not a valid integer"),
        (("watch", "tms", "--seed", "1.5"), "Invalid value for '--seed': '1.5' is not a valid integer"),
        (("watch",), "Missing argument 'NAME'"),
        (("watch", "tms", "--fast"), "No such option"),
        (("wach", "tms"), "No such command 'wach'"),
    ],
)
def test_bad_usage_is_2(program, words, message):
    code, out, err = program(*words)
    assert (code, out) == (2, "")
    assert message in err
    assert "Usage: " in err
    assert "Traceback" not in err


def test_bad_folders_are_one_sentence_and_2(program, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "run.json").write_text("{")
    assert program("watch", "tms", "--steps", 1, "--out", tmp_path / "done")[0] == 0
    for folder, steps, message in (
        ("file/run", 1, "error: out: expected a folder that can be written, got "),
        ("other", 1, "error: out: expected a run folder or an empty one, got "),
        ("damaged", 1, f"error: {tmp_path / 'damaged' / 'run.json'}: expected JSON, got "),
        ("done", 2, 'error: out: expected a run with run = {"steps": 2, "system": "tms"}, got '),
    ):
        code, out, err = program("watch", "tms", "--steps", steps, "--out", tmp_path / folder)
        assert (code, out) == (2, "")
        assert err.startswith(message)
        assert one_sentence(err)


@pytest.mark.parametrize("module", ["jinja2", "matplotlib", "zarr"])
def test_absent_extras_are_one_sentence_and_2(program, tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    code, out, err = program("watch", "tms", "--steps", 1, "--out", tmp_path / "run")
    assert (code, out) == (2, "")
    assert err == f"error: watch: expected {module}, got none: pip install 'devinterp-fast[demo]'\n"


def test_interrupted_in_process(program, tmp_path, monkeypatch):
    def interrupt(self, step):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cheap.CheapTMS, "train_step", interrupt)
        code, out, err = program("watch", "tms", "--steps", 5, "--out", tmp_path / "run")
    assert (code, out) == (130, "")
    assert err.strip() == "interrupted: the same command resumes"
    assert program("watch", "tms", "--steps", 5, "--out", tmp_path / "run")[0] == 0


def test_ctrl_c_and_resume(tmp_path, program):
    folder = tmp_path / "run"
    command = [*PROGRAM, "watch", "tms", "--steps", "20000", "--out", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 120
        while not (folder / "training.safetensors").exists():
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert out == b""
    assert err.decode().strip().splitlines()[-1] == "interrupted: the same command resumes"
    assert b"Traceback" not in err
    assert not (folder / "transitions.json").exists()


def test_clicks_own_runner():
    """The commands without the entry point, as another program would mount them."""
    done = CliRunner().invoke(cli, ["transitions"])
    assert done.exit_code == 0
    assert "tms" in done.output
    assert CliRunner().invoke(cli, []).exit_code in (0, 2)  # click's own: help, 0 before its version 8.2
