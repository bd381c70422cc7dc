"""Runs one stage on the bundled host, from a checkout that need not be installed.

python launch.py --config configs/animate124-stage1.yaml --train data.image.image_path=...
key=value ...
"""

import os
import sys
from pathlib import Path

# before torch is loaded: threads that wait spin for microseconds, not for milliseconds. Without any
# spinning small models are half as slow again, with much several times once other programs run.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
# and a step's changing numbers of samples don't leave holes in GPU memory
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

ROOT = Path(__file__).resolve().parent


def main() -> int:
    """The bundled host, before any installed threestudio, with this checkout as its extension."""
    sys.path.insert(0, str(ROOT / "host"))
    from threestudio.launch import run

    return run(extension="animate124", folder=ROOT)


if __name__ == "__main__":
    # the checkout's folders (data, system, ...) are no top-level packages
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # while libraries were loaded; a run handles it
        sys.exit(130)
