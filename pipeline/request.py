"""What a person asks for: one image, one sentence and options.

Every option of animate.py is a field here and is written nowhere else: the command line, its help,
the columns of a table of scenes and the README's table follow from it. animate.py loads this file
by itself and before any library, so it imports nothing of the package.
"""

import argparse
import dataclasses
import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass
from pathlib import Path
from typing import Any

from argument_types import finite_number, path, positive_int, text_with_content, whole_number

# stems that say nothing: the folder names the picture
ANY_PICTURE = {"image", "img", "input", "photo", "picture", "rgba"}
GRID = "grid"
FIELDS = ("deformation", GRID)  # how a scene moves; the first is the default
OFFLINE = ("toy", "toy-flow")  # presets whose models are all in this checkout: the hub isn't asked
TURN, REST = "turn", "rest"  # camera paths that have a name
Stop = tuple[float | None, ...]  # azimuth, elevation, distance; None: the reference camera's
USAGE = (
    "%(prog)s IMAGE --prompt TEXT [options] [task.key=value ...]\n"
    "       %(prog)s --batch scenes.csv [options] [task.key=value ...]\n"
    "       %(prog)s view RUN [options]"
)
EPILOG = (
    "Tasks: preprocess, token, stage1, stage2, stage3, result, assets. task.key=value changes a "
    "stage's config (stage2.trainer.max_steps=500) or a flag of another task's script "
    "(token.max_train_steps=500, result.size=256). Run it again to go on where it stopped: what is "
    "done is skipped."
)


def gigabytes(text: str) -> float:
    """An argparse type: 16, 16GB or "16 GB"."""
    return finite_number(1, 1024)(re.sub(r"\s*gi?b?$", "", text, flags=re.IGNORECASE))


def frame_rate(text: str) -> int:
    """An argparse type: frames a second."""
    return whole_number(1, 240)(text)


def camera_stops(text: str) -> list[Stop]:
    """Where a camera passes: "0,10,2.5 90,,": azimuth and elevation in degrees, distance.

    Raises:
        argparse.ArgumentTypeError: it is no list of such places.
    """
    bounds = (-math.inf, math.inf), (-90, 90), (0.1, 100)

    def number(word: str, low: float, high: float) -> float | None:
        return finite_number(low, high)(word) if word else None

    stops = []
    for place in text.split():
        words = place.split(",")
        if len(words) != 3:
            raise argparse.ArgumentTypeError(
                f"{place!r} is not azimuth,elevation,distance, such as 90,10,3 or 90,,"
            )
        stops.append(tuple(number(w, *ends) for w, ends in zip(words, bounds, strict=True)))
    if not stops:
        raise argparse.ArgumentTypeError("it names no place")
    return stops


def camera_path(text: str) -> str:
    """An argparse type: turn, rest, or the places that a camera passes."""
    if text not in (TURN, REST):
        try:
            camera_stops(text)
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentTypeError(f"{error}; {TURN} and {REST} would do too") from None
    return text


def option(
    says: str, default: Any = None, *, flag: str | None = None, column: bool = True, **more: Any
) -> Any:
    """A field that is an option.

    flag: without its dashes; else the field's name. column: whether each row of a table may have
    one of its own. more: what argparse is told.
    """
    told = {"help": says.replace("%", "%%"), **more}
    return dataclasses.field(
        default=default, metadata={"flag": flag, "column": column, "told": told}
    )


