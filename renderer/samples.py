"""Rays of a batch of images, and the samples on them."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..geometry.times import Runs
from .compositing import Sieve

MANY_SAMPLES = 2**15  # of an image, from which on it is worth calls of its own


@dataclass
class Rays:
    """All rays of a batch of images, flattened."""

    origins: Float[Tensor, "R 3"]
    directions: Float[Tensor, "R 3"]  # unit length
    times: Float[Tensor, "B 1"] | None  # tau of each image; None if the scene stands still
    lights: Float[Tensor, "R 3"] | None  # where the image's light is
    n_images: int = 1  # that have as many rays each

    def __len__(self) -> int:
        return len(self.origins)


@dataclass
class Samples:
    """Packed samples of rays, sorted by ray and then by distance."""

    rays: Rays
    ray_indices: Int[Tensor, " N"]
    t_starts: Float[Tensor, " N"]  # distances from the camera
    t_ends: Float[Tensor, " N"]
    sieve: Sieve | None = None  # that kept them, and says whose colour matters; None: all's does
    counts: list[int] | None = None  # of each image, where somebody has asked

    def __len__(self) -> int:
        return len(self.ray_indices)

    def of_rays(self, values: Float[Tensor, "R C"]) -> Float[Tensor, "N C"]:
        """A value of each ray -> that of each sample's ray."""
        return values.index_select(0, self.ray_indices)

    def parts(
        self, most: int, by_image: bool = True
    ) -> list[tuple[int, Float[Tensor, "_ 1"] | Runs | None]]:
        """Cuts the samples into runs of at most `most` (0: any number): how many, and their times.

        A run of one image has that image's time, [1 1]. Images of few samples go together, with a
        time for each sample, since every call of a geometry has its cost; and so do all of them,
        if not `by_image`, in runs where the images' counts are known.
        """
        times = self.rays.times
        if times is None or len(times) == 1:
            return [(size, times) for size in even_sizes(len(self), most)]
        if not by_image and self.counts is not None and (most <= 0 or len(self) <= most):
            return [(len(self), Runs(times, self.counts))]
        if not by_image or len(self) < len(times) * MANY_SAMPLES:
            sizes = even_sizes(len(self), most)
            image = self.ray_indices // (len(self.rays) // len(times))
            return list(zip(sizes, times.index_select(0, image).split(sizes), strict=True))
        counts = zip(self.of_images(), times.split(1), strict=True)
        return [(size, tau) for count, tau in counts for size in even_sizes(count, most)]

    def of_images(self) -> list[int]:
        """How many samples each image has; the host waits for the device."""
        per_image = len(self.rays) // self.rays.n_images
        edges = torch.arange(self.rays.n_images + 1, device=self.ray_indices.device) * per_image
        return torch.searchsorted(self.ray_indices, edges).diff().tolist()

    def select(self, indices: Int[Tensor, " M"]) -> "Samples":
        ray_indices, t_starts, t_ends = (x.index_select(0, indices) for x in self.packed)
        return Samples(self.rays, ray_indices, t_starts, t_ends)

    @property
    def packed(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.ray_indices, self.t_starts, self.t_ends

    @cached_property
    def t(self) -> Float[Tensor, "N 1"]:
        """Distances of the midpoints."""
        return (0.5 * (self.t_starts + self.t_ends))[:, None]

    @cached_property
    def directions(self) -> Float[Tensor, "N 3"]:
        return self.of_rays(self.rays.directions)

    @cached_property
    def points(self) -> Float[Tensor, "N 3"]:
        """Midpoints in the world."""
        return torch.addcmul(self.of_rays(self.rays.origins), self.directions, self.t)


def per_ray(values: Tensor | None, rays_per_image: int) -> Tensor | None:
    """[B C] -> [B * rays_per_image C]: an image's value for each of its rays."""
    return None if values is None else values.float().repeat_interleave(rays_per_image, dim=0)


def even_sizes(count: int, most: int) -> list[int]:
    """Cuts `count` into as few numbers of at most `most` (0: any) as will do, nearly equal."""
    parts = -(-count // most) if most > 0 else min(count, 1)
    return [count // parts + (i < count % parts) for i in range(parts)]
