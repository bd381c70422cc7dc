"""The bundled host: a small `threestudio` package for machines without the real one."""

import sys
from pathlib import Path


def activate(first: bool = False) -> None:
    """Makes the bundled host importable as `threestudio`.

    `first` lets it win over an installed one.
    """
    folder = str(Path(__file__).parent)
    if first:
        sys.path[:] = [folder, *(entry for entry in sys.path if entry != folder)]
    elif folder not in sys.path:
        sys.path.append(folder)
