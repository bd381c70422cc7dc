"""What characters are shaped from: ellipsoids set side by side and upon each other, some varied by
dice. Lengths are in a unit of the sculptor's own (feet at z = 0, a character is about 1.4 high);
`finished` scales to the world. Directions on a surface: yaw from +x (the front) towards +y (the
left), pitch up.
"""

import colorsys
import dataclasses
import functools
import math
import random
from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from .ray_tracing import Ellipsoids
from .skeleton import JOINTS, Character, affine, rotations

REST_REACH = 0.72  # largest distance of a part from the origin at rest, in the world
SIDES = (("left", 1), ("right", -1))  # the sign is that of y

Vector = tuple[float, float, float]


def vector(values: Iterable[float]) -> Vector:
    x, y, z = values
    return x, y, z


@functools.cache
def sphere_directions(n: int) -> Float[Tensor, "n 3"]:
    """Unit vectors spread evenly over the sphere (a Fibonacci lattice)."""
    i = torch.arange(n) + 0.5
    z, angle = 1 - 2 * i / n, i * math.pi * (3 - math.sqrt(5))
    ring = (1 - z**2).sqrt()
    return torch.stack([ring * angle.cos(), ring * angle.sin(), z], dim=-1)


@dataclasses.dataclass(frozen=True)
class Surface:
    """An upright ellipsoid that marks can be put on."""

    joint: str
    centre: Vector
    radii: Vector

    def at(self, yaw_deg: float, pitch_deg: float) -> tuple[Vector, Vector]:
        """The surface point in a direction from the centre, and the outward normal there."""
        yaw, pitch = math.radians(yaw_deg), math.radians(pitch_deg)
        level = math.cos(pitch)
        towards = (level * math.cos(yaw), level * math.sin(yaw), math.sin(pitch))
        size = 1 / math.hypot(*(t / r for t, r in zip(towards, self.radii, strict=True)))
        point = vector(c + size * t for c, t in zip(self.centre, towards, strict=True))
        gradient = [t / r**2 for t, r in zip(towards, self.radii, strict=True)]
        return point, vector(g / math.hypot(*gradient) for g in gradient)


