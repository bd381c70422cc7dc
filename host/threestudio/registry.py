"""The registry: a config's `..._type` names a class that some module registered."""

import difflib
from collections.abc import Callable, Iterable

__modules__: dict[str, type] = {}  # registered name -> class
failed_imports: dict[str, str] = {}  # extension or module -> what its import raised


def close_names(name: str, candidates: Iterable[str], most: int = 5) -> list[str]:
    """The candidates that look like `name`, best first; also those that contain it."""
    candidates = sorted(set(map(str, candidates)))
    near = difflib.get_close_matches(name, candidates, n=most, cutoff=0.6)
    inside = [c for c in candidates if len(name) > 2 and (name in c or (len(c) > 2 and c in name))]
    return list(dict.fromkeys([*near, *inside]))[:most]


class UnknownModule(KeyError):
    """A name that nothing is registered under. (A KeyError whose text is not shown in quotes.)"""

    def __str__(self) -> str:
        return self.args[0]


def register(name: str) -> Callable[[type], type]:
    """Class decorator: makes the class known to YAMLs under `name`."""

    def decorator(cls: type) -> type:
        if name in __modules__:
            first = __modules__[name]
            raise ValueError(
                f"Two modules want the name {name!r}: "
                f"{first.__module__}.{first.__qualname__} has it, "
                f"{cls.__module__}.{cls.__qualname__} asks for it. Rename one, or remove "
                "one extension."
            )
        __modules__[name] = cls
        return cls

    return decorator


def _find_one(name: str) -> type:
    if name in __modules__:
        return __modules__[name]
    near = close_names(name, __modules__)
    message = f"No module is registered as {name!r}. "
    if not name:
        message = "A module's type is empty: set the `..._type` key that belongs to it. "
    if near:
        message += f"Close names: {', '.join(near)}. "
    else:
        message += f"Registered names: {', '.join(sorted(__modules__)) or 'none'}. "
    if failed_imports:
        failed = "; ".join(f"{module}: {error}" for module, error in failed_imports.items())
        message += f"Failed imports, one of which may have registered it: {failed}."
    raise UnknownModule(message.strip())


def find(name: str) -> type:
    """The class registered as `name`; "main:mixin,mixin" makes a class with the mixins before
    main."""
    main, _, mixins = name.partition(":")
    if not mixins:
        return _find_one(main)
    return type(name.replace(":", "."), tuple(map(_find_one, [*mixins.split(","), main])), {})
