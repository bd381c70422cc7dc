"""A scene as a picture: from wherever someone stands, in one of several modes. World as in
data/cameras.py: z up."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..data.cameras import Cameras, camera_angles, camera_up
from ..files.pictures import Picture, colour_depth, surface_depth, to_picture
from ..system.trained import Scene

MODES = ("colour", "opacity", "normal", "depth")
Vector = tuple[float, ...]  # 3 of them


class Eye(NamedTuple):
    """Where someone stands, and what is in the middle of the picture."""

    position: Vector
    look_at: Vector = (0.0, 0.0, 0.0)
    up: Vector = (0.0, 0.0, 1.0)
    fovy: float = 0.7  # vertical field of view, radians


def cameras_of(eye: Eye) -> Cameras:
    """The one camera there."""
    position, target, up = (torch.tensor([v], dtype=torch.float32) for v in eye[:3])
    elevation, azimuth, distance = camera_angles(position)
    fovy = torch.tensor([eye.fovy], dtype=torch.float32)
    shift = up - camera_up(elevation, azimuth)
    return Cameras(elevation, azimuth, distance, torch.rad2deg(fovy), target, shift)


def draw(
    scene: Scene, cameras: Cameras, tau: Float[Tensor, " B"], mode: str, height: int, width: int
) -> list[Picture]:
    """What cameras see at their times; normals are drawn of a scene that was loaded with them."""
    render = scene.look(cameras, tau, height, width)
    if mode == "colour":
        return [to_picture(image) for image in render["comp_rgb"]]
    if mode == "opacity":
        return [to_picture(image.expand(-1, -1, 3)) for image in render["opacity"]]
    if mode == "normal":
        return [to_picture(image) for image in over_white(render["comp_normal"], render["opacity"])]
    radius = float(scene.system.geometry.cfg.radius)
    away = cameras.position.norm(dim=-1).tolist()
    depths = map(surface_depth, render["depth"], render["opacity"])
    return [
        colour_depth(depth, max(far - radius, 0.0), far + radius)
        for depth, far in zip(depths, away, strict=True)
    ]


def over_white(
    image: Float[Tensor, "B H W 3"], opacity: Float[Tensor, "B H W 1"]
) -> Float[Tensor, "B H W 3"]:
    """A picture that is weighed with its opacity, before white."""
    return image + 1 - opacity


def place(eye: Eye, azimuth_deg: float) -> str:
    """Where it stands as --camera has it: azimuth from the reference camera, elevation, distance;
    whatever it looks at, such a camera looks at the origin."""
    angles = camera_angles(torch.tensor(eye.position, dtype=torch.float64))
    elevation, azimuth, distance = (float(value) for value in angles)
    turned = (azimuth - azimuth_deg + 180) % 360 - 180
    return ",".join(f"{round(value, 2):g}" for value in (turned, elevation, distance))
