"""A trained scene as what exporters ask of it: density on lattices, colours, points through time.

The geometry is threestudio's (one that was written for static scenes is given no times), the
material says what of its output is colour, sRGB. Positions are in the scene's frame."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..geometry.times import is_static
from .surface import automatic_threshold, typical_density

SURVEY_RESOLUTION = 64  # lattice points an edge of the box, for threshold and extent
# Rays that look at the surface, from SIDES around the normal and SLANT radians off it: what is seen
# in pictures, where hardly anything is seen straight on. In shares of the scene's radius, how far
# outside they start and how far inside they end: a soft surface shows what lies in between.
SIDES, SLANT = 3, math.pi / 4
OUTSIDE, INSIDE = 0.03, 0.08
RAY_POINTS = 8


@dataclass
class Lattice:
    """Points origin + step * (i, j, k) with (i, j, k) < shape."""

    origin: Float[Tensor, " 3"]
    step: float
    shape: tuple[int, int, int]

    @staticmethod
    def over(low: Float[Tensor, " 3"], high: Float[Tensor, " 3"], resolution: int) -> "Lattice":
        """Cubic cells in a box; its longest edge has `resolution` points, ends included."""
        step = ((high - low).max() / (resolution - 1)).item()
        nx, ny, nz = (int(n) for n in ((high - low) / step + 1e-3).floor() + 1)
        return Lattice(low, step, (nx, ny, nz))

    def points(self, chunk: int) -> Iterator[Float[Tensor, "N 3"]]:
        """All points, the last axis fastest, `chunk` of them at a time."""
        nx, ny, nz = self.shape
        for flat in torch.arange(nx * ny * nz, device=self.origin.device).split(chunk):
            ijk = torch.stack([flat // (ny * nz), flat // nz % ny, flat % nz], -1)
            yield self.origin + self.step * ijk


class Field:
    """A geometry and a material, `chunk` points a call."""

    def __init__(self, geometry: Any, material: Any, chunk: int) -> None:
        self.geometry, self.material, self.chunk = geometry, material, chunk

    @property
    def static(self) -> bool:
        return is_static(self.geometry)

    @property
    def box(self) -> Float[Tensor, "2 3"]:
        return self.geometry.bbox.float()

    @property
    def radius(self) -> float:
        """Half the box's longest side."""
        return ((self.box[1] - self.box[0]).max() / 2).item()

    def can_follow(self) -> bool:
        """Whether points can be followed through time: of a scene that stands still they can."""
        if self.static:
            return True
        nothing = self.box[:0]
        try:
            self.geometry.tracks(nothing, self.box.new_zeros(1))
        except (AttributeError, ValueError):  # the latter is what one says that is repainted
            return False
        return True

    def tracks(
        self, points: Float[Tensor, "N 3"], taus: Float[Tensor, " T"]
    ) -> tuple[Float[Tensor, "T N 3"], Float[Tensor, "T N"]]:
        """Where points of tau = 0 are at other times, and how far off those places may be."""
        points, taus = points.to(self.box), taus.to(self.box)
        if self.static:
            return points.expand(len(taus), -1, -1), points.new_zeros(len(taus), len(points))
        return self.geometry.tracks(points, taus)

    def density(self, lattice: Lattice, tau: float) -> Float[Tensor, "X Y Z"]:
        """On a lattice at one frame time."""
        parts = [
            self.geometry.forward_density(points, **self._times(tau)).reshape(-1)
            for points in lattice.points(self.chunk)
        ]
        return torch.cat(parts).float().reshape(lattice.shape)

    def colours(self, points: Float[Tensor, "N 3"], tau: float) -> Float[Tensor, "N 3"]:
        """The material's albedo at points, in [0, 1]."""
        return torch.cat([rgb for _, rgb in self._evaluated(points, tau)]).clamp(0, 1)

    def seen(
        self, points: Float[Tensor, "N 3"], normals: Float[Tensor, "N 3"]
    ) -> Float[Tensor, "N 3"]:
        """What short rays at points of the surface see at tau = 0, the mean of some from all sides:
        albedo, weighed along a ray as a renderer does (Max 1995), in [0, 1]."""
        away = self.radius * torch.linspace(OUTSIDE, -INSIDE, RAY_POINTS, device=points.device)
        step = float(away[0] - away[1])
        colours = []
        per_call = max(1, self.chunk // (SIDES * RAY_POINTS))
        for place, normal in zip(points.split(per_call), normals.split(per_call), strict=True):
            shape = len(place), SIDES, RAY_POINTS
            ray = place[:, None, None] + away[:, None] * slanted(normal)[:, :, None]
            density, rgb = zip(*self._evaluated(ray.flatten(0, 2), 0.0), strict=True)
            thickness = step * torch.cat(density).view(shape)
            light = torch.exp(thickness - thickness.cumsum(-1))
            weight = light * -torch.expm1(-thickness) + 1e-8  # where there is nothing: their mean
            weight = weight / (SIDES * weight.sum(-1, keepdim=True))
            rgb = torch.cat(rgb).view(*shape, 3)
            colours.append((weight[..., None] * rgb).sum((1, 2)))
        return torch.cat(colours).clamp(0, 1)

    def _times(self, tau: float) -> dict[str, Tensor]:
        """The geometry's time argument; one that was written for static scenes gets none."""
        return {} if self.static else {"times": self.box.new_full((1, 1), tau)}

    def _evaluated(
        self, points: Float[Tensor, "N 3"], tau: float
    ) -> Iterator[tuple[Float[Tensor, "n 1"], Float[Tensor, "n 3"]]]:
        """Density and albedo, `chunk` points at a time, on the CPU."""
        for part in points.to(self.box).split(self.chunk):
            output = self.geometry(part, output_normal=False, **self._times(tau))
            exported = self.material.export(points=part, **output)
            if "albedo" not in exported:
                raise TypeError(
                    f"The material {type(self.material).__name__} exports no albedo: the surface "
                    "would have no colours. Try system.material_type=no-material."
                )
            yield output["density"].float().cpu(), exported["albedo"].float().cpu()


def slanted(normals: Float[Tensor, "N 3"]) -> Float[Tensor, "N sides 3"]:
    """Unit vectors SLANT off each normal, evenly around it."""
    axis = F.one_hot(normals.abs().argmin(-1), 3).to(normals)  # far from parallel
    across = F.normalize(torch.linalg.cross(normals, axis), dim=-1)
    along = torch.linalg.cross(normals, across)
    turn = 2 * math.pi * torch.arange(SIDES, device=normals.device)[:, None] / SIDES
    sideways = turn.cos() * across[:, None] + turn.sin() * along[:, None]
    return math.cos(SLANT) * normals[:, None] + math.sin(SLANT) * sideways


def survey(
    field: Field,
    taus: list[float],
    threshold: float | str,
    resolution: int,
    update: Callable[[], Any],
) -> tuple[float, Lattice]:
    """A coarse look at all times: the threshold (`auto`: automatic_threshold), and a lattice around
    what there is. `update` is called after each time."""
    low, high = field.box
    coarse = Lattice.over(low, high, min(resolution, SURVEY_RESOLUTION))
    densest = low.new_full(coarse.shape, -torch.inf)  # over time
    total = total_of_squares = 0.0
    for tau in taus:
        density = field.density(coarse, tau)
        densest = torch.maximum(densest, density)
        total += density.double().sum().item()
        total_of_squares += density.double().square().sum().item()
        update()
    if isinstance(threshold, str):
        threshold = automatic_threshold(typical_density(total, total_of_squares), field.radius)
    # a tenth of the threshold, and one more cell: what is thinner than a cell stays inside
    dense = (densest > threshold / 10).nonzero()
    if len(dense):
        first, last = coarse.step * (dense.amin(0) - 1), coarse.step * (dense.amax(0) + 1)
        low, high = torch.maximum(low, low + first), torch.minimum(high, low + last)
    return float(threshold), Lattice.over(low, high, resolution)
