"""Cameras. World right-handed, z up; azimuth 0 on +x and growing towards +y, elevation up from the
xy plane. `_deg` names are degrees, other angles radians. c2w columns: right, up, backward, eye.
Pixels: row 0 at the top, centres at +0.5. A camera's angles are those that its rays are made from.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

Range = Sequence[float]  # (low, high)


def sphere_axes(
    elevation_deg: Float[Tensor, "*B"], azimuth_deg: Float[Tensor, "*B"]
) -> tuple[Float[Tensor, "*B 3"], Float[Tensor, "*B 3"], Float[Tensor, "*B 3"]]:
    """Unit vectors along which a place moves as its azimuth, elevation and distance grow."""
    angles = torch.deg2rad(torch.stack([elevation_deg, azimuth_deg]))
    cos_el, cos_az = torch.cos(angles).unbind()
    sin_el, sin_az = torch.sin(angles).unbind()
    east = torch.stack([-sin_az, cos_az, torch.zeros_like(cos_az)], dim=-1)
    north = torch.stack([-sin_el * cos_az, -sin_el * sin_az, cos_el], dim=-1)
    outward = torch.stack([cos_el * cos_az, cos_el * sin_az, sin_el], dim=-1)
    return east, north, outward


def camera_position(
    elevation_deg: Float[Tensor, "*B"],
    azimuth_deg: Float[Tensor, "*B"],
    distance: Float[Tensor, "*B"],
) -> Float[Tensor, "*B 3"]:
    """Position of a camera at spherical coordinates around the origin."""
    return distance[..., None] * sphere_axes(elevation_deg, azimuth_deg)[2]


def camera_up(
    elevation_deg: Float[Tensor, "*B"], azimuth_deg: Float[Tensor, "*B"]
) -> Float[Tensor, "*B 3"]:
    """Unit vector along which `camera_position` moves as the elevation grows.

    It gives the same picture as world z, and unlike it is defined at the poles too.
    """
    return sphere_axes(elevation_deg, azimuth_deg)[1]


def camera_angles(
    position: Float[Tensor, "*B 3"],
) -> tuple[Float[Tensor, "*B"], Float[Tensor, "*B"], Float[Tensor, "*B"]]:
    """Elevation and azimuth (degrees) and distance of a position: undoes `camera_position`."""
    x, y, z = position.unbind(-1)
    elevation = torch.atan2(z, torch.hypot(x, y))
    return torch.rad2deg(elevation), torch.rad2deg(torch.atan2(y, x)), position.norm(dim=-1)


def look_at(
    eye: Float[Tensor, "*B 3"],
    target: Float[Tensor, "*B 3"],
    up: Float[Tensor, "*B 3"] | None = None,
) -> Float[Tensor, "*B 4 4"]:
    """Camera-to-world matrix of a camera at `eye` that sees `target` in its centre.

    `up` (world z if None) points up in the picture; where it is parallel to the view, world x does.
    """
    if up is None:
        up = torch.zeros_like(eye)
        up[..., 2] = 1
    backward = F.normalize(eye - target, dim=-1)
    right = torch.linalg.cross(up, backward)
    # a right vector this short is rounding noise
    parallel = right.norm(dim=-1, keepdim=True) < 1e-6 * up.norm(dim=-1, keepdim=True)
    world_x = torch.zeros_like(eye)
    world_x[..., 0] = 1
    right = F.normalize(torch.where(parallel, torch.linalg.cross(world_x, backward), right), dim=-1)
    return rigid_motion(right, torch.linalg.cross(backward, right), backward, eye)


def rigid_motion(*columns: Float[Tensor, "*B 3"]) -> Float[Tensor, "*B 4 4"]:
    """The matrix of where a frame's three axes and its origin go."""
    matrix = F.pad(torch.stack(columns, dim=-1), (0, 0, 0, 1))
    matrix[..., 3, 3] = 1
    return matrix


