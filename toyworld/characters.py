"""Toy characters: some twenty coloured ellipsoids each on the skeleton that all share.

A species is a function that shapes `Clay`; a new one is an entry of `SPECIES`.
"""

import difflib
import math
import random
from collections.abc import Callable

from .clay import SIDES, Clay, Surface, Vector, vector
from .skeleton import Character

INK, WHITE = (0.07, 0.06, 0.08), (1.0, 1.0, 1.0)


def _figure(
    clay: Clay,
    fur: Vector,
    belly: Vector,
    arms: Vector,
    legs: Vector,
    plump: float = 1.0,
) -> tuple[Surface, Surface]:
    """What all share: body with belly, head, arms and legs. Returns the head and the body."""
    hip = clay.size(0.3)
    width, tall = clay.size(0.29 * plump), clay.size(0.29, 0.08)
    middle = hip - 0.06 + 0.75 * tall
    top = middle + tall
    body = clay.ball("body", "torso", (0, 0, middle), (0.88 * width, width, tall), fur)
    clay.inlay("belly", body, belly, (0.84, 0.8), (0.035, -0.05 * tall))
    broad, high = clay.size(0.42, 0.08), clay.size(0.345, 0.08)
    centre = (0.03, 0, top + 0.72 * high)
    head = clay.ball("head", "head", centre, (0.85 * broad, broad, high), fur)
    thick, reach = clay.size(0.09), clay.size(0.38)
    shoulder = (0.02, 0.74 * width, top - 0.36 * tall)
    radii = (thick, thick, 0.52 * reach)
    clay.limbs("arm", shoulder, reach, radii, arms, out_deg=clay.size(42), forward_deg=8)
    thick = clay.size(0.115, 0.08)
    radii = (thick, thick, hip / 2 + 0.02)
    clay.limbs("leg", (0.03, 0.58 * width, hip), hip - 0.04, radii, legs)
    clay.pivots["torso"] = (0, 0, hip - 0.06 + 0.15 * tall)
    clay.pivots["head"] = (0, 0, top - 0.1 * tall)
    return head, body


def _eyes(
    clay: Clay, head: Surface, yaw_deg: float, pitch_deg: float, size: float, colour: Vector = INK
) -> None:
    """Two round eyes, the lamp's reflection in each."""
    yaw_deg, size = clay.size(yaw_deg, 0.08), clay.size(size)
    clay.marks("eye", head, (yaw_deg, pitch_deg), (0.03, 0.85 * size, size), colour)
    for side, sign in SIDES:
        place, radii = (sign * yaw_deg + 3, pitch_deg + 5), (0.03, 0.34 * size, 0.38 * size)
        clay.mark(f"{side} glint", head, place, radii, WHITE, sink=-0.012)


def _snout(
    clay: Clay, head: Surface, radii: Vector, pitch_deg: float, colour: Vector, nose: Vector
) -> None:
    """A muzzle with a nose and a smile."""
    radii = vector(clay.size(r, 0.1) for r in radii)
    (x, y, z), _ = head.at(0, pitch_deg)
    snout = clay.ball("snout", "head", (x - 0.03, y, z), radii, colour)
    clay.mark("nose", snout, (0, 38), (0.03, 0.05, 0.035), nose)
    clay.marks("smile", snout, (15, -8), (0.012, 0.26 * radii[1], 0.009), INK, roll_deg=24)


def _ears(
    clay: Clay,
    head: Surface,
    direction_deg: tuple[float, float],
    radii: Vector,
    lean_deg: float,
    colour: Vector,
    inner: Vector | None = None,
) -> None:
    """Ears on the head in a direction (yaw, pitch): radii are (thick, wide, tall); they lean
    outwards."""
    thick, wide, tall = (clay.size(r) for r in radii)
    lean = math.radians(lean_deg)
    for side, sign, joint, (x, y, z) in clay.ear_roots(head, *direction_deg):
        y, z = y + sign * 0.55 * tall * math.sin(lean), z + 0.55 * tall * math.cos(lean)
        angles = (-sign * lean_deg, 0.0, 0.0)
        clay.ball(f"{side} ear", joint, (x, y, z), (thick, wide, tall), colour, angles)
        if inner:
            front, radii = (x + 0.6 * thick, y, z), (0.6 * thick, 0.62 * wide, 0.72 * tall)
            clay.ball(f"{side} inner ear", joint, front, radii, inner, angles)


