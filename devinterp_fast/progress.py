"""A progress bar that stays out of the way: on a terminal, on standard error, and nowhere else."""

from __future__ import annotations

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class ProgressBar:
    """A bar over a known number of steps, with a line of text beside it.

    Args:
        title: what is being done.
        total: number of steps.
        show: False never draws; True draws if standard error is a terminal.
    """

    def __init__(self, title: str, total: int, *, show: bool = True):
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"), console=console, disable=not (show and sys.stderr.isatty()),
            transient=True,
        )  # fmt: skip
        self._total = total
        self._task = self._bar.add_task(title, total=total, note="")

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, done: int, note: str = "") -> None:
        """Moves the bar to ``done`` steps, and its end with it where a run goes on."""
        self._total = max(self._total, done)
        self._bar.update(self._task, completed=done, total=self._total, note=note)

    def say(self, line: str) -> None:
        """Prints a line above the bar, or by itself where no bar is drawn."""
        self._bar.console.print(line, soft_wrap=True)