class Clay:
    """Collects a character's parts. With dice it makes individuals, without the canonical look."""

    def __init__(self, dice: random.Random | None) -> None:
        self.dice = dice
        self.parts: list[tuple[str, str, Vector, Vector, Vector, Vector]] = []
        self.pivots: dict[str, Vector] = {"root": (0.0, 0.0, 0.0)}

    def size(self, value: float, spread: float = 0.12) -> float:
        """A length or an angle, varied by a factor of up to exp(spread)."""
        return value if self.dice is None else value * math.exp(self.dice.uniform(-spread, spread))

    def colour(self, *rgb_hex: str, hue: float = 0.03, tone: float = 0.08) -> Vector:
        """One of these colours (the first is canonical), varied: hue by a share of the circle,
        saturation and value by `tone`."""
        chosen = rgb_hex[0] if self.dice is None else self.dice.choice(rgb_hex)
        rgb = vector(int(chosen[i : i + 2], 16) / 255 for i in (0, 2, 4))
        if self.dice is None:
            return rgb
        h, s, v = colorsys.rgb_to_hsv(*rgb)
        h = (h + self.dice.uniform(-hue, hue)) % 1
        s, v = (min(1.0, max(0.0, x + self.dice.uniform(-tone, tone))) for x in (s, v))
        return colorsys.hsv_to_rgb(h, s, v)

    def ball(
        self,
        name: str,
        joint: str,
        centre: Vector,
        radii: Vector,
        colour: Vector,
        angles_deg: Vector = (0, 0, 0),
    ) -> Surface:
        """An ellipsoid anywhere; its surface takes marks if it isn't turned."""
        angles = vector(math.radians(a) for a in angles_deg)
        self.parts.append((name, joint, centre, radii, angles, colour))
        return Surface(joint, centre, radii)

    def mark(
        self,
        name: str,
        on: Surface,
        direction_deg: tuple[float, float],
        radii: Vector,
        colour: Vector,
        roll_deg: float = 0.0,
        sink: float = 0.0,
    ) -> None:
        """An ellipsoid on a surface, in a direction (yaw, pitch): radii are (outward, sideways,
        upward), `sink` is how deep its centre lies."""
        point, (nx, ny, nz) = on.at(*direction_deg)
        centre = vector(p - sink * n for p, n in zip(point, (nx, ny, nz), strict=True))
        angles = (math.radians(roll_deg), -math.asin(nz), math.atan2(ny, nx))
        self.parts.append((name, on.joint, centre, radii, angles, colour))

    def marks(
        self,
        name: str,
        on: Surface,
        direction_deg: tuple[float, float],
        radii: Vector,
        colour: Vector,
        roll_deg: float = 0.0,
        sink: float = 0.0,
    ) -> None:
        """A mark on the left (yaw > 0), and its mirror image on the right."""
        yaw, pitch = direction_deg
        for side, sign in SIDES:
            place = (sign * yaw, pitch)
            self.mark(f"{side} {name}", on, place, radii, colour, sign * roll_deg, sink)

    def inlay(
        self,
        name: str,
        on: Surface,
        colour: Vector,
        share: tuple[float, float],
        offset: tuple[float, float],
    ) -> None:
        """A field of colour on the front: an ellipsoid inside another, ahead of it by `offset`
        (forward, upward), with a share of its (width, height)."""
        (x, y, z), (deep, wide, tall) = on.centre, on.radii
        centre = (x + 0.2 * deep + offset[0], y, z + offset[1])
        self.ball(name, on.joint, centre, (0.8 * deep, share[0] * wide, share[1] * tall), colour)

    def limbs(
        self,
        name: str,
        root: Vector,
        length: float,
        radii: Vector,
        colour: Vector,
        out_deg: float = 0.0,
        forward_deg: float = 0.0,
    ) -> None:
        """Left and right, from the joint at `root` (on the left) `length` downwards."""
        for side, sign in SIDES:
            joint, start = f"{side}_{name}", (root[0], sign * root[1], root[2])
            roll, pitch = math.radians(sign * out_deg), math.radians(-forward_deg)
            level = math.cos(roll)
            down = (-math.sin(pitch) * level, math.sin(roll), -math.cos(pitch) * level)
            centre = vector(s + length / 2 * d for s, d in zip(start, down, strict=True))
            self.pivots[joint] = start
            self.parts.append((f"{side} {name}", joint, centre, radii, (roll, pitch, 0.0), colour))

    def ear_roots(
        self, head: Surface, yaw_deg: float, pitch_deg: float
    ) -> Iterator[tuple[str, int, str, Vector]]:
        """(side, sign, joint, point on the head) of what sits on it as ears do."""
        for side, sign in SIDES:
            joint = f"{side}_ear"
            point, _ = head.at(sign * yaw_deg, pitch_deg)
            self.pivots[joint] = point
            yield side, sign, joint, point

    def finished(self, species: str, seed: int | None) -> Character:
        """The character, scaled and lowered so that it fills its space around the origin."""
        names, joints, centres, radii, angles, colours = zip(*self.parts, strict=True)
        pivots = torch.tensor([self.pivots.get(joint, (0.0, 0.0, 0.0)) for joint in JOINTS])
        frames = affine(
            rotations(torch.tensor(angles)) * torch.tensor(radii)[:, None, :],
            torch.tensor(centres),
        )
        height = (frames[:, 2, 3] + frames[:, 2, :3].norm(dim=-1)).max()
        middle = torch.stack([0 * height, 0 * height, height / 2])
        frames[:, :3, 3] -= middle
        body = Ellipsoids(frames[None], frames.new_zeros(1, len(frames), 3))
        scale = REST_REACH / body.reach(sphere_directions(256)).max()
        frames[:, :3] *= scale
        return Character(
            species,
            seed,
            names,
            frames,
            torch.tensor(colours),
            torch.tensor([JOINTS.index(joint) for joint in joints]),
            (pivots - middle) * scale,
        )
