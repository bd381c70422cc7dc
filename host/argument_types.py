"""Types of argparse for values with bounds: `p.add_argument("--size", type=whole_number(16, 99))`.

Each is a function of a word that gives its value or raises argparse.ArgumentTypeError, whose text
says what came and what would do. This lies beside `threestudio` because the folder is on the path
of all our commands before any library is loaded, and imports none.
"""

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path


def whole_number(
    least: int, most: int | None = None, *, multiple_of: int = 1
) -> Callable[[str], int]:
    """A whole number within [least, most]; `1.5`, `1e3` and `nan` are none."""
    kind = f"a multiple of {multiple_of}," if multiple_of > 1 else "a whole number,"
    wanted = kind + (f" {least} or more" if most is None else f" {least} to {most}")

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least or (most is not None and value > most) or value % multiple_of:
            raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
        return value

    return parse


def finite_number(
    least: float = -math.inf,
    most: float = math.inf,
    *,
    above: float = -math.inf,
    below: float = math.inf,
) -> Callable[[str], float]:
    """A number within [least, most] and within (above, below); never nan or infinite."""
    ends = {f"{least} or more": least, f"{most} or less": most}
    ends |= {f"above {above}": above, f"below {below}": below}
    said = " and ".join(words for words, end in ends.items() if math.isfinite(end))
    wanted = f"a finite number, {said}" if said else "a finite number"

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (least <= value <= most and above < value < below and math.isfinite(value)):
            raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
        return value

    return parse


def text_with_content(text: str) -> str:
    """Text that isn't blank."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty")
    return text


def path(text: str) -> Path:
    """A path, as a shell would read it: `~` is the home folder also in quotes or after a `=`."""
    found = os.path.expanduser(text_with_content(text))
    if found.startswith("~"):
        raise argparse.ArgumentTypeError(f"nobody's home folder is {Path(text).parts[0]}")
    return Path(found)


positive_int = whole_number(1)
positive_float = finite_number(above=0)
