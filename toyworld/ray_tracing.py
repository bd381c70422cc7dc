"""Ground truth by ray tracing: coloured ellipsoids, exact to the float.

An ellipsoid is the image of the unit sphere under an affine map, its *frame* [4 4]: any rotation,
stretch or shear of it is one again, so posing a character never leaves the family. World z up.

Pictures are averages over n x n rays a pixel (`supersample`), those at the centres of a grid of
sub-pixels. `rgb` stands on white: rgb = straight colour * alpha + (1 - alpha). `depth` is the mean
distance along a pixel's (normalised) rays that hit, `normal` the direction of their mean normal in
the world; both are 0 where none hits. Shading depends on the surface alone, never on the eye, so
that a field of colours without view dependence can represent the scene exactly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..data import cameras

LIGHT_DIRECTION = (0.45, 0.35, 0.82)  # towards the lamp: front, slightly left, above; world axes
AMBIENT = 0.72  # share of the light that comes from everywhere, a little more from the sky
SKY = 0.08  # half the difference of ambient light between an upward and a downward face


@dataclasses.dataclass(frozen=True)
class Ellipsoids:
    """B scenes of E coloured ellipsoids each."""

    frames: Float[Tensor, "B E 4 4"]  # unit sphere -> world, affine
    colours: Float[Tensor, "B E 3"]  # in [0, 1]

    def __len__(self) -> int:
        return self.frames.shape[0]

    def __getitem__(self, scenes: slice | Tensor) -> Ellipsoids:
        """Some of the scenes; an index that is a number would drop the batch: use a slice."""
        return Ellipsoids(self.frames[scenes], self.colours[scenes])

    def to(self, *args, **kwargs) -> Ellipsoids:
        """As Tensor.to."""
        return Ellipsoids(self.frames.to(*args, **kwargs), self.colours.to(*args, **kwargs))

    def reach(self, directions: Float[Tensor, "D 3"]) -> Float[Tensor, "B D"]:
        """How far each scene extends along unit directions: the support function.

        Its maximum over all directions is the largest distance of a surface from the origin.
        """
        centres, axes = self.frames[..., :3, 3], self.frames[..., :3, :3]  # [B E 3], [B E 3 3]
        extents = (directions @ axes).norm(dim=-1)  # [B E D], |A^T n|
        return (centres @ directions.T + extents).amax(dim=1)


def concatenate(parts: Sequence[Ellipsoids]) -> Ellipsoids:
    """Several batches in one. Scenes with fewer ellipsoids repeat their first: no pixel changes."""
    most = max(part.frames.shape[1] for part in parts)

    def padded(values: Tensor) -> Tensor:
        missing = most - values.shape[1]
        return torch.cat([values, values[:, :1].expand(-1, missing, *values.shape[2:])], dim=1)

    return Ellipsoids(
        torch.cat([padded(part.frames) for part in parts]),
        torch.cat([padded(part.colours) for part in parts]),
    )


def _dot(u: Sequence[Tensor], v: Sequence[Tensor]) -> Tensor:
    """Inner products of vectors given by their three coordinates. Not a matrix product: those may
    run in TF32."""
    return torch.addcmul(torch.addcmul(u[0] * v[0], u[1], v[1]), u[2], v[2])


def intersect(
    frames: Float[Tensor, "B E 4 4"],
    origins: Float[Tensor, "B 3"],
    directions: Float[Tensor, "B P 3"],
) -> tuple[Float[Tensor, "B P"], Int[Tensor, "B P"]]:
    """Nearest hits of rays that share an eye: (distance in |directions|, which ellipsoid).

    The distance is infinite where a ray meets nothing; an ellipsoid around the eye is not seen.
    In the frame of an ellipsoid the ray o + t d comes nearest to its centre at t = -o.d / d.d. The
    discriminant is taken from that point: o.o - 1 would lose the digits that tell a small
    ellipsoid's outline (Haines et al., Ray Tracing Gems, chapter 7).
    """
    to_local = torch.linalg.inv(frames[..., :3, :3])  # [B E 3 3]
    offset = origins[:, None] - frames[..., :3, 3]  # [B E 3]
    o = (to_local * offset[..., None, :]).sum(-1)[:, None].unbind(-1)  # 3 x [B 1 E]
    rows = [row.unbind(-1) for row in to_local[:, None].unbind(-2)]  # 3 x 3 x [B 1 E]
    ray = directions[:, :, None].unbind(-1)  # 3 x [B P 1]
    d = [_dot(row, ray) for row in rows]  # 3 x [B P E]
    squared_speed = _dot(d, d)
    nearest = _dot(o, d).neg_().div_(squared_speed)
    closest = [torch.addcmul(o[i], nearest, d[i]) for i in range(3)]
    discriminant = 1 - _dot(closest, closest)
    distance = nearest.sub_((discriminant.clamp_min(0) / squared_speed).sqrt_())
    return distance.where((discriminant > 0) & (distance > 0), torch.inf).min(dim=-1)


def normals(frames: Float[Tensor, "N 4 4"], points: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
    """Outward unit normals of ellipsoids at points of their surfaces.

    A^-T A^-1 (x - c) = A^-T y: the cofactors of A, which are its inverse's transpose up to a
    factor, times y. They need no inverse; y is where the point comes from on the unit sphere.
    """
    a, b, c, centre = frames[:, :3].unbind(-1)  # the frame's columns, [N 3]
    cofactors = (b.cross(c, dim=-1), c.cross(a, dim=-1), a.cross(b, dim=-1))
    determinant = (a * cofactors[0]).sum(-1, keepdim=True)
    y = [(n * (points - centre)).sum(-1, keepdim=True) / determinant for n in cofactors]
    return F.normalize(_dot(y, cofactors) / determinant, dim=-1)


def shade(colours: Float[Tensor, "*N 3"], normals: Float[Tensor, "*N 3"]) -> Float[Tensor, "*N 3"]:
    """Diffuse light of a sky and a soft lamp, both fixed in the world; the same from every eye."""
    light = F.normalize(normals.new_tensor(LIGHT_DIRECTION), dim=0)
    lamp = (0.5 + 0.5 * (normals * light).sum(-1, keepdim=True)) ** 2  # wraps around: no dark side
    return colours * (AMBIENT + SKY * normals[..., 2:] + (1 - AMBIENT - SKY) * lamp)


def _shoot(
    scene: Ellipsoids, origins: Float[Tensor, "B 3"], directions: Float[Tensor, "B P 3"]
) -> dict[str, Tensor]:
    """Every ray by itself: rgb (0 where nothing is hit), alpha, depth and normal, [B P C]."""
    distance, which = intersect(scene.frames, origins, directions)
    hit: Bool[Tensor, "B P"] = distance.isfinite()
    b, p = hit.nonzero(as_tuple=True)
    e = which[b, p]
    points = origins[b] + distance[b, p, None] * directions[b, p]
    normal = torch.zeros_like(directions)
    normal[b, p] = normals(scene.frames[b, e], points)
    rgb = torch.zeros_like(directions)
    rgb[b, p] = shade(scene.colours[b, e], normal[b, p])
    depth = torch.where(hit, distance, 0)
    return {
        "rgb": rgb,
        "alpha": hit.to(rgb.dtype)[..., None],
        "depth": depth[..., None],
        "normal": normal,
    }


def _averages(
    scenes: Ellipsoids, origins: Float[Tensor, "B 3"], directions: Float[Tensor, "B h w 3"], n: int
) -> dict[str, Tensor]:
    """What the rays of n x n sub-pixels bring, averaged over a pixel: [B h/n w/n C]."""
    shot = _shoot(scenes, origins, directions.flatten(1, 2))
    return {
        key: F.avg_pool2d(value.unflatten(1, directions.shape[1:3]).permute(0, 3, 1, 2), n).permute(
            0, 2, 3, 1
        )
        for key, value in shot.items()
    }


def _joined(parts: list[dict[str, Tensor]], dim: int) -> dict[str, Tensor]:
    return {key: torch.cat([part[key] for part in parts], dim=dim) for key in parts[0]}


@torch.no_grad()
def render(
    scenes: Ellipsoids,
    camera: Mapping[str, Any],
    *,
    supersample: int = 3,
    chunk: int = 1 << 15,
) -> dict[str, Tensor]:
    """Pictures of scenes: rgb on white [B H W 3], alpha, depth [B H W 1], normal [B H W 3].

    `camera` is a batch of `data.cameras` (c2w [B 4 4], fovy [B] in radians, height and width are
    read). One scene seen by B cameras, B scenes by one, or scene b by camera b. About `chunk` rays
    are traced at a time: speed and memory depend on it, values don't. The default suits a CPU's
    cache; give a GPU more.
    """
    if supersample < 1:
        raise ValueError(f"supersample is {supersample}; a pixel needs 1 x 1 rays or more.")
    c2w, fovy = camera["c2w"].to(scenes.frames), camera["fovy"].to(scenes.frames)
    n_images = max(len(scenes), len(c2w))
    if {len(scenes), len(c2w)} - {1, n_images}:
        raise ValueError(
            f"{len(scenes)} scenes can't be paired with {len(c2w)} cameras; give as many of both, "
            "or one of either."
        )
    scenes = scenes[torch.arange(n_images, device=c2w.device) % len(scenes)]
    c2w, fovy = c2w.expand(n_images, -1, -1), fovy.expand(n_images)
    height, width = camera["height"] * supersample, camera["width"] * supersample
    images_at_once = max(1, chunk // (height * width))
    rows_at_once = max(1, chunk // (width * supersample)) * supersample
    images = []
    with torch.autocast(c2w.device.type, enabled=False):
        for start in range(0, n_images, images_at_once):
            some = slice(start, start + images_at_once)
            _, rays_d = cameras.rays(c2w[some], fovy[some], height, width)
            strips = [
                _averages(scenes[some], c2w[some, :3, 3], strip, supersample)
                for strip in rays_d.split(rows_at_once, dim=1)
            ]
            images.append(_joined(strips, dim=1))
    out = _joined(images, dim=0)
    out["rgb"] = out["rgb"] + (1 - out["alpha"])
    out["depth"] = out["depth"] / out["alpha"].clamp_min(1e-6)  # mean over the rays that hit
    out["normal"] = F.normalize(out["normal"], dim=-1)
    return out
