"""Options: each is written once, and everything that names options follows."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
from animate124.pipeline import request
from animate124.pipeline.places import ROOT
from animate124.pipeline.request import COLUMNS, Call, Request, parser, taken, words_of

IMAGE = Path("a.png")
GIVEN = {
    "subject": "-a fox",
    "preset": "toy",
    "vram": 12.0,
    "out": Path("there"),
    "fast": True,
    "start": "token",
    "until": "stage2",
}


def test_the_readmes_table_has_every_option_as_the_help_says_it():
    readme = (ROOT / "README.md").read_text(encoding="utf-8").replace("`", "")
    for flag, field in request.options(Request).items():
        value = field.metadata["told"].get("metavar")
        name = f"--{flag} {value}" if value else f"--{flag}"
        assert f"| {name} | {field.metadata['told']['help']} |" in readme, name


def test_a_commands_words_are_read_as_what_they_were_made_from():
    words = words_of({**GIVEN, "prompt": "it jumps", "gpu": None})
    assert "--subject=-a fox" in words and "--gpu" not in words
    read = taken(Request, parser().parse_intermixed_args([str(IMAGE), *words]))
    assert read == {
        **{f.name: f.default for f in request.options(Request).values()},
        **GIVEN,
        "prompt": "it jumps",
    }


def test_each_option_of_a_request_is_a_field_a_flag_and_mostly_a_column():
    args = vars(parser().parse_intermixed_args([]))
    fields = {f.name for kind in (Request, Call) for f in dataclasses.fields(kind)}
    assert fields - {"image", "overrides"} == args.keys() - {"words"}
    flags = {f"--{flag}" for flag in request.options(Request)}
    assert {f"--{column}" for column in COLUMNS} == flags - {"--out", "--gpu"}


@pytest.mark.parametrize("words", [["--help"], ["--vram", "lots"]])
def test_help_and_a_wrong_option_wait_for_no_library(words):
    command = [sys.executable, "-X", "importtime", str(ROOT / "animate.py"), *words]
    ended = subprocess.run(command, capture_output=True, text=True)
    loaded = set(re.findall(r"\| +(\w+)", ended.stderr))
    assert "argparse" in loaded and not loaded & {"torch", "numpy", "threestudio", "omegaconf"}
    assert "--until TASK" in ended.stdout or "argument --vram: 'lots'" in ended.stderr
