"""The command line: ``devinterp-fast watch digits``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click
from rich.console import Console

from devinterp_fast.errors import MissingExtraError, RunFolderError
from devinterp_fast.progress import ProgressBar


@click.group()
@click.version_option(package_name="devinterp-fast", prog_name="devinterp-fast")
def cli() -> None:
    """Learning coefficients, and the transitions of a training run while they happen."""


@cli.command()
@click.argument("name")
@click.option("--steps", type=int, default=None, help="Length of the run; the system's own if not given.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of everything random in the run.")
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Run folder; runs/NAME-SEED if not given.")
def watch(name: str, steps: int | None, seed: int, out: Path | None) -> None:
    """Train the system NAME, watch it, and write its run folder and report.

    The same command on the same folder resumes an interrupted run; on a finished one it prints the table again.
    """
    from devinterp_fast import watch as room
    from devinterp_fast.transitions import systems

    known = systems()
    if name not in known:
        raise ValueError(f"NAME: expected one of {sorted(known)}, got {name!r}")
    folder = out or Path("runs") / f"{name}-{seed}"
    system_steps = steps if steps is not None else known[name](seed=seed, steps=None).steps
    console = Console()
    with ProgressBar(name, system_steps) as bar:

        def progress(step: int, total: int, note: str) -> None:
            if note.startswith("step"):
                bar.say(note)
            else:
                bar.update(step, note)

        result = room.watch(name, seed=seed, steps=steps, out=folder, progress=progress)
    console.print(result.table())
    click.echo(f"checkpoints: {result.folder / 'checkpoints'}{os.sep}*.safetensors")
    click.echo(f"report: {result.folder / 'report.html'}")


@cli.command()
def transitions() -> None:
    """List the systems of the library."""
    from devinterp_fast.transitions import systems

    for name, factory in sorted(systems().items()):
        click.echo(f"{name:10} {(factory.__doc__ or '').strip().splitlines()[0]}")


@cli.command()
def info() -> None:
    """Show what this installation can do on this machine."""
    from devinterp_fast import _cpu, _native_cuda
    from devinterp_fast.store import environment

    for key, value in environment().items():
        click.echo(f"{key:16} {value}")
    click.echo(f"{'isa available':16} {', '.join(_cpu.isa_available())}")
    click.echo(f"{'compiler':16} {_cpu.compiler()}")
    click.echo(f"{'cuda':16} {_native_cuda.summary()}")


def main() -> None:
    """Entry point: errors that name their cause are one sentence on standard error and exit code 2."""
    try:
        cli(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        click.echo("interrupted: the same command resumes", err=True)
        sys.exit(130)
    except (ValueError, RunFolderError, MissingExtraError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        click.echo("interrupted: the same command resumes", err=True)
        sys.exit(130)