def _tail(
    clay: Clay,
    body: Surface,
    radii: Vector,
    colour: Vector,
    pitch_deg: float = -25.0,
    rise_deg: float = 35.0,
    tip: Vector | None = None,
) -> None:
    """A tail at the back: radii are (along, wide, high); it rises outwards."""
    along, wide, high = (clay.size(r) for r in radii)
    clay.pivots["tail"], _ = body.at(180, pitch_deg)
    (x, y, z), rise, angles = clay.pivots["tail"], math.radians(rise_deg), (0, rise_deg, 0)
    back, up = -along * math.cos(rise), along * math.sin(rise)
    clay.ball(
        "tail", "tail", (x + 0.7 * back, y, z + 0.7 * up), (along, wide, high), colour, angles
    )
    if tip:
        end, radii = (x + 1.35 * back, y, z + 1.35 * up), (0.5 * along, 0.82 * wide, 0.82 * high)
        clay.ball("tail tip", "tail", end, radii, tip, angles)


def _feet(clay: Clay, radii: Vector, colour: Vector) -> None:
    """Flat feet below the legs, toes to the front."""
    for side, _ in SIDES:
        joint = f"{side}_leg"
        x, y, _ = clay.pivots[joint]
        clay.ball(f"{side} foot", joint, (x + 0.55 * radii[0], y, radii[2]), radii, colour)


def _panda(clay: Clay) -> None:
    white = clay.colour("f8f5ee", "f6e8d6", "eef0f5", tone=0.04)
    black = clay.colour("35313c", "43322d", "303850", "443850", tone=0.07)
    head, body = _figure(clay, white, white, black, black, plump=1.06)
    patch = clay.size(0.095)
    clay.marks("patch", head, (25, 3), (0.025, 0.8 * patch, 1.15 * patch), black, roll_deg=28)
    _eyes(clay, head, 24, 5, 0.052)
    _snout(clay, head, (0.09, 0.12, 0.09), -18, white, black)
    _ears(clay, head, (78, 52), (0.07, 0.115, 0.115), 35, black)
    clay.mark("scarf", body, (0, 62), (0.06, 0.2, 0.06), black)
    _tail(clay, body, (0.07, 0.07, 0.07), black)


def _bear(clay: Clay) -> None:
    fur = clay.colour("9a6236", "5f4030", "c89050", "ece8e2")
    light = clay.colour("e3bd8c")
    head, body = _figure(clay, fur, light, fur, fur, plump=1.1)
    _eyes(clay, head, 24, 4, 0.055)
    _snout(clay, head, (0.12, 0.16, 0.115), -16, light, INK)
    _ears(clay, head, (80, 50), (0.07, 0.12, 0.12), 38, fur, light)
    clay.marks("cheek", head, (46, -16), (0.02, 0.06, 0.045), clay.colour("e08a6a"), sink=0.005)
    _tail(clay, body, (0.07, 0.07, 0.07), fur)


def _fox(clay: Clay) -> None:
    fur, light = clay.colour("e8742a", hue=0.025), clay.colour("fdf1e2", tone=0.05)
    dark = clay.colour("3a2420", hue=0.05)
    head, body = _figure(clay, fur, light, dark, dark, plump=0.9)
    clay.marks("cheek", head, (36, -26), (0.08, 0.2, 0.13), light, roll_deg=18, sink=0.055)
    _eyes(clay, head, 25, 8, 0.05)
    _snout(clay, head, (0.19, 0.1, 0.075), -15, light, INK)
    _ears(clay, head, (74, 50), (0.06, 0.13, 0.2), 18, fur, dark)
    _tail(clay, body, (0.26, 0.12, 0.12), fur, -30, 38, tip=light)


def _rabbit(clay: Clay) -> None:
    fur = clay.colour("d9cfc8", "fbf6ee", "b98d68", "8f8c92", "c9b7dd", "efc4cc")
    light, pink = clay.colour("fbf7f4", tone=0.04), clay.colour("f2a0ae")
    head, body = _figure(clay, fur, light, fur, fur, plump=0.92)
    _eyes(clay, head, 27, 3, 0.06)
    _snout(clay, head, (0.07, 0.12, 0.08), -16, light, pink)
    clay.mark("teeth", head, (0, -33), (0.03, 0.04, 0.05), WHITE, sink=-0.02)
    _ears(clay, head, (80, 62), (0.05, 0.085, 0.3), 10, fur, pink)
    _tail(clay, body, (0.1, 0.1, 0.1), light)


def _cat(clay: Clay) -> None:
    fur = clay.colour("8f949e", "e39445", "e9d3ac", "55525c", "a5785a")
    stripe = clay.colour("54505a", "6b3d22")
    light, pink = clay.colour("f3f0ec", tone=0.05), clay.colour("ef9aa6")
    head, body = _figure(clay, fur, light, fur, light, plump=0.86)
    _eyes(clay, head, 25, 6, 0.07, clay.colour("4f9a54", hue=0.12, tone=0.12))
    clay.marks("pupil", head, (24, 6), (0.036, 0.018, 0.055), INK)
    _snout(clay, head, (0.06, 0.12, 0.075), -18, light, pink)
    clay.mark("stripe", head, (0, 50), (0.03, 0.04, 0.13), stripe, sink=0.01)
    clay.marks("stripe", head, (24, 52), (0.03, 0.035, 0.1), stripe, sink=0.01)
    _ears(clay, head, (74, 50), (0.06, 0.12, 0.17), 16, fur, pink)
    _tail(clay, body, (0.3, 0.055, 0.055), fur, -35, 52, tip=stripe)


