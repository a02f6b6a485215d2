"""Says in one sentence if this environment holds a CUDA build of torch, and exits with 1."""

import sys
from importlib.metadata import distributions

READERS = {"nvidia-cuda-cuobjdump", "nvidia-cuda-nvdisasm"}
"""Small programs that our own tests ask for; they run no kernel."""

names = {d.metadata["Name"].lower() for d in distributions()}
nvidia = sorted(name for name in names - READERS if name.startswith("nvidia-"))
if nvidia:
    sys.exit(
        f"torch: expected a CPU build, got one that brought {len(nvidia)} nvidia packages ({nvidia[0]}, ...): run "
        "`make clean`, then `make demo TORCH_INDEX=<an index with CPU builds>`; to use a GPU, "
        "`pip install .` into an environment of your own"
    )
