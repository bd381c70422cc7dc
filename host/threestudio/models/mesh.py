"""A triangle mesh with what can be derived from it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from threestudio.log import debug
from torch import Tensor


def vertex_normals(
    v_pos: Float[Tensor, "Nv 3"], t_pos_idx: Integer[Tensor, "Nf 3"]
) -> Float[Tensor, "Nv 3"]:
    """Unit normals, the faces around a vertex weighted by area; a vertex without area gets +z."""
    a, b, c = v_pos[t_pos_idx].unbind(1)
    face_normals = torch.linalg.cross(b - a, c - a)
    summed = torch.zeros_like(v_pos)
    for corner in t_pos_idx.unbind(1):
        summed = summed.index_add(0, corner, face_normals)
    empty = (summed * summed).sum(-1, keepdim=True) <= 1e-20
    return F.normalize(torch.where(empty, v_pos.new_tensor([0.0, 0.0, 1.0]), summed), dim=-1)


class Mesh:
    """Vertices v_pos [Nv 3], faces t_pos_idx [Nf 3], and anything else in `extras`.

    Faces are counter-clockwise from outside.
    """

    def __init__(
        self, v_pos: Float[Tensor, "Nv 3"], t_pos_idx: Integer[Tensor, "Nf 3"], **kwargs: Any
    ) -> None:
        self.v_pos = v_pos
        self.t_pos_idx = t_pos_idx
        self._v_nrm: Tensor | None = None
        self._v_rgb: Tensor | None = None
        self._v_tex: Tensor | None = None
        self._t_tex_idx: Tensor | None = None
        self._edges: Tensor | None = None
        self.extras: dict[str, Any] = dict(kwargs)

    def add_extra(self, k: str, v: Any) -> None:
        self.extras[k] = v

    @property
    def requires_grad(self) -> bool:
        return self.v_pos.requires_grad

    @property
    def v_nrm(self) -> Float[Tensor, "Nv 3"]:
        """Vertex normals, unit length."""
        if self._v_nrm is None:
            self._v_nrm = vertex_normals(self.v_pos, self.t_pos_idx)
        return self._v_nrm

    @property
    def v_rgb(self) -> Float[Tensor, "Nv 3"] | None:
        """Vertex colours in [0, 1], if they were set."""
        return self._v_rgb

    def set_vertex_color(self, v_rgb: Float[Tensor, "Nv 3"]) -> None:
        if v_rgb.shape[0] != self.v_pos.shape[0]:
            raise ValueError(f"{v_rgb.shape[0]} colours for {self.v_pos.shape[0]} vertices.")
        self._v_rgb = v_rgb

    @property
    def v_tex(self) -> Float[Tensor, "Nt 2"]:
        """Texture coordinates; xatlas makes them at first use."""
        return self.unwrap_uv()[0] if self._v_tex is None else self._v_tex

    @property
    def t_tex_idx(self) -> Integer[Tensor, "Nf 3"]:
        """The faces' indices into v_tex."""
        return self.unwrap_uv()[1] if self._t_tex_idx is None else self._t_tex_idx

    def unwrap_uv(self) -> tuple[Float[Tensor, "Nt 2"], Integer[Tensor, "Nf 3"]]:
        """Cuts the surface into charts and packs them into the unit square: v_tex, t_tex_idx."""
        try:
            import xatlas  # pyright: ignore[reportMissingImports]  (an extra of the person's)
        except ImportError:
            raise ImportError("Texture coordinates need xatlas: pip install xatlas") from None
        _, indices, uvs = xatlas.parametrize(
            self.v_pos.detach().cpu().numpy(), self.t_pos_idx.detach().cpu().numpy()
        )
        device = self.v_pos.device
        self._v_tex = v_tex = torch.from_numpy(uvs).float().to(device)
        self._t_tex_idx = t_tex_idx = torch.from_numpy(indices.astype("int64")).to(device)
        return v_tex, t_tex_idx

    @property
    def edges(self) -> Integer[Tensor, "Ne 2"]:
        """Each edge once, the smaller vertex first."""
        edges = self._edges
        if edges is None:
            pairs = self.t_pos_idx[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
            self._edges = edges = torch.unique(pairs.sort(dim=-1).values, dim=0)
        return edges

    def normal_consistency(self) -> Float[Tensor, ""]:
        """Mean of 1 - cosine between the normals at an edge's ends."""
        start, end = self.v_nrm[self.edges].unbind(1)
        return (1 - torch.cosine_similarity(start, end, dim=-1)).mean()

    def remove_outlier(self, outlier_n_faces_threshold: int | float) -> Mesh:
        """The mesh without its small connected components (given that no gradient flows through
        it).

        An int is the least number of faces that stays, a float that number as a share of the
        largest component.
        """
        if self.requires_grad:
            return self
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import connected_components

        n = self.v_pos.shape[0]
        i, j = self.edges.cpu().numpy().T
        _, labels = connected_components(
            coo_matrix(([1] * len(i), (i, j)), shape=(n, n)), directed=False
        )
        component = torch.from_numpy(labels).to(self.t_pos_idx.device).long()[self.t_pos_idx[:, 0]]
        n_faces = torch.bincount(component)
        least = outlier_n_faces_threshold
        if isinstance(least, float):
            least = int(n_faces.max() * least)
        faces = self.t_pos_idx[n_faces[component] >= least]
        kept, faces = torch.unique(faces, return_inverse=True)
        debug(
            f"Mesh of {self.t_pos_idx.shape[0]} faces: kept {faces.shape[0]} in components "
            f"of {least} or more."
        )
        clean = Mesh(self.v_pos[kept], faces, **self.extras)
        if self.v_rgb is not None:
            clean.set_vertex_color(self.v_rgb[kept])
        return clean