def _frog(clay: Clay) -> None:
    skin, light = clay.colour("6fbf4b", hue=0.06, tone=0.12), clay.colour("e4efa8", hue=0.04)
    head, _ = _figure(clay, skin, light, skin, skin, plump=1.05)
    size = clay.size(0.12)
    for side, sign, joint, (x, y, z) in clay.ear_roots(head, 62, 52):
        bulge = clay.ball(f"{side} bulge", joint, (x, y, z + 0.04), (size, size, size), skin)
        clay.mark(f"{side} eyeball", bulge, (12 * sign, 8), (0.04, 0.8 * size, 0.8 * size), WHITE)
        clay.mark(f"{side} eye", bulge, (10 * sign, 8), (0.055, 0.42 * size, 0.5 * size), INK)
    clay.mark("mouth", head, (0, -22), (0.035, 0.24, 0.03), clay.colour("a8443f"), sink=0.02)
    clay.marks("cheek", head, (48, -14), (0.02, 0.06, 0.045), clay.colour("f29b8a"), sink=0.004)
    clay.marks("nostril", head, (7, 4), (0.015, 0.014, 0.014), INK)


def _duck(clay: Clay) -> None:
    down, light = clay.colour("f7cf3d"), clay.colour("fdeaa0")
    bill = clay.colour("f0802a")
    head, body = _figure(clay, down, light, down, bill, plump=1.08)
    _eyes(clay, head, 27, 8, 0.055)
    (x, y, z), _ = head.at(0, -12)
    long, wide = clay.size(0.16), clay.size(0.15)
    clay.ball("upper bill", "head", (x + 0.06, y, z), (long, wide, 0.045), bill, (0, -8, 0))
    radii = (0.75 * long, 0.8 * wide, 0.035)
    clay.ball("lower bill", "head", (x + 0.03, y, z - 0.06), radii, bill, (0, 8, 0))
    crown = (0, 0, head.centre[2] + head.radii[2] + 0.03)
    clay.ball("tuft", "head", crown, (0.04, 0.04, clay.size(0.1)), down, (0, -25, 0))
    _feet(clay, (0.15, 0.11, 0.035), bill)
    _tail(clay, body, (0.16, 0.13, 0.06), down, -12, 30)


def _robot(clay: Clay) -> None:
    shell, trim = clay.colour("6fa3d8", hue=0.5, tone=0.12), clay.colour("5a6270", hue=0.5)
    panel, lamp = clay.colour("dfe6ee", hue=0.1, tone=0.05), clay.colour("ffb833", hue=0.5)
    glow = clay.colour("59f0e0", hue=0.12, tone=0.05)
    head, body = _figure(clay, shell, panel, trim, trim)
    clay.inlay("visor", head, INK, (0.86, 0.62), (0.04, 0.01))
    clay.marks("eye", head, (19, 5), (0.06, 0.055, 0.06), glow, sink=-0.01)
    clay.mark("mouth", head, (0, -15), (0.06, 0.07, 0.014), glow, sink=-0.01)
    clay.mark("button", body, (0, 8), (0.05, 0.06, 0.06), lamp, sink=-0.005)
    clay.marks("bolt", head, (90, 0), (0.06, 0.09, 0.09), trim)
    for side, sign, joint, (x, y, z) in clay.ear_roots(head, 90, 58):
        middle, end = (x, y + sign * 0.03, z + 0.1), (x, y + sign * 0.06, z + 0.23)
        angles_deg = (-sign * 15, 0, 0)
        clay.ball(f"{side} antenna", joint, middle, (0.018, 0.018, 0.13), trim, angles_deg)
        clay.ball(f"{side} lamp", joint, end, (0.05, 0.05, 0.05), lamp)
    _feet(clay, (0.16, 0.12, 0.06), shell)


SPECIES: dict[str, Callable[[Clay], None]] = {
    "panda": _panda,
    "fox": _fox,
    "rabbit": _rabbit,
    "bear": _bear,
    "frog": _frog,
    "duck": _duck,
    "robot": _robot,
    "cat": _cat,
}


def make_character(species: str, seed: int | None = None) -> Character:
    """A species' canonical look, or with a seed an individual: the same one for the same seed."""
    if species not in SPECIES:
        near = difflib.get_close_matches(species, SPECIES) or list(SPECIES)
        raise KeyError(f"No species is called {species!r}. Close names: {', '.join(near)}.")
    clay = Clay(None if seed is None else random.Random(f"{species} {seed}"))
    SPECIES[species](clay)
    return clay.finished(species, seed)
