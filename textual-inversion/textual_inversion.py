"""Learns a word for the subject of a picture, from a checkout that need not be installed.

accelerate launch textual-inversion/textual_inversion.py --help
"""

import os
import sys
from pathlib import Path
from types import ModuleType

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as launch.py
# The package without what that imports: --help waits for none of a scene's modules. Workers that
# augment pictures import this file too, where a process is spawned.
package = sys.modules.setdefault("animate124", ModuleType("animate124"))
package.__path__ = [str(Path(__file__).resolve().parents[1])]

if __name__ == "__main__":
    try:
        from animate124.host import activate  # pyright: ignore[reportMissingImports]
        from animate124.textual_inversion.command import main  # pyright: ignore[reportMissingImports]

        activate(first=True)
        sys.exit(main())
    except KeyboardInterrupt:  # while libraries were loaded; a run handles it
        sys.exit(130)
