"""Learns a word for the subject of a picture, from a checkout that need not be installed.

accelerate launch textual-inversion/textual_inversion.py --help
"""

import os
import sys
from pathlib import Path
from types import ModuleType

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as launch.py
if "animate124" not in sys.modules:
    # the package without what that imports: --help waits for none of a scene's modules
    package = sys.modules["animate124"] = ModuleType("animate124")
    package.__path__ = [str(Path(__file__).resolve().parents[1])]
    from animate124.host import activate

    activate(first=True)

from animate124.textual_inversion.command import main

if __name__ == "__main__":
    sys.exit(main())
