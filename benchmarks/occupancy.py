"""What an occupancy grid for each time slice would leave out that the one over all times keeps.

python benchmarks/occupancy.py outputs/<scene>/stage3 [--slices 16]

Cells count as occupied as the renderer's own grid counts them, from random points in each cell; a
trial folder of a dynamic scene is needed.
"""

import argparse
from pathlib import Path

import torch
from animate124.host.argument_types import positive_int
from animate124.renderer.occupancy_grid import OccupancyGrid, cell_points
from animate124.system.trained import Scene, load_scene
from jaxtyping import Bool, Float
from torch import Tensor

LOOKS = 4  # random points in each cell, at each time


@torch.no_grad()
def occupied(
    scene: Scene, tau: Float[Tensor, "1 1"], generator: torch.Generator
) -> Bool[Tensor, " M"]:
    """The grid's cells that are occupied at this time."""
    renderer = scene.system.renderer
    grid: OccupancyGrid = renderer.estimator
    cells = torch.arange(grid.occs.numel(), device=grid.occs.device)
    alpha = torch.zeros_like(grid.occs)
    for _ in range(LOOKS):
        points = cell_points(cells, grid.resolution, grid.aabbs[0], generator=generator)
        density = renderer.geometry.forward_density(points, times=tau)[:, 0]
        alpha = torch.maximum(alpha, density * renderer.step_size)
    return alpha > grid.alpha_threshold()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trial", type=Path, help="folder of stage 2's or 3's trial")
    parser.add_argument(
        "--slices", type=positive_int, default=16, help="frame times that are looked at"
    )
    args = parser.parse_args()

    checkpoint = args.trial / "ckpts" / "last.ckpt"
    scene = load_scene(args.trial / "configs" / "parsed.yaml", checkpoint)
    device = scene.system.device
    generator = torch.Generator(device).manual_seed(0)
    times = torch.linspace(0, 1, args.slices, device=device)
    slices = torch.stack([occupied(scene, tau.view(1, 1), generator) for tau in times])
    own = scene.system.renderer.estimator.binaries.float().mean().item()
    each, union = slices.float().mean().item(), slices.any(0).float().mean().item()
    print(f"occupied cells: the grid {own:.1%}, all {args.slices} slices {union:.1%}")
    print(f"a slice {each:.1%}: {each / union:.0%} of all slices, {each / own:.0%} of the grid")


if __name__ == "__main__":
    main()
