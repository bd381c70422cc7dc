"""From a field on a grid to a mesh."""

import torch
import torch.nn as nn
from jaxtyping import Float
from threestudio.models.mesh import Mesh
from torch import Tensor


class MarchingCubeCPUHelper(nn.Module):
    """Marching cubes over a cubic grid in [0, 1]^3, on the CPU by scikit-image."""

    points_range: tuple[float, float] = (0.0, 1.0)

    def __init__(self, resolution: int) -> None:
        super().__init__()
        self.resolution = resolution

    @property
    def grid_vertices(self) -> Float[Tensor, "N 3"]:
        """The grid's points, x slowest; on the CPU, since large grids don't fit elsewhere."""
        line = torch.linspace(*self.points_range, self.resolution)
        return torch.stack(torch.meshgrid(line, line, line, indexing="ij"), dim=-1).reshape(-1, 3)

    def forward(self, level: Float[Tensor, "N 1"]) -> Mesh:
        """The surface where level is 0; inside it is negative. Vertices in [0, 1]^3."""
        try:
            from skimage.measure import marching_cubes
        except ImportError:
            raise ImportError(
                "Marching cubes need scikit-image: pip install scikit-image"
            ) from None
        volume = level.detach().cpu().float().reshape([self.resolution] * 3).numpy()
        if not volume.min() < 0 < volume.max():
            raise ValueError(
                f"There is no surface: the level runs from {volume.min():.4g} to "
                f"{volume.max():.4g} and never crosses 0. "
                "Try another isosurface_threshold (or 'auto')."
            )
        vertices, faces, _, _ = marching_cubes(volume, 0.0, gradient_direction="descent")
        return Mesh(
            v_pos=torch.from_numpy(vertices / (self.resolution - 1)).float().to(level.device),
            t_pos_idx=torch.from_numpy(faces.astype("int64")).to(level.device),
        )
