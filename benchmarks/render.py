"""Milliseconds, samples and memory of rendering a clip, forward and backward.

python benchmarks/render.py [--frames 16] [--size 128] [--samples 256] [--geometry analytic|field]
    [--blob 10] [--levels 16] [--log2 19] [--normals] [--chunk 524288] [--device cpu|cuda]

The scene is the blob that training starts from (`--blob 100`: one as sharp as a trained one).
`analytic` takes it from its formula, so that the time is the renderer's own; `field` has it from
our 4D hash grid. Stage 1 renders `--frames 2`, stage 2 `--frames 16`.
"""

import argparse
import statistics
from typing import Any

import animate124  # noqa: F401, brings the bundled host where there is no threestudio
import threestudio
import torch
import torch.nn.functional as F
from animate124.data.cameras import Cameras
from animate124.host.argument_types import positive_int
from animate124.renderer import nerf_volume_renderer
from animate124.renderer.nerf_volume_renderer import NeRFVolumeRenderer
from animate124.renderer.ray_marching import march
from animate124.renderer.samples import Rays, per_ray
from measuring import milliseconds
from threestudio.models.geometry.base import BaseImplicitGeometry
from torch import nn


class AnalyticBlob(BaseImplicitGeometry):
    """blob_magic3d without a network."""

    static = False

    def configure(self):
        super().configure()
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward_density(self, points, times=None):
        return F.softplus(self.scale * (1 - points.norm(dim=-1, keepdim=True) / 0.5))

    def forward(self, points, output_normal=False, times=None):
        out = {"density": self.forward_density(points, times), "features": points * self.scale}
        return {**out, "normal": F.normalize(points, dim=-1)} if output_normal else out


def make_geometry(args: argparse.Namespace) -> BaseImplicitGeometry:
    if args.geometry == "analytic":
        geometry = AnalyticBlob({})
        nn.init.constant_(geometry.scale, args.blob)
        return geometry
    return threestudio.find("animate124-implicit-volume")(
        {
            "density_bias": "blob_magic3d",
            "density_blob_scale": args.blob,
            "normal_type": "finite_difference",
            "pos_encoding_config": {"n_levels": args.levels, "log2_hashmap_size": args.log2},
        }
    )


def print_what_shading_changes(renderer: NeRFVolumeRenderer, batch: dict) -> None:
    """Largest change of a pixel and of a parameter's gradient by samples that aren't shaded."""
    pictures, gradients = [], []
    for least in (nerf_volume_renderer.MIN_SHADED_TRANSMITTANCE, 0.0):
        before = nerf_volume_renderer.MIN_SHADED_TRANSMITTANCE
        nerf_volume_renderer.MIN_SHADED_TRANSMITTANCE = least
        torch.manual_seed(0)
        out = renderer(**batch)
        nerf_volume_renderer.MIN_SHADED_TRANSMITTANCE = before
        names = [name for name in ("comp_rgb", "comp_normal") if name in out]
        target = torch.linspace(0, 1, out["comp_rgb"].numel(), device=out["comp_rgb"].device)
        loss = sum((out[name] - target.view_as(out[name])).square().sum() for name in names)
        parameters = [p for p in renderer.geometry.parameters() if p.requires_grad]
        gradients.append(torch.autograd.grad(loss, parameters))
        pictures.append([out[name].detach() for name in names])
    pixel = max((a - b).abs().max().item() for a, b in zip(*pictures, strict=True))
    of = [((a - b).norm() / b.norm()).item() for a, b in zip(*gradients, strict=True)]
    print(
        f"leaving out what isn't shaded changes pixels by {pixel:.1e}, gradients by {max(of):.1e}"
    )


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=positive_int, default=16)
    parser.add_argument("--size", type=positive_int, default=128, help="pixels a side")
    parser.add_argument("--samples", type=positive_int, default=256, help="num_samples_per_ray")
    parser.add_argument("--geometry", choices=["analytic", "field"], default="analytic")
    parser.add_argument("--blob", type=float, default=10.0, help="density_blob_scale")
    parser.add_argument("--levels", type=positive_int, default=16, help="of the field's hash grids")
    parser.add_argument(
        "--log2", type=positive_int, default=19, help="log2 of a level's most entries"
    )
    parser.add_argument("--normals", action="store_true", help="render normals too")
    parser.add_argument("--chunk", type=int, default=2**19, help="train_chunk_size")
    parser.add_argument("--repeats", type=positive_int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def make_renderer(args: argparse.Namespace) -> NeRFVolumeRenderer:
    """The renderer, its occupancy grid as it is after the first 320 steps."""
    renderer = NeRFVolumeRenderer(
        {
            "num_samples_per_ray": args.samples,
            "return_comp_normal": args.normals,
            "train_chunk_size": args.chunk,
        },
        geometry=make_geometry(args).to(args.device),
        material=threestudio.find("no-material")({}).to(args.device),
        background=threestudio.find("solid-color-background")({}).to(args.device),
    ).to(args.device)
    for step in range(0, 20 * 16, 16):
        renderer.update_step(0, step)
    return renderer


def make_batch(args: argparse.Namespace) -> dict[str, Any]:
    """A clip whose camera turns and rises."""
    cameras = Cameras.of(torch.linspace(-30, 30, args.frames), torch.linspace(0, 90, args.frames))
    frame_times = torch.linspace(0, 1, args.frames)
    batch = cameras.batch(args.size, args.size, frame_times)
    return {k: v.to(args.device) if torch.is_tensor(v) else v for k, v in batch.items()}


def main() -> None:
    args = options().parse_args()
    torch.manual_seed(0)
    renderer, batch = make_renderer(args), make_batch(args)
    rays = Rays(
        batch["rays_o"].reshape(-1, 3),
        batch["rays_d"].reshape(-1, 3),
        per_ray(batch["frame_times"][:, None], args.size**2),
        None,
    )
    grid = renderer.estimator
    grid_args = grid.binaries[0], grid.aabbs[0], renderer.step_size

    def forward():
        return renderer(**batch)

    def forward_and_backward():
        renderer.geometry.zero_grad()
        out = forward()
        sum(out[k].mean() for k in ("comp_rgb", "opacity", "comp_normal") if k in out).backward()

    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    n_marched = len(march(rays.origins, rays.directions, *grid_args)[0])
    samples = renderer.sample(rays)
    kept = samples.ray_indices
    shaded = 1.0 if samples.shaded is None else samples.shaded.float().mean().item()
    print(
        f"{args.frames} frames of {args.size} x {args.size}, {args.samples} samples a ray, "
        f"{args.geometry}, blob {args.blob:g}, {args.device}, torch {torch.__version__}\n"
        f"samples kept {len(kept):,} (marched {n_marched:,}), "
        f"rays hit {len(kept.unique()) / len(rays):.1%}, shaded {shaded:.1%} of the kept"
    )
    print_what_shading_changes(renderer, batch)
    parts = {
        "grid update, all cells": lambda: renderer.update_step(0, 0),
        "grid update, later": lambda: renderer.update_step(0, 512),
        "march": lambda: march(rays.origins, rays.directions, *grid_args),
        "march and prune": lambda: renderer.sample(rays),
        "forward": forward,
        "forward and backward": forward_and_backward,
    }
    for name, run in parts.items():
        ms = statistics.median(milliseconds(run, args.repeats, warm_up=1))
        print(f"{name:>24} {ms:9.1f} ms")
    if args.device == "cuda":
        peak = torch.cuda.max_memory_allocated()
        print(f"peak memory {peak / 2**30:.2f} GiB, {peak / len(kept):.0f} bytes a kept sample")


if __name__ == "__main__":
    main()
