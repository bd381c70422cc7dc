"""A character of the toy world as a subject: what is asked of it, and how it truly looks."""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from ..data.cameras import Cameras
from ..toyworld.banks import lens
from ..toyworld.captions import VERBS
from ..toyworld.characters import make_character
from ..toyworld.motions import MOTIONS, animate
from ..toyworld.ray_tracing import Ellipsoids, render
from .motion_classifier import FRAMES

SIZE = 64  # pixels of the pictures that are compared
TAU = torch.arange(FRAMES) / FRAMES
RING = Cameras.of(15.0, torch.arange(8) * 45.0)  # the novel views
# elevation and azimuth (degrees) of the views from which motion is looked at
VIEWS = ((0.0, 0.0), (15.0, -45.0), (15.0, 45.0), (15.0, 90.0), (15.0, 180.0))


@dataclasses.dataclass(frozen=True)
class Subject:
    """A character and what it is to do."""

    species: str
    motion: str
    seed: int  # of the individual; from HELD_OUT on no prior has seen it

    @property
    def prompt(self) -> str:
        return f"a {self.species} is {VERBS[self.motion]}"

    def scenes(self, motion: str, tau: Float[Tensor, " F"]) -> Ellipsoids:
        return animate(make_character(self.species, self.seed), motion, tau)

    def pictures(
        self,
        cameras: Cameras,
        tau: Float[Tensor, " F"],
        motion: str | None = None,
        size: int = SIZE,
    ) -> Float[Tensor, "F S S 3"]:
        """Ground truth: one picture a camera."""
        return self.colours_and_outlines(cameras, tau, motion, size)[0]

    def colours_and_outlines(
        self,
        cameras: Cameras,
        tau: Float[Tensor, " F"],
        motion: str | None = None,
        size: int = SIZE,
    ) -> tuple[Float[Tensor, "F S S 3"], Float[Tensor, "F S S 1"]]:
        """Ground truth: one picture a camera, and its opacity."""
        scenes = self.scenes(motion or self.motion, tau)
        picture = render(scenes, lens(cameras, size), supersample=4)
        return picture["rgb"], picture["alpha"]

    def poses(self) -> Float[Tensor, "P S S 3"]:
        """The character from the front in all that it can do."""
        moving = [motion for motion in MOTIONS if motion != "still"]
        return torch.cat([self.pictures(front(len(TAU)), TAU, m) for m in moving])


def front(n: int) -> Cameras:
    """The reference camera, n times."""
    return Cameras.of(torch.zeros(n))


def around() -> tuple[Cameras, Float[Tensor, " N"]]:
    """Every view of VIEWS at every time of TAU; a view's times are adjacent."""
    elevation, azimuth = torch.tensor(VIEWS).T
    return Cameras.of(elevation, azimuth).frames(len(TAU)), TAU.repeat(len(VIEWS))
