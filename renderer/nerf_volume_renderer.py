"""The volume renderer: rays and frame times to images, all frames of a clip in one call.

A ray's samples lie on a lattice of `num_samples_per_ray` points along the diagonal of the scene's
box. They are thinned out in two passes without gradient, first by the occupancy grid and then by
their density (`march`, `visible`); what is left goes through geometry and material once and is
composited over the background. Everything here runs in float32, under autocast too.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import threestudio
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from threestudio.models.background.base import BaseBackground
from threestudio.models.geometry.base import BaseImplicitGeometry
from threestudio.models.materials.base import BaseMaterial
from threestudio.models.renderers.base import VolumeRenderer
from threestudio.utils.ops import chunk_batch
from torch import Tensor

from .compositing import accumulate, depth_variance, render_weights, visible
from .occupancy_grid import UPDATE_EVERY, OccupancyGrid
from .ray_marching import march

MIN_TRANSMITTANCE = 1e-4  # share of the light that reaches a sample; one with less is hidden
PRUNING_CHUNK = 2**20  # samples that training looks at together where no graph is kept
PERTURBATION = 0.01  # standard deviation of normal_perturb's points, world units


@dataclass
class Rays:
    """All rays of a batch of images, flattened."""

    origins: Float[Tensor, "R 3"]
    directions: Float[Tensor, "R 3"]  # unit length
    times: Float[Tensor, "R 1"] | None  # tau; None if the scene stands still
    lights: Float[Tensor, "R 3"] | None  # where the image's light is

    def __len__(self) -> int:
        return len(self.origins)


@dataclass
class Samples:
    """Packed samples of rays, sorted by ray and then by distance."""

    rays: Rays
    ray_indices: Int[Tensor, " N"]
    t_starts: Float[Tensor, " N"]  # distances from the camera
    t_ends: Float[Tensor, " N"]

    def __len__(self) -> int:
        return len(self.ray_indices)

    def of_rays(self, values: Tensor | None) -> Tensor | None:
        """A value of each ray -> that of each sample's ray."""
        return None if values is None else values.index_select(0, self.ray_indices)

    def select(self, indices: Int[Tensor, " M"]) -> "Samples":
        ray_indices, t_starts, t_ends = self.packed
        return Samples(self.rays, ray_indices[indices], t_starts[indices], t_ends[indices])

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


def takes_times(function: Callable) -> bool:
    """Whether a geometry's method has an argument `times`; those of stock geometries have none."""
    return "times" in inspect.signature(function).parameters


