"""What a config's values may be: stated beside the fields, checked when the config is built.

    radius: float = bounded(1.0, above=0)
    min_step_percent: Any = bounded(0.02, 0, 1, schedule=True)  # a number or a `C` list
    backend: str = bounded("auto", names=("auto", "torch"))
    cond_image_path: str = path_of("file")

Numbers that state nothing have to be finite. A value of another type is left to the type check.
This file imports nothing of its host: extensions read it inside the real threestudio as well.
"""

import contextlib
import dataclasses
import difflib
import itertools
import math
import os
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import OmegaConf

# of extensions: where files that come with one are looked for, if the working directory lacks them
FOLDERS: list[str] = []
SCALARS = {int, float, str, bool, type(None)}


@dataclass(frozen=True)
class Bounds:
    """Of a number, of each number of a list or a dict, and of a schedule's values."""

    low: float = -math.inf
    high: float = math.inf
    above: float | None = None  # in place of low: low itself won't do
    finite: bool = True
    schedule: bool = False  # a `C` list will do, too
    ordered: bool = False  # a list is [low, high]
    names: tuple = ()  # what it may be instead
    numbers: bool = False  # any number will do besides the names

    @property
    def takes_numbers(self) -> bool:
        stated = self.above is not None or (self.low, self.high) != (-math.inf, math.inf)
        return stated or self.schedule or self.numbers or not self.names

    def __str__(self) -> str:
        parts = []
        if self.names:
            one_of = "one of " if len(self.names) > 1 else ""
            parts.append(one_of + ", ".join(map(_name, self.names)))
        if math.isfinite(self.low) and math.isfinite(self.high):
            parts.append(f"between {self.low} and {self.high}")
        elif self.above is not None:
            most = f" and at most {self.high}" if math.isfinite(self.high) else ""
            parts.append(f"more than {self.above}{most}")
        elif math.isfinite(self.low):
            parts.append(f"at least {self.low}")
        elif math.isfinite(self.high):
            parts.append(f"at most {self.high}")
        elif self.takes_numbers:
            parts.append("a finite number")
        if self.schedule:
            parts.append("a schedule such as [start step, value, value, end step]")
        return ", or ".join(parts)

    def allows(self, number: float) -> bool:
        if not self.takes_numbers or math.isnan(number) or (self.finite and math.isinf(number)):
            return False
        return self.low <= number <= self.high and (self.above is None or number > self.above)


def bounded(default: Any, low: float = -math.inf, high: float = math.inf, **rules: Any) -> Any:
    """A dataclass field whose value has to lie in [low, high]; `rules` are other names of Bounds'.

    Lists and dicts become default factories.
    """
    return _field(default, {"bounds": Bounds(low, high, **rules)})


def path_of(what: str, default: Any = "") -> Any:
    """A dataclass field that names something on disk; a `~` at its start is the home folder.

    what: "file", "checkpoint" (of an earlier trial; @LAST will do), "weights" (<checkpoint>:
        <module>) or "model" (a folder or a hub id). Nothing is looked up when a config is built: a
        launch asks `paths`.
    """
    return _field(default, {"path": what})


def needed(default: Any = "") -> Any:
    """A dataclass field for text that must not be blank once its section is in use."""
    return _field(default, {"needed": True})


def _field(default: Any, metadata: Mapping[str, Any]) -> Any:
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


class Bounded:
    """A dataclass that checks itself when it is built. (Put it last among the bases.)"""

    def __post_init__(self) -> None:
        expand_paths(self)
        check_bounds(self)


def expand_paths(instance: Any) -> None:
    """`~` in the path fields, those of nested dataclasses included, becomes the home folder; a file
    or model that the working directory lacks and an extension has is the extension's."""
    for f in dataclasses.fields(instance):
        value = getattr(instance, f.name)
        if dataclasses.is_dataclass(value):
            expand_paths(value)
        elif "path" in f.metadata and isinstance(value, str):
            value = os.path.expanduser(value)
            if f.metadata["path"] in ("file", "model") and value and not os.path.exists(value):
                places = [os.path.join(folder, value) for folder in FOLDERS]
                value = next(filter(os.path.exists, places), value)
            setattr(instance, f.name, value)


def check_bounds(instance: Any, path: str = "") -> None:
    """A ValueError that names the first value out of its bounds, nested dataclasses included."""
    hints = typing.get_type_hints(type(instance))
    prefix = f"{path}." if path else ""
    for f in dataclasses.fields(instance):
        name, value = f"{prefix}{f.name}", getattr(instance, f.name)
        if dataclasses.is_dataclass(value):
            check_bounds(value, name)
            continue
        bounds = f.metadata.get("bounds", Bounds())
        kinds = alternatives(hints[f.name])
        if kinds <= SCALARS and isinstance(value, (Mapping, Sequence)) and type(value) is not str:
            raise ValueError(f"{name} is {value}, but has to be {_of_types(kinds, bounds)}.")
        if isinstance(value, str) and kinds & {int, float} and str not in kinds:
            try:  # what the type check will make of it
                value = float(value)
            except ValueError:
                continue
        _check(name, value, bounds)


