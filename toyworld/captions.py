"""Words for the toy world: the sentences that the stages use, and the vocabulary they come from."""

import random

VERBS = {
    "dance": "dancing",
    "jump": "jumping",
    "wave": "waving",
    "spin": "spinning",
    "nod": "nodding",
    "walk": "walking",
    "still": "standing still",
}
SUBJECTS = ("a {}", "a toy {}")
RESTING = (*SUBJECTS, "a photo of a {}", "a photo of a toy {}", "a rendering of a toy {}")

# Each of these is one token of the toy tokenizer; any other text is spelt byte by byte.
WORDS = (  # noqa: SIM905 (a list of quoted words would be unreadable)
    "a an the is of in on at with and to toy photo picture rendering image close up cropped clean "
    "dark bright my nice cool small large good bad best quality high low blurry front back side "
    "overhead view still standing panda fox rabbit bear frog duck robot cat tiger dog playing "
    "dancing jumping waving spinning nodding walking running"
).split()


def view(elevation_deg: float, azimuth_deg: float) -> str:
    """The word for a camera: front and back within 45 degrees, overhead above 60, else side."""
    if elevation_deg > 60:
        return "overhead"
    off_front = abs((azimuth_deg + 180) % 360 - 180)
    return "front" if off_front < 45 else "back" if off_front > 135 else "side"


def caption(
    species: str,
    motion: str | None,
    elevation_deg: float,
    azimuth_deg: float,
    dice: random.Random,
    view_rate: float = 0.7,
) -> str:
    """A sentence about a picture or clip; `motion` None is a character at rest.

    The camera is named with probability `view_rate`.
    """
    if motion is None:
        text = dice.choice(RESTING).format(species)
    else:
        text = f"{dice.choice(SUBJECTS).format(species)} is {VERBS[motion]}"
    if dice.random() < view_rate:
        text += f", {view(elevation_deg, azimuth_deg)} view"
    return text