@threestudio.register("animate124-nerf-volume-renderer")
class NeRFVolumeRenderer(VolumeRenderer):
    @dataclass
    class Config(VolumeRenderer.Config):
        num_samples_per_ray: int = 256  # lattice points on the diagonal of the scene's box
        randomized: bool = True  # training shifts each ray's lattice by a random part of a step
        near_plane: float = 0.0  # distance from the camera at which rays start, world units
        far_plane: float = 1e10  # ... and end
        eval_chunk_size: int = 160000  # samples that eval passes to the geometry at once; 0: all
        grid_prune: bool = True  # leave out samples in empty cells of the occupancy grid
        prune_alpha_threshold: bool = True  # leave out transparent and hidden samples in the others
        return_comp_normal: bool = False  # training renders normals too; eval does if it has them
        return_normal_perturb: bool = False  # training returns normals near the samples too

    cfg: Config

    def configure(
        self, geometry: BaseImplicitGeometry, material: BaseMaterial, background: BaseBackground
    ) -> None:
        super().configure(geometry, material, background)
        if self.cfg.num_samples_per_ray < 1:
            raise ValueError(
                f"renderer.num_samples_per_ray is {self.cfg.num_samples_per_ray}; "
                "it must be at least 1 (256 is usual, 32 is coarse)."
            )
        self.estimator = OccupancyGrid(self.bbox.flatten())
        if not self.cfg.grid_prune:
            self.estimator.fill()

    @property
    def step_size(self) -> float:
        """Distance between a ray's samples in world units; 1.732 stands for sqrt(3)."""
        return 1.732 * 2 * self.cfg.radius / self.cfg.num_samples_per_ray

    @property
    def dynamic(self) -> bool:
        """Whether the geometry changes with time."""
        return takes_times(self.geometry.forward) and not getattr(self.geometry, "static", False)

    def forward(
        self,
        rays_o: Float[Tensor, "B H W 3"],
        rays_d: Float[Tensor, "B H W 3"],
        frame_times: Float[Tensor, " B"] | None = None,
        light_positions: Float[Tensor, "B 3"] | None = None,
        bg_color: Float[Tensor, "..."] | None = None,
        **camera: Any,
    ) -> dict[str, Any]:
        """Images [B H W C] of rays with unit directions; image b shows the time frame_times[b].

        comp_rgb = comp_rgb_fg + (1 - opacity) comp_rgb_bg. depth is the weighted sum of distances,
        z_variance their variance, comp_normal the mean normal in [0, 1] times opacity.
        `bg_color` ([C], [B C] or [B H W C]) replaces the background. `camera` goes to the material.

        Training adds what losses ask for, one row a sample: weights, t_points, t_intervals, t_dirs,
        points [N C], ray_indices [N], and all that the geometry returned.
        """
        batch, height, width, _ = rays_o.shape
        for name, value in (("frame_times", frame_times), ("light_positions", light_positions)):
            if value is not None and len(value) != batch:
                raise ValueError(
                    f"{name} has {len(value)} entries for {batch} images; give one for each image."
                )
        with torch.autocast(rays_o.device.type, enabled=False):
            rays_o, rays_d = rays_o.float(), rays_d.float()
            times = frame_times[:, None] if self.dynamic and frame_times is not None else None
            rays = Rays(
                origins=rays_o.reshape(-1, 3),
                directions=rays_d.reshape(-1, 3),
                times=per_ray(times, height * width),
                lights=per_ray(light_positions, height * width),
            )
            samples = self.sample(rays)
            geo_out, rgb = self.shade(samples, camera)
            comp_rgb_bg = self.render_background(rays_d, bg_color)
            weights, rendered = self.composite(samples, geo_out, rgb, comp_rgb_bg.flatten(0, 2))
            out = {name: value.view(batch, height, width, -1) for name, value in rendered.items()}
            out["comp_rgb_bg"] = comp_rgb_bg
            if self.training:
                out |= {
                    "weights": weights[:, None],
                    "t_points": samples.t,
                    "t_intervals": (samples.t_ends - samples.t_starts)[:, None],
                    "t_dirs": samples.directions,
                    "ray_indices": samples.ray_indices,
                    "points": samples.points,
                    **geo_out,
                }
                if self.cfg.return_normal_perturb:
                    near = samples.points + PERTURBATION * torch.randn_like(samples.points)
                    out["normal_perturb"] = self.query(
                        self.geometry, near, samples.of_rays(rays.times), output_normal=True
                    )["normal"]
            return out

    @torch.no_grad()
    def sample(self, rays: Rays) -> Samples:
        """The samples that matter: in occupied cells, and neither transparent nor hidden.

        There is always one: where nothing is hit, a sample of length 0 at the first ray's origin
        stands in. It has no weight, and with it every output stays differentiable and means over
        samples stay finite.
        """
        origins = rays.origins
        randomized = self.training and self.cfg.randomized
        samples = Samples(
            rays,
            *march(
                origins,
                rays.directions,
                self.estimator.binaries[0],
                self.estimator.aabbs[0],
                self.step_size,
                near=self.cfg.near_plane,
                far=self.cfg.far_plane,
                jitter=torch.rand_like(origins[:, 0]) if randomized else None,
            ),
        )
        if self.cfg.grid_prune and self.cfg.prune_alpha_threshold and len(samples) > 0:
            samples = samples.select(self.visible_samples(samples))
        if len(samples) == 0:
            nowhere = origins.new_zeros(1)
            samples = Samples(rays, nowhere.long(), nowhere, nowhere)
        return samples

    def visible_samples(self, samples: Samples) -> Int[Tensor, " M"]:
        """Indices of the samples that are opaque enough and not hidden by others."""
        times = samples.of_rays(samples.rays.times)
        density = self.query(self.geometry.forward_density, samples.points, times)
        ray_indices, t_starts, t_ends = samples.packed
        kept = visible(
            density[:, 0],
            t_starts,
            t_ends,
            ray_indices,
            len(samples.rays),
            min_alpha=self.estimator.alpha_threshold(),
            min_transmittance=MIN_TRANSMITTANCE,
        )
        return kept.nonzero()[:, 0]

    @property
    def chunk_size(self) -> int:
        """Samples that go through geometry and material at once; 0: all, whose graph is kept."""
        if not self.training:
            return self.cfg.eval_chunk_size
        return 0 if torch.is_grad_enabled() else PRUNING_CHUNK

    def query(
        self,
        function: Callable,
        points: Float[Tensor, "N 3"],
        times: Float[Tensor, "N 1"] | None,
        **kwargs: Any,
    ) -> Any:
        """The geometry, or a method of it, at points and times."""
        if times is not None:
            kwargs["times"] = times
        return chunk_batch(function, self.chunk_size, points, **kwargs)

    def shade(
        self, samples: Samples, camera: dict[str, Any]
    ) -> tuple[dict[str, Tensor], Float[Tensor, "N C"]]:
        """The geometry's output and the colour of each sample."""
        times, lights = samples.of_rays(samples.rays.times), samples.of_rays(samples.rays.lights)
        wants_normal = self.cfg.return_comp_normal or self.material.requires_normal
        geo_out = self.query(self.geometry, samples.points, times, output_normal=wants_normal)
        rgb = chunk_batch(
            partial(self.material, **camera),
            self.chunk_size,
            viewdirs=samples.directions,
            positions=samples.points,
            **({} if lights is None else {"light_positions": lights}),
            **geo_out,
        )
        return geo_out, rgb

    def render_background(
        self, rays_d: Float[Tensor, "B H W 3"], bg_color: Float[Tensor, "..."] | None
    ) -> Float[Tensor, "B H W C"]:
        """The background behind each pixel, or `bg_color` if given."""
        if bg_color is None:
            return self.background(dirs=rays_d)
        color = bg_color.to(rays_d)
        if color.ndim == 2:  # one of each image
            color = color[:, None, None]
        try:
            return color.expand(*rays_d.shape[:3], -1)
        except RuntimeError as error:
            raise ValueError(
                f"bg_color has the shape {list(bg_color.shape)}; for {rays_d.shape[0]} images of "
                f"{rays_d.shape[1]} x {rays_d.shape[2]} pixels give [C], [B C] or [B H W C]."
            ) from error

    def composite(
        self,
        samples: Samples,
        geo_out: dict[str, Tensor],
        rgb: Float[Tensor, "N C"],
        background: Float[Tensor, "R C"],
    ) -> tuple[Float[Tensor, " N"], dict[str, Float[Tensor, "R ..."]]]:
        """Weights of the samples, and what they sum to on each ray."""
        ray_indices, t_starts, t_ends = samples.packed
        n_rays = len(samples.rays)
        density = geo_out["density"][:, 0]
        weights = render_weights(density, t_starts, t_ends, ray_indices, n_rays)
        opacity = accumulate(weights, None, ray_indices, n_rays)
        comp_rgb_fg = accumulate(weights, rgb, ray_indices, n_rays)
        rendered = {
            "comp_rgb": comp_rgb_fg + (1 - opacity) * background,
            "comp_rgb_fg": comp_rgb_fg,
            "opacity": opacity,
            "depth": accumulate(weights, samples.t, ray_indices, n_rays),
            "z_variance": depth_variance(weights, samples.t[:, 0], opacity, ray_indices),
        }
        if "normal" in geo_out and (self.cfg.return_comp_normal or not self.training):
            normal = F.normalize(
                accumulate(weights, geo_out["normal"], ray_indices, n_rays), dim=-1
            )
            rendered["comp_normal"] = (normal + 1) / 2 * opacity
        return weights, rendered

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        """Before a training step: every so often, look again where the scene has density."""
        if not (self.cfg.grid_prune and self.training) or on_load_weights:
            return
        if global_step % UPDATE_EVERY == 0:
            with torch.autocast(self.bbox.device.type, enabled=False):
                self.estimator.update(global_step, self.alpha_at_random_times)

    def alpha_at_random_times(self, points: Float[Tensor, "N 3"]) -> Float[Tensor, " N"]:
        """Opacity of one step, to first order in the step; each point at a time of its own."""
        times = torch.rand_like(points[:, :1]) if self.dynamic else None
        return self.query(self.geometry.forward_density, points, times)[:, 0] * self.step_size
