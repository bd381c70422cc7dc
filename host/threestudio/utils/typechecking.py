"""Checks arguments and results against annotations at every call; jaxtyping adds the shapes.

typeguard's own decorator takes no OmegaConf config where `dict` is annotated and, since version 4,
stumbles over shape strings such as "*B 3". Its check of one value, which is used here, is fine.
"""

import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any

import typeguard
from omegaconf import OmegaConf

NAMES_FIRST = "argname" in inspect.signature(typeguard.check_type).parameters  # typeguard 2


def _check(value: Any, annotation: Any, what: str) -> None:
    if annotation is None:
        annotation = type(None)
    # OmegaConf checks its configs itself, and they are no dicts and lists
    if isinstance(annotation, (str, typing.TypeVar)) or OmegaConf.is_config(value):
        return
    try:
        if NAMES_FIRST:
            typeguard.check_type(what, value, annotation)
        else:
            typeguard.check_type(value, annotation)  # pyright: ignore[reportCallIssue]  (4's)
    except (TypeError, getattr(typeguard, "TypeCheckError", TypeError)) as error:
        shape = f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
        raise TypeError(
            f"{what}: {type(value).__name__}{shape} is no {annotation}: {error}"
        ) from None


def _hints(function: Callable) -> dict[str, Any]:
    """The annotations; those that name something unknown at this moment stay strings, unchecked."""
    try:
        return typing.get_type_hints(function)
    except (NameError, SyntaxError, TypeError):
        return dict(getattr(function, "__annotations__", {}))


def typechecked(function: Any) -> Any:
    """Decorator for functions, for use with jaxtyping; a class comes back as it is."""
    if isinstance(function, type):
        return function
    signature = inspect.signature(function)
    name = getattr(function, "__qualname__", "function")
    hints_at_call = functools.cache(lambda: _hints(function))  # by then all names are known

    @functools.wraps(function)
    def checked(*args, **kwargs):
        hints = hints_at_call()
        bound = signature.bind(*args, **kwargs)
        for argument, value in bound.arguments.items():
            if argument not in hints:
                continue
            kind = signature.parameters[argument].kind
            values = [value]
            if kind is inspect.Parameter.VAR_POSITIONAL:
                values = value
            elif kind is inspect.Parameter.VAR_KEYWORD:
                values = value.values()
            for each in values:
                _check(each, hints[argument], f"{name}({argument})")
        result = function(*args, **kwargs)
        if "return" in hints:
            _check(result, hints["return"], f"{name}()'s result")
        return result

    return checked
