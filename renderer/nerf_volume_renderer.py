"""The volume renderer: rays and frame times to images, all frames of a clip in one call.

A ray's samples lie on a lattice of `num_samples_per_ray` points along the diagonal of the scene's
box. They are thinned out in two passes without gradient, first by the occupancy grid and then by
their density (`march`, `visible`); what is left goes through geometry and material once and is
composited over the background. Everything here runs in float32, under autocast too.

The geometry runs in parts, image by image where images have many samples, since a field is faster
at one time (one that is deformed is not). In training the last parts keep their graph, as many as
`train_chunk_size` allows, and the others are evaluated again in the backward pass: memory follows
that and not frames x pixels.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, cast

import threestudio
import torch
from jaxtyping import Float
from threestudio.models.background.base import BaseBackground
from threestudio.models.geometry.base import BaseImplicitGeometry
from threestudio.models.materials.base import BaseMaterial
from threestudio.models.renderers.base import VolumeRenderer
from threestudio.utils.ops import chunk_batch
from torch import Tensor

from ..bounds import Bounded, bounded, in_order
from ..geometry.times import is_static, random_moments
from ..plain import plain
from . import compositing, compositing_cuda
from .ahead import ahead_of_queue, handed_over
from .occupancy_grid import UPDATE_EVERY, OccupancyGrid
from .ray_marching import march
from .recomputation import joined_parts
from .samples import Rays, Samples, per_ray

MIN_TRANSMITTANCE = 1e-4  # share of the light that reaches a sample; one with less is hidden
# ... and one with less than this has the colour and the normal of the last one before that has
# more: pixels and gradients change by less than 1e-3 (tests/test_renderer.py)
MIN_SHADED_TRANSMITTANCE = 5e-4
PRUNING_CHUNK = 2**20  # samples that training looks at together where no graph is kept
PERTURBATION = 0.01  # standard deviation of normal_perturb's points, world units


@threestudio.register("animate124-nerf-volume-renderer")
class NeRFVolumeRenderer(VolumeRenderer):
    @dataclass
    class Config(VolumeRenderer.Config, Bounded):
        radius: float = bounded(1.0, above=0, high=1e6)  # half the side of the box that is rendered
        # lattice points on the diagonal of the scene's box
        num_samples_per_ray: int = bounded(256, 1, 2**20)
        randomized: bool = True  # training shifts each ray's lattice by a random part of a step
        # distance from the camera at which rays start, world units
        near_plane: float = bounded(0.0, 0)
        far_plane: float = bounded(1e10, above=0)  # ... and end
        # samples that eval passes to the geometry at once; 0: all
        eval_chunk_size: int = bounded(160000, 0)
        # samples whose graph training keeps at once; 0: all
        train_chunk_size: int = bounded(2**19, 0)
        # moments of a scene that moves, at which an update of the occupancy grid looks at its
        # points; 1: a random one for each point
        occupancy_moments: int = bounded(1, 1, 1024)
        grid_prune: bool = True  # leave out samples in empty cells of the occupancy grid
        prune_alpha_threshold: bool = True  # leave out transparent and hidden samples in the others
        return_comp_normal: bool = False  # training renders normals too; eval does if it has them
        return_normal_perturb: bool = False  # training returns normals near the samples too

        def __post_init__(self) -> None:
            super().__post_init__()
            in_order(self, "near_plane", "far_plane")

    cfg: Config
    light: ClassVar[dict[str, Any]] = {"return_comp_normal": False}  # to be looked at
    with_normals: ClassVar[dict[str, Any]] = {"return_comp_normal": True}  # or so

    def configure(
        self, geometry: BaseImplicitGeometry, material: BaseMaterial, background: BaseBackground
    ) -> None:
        super().configure(geometry, material, background)
        self.cfg = plain(self.cfg)
        self.estimator = OccupancyGrid(self.bbox.flatten())
        if not self.cfg.grid_prune:
            self.estimator.fill()

    @property
    def step_size(self) -> float:
        """Distance between a ray's samples in world units; 1.732 stands for sqrt(3)."""
        return 1.732 * 2 * self.cfg.radius / self.cfg.num_samples_per_ray

    @property
    def forward_density(self) -> Callable[..., Float[Tensor, "N 1"]]:
        """The geometry's, which threestudio's base class of geometries doesn't name."""
        return cast(Any, self.geometry).forward_density

    @property
    def dynamic(self) -> bool:
        """Whether the geometry changes with time."""
        return not is_static(self.geometry)

    @property
    def deformed(self) -> bool:
        """Whether the geometry's points move, and nothing else of it changes with time."""
        return getattr(self.geometry, "deformation", None) is not None

    def forward(
        self,
        rays_o: Float[Tensor, "B H W 3"],
        rays_d: Float[Tensor, "B H W 3"],
        frame_times: Float[Tensor, " B"] | None = None,
        light_positions: Float[Tensor, "B 3"] | None = None,
        bg_color: Float[Tensor, "..."] | None = None,
        made: torch.cuda.Event | None = None,
        pictures_only: bool = False,
        **camera: Any,
    ) -> dict[str, Any]:
        """Images [B H W C] of rays with unit directions; image b shows the time frame_times[b].

        comp_rgb = comp_rgb_fg + (1 - opacity) comp_rgb_bg. depth is the weighted sum of distances,
        z_variance their variance, comp_normal the mean normal in [0, 1] times opacity.
        `bg_color` ([C], [B C] or [B H W C]) replaces the background. `camera` goes to the material.
        made: since when the rays are there, where they are older than what the GPU has to do.

        Training adds what losses ask for, one row a sample: weights, t_points, t_intervals, t_dirs,
        points [N C], ray_indices [N], and all that the geometry returned; unless `pictures_only`.
        """
        batch, height, width, _ = rays_o.shape
        ahead = self.ahead(made, rays_o, rays_d)
        for name, value in (("frame_times", frame_times), ("light_positions", light_positions)):
            if value is not None and len(value) != batch:
                raise ValueError(
                    f"{name} has {len(value)} entries for {batch} images; give one for each image."
                )
        with torch.autocast(rays_o.device.type, enabled=False):
            rays_o, rays_d = rays_o.float(), rays_d.float()
            times = frame_times[:, None] if self.dynamic and frame_times is not None else None
            lights = per_ray(light_positions, height * width)
            rays = Rays(rays_o.reshape(-1, 3), rays_d.reshape(-1, 3), times, lights, batch)
            samples = self.sample(rays, ahead)
            geo_out, rgb = self.shade(samples, camera)
            comp_rgb_bg = self.render_background(rays_d, bg_color)
            weights, rendered = self.composite(samples, geo_out, rgb, comp_rgb_bg.flatten(0, 2))
            out = {name: value.view(batch, height, width, -1) for name, value in rendered.items()}
            out["comp_rgb_bg"] = comp_rgb_bg
            if self.training and not pictures_only:
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
                    perturbed = self.evaluate(self.geometry, samples, near, output_normal=True)
                    out["normal_perturb"] = perturbed["normal"]
            return out

    def ahead(
        self, made: torch.cuda.Event | None, *rays: Float[Tensor, "B H W 3"]
    ) -> AbstractContextManager[None] | None:
        """For `sample`: ahead of the GPU's queue, where both rays and occupancy grid are there."""
        grid = None if made is None or not self.training else self.estimator.ready()
        as_taken = all(x.dtype == torch.float32 and x.is_contiguous() for x in rays)
        if made is None or grid is None or not as_taken:  # else they are made so behind the queue
            return None
        return ahead_of_queue(rays[0].device, (made, grid))

    @torch.no_grad()
    def sample(self, rays: Rays, ahead: AbstractContextManager[None] | None = None) -> Samples:
        """The samples that matter: in occupied cells, and neither transparent nor hidden.

        ahead: where cells are looked at, which needs no more than rays and grid.

        There is always one: where nothing is hit, a sample of length 0 at the first ray's origin
        stands in. It has no weight, and with it every output stays differentiable and means over
        samples stay finite.
        """
        with nullcontext() if ahead is None else ahead:
            samples = self.settled(self.marched(rays))
        if ahead is not None:
            handed_over(samples.packed)
        if self.cfg.grid_prune and self.cfg.prune_alpha_threshold:
            samples = self.settled(self.visible_samples(samples))
        return samples

    def marched(self, rays: Rays) -> Samples:
        """Those in occupied cells."""
        origins = rays.origins
        randomized = self.training and self.cfg.randomized
        found = march(
            origins,
            rays.directions,
            self.estimator.binaries[0],
            self.estimator.aabbs[0],
            self.step_size,
            box=self.estimator.occupied_box(),
            near=self.cfg.near_plane,
            far=self.cfg.far_plane,
            jitter=torch.rand_like(origins[:, 0]) if randomized else None,
        )
        return Samples(rays, *found)

    def settled(self, samples: Samples) -> Samples:
        """With one that stands in if there are none; those of a deformed clip, counted."""
        rays = samples.rays
        if len(samples) == 0:
            nowhere = rays.origins.new_zeros(1)
            samples = Samples(rays, nowhere.long(), nowhere, nowhere)
        if self.deformed and rays.times is not None and len(rays.times) > 1:
            samples.counts = samples.of_images()
        return samples

    def visible_samples(self, samples: Samples) -> Samples:
        """Those that are opaque enough and not hidden behind others on their ray."""
        density = self.evaluate(self.forward_density, samples, samples.points)[:, 0]
        ray_indices, t_starts, t_ends = samples.packed
        fast = compositing_cuda.fits(density)
        looked_at = density, t_starts, t_ends, ray_indices, len(samples.rays)
        least = self.estimator.alpha_threshold(), MIN_TRANSMITTANCE, MIN_SHADED_TRANSMITTANCE
        if fast:
            found = compositing_cuda.sieve_cuda(*looked_at, *least)
        else:
            found = compositing.sieve(compositing.look(*looked_at, *least))
        samples = samples.select(found.kept)
        samples.sieve = found
        return samples

    def evaluate(
        self, function: Callable, samples: Samples, points: Float[Tensor, "N 3"], **kwargs: Any
    ) -> Any:
        """The geometry, or a method of it, at points of the samples' frame times."""
        with_graph = self.training and torch.is_grad_enabled()
        without_graph = PRUNING_CHUNK if self.training else self.cfg.eval_chunk_size
        most = self.cfg.train_chunk_size if with_graph else without_graph
        sizes, times = zip(*samples.parts(most, not self.deformed), strict=True)
        calls = [
            partial(function, own, **kwargs, **({} if tau is None else {"times": tau}))
            for own, tau in zip(points.split(sizes), times, strict=True)
        ]
        return joined_parts(calls, sizes, most if with_graph else 0)

    def shade(
        self, samples: Samples, camera: dict[str, Any]
    ) -> tuple[dict[str, Tensor], Float[Tensor, "N C"]]:
        """The geometry's output and the colour of each sample.

        All have a density of their own; those that the sieve calls dark take the rest from the
        last lit one before them.
        """
        found = samples.sieve
        if found is None or len(found.lit) in (0, len(samples)):
            return self.shade_all(samples, camera)
        geo_out, rgb = self.shade_all(samples.select(found.lit), camera)
        unlit = samples.select(found.dark)
        density = self.evaluate(self.forward_density, unlit, unlit.points)

        def spread(values: Float[Tensor, "M C"]) -> Float[Tensor, "N C"]:
            return values.index_select(0, found.ahead)

        own = torch.cat([geo_out["density"], density]).index_select(0, found.order)
        once = {id(values): spread(values) for values in geo_out.values()}  # a normal has two names
        geo_out = {name: once[id(values)] for name, values in geo_out.items()} | {"density": own}
        return geo_out, spread(rgb)

    def shade_all(
        self, samples: Samples, camera: dict[str, Any]
    ) -> tuple[dict[str, Tensor], Float[Tensor, "N C"]]:
        """`shade` without leaving out any."""
        lights = samples.rays.lights
        wants_normal = self.cfg.return_comp_normal or self.material.requires_normal
        geo_out = self.evaluate(self.geometry, samples, samples.points, output_normal=wants_normal)
        rgb = chunk_batch(
            partial(self.material, **camera),
            0 if self.training else self.cfg.eval_chunk_size,
            viewdirs=samples.directions,
            positions=samples.points,
            **({} if lights is None else {"light_positions": samples.of_rays(lights)}),
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
        density = geo_out["density"][:, 0]
        shows_normal = self.cfg.return_comp_normal or not self.training
        normal = geo_out.get("normal") if shows_normal else None
        fast = compositing_cuda.fits(density, rgb, normal, background)
        composite = compositing_cuda.composite_cuda if fast else compositing.composite
        weights, *rendered = composite(
            density, rgb, normal, background, t_starts, t_ends, ray_indices
        )
        named = zip(compositing.Composite._fields[1:], rendered, strict=True)
        return weights, {name: value for name, value in named if value is not None}

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        """Before a training step: every so often, look again where the scene has density."""
        if not (self.cfg.grid_prune and self.training) or on_load_weights:
            return
        if global_step % UPDATE_EVERY == 0:
            with torch.autocast(self.bbox.device.type, enabled=False):
                self.estimator.update(global_step, self.alpha_at_random_times)

    def alpha_at_random_times(self, points: Float[Tensor, "N 3"]) -> Float[Tensor, " N"]:
        """Opacity of one step, to first order in the step; each point at a time of its own, or at
        its most opaque of some moments."""
        look = partial(chunk_batch, self.forward_density, PRUNING_CHUNK, points)
        moments = self.cfg.occupancy_moments
        if not self.dynamic:
            density = look()
        elif moments == 1:
            density = look(times=torch.rand_like(points[:, :1]))
        else:
            tau = random_moments(moments, points.device).split(1)
            density = torch.stack([look(times=at) for at in tau]).amax(dim=0)
        return density[:, 0] * self.step_size
