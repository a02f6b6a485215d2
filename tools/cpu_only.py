"""Says in one sentence if this environment holds a CUDA build of torch, and exits with 1."""

import sys
from importlib.metadata import distributions

nvidia = sorted({d.metadata["Name"] for d in distributions() if d.metadata["Name"].lower().startswith("nvidia-")})
if nvidia:
    sys.exit(
        f"torch: expected a CPU build, got one that brought {len(nvidia)} nvidia packages ({nvidia[0]}, ...): run "
        "`make clean`, then `make demo TORCH_INDEX=<an index with CPU builds>`; to use a GPU, "
        "`pip install .` into an environment of your own"
    )
