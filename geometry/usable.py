"""Whether an optional library can do the work of a twin."""

import functools
import importlib.util
import warnings


@functools.cache
def is_usable(module: str) -> bool:
    """Whether a module is there and imports; one that is there and doesn't import is warned of."""
    if importlib.util.find_spec(module) is None:
        return False
    try:
        importlib.import_module(module)
    except Exception as error:
        warnings.warn(
            f"{module} is installed but doesn't import ({type(error).__name__}: {error}); the hash "
            f"grid goes through torch instead, which is slower.",
            stacklevel=2,
        )
        return False
    return True