@functools.lru_cache(maxsize=16)
def pixel_centres(
    height: int, width: int, dtype: torch.dtype, device: torch.device
) -> Float[Tensor, "{height} {width} 2"]:
    """From a picture's middle to the right and up, in pixels; not to be written to."""
    with torch.inference_mode(False):  # for those outside as well
        x = torch.arange(width, dtype=dtype, device=device) + 0.5 - width / 2
        y = height / 2 - torch.arange(height, dtype=dtype, device=device) - 0.5
        return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)


def ray_directions(
    height: int, width: int, fovy: Float[Tensor, " B"]
) -> Float[Tensor, "B {height} {width} 3"]:
    """Directions through the pixel centres in the camera's frame (x right, y up, z backward).

    Not normalised: z is -1. `fovy` is the vertical field of view, pixels are square.
    """
    focal = 0.5 * height / torch.tan(0.5 * fovy)  # [B], pixels
    plane = pixel_centres(height, width, fovy.dtype, fovy.device) / focal[:, None, None, None]
    return torch.cat([plane, -torch.ones_like(plane[..., :1])], dim=-1)


def rays(
    c2w: Float[Tensor, "B 4 4"], fovy: Float[Tensor, " B"], height: int, width: int
) -> tuple[Float[Tensor, "B {height} {width} 3"], Float[Tensor, "B {height} {width} 3"]]:
    """Origins and unit directions, in the world, of the rays through the pixel centres."""
    directions = ray_directions(height, width, fovy)
    directions = directions / directions.norm(dim=-1, keepdim=True)
    rays_d = (directions.flatten(1, 2) @ c2w[:, :3, :3].mT).view_as(directions)
    rays_o = c2w[:, None, None, :3, 3].expand_as(rays_d)
    return rays_o.contiguous(), rays_d  # once, and not in each call of a renderer


def projection_matrix(
    fovy: Float[Tensor, " B"], aspect: float, near: float = 0.1, far: float = 100.0
) -> Float[Tensor, "B 4 4"]:
    """OpenGL's perspective matrix with y flipped, as threestudio (nvdiffrast) wants it:
    clip-space x grows to the right of the picture and y DOWN it. `aspect` is width / height.
    """
    depth = [-(far + near) / (far - near), -2 * far * near / (far - near)]
    rows = [[1 / aspect, 0, 0, 0], [0, -1, 0, 0], [0, 0, *depth], [0, 0, -1, 0]]
    cot = 1 / torch.tan(0.5 * fovy)[:, None]
    focal = F.pad(cot.expand(-1, 2), (0, 2), value=1.0)  # of x and y
    return focal[..., None] * torch.tensor(rows, dtype=fovy.dtype, device=fovy.device)


def mvp_matrix(
    c2w: Float[Tensor, "B 4 4"], projection: Float[Tensor, "B 4 4"]
) -> Float[Tensor, "B 4 4"]:
    """World to clip space: `projection` times the inverse of the rigid motion `c2w`."""
    rotation = c2w[:, :3, :3].mT
    w2c = torch.cat([rotation, -rotation @ c2w[:, :3, 3:]], dim=2)
    return projection @ torch.cat([w2c, c2w[:, 3:]], dim=1)  # their last rows are the same


def uniform(
    n: int, low_high: Range, *, generator: torch.Generator | None = None
) -> Float[Tensor, " {n}"]:
    """Uniform numbers in [low, high]."""
    low, high = low_high
    device = None if generator is None else generator.device
    return torch.empty(n, device=device).uniform_(low, high, generator=generator)


