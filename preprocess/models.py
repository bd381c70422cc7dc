"""The models behind depth, normals and caption. One that was named has to work; without the usual
ones a step is left out."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from PIL import Image

from ..events import say
from .errors import PreprocessError, first_line

DEPTH_MODEL = "depth-anything/Depth-Anything-V2-Small-hf"
CAPTION_MODEL = "Salesforce/blip-image-captioning-base"
T = TypeVar("T")


def check_model(option: str, model: str | None) -> None:
    """A PreprocessError if a named model is neither a folder nor could be a name on the hub."""
    if model is None or Path(model).is_dir():
        return
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", model):
        what = "it is a file" if Path(model).is_file() else "there is no such folder"
        raise PreprocessError(
            f"{option}: {model} can't be used here: {what}. Pass a folder with a model, or its "
            f"name on the hub, such as {DEPTH_MODEL}."
        )


def optional(
    step: str,
    function: Callable[[Image.Image, str], T],
    rgb: Image.Image,
    named: str | None,
    usual: str = "",
) -> T | None:
    """function(rgb, model) of the model that is named, or else of the usual one; None, with a line
    of explanation, when the usual one isn't there.

    Raises:
        PreprocessError: the named one isn't there.
    """
    model = usual if named is None else named
    try:
        return function(rgb, model)
    except Exception as error:  # the libraries' own errors about files, versions and kinds of model
        reason = f"{model} can't be used here: {first_line(error)}"
        if named is not None:
            raise PreprocessError(f"{step}: {reason}") from error
        say(f"{step}: skipped, {reason}")
        return None
