"""The bundled host: a small `threestudio` package for machines without the real one."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def activate(first: bool = False) -> None:
    """Makes the bundled host importable as `threestudio`.

    `first` lets it win over an installed one.
    """
    folder = str(Path(__file__).parent)
    if first:
        sys.path[:] = [folder, *(entry for entry in sys.path if entry != folder)]
    elif folder not in sys.path:
        sys.path.append(folder)


def utility(name: str) -> ModuleType:
    """`threestudio.utils.<name>`; the bundled host's, by its file, where no host was loaded or the
    real threestudio, which has no such module."""
    full = f"threestudio.utils.{name}"
    if "threestudio" in sys.modules and importlib.util.find_spec(full) is not None:
        return importlib.import_module(full)
    file = Path(__file__).parent / "threestudio" / "utils" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"{__name__}_{name}", file)
    assert spec is not None and spec.loader is not None  # it is a Python file
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