def alternatives(hint: Any) -> set:
    """The types of a union; others stand for themselves."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return set(typing.get_args(hint)) if union else {hint}


def _of_types(kinds: set, bounds: Bounds) -> str:
    return str(bounds) if kinds & {int, float} or bounds.names else "one text"


def _check(name: str, value: Any, bounds: Bounds) -> None:
    if value is None or value in bounds.names:
        allowed = value in bounds.names or not bounds.schedule  # else the type check's
    elif isinstance(value, bool):
        allowed = not (bounds.names or bounds.schedule)
    elif isinstance(value, (int, float)):
        allowed = bounds.allows(value)
    elif isinstance(value, str):
        allowed = not (bounds.names or bounds.schedule)
    elif isinstance(value, Mapping):
        for key in value:
            if not (OmegaConf.is_config(value) and OmegaConf.is_missing(value, key)):
                _check(f"{name}.{key}", value[key], bounds)
        return
    elif isinstance(value, Sequence):
        _check_list(name, list(value), bounds)
        return
    else:
        return
    if not allowed:
        shown = repr(value) if isinstance(value, str) else _name(value)
        close = _close(value, bounds)
        raise ValueError(f"{name} is {shown}, but has to be {bounds}.{close}")


def in_order(instance: Any, low: str, high: str) -> None:
    """A ValueError unless one field's value is at most the other's; of schedules first and last."""
    given = [getattr(instance, name) for name in (low, high)]
    if any(isinstance(value, (str, bool)) or value is None for value in given):
        return  # the type check's
    try:
        ends = [_ends(value) for value in given]
    except ValueError:
        return
    if any(a > b for a, b in zip(*ends, strict=True)):
        raise ValueError(f"{low} is {given[0]} and {high} {given[1]}: it can't be more than that.")


def _ends(value: Any) -> tuple[float, float]:
    if isinstance(value, (int, float)):
        return value, value
    knots = schedule_knots(value)
    return knots[0][1], knots[-1][1]


def _check_list(name: str, values: list, bounds: Bounds) -> None:
    if bounds.schedule:
        try:
            knots = schedule_knots(values)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        steps = [step for step, _ in knots]
        if not all(math.isfinite(step) for step in steps):
            raise ValueError(f"{name} is {values}, but a schedule's steps have to be finite.")
        if any(a > b for a, b in itertools.pairwise(steps)):
            raise ValueError(f"{name} is {values}: the steps {steps} of a schedule can't go down.")
        values = [value for _, value in knots]
    for value in values:
        if isinstance(value, str) and not bounds.names:
            with contextlib.suppress(ValueError):  # what the type check will make of it
                value = float(value)
        _check(name, value, dataclasses.replace(bounds, schedule=False))
    if bounds.ordered and (len(values) != 2 or values[0] > values[1]):
        raise ValueError(f"{name} is {values}, but has to be [low, high].")


def _name(value: Any) -> str:
    """As YAML writes it."""
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value)


def _close(value: Any, bounds: Bounds) -> str:
    names = [name for name in bounds.names if isinstance(name, str)]
    near = difflib.get_close_matches(str(value), names, n=3, cutoff=0.5)
    return f" Close: {', '.join(near)}." if near else ""


def schedule_knots(value: Any) -> list[tuple[float, float]]:
    """The (step, value) knots of a schedule list.

    [v0, v1, s1] runs from v0 at step 0 to v1 at step s1; [s0, v0, v1, s1] starts at step s0;
    every further pair (v2, s2, ...) adds a knot. Between knots the value is interpolated, outside
    it is constant.
    """
    written = isinstance(value, Sequence) and not isinstance(value, str)
    numbers: list[Any] = list(value) if written else []
    plain = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in numbers)
    if not plain or len(numbers) < 3 or (len(numbers) > 3 and len(numbers) % 2):
        raise ValueError(
            f"{numbers if written else value!r} is no schedule. Write a number, [v0, v1, s1], "
            "[s0, v0, v1, s1] or [s0, v0, v1, s1, v2, s2, ...]: values v and the steps s (epochs "
            "if written with a point) they hold at."
        )
    if len(numbers) == 3:
        numbers = [0, *numbers]
    start_step, start_value, *rest = numbers
    return [(start_step, start_value), *zip(rest[1::2], rest[0::2], strict=True)]


def paths(fields: type, cfg: Any) -> dict[str, tuple[str, str]]:
    """{name: (kind, value)} of a config's path fields; names are dotted in nested dataclasses."""
    found = {}
    for f in dataclasses.fields(fields):
        value = getattr(cfg, f.name)
        if dataclasses.is_dataclass(value):
            inner = paths(type(value), value)
            found |= {f"{f.name}.{name}": path for name, path in inner.items()}
        elif "path" in f.metadata:
            found[f.name] = f.metadata["path"], value
    return found
