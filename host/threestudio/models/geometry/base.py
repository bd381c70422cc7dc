"""Geometries: points in space -> density (or distance) and features, and a mesh of the surface.

World: right-handed, z up; the scene lies within `radius` of the origin.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from omegaconf import DictConfig
from threestudio.log import debug, info, warn
from threestudio.models.isosurface import MarchingCubeCPUHelper
from threestudio.models.mesh import Mesh
from threestudio.utils.base import BaseModule
from threestudio.utils.bounds import bounded
from threestudio.utils.ops import chunk_batch, scale_tensor
from torch import Tensor


def contract_to_unisphere(
    x: Float[Tensor, "*B 3"], bbox: Float[Tensor, "2 3"], unbounded: bool = False
) -> Float[Tensor, "*B 3"]:
    """World points as points of the unit cube.

    Bounded: the box fills it. Unbounded: all of space does, with the box in its middle half
    (contracted as in mip-NeRF 360).
    """
    x = scale_tensor(x, bbox, (0, 1))
    if not unbounded:
        return x
    x = x * 2 - 1
    mag = x.norm(dim=-1, keepdim=True)
    outside = (2 - 1 / mag.clamp(min=1)) * (x / mag.clamp(min=1))
    return torch.where(mag > 1, outside, x) / 4 + 0.5


class BaseGeometry(BaseModule):
    @dataclass
    class Config(BaseModule.Config):
        pass

    cfg: Config

    @staticmethod
    def create_from(
        other: "BaseGeometry", cfg: dict | DictConfig | None = None, **kwargs
    ) -> "BaseGeometry":
        """Override to build a geometry out of another one."""
        raise TypeError(f"This geometry cannot be made from a {type(other).__name__}.")

    def export(self, *args, **kwargs) -> dict[str, Any]:
        """Override to give what a material needs at surface points (such as `features`)."""
        return {}


class BaseImplicitGeometry(BaseGeometry):
    @dataclass
    class Config(BaseGeometry.Config):
        radius: float = bounded(1.0, above=0)  # half the side of the box around the scene
        isosurface: bool = True  # whether a mesh may be asked for
        # marching cubes; `mt` is taken for the same
        isosurface_method: str = bounded("mc-cpu", names=("mc-cpu", "mt"))
        isosurface_resolution: int = bounded(128, 2, 4096)  # grid points along an edge of the box
        # field value at the surface; auto: the mean of the positive ones
        isosurface_threshold: float | str = bounded(0.0, names=("auto",), numbers=True)
        isosurface_chunk: int = bounded(0, 0)  # grid points evaluated at once; 0: all
        isosurface_coarse_to_fine: bool = True  # a second pass, in the box of the first pass's mesh
        isosurface_remove_outliers: bool = True  # drop small separate pieces
        # faces a piece needs, or share of the largest piece's
        isosurface_outlier_n_faces_threshold: int | float = bounded(0.01, 0)

    cfg: Config

    def configure(self) -> None:
        r = self.cfg.radius
        self.bbox: Float[Tensor, "2 3"]
        self.register_buffer("bbox", torch.tensor([[-r, -r, -r], [r, r, r]], dtype=torch.float32))
        self.isosurface_helper: MarchingCubeCPUHelper | None = None
        self.unbounded: bool = False

    def forward(
        self, points: Float[Tensor, "*N Di"], output_normal: bool = False
    ) -> dict[str, Tensor]:
        """What a renderer needs: `density` [*N 1], `features` [*N Nf], and normals if asked."""
        raise NotImplementedError

    def forward_field(
        self, points: Float[Tensor, "*N Di"]
    ) -> tuple[Float[Tensor, "*N 1"], Tensor | None]:
        """The field (density or signed distance), and how far to move the points, or None."""
        raise NotImplementedError

    def forward_level(
        self, field: Float[Tensor, "*N 1"], threshold: float
    ) -> Float[Tensor, "*N 1"]:
        """The field as a level that is 0 on the surface and negative inside."""
        raise NotImplementedError

    def _isosurface(self, bbox: Float[Tensor, "2 3"]) -> Mesh:
        """The surface inside a box."""
        helper = self.isosurface_helper
        assert helper is not None  # isosurface() made it

        def field_at(vertices):
            points = scale_tensor(vertices.to(bbox.device), helper.points_range, bbox)
            return self.forward_field(points)[0].to(vertices.device)

        field = chunk_batch(field_at, self.cfg.isosurface_chunk, helper.grid_vertices)
        threshold = self.cfg.isosurface_threshold
        if threshold == "auto":
            threshold = field[field > 1e-5].mean().item()
            info(f"Isosurface threshold: {threshold:.4g} (the mean of the positive field values).")
        elif isinstance(threshold, str):
            raise ValueError(
                f"isosurface_threshold should be a number or 'auto', not {threshold!r}."
            )
        mesh = helper(self.forward_level(field, threshold))
        mesh = Mesh(
            scale_tensor(mesh.v_pos.to(bbox.device), helper.points_range, bbox),
            mesh.t_pos_idx.to(bbox.device),
            bbox=bbox,
        )
        if self.cfg.isosurface_remove_outliers:
            mesh = mesh.remove_outlier(self.cfg.isosurface_outlier_n_faces_threshold)
        return mesh

    def isosurface(self) -> Mesh:
        """The surface as a mesh in world space."""
        if not self.cfg.isosurface:
            raise NotImplementedError("This geometry's config has isosurface: false.")
        if self.cfg.isosurface_method == "mt":
            warn(
                "Marching tetrahedra need the real threestudio's grid files; taking marching cubes."
            )
        if self.isosurface_helper is None:
            self.isosurface_helper = MarchingCubeCPUHelper(self.cfg.isosurface_resolution)
        with torch.no_grad():
            mesh = self._isosurface(self.bbox)
            if not self.cfg.isosurface_coarse_to_fine:
                return mesh
            low, high = mesh.v_pos.amin(dim=0), mesh.v_pos.amax(dim=0)
            margin = (high - low) * 0.1
            debug("The surface once more, in a tighter box.")
            return self._isosurface(
                torch.stack(
                    [(low - margin).maximum(self.bbox[0]), (high + margin).minimum(self.bbox[1])]
                )
            )


class BaseExplicitGeometry(BaseGeometry):
    @dataclass
    class Config(BaseGeometry.Config):
        radius: float = bounded(1.0, above=0)  # half the side of the box around the scene

    cfg: Config

    def configure(self) -> None:
        r = self.cfg.radius
        self.bbox: Float[Tensor, "2 3"]
        self.register_buffer("bbox", torch.tensor([[-r, -r, -r], [r, r, r]], dtype=torch.float32))
