"""Learns a word for the subject of a picture, from a checkout that need not be installed: the door
to the package's textual_inversion/, which says more.

accelerate launch textual-inversion/textual_inversion.py --help
"""

import os
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as launch.py
if "animate124" not in sys.modules:
    # The folder as the package, whatever it is called. Its __init__ isn't run: it would bring in
    # all modules of a scene, and --help would wait for them.
    spec = spec_from_file_location(
        "animate124", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    sys.modules["animate124"] = module_from_spec(spec)
    from animate124.host import activate

    activate(first=True)

from animate124.textual_inversion.command import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
