"""How the scripts of this folder start."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as launch.py

ROOT = Path(__file__).resolve().parent.parent


def enter(main: Callable[[], int]) -> None:
    """Ends the process with what `main` returns. It has this checkout as `animate124`, installed or
    not, on the bundled host; the checkout's folders are no top-level packages."""
    here = (ROOT, ROOT / "pipeline")
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() not in here]
    sys.path.insert(0, str(ROOT / "host"))
    try:
        from threestudio.extensions import load_extension

        load_extension("animate124", ROOT)
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
