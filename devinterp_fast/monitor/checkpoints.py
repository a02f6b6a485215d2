"""Which of the model's states are kept: those around transitions, and a thinning trail of the others.

Every observation writes a state, since nobody knows yet whether a transition starts there. States that no transition
needs are removed as they age: one of age a, in observations, stays only if its number is a multiple of the largest
power of two below a / keep. So about ``keep`` states remain of each doubling of age.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from devinterp_fast.store import RunFolder


class Checkpoints:
    """The states of one run.

    Args:
        folder: where they are written, or None to keep none.
        keep: how many of each doubling of age.
    """

    def __init__(self, folder: RunFolder | None, keep: int = 2):
        self.folder, self.keep = folder, keep
        self.saved: list[tuple[int, int]] = []  # (number of the observation, step), the unpinned
        self.pinned: set[int] = set()

    @staticmethod
    def name(step: int) -> str:
        """The file of a step, relative to the run folder."""
        return f"checkpoints/step-{step:08d}.safetensors"

    def write(self, model: nn.Module, step: int) -> Path | None:
        """Writes the parameters and buffers of a model."""
        return None if self.folder is None else self.folder.write_tensors(self.name(step), model.state_dict())

    def observed(self, number: int, step: int) -> None:
        """Counts a step whose state was written, and removes what has aged out."""
        self.saved.append((number, step))
        stay = []
        for old, at in self.saved:
            age = number - old
            level = 1
            while level * self.keep <= age:
                level *= 2
            if level == 1 or old % (level // 2) == 0:
                stay.append((old, at))
            elif at not in self.pinned:
                self._remove(at)
        self.saved = stay

    def pin(self, steps: set[int]) -> None:
        """Keeps the states of these steps, as long as no other set is given, and removes what neither needs."""
        trail = {step for _, step in self.saved}
        for step in self.pinned - steps - trail:
            self._remove(step)
        self.pinned = steps & self._present()

    def _remove(self, step: int) -> None:
        if self.folder is not None:
            (self.folder.path / self.name(step)).unlink(missing_ok=True)

    def before(self, step: float) -> int | None:
        """The newest step with a state at or before this one."""
        return max((s for s in self._present() if s <= step), default=None)

    def has(self, step: int) -> bool:
        """Whether a step's state is kept."""
        return step in self._present()

    def _present(self) -> set[int]:
        return self.pinned | {step for _, step in self.saved}
