"""Files for other programs of what the result shows: animation.glb, and others if asked for."""

import argparse

from argument_types import finite_number, whole_number

from ...exporter.frame_files import FORMATS
from ...exporter.moving_files import check_moving_formats
from ..draft import Draft
from ..request import GRID
from ..result_files import ASSETS, MESH
from ..task import Task
from . import result

NAME = "assets"
SCRIPT = "pipeline/assets.py"
PLANNED = {
    **result.SCENE,
    "loop": "--loop",
    **dict.fromkeys(("seconds", "fps", "frames"), "--seconds and --fps"),
}
KEYS = 33  # four a span of a deformation's splines, between which it is nearly straight


def formats(text: str) -> list[str]:
    """An argparse type: usdz,tracks."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in FORMATS:
            raise argparse.ArgumentTypeError(
                f"{name!r} is no format; there are {', '.join(FORMATS)}."
            )
    return names


def texels(text: str) -> int:
    """An argparse type: of a side; none is 0."""
    return 0 if text == "none" else whole_number(0, 2**14)(text)


def parser() -> argparse.ArgumentParser:
    """The script's."""
    p = argparse.ArgumentParser(
        description="Files for other programs: a scene as animation.glb, from a stage's checkpoint."
    )
    result.add_scene(p)
    result.add_playback(p)
    p.add_argument(
        "--keys",
        type=whole_number(1, 10000),
        default=KEYS,
        help="moments of the motion that are in the files, at most; viewers play what is between "
        f"them ({KEYS})",
    )
    p.add_argument(
        "--faces", type=whole_number(0, 2**31), default=12000, help="of a mesh; 0: all (12000)"
    )
    p.add_argument(
        "--texture",
        type=texels,
        default=1024,
        help="texels of a side; none: colours at the vertices (1024)",
    )
    p.add_argument("--lit", action="store_true", help="shaded by a viewer's lights")
    p.add_argument(
        "--also", type=formats, default=[], help=f"further formats: {', '.join(FORMATS)}"
    )
    p.add_argument(
        "--resolution",
        type=whole_number(2, 4096),
        default=128,
        help="lattice points along the object's longest side, on which its surface is found (128)",
    )
    p.add_argument(
        "--threshold",
        type=finite_number(1e-6, 1e6),
        help="density at the surface (default: from the scene's densities)",
    )
    p.add_argument(
        "--bones", type=whole_number(1, 256), default=16, help="of skinned-glb's skeleton (16)"
    )
    return p


def check(draft: Draft) -> None:
    """Whether the formats that are asked for can be written.

    Raises:
        ValueError: they can't, for want of tracks or of a library.
    """
    asked = draft.flags(NAME).get("also", "")
    try:
        names = formats(str(asked))
    except argparse.ArgumentTypeError:
        return  # `make` says it, as of any flag
    still = result.stands_still(draft.configs[draft.last])
    try:
        check_moving_formats(names, can_follow=still or draft.request.field != GRID)
    except ImportError as error:
        raise ValueError(f"{NAME}.also={asked}: {error}") from None


def make(draft: Draft) -> Task:
    """Plays as the result does."""
    played = {
        key: value
        for key, value in draft.flags(result.NAME, *result.PLAYED).items()
        if key in (*result.PLAYED, "frames")
    }
    options = {**played, **draft.flags(NAME)}
    return result.of_last_stage(draft, NAME, SCRIPT, options, parser(), [MESH], own=ASSETS)
