"""Finds the Python examples of a Markdown page and runs them in order, in one namespace, as a reader would."""

import re
from dataclasses import dataclass
from pathlib import Path

import torch

EXAMPLE = re.compile(
    r"(?:<!--\s*not run:\s*(?P<skip>[^\n]*?)\s*-->\s*\n)?^```python[^\n]*\n(?P<code>.*?)^```", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """One fenced block: its code, the page's line it starts at, and why it is not run (or nothing)."""

    code: str
    line: int
    skip: str


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [Block(m["code"], text[: m.start("code")].count("\n") + 1, m["skip"] or "") for m in EXAMPLE.finditer(text)]


def run(examples: list[Block], page: Path) -> None:
    """Runs what is not skipped; a traceback names the page and its line. The global random state is put back."""
    names: dict[str, object] = {"__name__": "__main__"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for block in examples:
            if not block.skip:
                exec(compile("\n" * (block.line - 1) + block.code, str(page), "exec"), names)