def sample_elevation_deg(
    n: int, range_deg: Range, *, generator: torch.Generator | None = None
) -> Float[Tensor, " {n}"]:
    """Elevations of n cameras: with probability 1/2 uniform in angle, else uniform on the sphere.

    One toss decides for all n. Uniform in angle looks at the poles more often.
    """
    toss = uniform(1, (0, 1), generator=generator)
    low, high = range_deg
    if toss < 0.5:
        return uniform(n, range_deg, generator=generator)
    heights = (math.sin(math.radians(low)), math.sin(math.radians(high)))  # equal bands, equal area
    elevation = torch.asin(uniform(n, heights, generator=generator).clamp(-1, 1))
    return torch.rad2deg(elevation).clamp(low, high)  # asin may round past the bounds


def sample_azimuth_deg(
    n: int, range_deg: Range, *, stratified: bool = False, generator: torch.Generator | None = None
) -> Float[Tensor, " {n}"]:
    """Uniform azimuths; `stratified` puts one into each n-th of the range."""
    low, high = range_deg
    fraction = uniform(n, (0, 1), generator=generator)
    if stratified:
        fraction = (fraction + torch.arange(n, device=fraction.device)) / n
    return low + (high - low) * fraction


def sent(value: Shaped[Tensor, " *S"], device: torch.device | str) -> Shaped[Tensor, " *S"]:
    """The value on a device. A GPU gets it when it comes to it: the host doesn't wait for that."""
    if torch.device(device).type != "cuda" or value.is_cuda:
        return value.to(device)
    return value.pin_memory().to(device, non_blocking=True)


def sent_together(values: Sequence[Tensor], device: torch.device | str) -> list[Tensor]:
    """Tensors of as many rows, on a device, to which they go as one."""
    whole = sent(
        torch.cat([value.flatten(1) if value.ndim > 1 else value[:, None] for value in values], 1),
        device,
    )
    parts = whole.split([value[0].numel() for value in values], dim=1)
    return [part.reshape(value.shape) for part, value in zip(parts, values, strict=True)]


