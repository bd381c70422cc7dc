"""Values of command lines: what a bounded type takes, and what it says of the rest."""

import argparse
import subprocess
import sys
from pathlib import Path

import argument_types
import pytest
from argument_types import (
    finite_number,
    path,
    positive_float,
    positive_int,
    text_with_content,
    whole_number,
)


@pytest.mark.parametrize(
    "kind, taken, refused",
    [
        (positive_int, {"1": 1, "3000": 3000}, "0 -1 1.5 1e3 nan inf abc"),
        (whole_number(-1, 8), {"-1": -1, "8": 8}, "-2 9"),
        (whole_number(8, multiple_of=8), {"8": 8, "512": 512}, "0 -8 12"),
        (positive_float, {"5e-4": 5e-4, "1": 1.0}, "0 -1 nan inf -inf 1e400 abc"),
        (finite_number(0, 1), {"0": 0.0, "1": 1.0}, "-0.1 1.1 nan"),
        (finite_number(0, below=1), {"0": 0.0, "0.9": 0.9}, "1 -0.1"),
        (finite_number(), {"-3": -3.0}, "nan inf x"),
        (finite_number(most=2), {"2": 2.0}, "2.1"),
        (text_with_content, {" a": " a"}, ""),
    ],
)
def test_values_within_bounds_are_taken_and_others_named(kind, taken, refused):
    for text, value in taken.items():
        assert kind(text) == value and type(kind(text)) is type(value)
    for text in refused.split() or [""]:
        with pytest.raises(argparse.ArgumentTypeError, match=r"is not a |it is empty"):
            kind(text)


@pytest.mark.parametrize(
    "kind, text, message",
    [
        (positive_int, "0", "'0' is not a whole number, 1 or more"),
        (whole_number(16, 8192), "1", "'1' is not a whole number, 16 to 8192"),
        (whole_number(8, multiple_of=8), "12", "'12' is not a multiple of 8, 8 or more"),
        (positive_float, "nan", "'nan' is not a finite number, above 0"),
        (finite_number(), "nan", "'nan' is not a finite number"),
        (finite_number(0, below=1), "1", "'1' is not a finite number, 0 or more and below 1"),
    ],
)
def test_a_refusal_says_what_came_and_what_would_do(kind, text, message, capsys):
    parser = argparse.ArgumentParser(prog="p")
    parser.add_argument("--x", type=kind)
    with pytest.raises(SystemExit):
        parser.parse_args(["--x", text])
    assert capsys.readouterr().err.endswith(f"p: error: argument --x: {message}\n")


def test_a_path_has_its_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert path("~/a b") == Path("/home/me/a b") and path("a/~") == Path("a/~")
    for text in ("~nobody-of-that-name/x", " "):
        with pytest.raises(argparse.ArgumentTypeError):
            path(text)


def test_no_library_is_loaded():
    """--help answers at once."""
    code = "import argument_types, sys; print({'torch', 'numpy', 'threestudio'} & set(sys.modules))"
    folder = Path(argument_types.__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
