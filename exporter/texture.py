"""A texture for a mesh that moves: its triangles laid out flat (xatlas), and each texel given the
colour that a ray sees there at tau = 0. Nothing of such a scene is repainted, so that this is its
colour at all times."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer

from .field import Field
from .moving_mesh import MovingMesh
from .surface import load, unit

PADDING = 2  # texels between islands: a bilinear look-up at an island's edge sees its own colours


class Layout(NamedTuple):
    """A mesh on a picture: where triangles that meet don't meet there, vertices are there twice."""

    vertex: Integer[np.ndarray, " W"]  # the mesh's vertex that each is
    faces: Integer[np.ndarray, "T 3"]
    uv: Float[np.ndarray, "W 2"]  # in [0, 1], v upwards
    size: int  # of the picture's sides, texels


class Texels(NamedTuple):
    """The centres of texels that lie on a triangle."""

    place: Integer[np.ndarray, " N"]  # row * size + column
    face: Integer[np.ndarray, " N"]
    weights: Float[np.ndarray, "N 3"]  # of the triangle's corners


def textured(moving: MovingMesh, field: Field, size: int) -> MovingMesh:
    """The mesh with a texture of size x size texels."""
    layout = lay_out(moving, size)
    texels = texels_of(layout)
    faces = moving.faces[texels.face]

    def blend(values: Float[np.ndarray, "V 3"]) -> torch.Tensor:
        return torch.from_numpy((values[faces] * texels.weights[..., None]).sum(1))

    normals = torch.from_numpy(unit(blend(moving.normals[0]).numpy()).astype(np.float32))
    colours = field.seen(blend(moving.places[0]).float(), normals).numpy()
    picture, there = np.zeros((size * size, 3), np.float32), np.zeros(size * size, bool)
    picture[texels.place], there[texels.place] = colours, True
    picture = spread(picture.reshape(size, size, 3), there.reshape(size, size))
    return MovingMesh(
        moving.taus,
        moving.places[:, layout.vertex],
        moving.normals[:, layout.vertex],
        layout.faces,
        moving.colours[layout.vertex],
        layout.uv,
        np.rint(picture * 255).astype(np.uint8),
    )


def lay_out(moving: MovingMesh, size: int) -> Layout:
    """The mesh cut into islands that lie flat without much stretch (xatlas)."""
    xatlas = load("xatlas", "xatlas", "Textures")
    atlas = xatlas.Atlas()
    atlas.add_mesh(moving.places[0], moving.faces.astype(np.uint32), moving.normals[0])
    packed = xatlas.PackOptions()
    packed.resolution, packed.padding = size, PADDING
    atlas.generate(xatlas.ChartOptions(), packed)
    vertex, faces, uv = atlas[0]
    # xatlas takes the resolution as a hint: its atlas is a little larger, and nearly square
    return Layout(vertex.astype(np.int64), faces.astype(np.int64), uv.astype(np.float32), size)


def texels_of(layout: Layout) -> Texels:
    """Each texel's triangle: where islands touch, one of them."""
    flipped = np.stack([layout.uv[:, 0], 1 - layout.uv[:, 1]], -1).astype(np.float64)
    corners = (flipped * layout.size)[layout.faces]  # texel (0, 0) has its centre at 1/2, 1/2
    first = np.ceil(corners.min(1) - 0.5).clip(0).astype(np.int64)
    last = np.minimum(np.floor(corners.max(1) - 0.5), layout.size - 1).astype(np.int64)
    size = (last - first + 1).clip(0)  # of each triangle's box
    count = size.prod(-1)
    face = np.repeat(np.arange(len(count)), count)
    nth = np.arange(count.sum()) - np.repeat(count.cumsum() - count, count)
    column, row = first[face, 0] + nth % size[face, 0], first[face, 1] + nth // size[face, 0]
    weights = barycentric(np.stack([column + 0.5, row + 0.5], -1), corners[face])
    on = (weights >= 0).all(-1)
    place, one = np.unique((row * layout.size + column)[on], return_index=True)
    return Texels(place, face[on][one], weights[on][one])


def barycentric(
    points: Float[np.ndarray, "N 2"], corners: Float[np.ndarray, "N 3 2"]
) -> Float[np.ndarray, "N 3"]:
    """Weights of triangles' corners; nan for those without area."""

    def area(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        ab, ac = b - a, c - a
        return ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0]

    a, b, c = corners.transpose(1, 0, 2)
    parts = np.stack([area(points, b, c), area(points, c, a), area(points, a, b)], -1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return parts / area(a, b, c)[:, None]


def spread(
    picture: Float[np.ndarray, "H W 3"], there: Bool[np.ndarray, "H W"]
) -> Float[np.ndarray, "H W 3"]:
    """Texels that are nobody's take the colour of the nearest that is somebody's."""
    from scipy.spatial import KDTree

    own, others = np.argwhere(there), np.argwhere(~there)
    picture = picture.copy()
    if len(own) and len(others):
        _, nearest = KDTree(own).query(others)
        picture[tuple(others.T)] = picture[tuple(own[nearest].T)]
    return picture