@dataclass
class Cameras:
    """A batch of pinhole cameras around the origin: the one road from angles to rays."""

    elevation_deg: Float[Tensor, " B"]
    azimuth_deg: Float[Tensor, " B"]
    distance: Float[Tensor, " B"]
    fovy_deg: Float[Tensor, " B"]  # vertical field of view
    target: Float[Tensor, "B 3"] | None = None  # point in the picture's centre; None: the origin
    up_shift: Float[Tensor, "B 3"] | None = None  # added to the up vector; None: horizon level

    @classmethod
    def of(
        cls,
        elevation_deg: Any = 0.0,
        azimuth_deg: Any = 0.0,
        distance: Any = 2.5,
        fovy_deg: Any = 40.0,
        device: torch.device | str | None = None,
    ) -> "Cameras":
        """Cameras from numbers, lists or tensors, broadcast against each other to [B]."""
        values = (elevation_deg, azimuth_deg, distance, fovy_deg)
        tensors = [torch.as_tensor(v, dtype=torch.float32, device=device) for v in values]
        return cls(*(t.clone() for t in torch.broadcast_tensors(*map(torch.atleast_1d, tensors))))

    def __len__(self) -> int:
        return len(self.elevation_deg)

    @property
    def fovy(self) -> Float[Tensor, " B"]:
        """Vertical field of view in radians."""
        return torch.deg2rad(self.fovy_deg)

    @property
    def position(self) -> Float[Tensor, "B 3"]:
        return camera_position(self.elevation_deg, self.azimuth_deg, self.distance)

    @property
    def c2w(self) -> Float[Tensor, "B 4 4"]:
        east, up, outward = sphere_axes(self.elevation_deg, self.azimuth_deg)
        eye = self.distance[:, None] * outward
        if self.target is None and self.up_shift is None:
            return rigid_motion(east, up, outward, eye)
        target = torch.zeros_like(eye) if self.target is None else self.target
        if self.up_shift is not None:
            up = up + self.up_shift
        return look_at(eye, target, up)

    def map(self, function: Callable[[Tensor], Tensor]) -> "Cameras":
        """The cameras whose every tensor is the function's of these'."""
        there = {k: function(v) for k, v in vars(self).items() if v is not None}
        return replace(self, **there)

    def to(self, device: torch.device | str) -> "Cameras":
        return self.map(lambda v: sent(v, device))

    def perturbed(
        self,
        position: float = 0.0,
        target: float = 0.0,
        up: float = 0.0,
        *,
        generator: torch.Generator | None = None,
    ) -> "Cameras":
        """Cameras moved by U[-position, position], looking N(0, target) beside the origin, with
        N(0, up) on the up vector, each per coordinate. Angles become those of the moved cameras.
        """
        device = None if generator is None else generator.device
        shape = (len(self), 3)
        shift = torch.rand(shape, generator=generator, device=device)
        target_shift = torch.randn(shape, generator=generator, device=device)
        up_shift = torch.randn(shape, generator=generator, device=device)
        moved = self
        if position > 0:  # otherwise keep the angles bit by bit
            shifted = self.position + position * (2 * shift - 1)
            elevation, azimuth, distance = camera_angles(shifted)
            moved = replace(self, elevation_deg=elevation, azimuth_deg=azimuth, distance=distance)
        return replace(
            moved,
            target=target * target_shift if target > 0 else self.target,
            up_shift=up * up_shift if up > 0 else self.up_shift,
        )

    def frames(self, num_frames: int) -> "Cameras":
        """Every camera `num_frames` times, copies adjacent: [B] -> [B*F]."""
        return self.map(lambda v: v.repeat_interleave(num_frames, 0))

    def drift(self, num_frames: int, *, generator: torch.Generator | None = None) -> "Cameras":
        """Clips of moving cameras, [B] -> [B*F], a clip's frames adjacent, the first one unmoved.

        A clip turns at a constant rate, uniform within +-180/(2F) degrees of azimuth and
        +-180/(16F) of elevation a frame. The elevation stops at the poles.
        """
        azimuth_rate = uniform(len(self), (-1, 1), generator=generator) * 180 / (2 * num_frames)
        elevation_rate = uniform(len(self), (-1, 1), generator=generator) * 180 / (16 * num_frames)
        frame = torch.arange(num_frames, device=azimuth_rate.device)
        clip = self.frames(num_frames)
        elevation = clip.elevation_deg + (elevation_rate[:, None] * frame).flatten()
        azimuth = clip.azimuth_deg + (azimuth_rate[:, None] * frame).flatten()
        return replace(clip, elevation_deg=elevation.clamp(-90, 90), azimuth_deg=azimuth)

    def batch(
        self,
        height: int,
        width: int,
        frame_times: Float[Tensor, " B"] | None = None,
        device: torch.device | str | None = None,
    ) -> dict[str, Any]:
        """threestudio's camera keys (rays, matrices, angles in degrees, fovy in radians), and the
        `frame_times` in [0, 1] (0 if None). The light sits at the camera.

        device: gets the numbers of cameras that aren't there, and makes their rays; None: theirs.
        """
        c2w, fovy = self.c2w, self.fovy
        mvp = mvp_matrix(c2w, projection_matrix(fovy, width / height))
        tau = torch.zeros_like(fovy) if frame_times is None else frame_times
        values = [c2w, mvp, self.elevation_deg, self.azimuth_deg, self.distance, fovy, tau]
        if device is not None and torch.device(device).type != c2w.device.type:
            values = sent_together(values, device)
        c2w, mvp, elevation_deg, azimuth_deg, distance, fovy, tau = values
        rays_o, rays_d = rays(c2w, fovy, height, width)
        return {
            "rays_o": rays_o,
            "rays_d": rays_d,
            "c2w": c2w,
            "mvp_mtx": mvp,
            "camera_positions": c2w[:, :3, 3],
            "light_positions": c2w[:, :3, 3],
            "elevation": elevation_deg,
            "azimuth": azimuth_deg,
            "camera_distances": distance,
            "fovy": fovy,
            "height": height,
            "width": width,
            "frame_times": tau,
        }