@dataclass(frozen=True)
class Request:
    """Paths are as they stand in commands."""

    image: Path
    prompt: str = option("what happens", MISSING, metavar="TEXT")
    subject: str | None = option(
        'who moves; else from the prompt ("a panda" is dancing), else from a caption. What can be '
        "read in two ways is asked for, not guessed",
        metavar="TEXT",
        type=text_with_content,
    )
    static_prompt: str | None = option(
        'stage 1\'s prompt; else "a high resolution DSLR image of a panda" (toy: "a toy panda")',
        metavar="TEXT",
        type=text_with_content,
    )
    refine_prompt: str | None = option(
        "stage 3's prompt; else the prompt with <token> for the subject",
        metavar="TEXT",
        type=text_with_content,
    )
    preset: str = option(
        "modelscope (default), zeroscope, toy (small models, on a CPU), toy-flow (its other "
        "video prior), or a newer video model (docs/priors.md): wan, wan-ti2v, wan-vace, skyreels, "
        "ltx, cogvideox, cogvideox-image, svd, animatediff",
        "modelscope",
        metavar="NAME",
    )
    field: str = option(
        "deformation (default: a scene at rest that is bent over time) or grid (the published "
        "method: colours and shape over time)",
        FIELDS[0],
        metavar="NAME",
    )
    vram: float | None = option(
        "sets options that fit this much GPU memory, and says which", metavar="GB", type=gigabytes
    )
    gpu: str | None = option(
        "counted among the GPUs that CUDA_VISIBLE_DEVICES lists, else among all; or cpu. With "
        "--batch: one scene each",
        metavar="N,N",
        column=False,
    )
    out: Path = option(
        "results go to FOLDER/<image>-<prompt>/ (default outputs)",
        Path("outputs"),
        metavar="FOLDER",
        type=path,
        column=False,
    )
    fast: bool = option(
        "a quarter of the training steps (all of them in the quickstart's stage 2)",
        False,
        action="store_true",
    )
    seconds: float | None = option(
        "how long the motion takes when it is played (default 2)",
        metavar="SECONDS",
        type=finite_number(0.1, 600),
    )
    fps: int | None = option(
        "frames a second of the videos (default 24; toy: 16)", metavar="N", type=frame_rate
    )
    loop: bool = option(
        "the motion's end meets its start (not with --field grid)", False, action="store_true"
    )
    camera: str | None = option(
        "its way in animation.mp4: turn (default), rest, or the places that it passes, "
        '"azimuth,elevation,distance ..."; what is left empty is as in the photo ("0,, 90,30,")',
        metavar="PATH",
        type=camera_path,
    )
    start: str | None = option(
        "this task and all after it again; the old ones are kept in earlier/",
        flag="from",
        metavar="TASK",
    )
    until: str | None = option(
        "stop there; after a stage its own result is rendered and exported", metavar="TASK"
    )
    overrides: dict[str, dict[str, str]] = dataclasses.field(
        default_factory=dict
    )  # task -> key -> value

    @property
    def name(self) -> str:
        """Such as toy-panda-a_panda_is_dancing."""
        stem = self.image.stem.strip("_-. ")
        if stem.lower() in ANY_PICTURE:
            stem = self.image.absolute().parent.name
        return "-".join(slug(part) for part in (stem, self.prompt) if slug(part))

    @property
    def folder(self) -> Path:
        return self.out / self.name


@dataclass(frozen=True)
class Call:
    """What the command line says beside one scene."""

    dry_run: bool = option("print the plan and its command lines", False, action="store_true")
    viewer: bool = option(
        "the scene in a browser as it becomes, on this machine alone", False, action="store_true"
    )
    batch: Path | None = option(
        "table of many scenes: image, prompt, ...", metavar="CSV", type=path
    )
    launcher: str = option("with --batch", "local", choices=["local", "submitit"])
    slurm_partition: str | None = option(
        "with --launcher submitit", metavar="NAME", type=text_with_content
    )
    slurm_time: int | None = option(
        "with --launcher submitit", metavar="MINUTES", type=positive_int
    )


def options(kind: type[Request] | type[Call]) -> dict[str, Field]:
    """The fields that are options, by their flags without dashes."""
    fields = [f for f in dataclasses.fields(kind) if "told" in f.metadata]
    return {f.metadata["flag"] or f.name.replace("_", "-"): f for f in fields}


COLUMNS = [flag for flag, f in options(Request).items() if f.metadata["column"]]


def parser() -> argparse.ArgumentParser:
    """animate.py's."""
    p = argparse.ArgumentParser(
        description="One image and one sentence in, a 4D scene out.",
        usage=USAGE,
        epilog=EPILOG,
        allow_abbrev=False,
    )
    p.add_argument("words", nargs="*", metavar="IMAGE", help="a photo, or an RGBA cut-out")
    for flag, f in {**options(Request), **options(Call)}.items():
        default = None if f.default is MISSING else f.default
        p.add_argument(f"--{flag}", dest=f.name, default=default, **f.metadata["told"])
    return p


def taken(kind: type[Request] | type[Call], args: argparse.Namespace) -> dict[str, Any]:
    """The options of a parsed command line, by field."""
    return {f.name: getattr(args, f.name) for f in options(kind).values()}


def worded(name: str, value: str) -> list[str]:
    """An option's words; a value with a dash in front would be taken for the next option."""
    return [f"{name}={value}"] if value.startswith("-") else [name, value]


def words_of(given: Mapping[str, Any]) -> list[str]:
    """Options, by field, as they would be typed; one that is its default is left out."""
    words = []
    for flag, f in options(Request).items():
        value = given.get(f.name, f.default)
        if value != f.default:
            words += [f"--{flag}"] if value is True else worded(f"--{flag}", str(value))
    return words


def slug(text: str, longest: int = 80) -> str:
    """Letters, digits, - and _; what is too long ends in its hash."""
    name = re.sub(r"[^\w-]+", "_", text).strip("_-")
    if len(name.encode()) <= longest:
        return name
    start = name.encode()[: longest - 9].decode(errors="ignore")
    return f"{start}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
