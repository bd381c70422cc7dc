"""The bundled host's `bounds`, also inside the real threestudio, which has no such module."""

try:
    from threestudio.utils import bounds as _bounds
except ImportError:
    import importlib.util
    import sys
    from pathlib import Path

    _file = Path(__file__).parent / "host" / "threestudio" / "utils" / "bounds.py"
    _spec = importlib.util.spec_from_file_location(f"{__name__}_of_the_bundled_host", _file)
    _bounds = sys.modules[_spec.name] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(_bounds)

Bounded = _bounds.Bounded
bounded = _bounds.bounded
check_bounds = _bounds.check_bounds
expand_paths = _bounds.expand_paths
in_order = _bounds.in_order
needed = _bounds.needed
path_of = _bounds.path_of
