"""A photo -> `_rgba.png`, `_depth.png`, `_normal.png`, `_caption.txt` beside it.

python image_preprocess.py photo.jpg --size 512 --border_ratio 0.1 --need_caption
"""

import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent

if __name__ == "__main__":
    # the checkout's folders (data, system, ...) are no top-level packages
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
    # its package without what that imports: a cut-out needs no torch, nor any of our modules
    package = sys.modules["animate124"] = ModuleType("animate124")
    package.__path__ = [str(ROOT)]
    try:
        from animate124.preprocess import command  # pyright: ignore[reportMissingImports] (there)

        sys.exit(command.main())
    except KeyboardInterrupt:  # while libraries were loaded, or a model at work
        sys.exit(130)
