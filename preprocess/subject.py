"""How much of a picture its subject covers, and what a person should look at."""

import cv2
import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from ..data.subject_share import SMALLEST_SHARE
from .errors import PreprocessError

LOOSE_SHARE = 0.05  # of a subject outside its largest piece; from there on it is said
BY_HAND = (
    "cut the subject out by hand, save it as _rgba.png beside the photo and pass "
    "--use_existing_background (to animate.py: preprocess.use_existing_background=true)"
)


def check_not_empty(alpha: Float[ndarray, "H W"]) -> None:
    """A PreprocessError if some, but next to none, of the picture is opaque."""
    opaque = int((alpha > 0.5).sum())
    if 0 < opaque < SMALLEST_SHARE * alpha.size:
        raise PreprocessError(
            f"Of the picture {opaque} pixel{'s are' if opaque > 1 else ' is'} opaque, under "
            f"{100 * SMALLEST_SHARE:g} %: that is no subject. Cut it out again, or crop the "
            "picture closer to it."
        )


def coverage(alpha: Float[ndarray, "H W"]) -> str:
    """Words on how much of the picture the subject covers, where the border cuts it off, and
    whether it hangs together."""
    mask = alpha > 0.5
    edges = {"top": mask[0], "bottom": mask[-1], "left": mask[:, 0], "right": mask[:, -1]}
    cut = [side for side, edge in edges.items() if edge.mean() > 0.05]
    words = f"the subject covers {100 * mask.mean():.0f} %"
    if cut:
        words += f" and is cut off at the {', '.join(cut)}"
    if mask.mean() < 0.05:
        words += ": look whether that is all of it"
    pieces, loose = loose_share(mask)
    if loose >= LOOSE_SHARE:
        words += (
            f"; it is in {pieces} pieces, {100 * loose:.0f} % of it outside the largest: look at "
            f"_rgba.png. If they don't belong to it, try another --background, or {BY_HAND}"
        )
    return words


def loose_share(mask: Bool[ndarray, "H W"]) -> tuple[int, float]:
    """A mask's pieces (of 0.5 % of it or more), and which share of it is outside the largest."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    areas = stats[1:, cv2.CC_STAT_AREA]
    if not areas.size:
        return 0, 0.0
    return int((areas >= 0.005 * areas.sum()).sum()), float(1 - areas.max() / areas.sum())
