"""The commands of an installed package: `animate124` and `animate124-launch`.

Each runs the door of the same name by its place. As a module of the package it would wait for the
package's import, which takes seconds.
"""

import importlib.util
from pathlib import Path


def animate() -> int:
    return run("animate.py")


def launch() -> int:
    return run("launch.py")


def run(door: str) -> int:
    """`main` of a door; its exit code."""
    package = importlib.util.find_spec("animate124")  # which doesn't import it
    assert package is not None and package.submodule_search_locations
    path = Path(package.submodule_search_locations[0]) / door
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return module.main()
    except KeyboardInterrupt:  # before a run began; one that did handles it
        return 130
