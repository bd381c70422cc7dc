"""Surfaces of a density field, in numpy (marching cubes: scikit-image; fewer faces:
fast-simplification; parts: SciPy).

Faces turn counter-clockwise seen from outside; normals are unit vectors that point outwards;
colours are sRGB in [0, 1], as a screen shows them; positions are in the scene's frame: z up."""

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Integer


@dataclass
class Mesh:
    """Triangles with a normal and, once they are asked for, a colour at each vertex; with uv, a
    place on a texture ((0, 0) is its lower left corner), whose colours are the mesh's then."""

    vertices: Float[np.ndarray, "V 3"]
    faces: Integer[np.ndarray, "T 3"]
    normals: Float[np.ndarray, "V 3"]
    colours: Float[np.ndarray, "V 3"] | None = None
    uv: Float[np.ndarray, "V 2"] | None = None


def load(
    module: str, package: str, need: str = "Meshes", *, extra: str = "", parts: Iterable[str] = ()
) -> Any:
    """A library that only exports need: it is looked for when something is exported, so that a
    threestudio without it trains.

    extra: ours that brings it, if one does. parts: submodules that it doesn't import itself.

    Raises:
        ImportError: it isn't there; the message says what to install.
    """
    try:
        for part in parts:
            importlib.import_module(f"{module}.{part}")
        return importlib.import_module(module)
    except ImportError as error:
        install = f"'threestudio-animate124[{extra}]'" if extra else package
        raise ImportError(f"{need} need {package}. Try: pip install {install}.") from error


def isosurface(
    density: Float[np.ndarray, "X Y Z"],
    threshold: float,
    origin: Float[np.ndarray, " 3"],
    step: float,
) -> Mesh:
    """Where a lattice of densities crosses `threshold`, closed at the lattice's borders.

    Lattice point (i, j, k) stands at origin + step * (i, j, k). Lewiner's marching cubes."""
    shape = np.asarray(density.shape)
    walled = np.pad(density, 1)  # a surface that reaches the border is closed there
    marching_cubes = load("skimage.measure", "scikit-image").marching_cubes
    vertices, faces, normals, _ = marching_cubes(walled, threshold, allow_degenerate=False)
    vertices = np.clip(vertices - 1, 0, shape - 1)
    return Mesh(
        vertices=(np.asarray(origin) + step * vertices).astype(np.float32),
        faces=faces[:, ::-1].astype(np.int64),  # scikit-image's turn clockwise
        normals=unit(normals).astype(np.float32),
    )


def unit(vectors: Float[np.ndarray, "*N 3"]) -> Float[np.ndarray, "*N 3"]:
    """Vectors of length 1; one without a direction becomes +z, for formats that forbid zero."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.where(length > 1e-12, vectors / np.maximum(length, 1e-12), [0.0, 0.0, 1.0])


def vertex_normals(
    places: Float[np.ndarray, "*F V 3"], faces: Integer[np.ndarray, "T 3"]
) -> Float[np.ndarray, "*F V 3"]:
    """Unit normals of vertices: the mean of their triangles', weighed by area."""
    from scipy.sparse import csr_array

    corners = np.moveaxis(places[..., faces, :].astype(np.float64), -2, 0)  # [3 *F T 3]
    across = np.cross(corners[1] - corners[0], corners[2] - corners[0])
    ones = np.ones(faces.size)
    corner_of = np.repeat(np.arange(len(faces)), 3)
    gather = csr_array((ones, (faces.ravel(), corner_of)), (places.shape[-2], len(faces)))
    flat = across.reshape(-1, len(faces), 3)
    sums = np.stack([gather @ one for one in flat]).reshape(places.shape)
    return unit(sums).astype(np.float32)


def simplify(mesh: Mesh, faces: int) -> Mesh:
    """A mesh of about so many faces with much the same shape (Garland and Heckbert 1997); its
    normals are its triangles', and colours are for whoever wants them. 0, or more than there are:
    the mesh itself."""
    if faces == 0 or len(mesh.faces) <= faces:
        return mesh
    library = load("fast_simplification", "fast-simplification")
    vertices, triangles = library.simplify(
        mesh.vertices, mesh.faces.astype(np.int32), target_count=faces
    )
    vertices, triangles = vertices.astype(np.float32), triangles.astype(np.int64)
    return Mesh(vertices, triangles, vertex_normals(vertices, triangles))


def drop_small_parts(mesh: Mesh, share: float) -> Mesh:
    """The mesh without connected parts that have less than `share` of the largest one's faces
    (floaters); of a swarm of equals all stay."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = len(mesh.vertices)
    a, b = mesh.faces[:, :2].T, mesh.faces[:, 1:].T
    edges = coo_array((np.ones(a.size), (a.ravel(), b.ravel())), shape=(n, n))
    _, part_of_vertex = connected_components(edges, directed=False)
    part_of_face = part_of_vertex[mesh.faces[:, 0]]
    sizes = np.bincount(part_of_face)
    kept_parts = sizes >= share * sizes.max()
    kept = kept_parts[part_of_vertex]
    new_index = np.cumsum(kept) - 1
    return Mesh(
        vertices=mesh.vertices[kept],
        faces=new_index[mesh.faces[kept_parts[part_of_face]]],
        normals=mesh.normals[kept],
        colours=None if mesh.colours is None else mesh.colours[kept],
    )


def sample_surface(mesh: Mesh, n: int, rng: np.random.Generator) -> Mesh:
    """`n` points spread evenly over the mesh's area: a mesh without faces, colours interpolated."""
    corners = mesh.vertices[mesh.faces]
    areas = np.linalg.norm(
        np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=-1
    )
    face = mesh.faces[rng.choice(len(areas), n, p=areas / areas.sum())]
    u, v = rng.random((2, n))
    u, v = np.where(u + v > 1, (1 - u, 1 - v), (u, v))  # folds the square onto the triangle
    weights = np.stack([1 - u - v, u, v], -1)[..., None]

    def at_samples(values):
        return (values[face] * weights).sum(1).astype(np.float32)

    return Mesh(
        vertices=at_samples(mesh.vertices),
        faces=np.zeros((0, 3), np.int64),
        normals=unit(at_samples(mesh.normals)).astype(np.float32),
        colours=None if mesh.colours is None else at_samples(mesh.colours),
    )


def typical_density(total: float, total_of_squares: float) -> float:
    """The density in which the average piece of matter lies: sum(sigma^2) / sum(sigma).

    Thin haze hardly counts, however much of the box it fills; s in an object and 0 around it: s."""
    return total_of_squares / total if total > 0 else 0.0


def automatic_threshold(typical: float, radius: float) -> float:
    """Half the typical density, but no more than what halves light within a fiftieth of the radius.

    The cap keeps the visible skin of an opaque object, whose inside may be of any density:
    exp(-sigma d) = 1/2 at d = radius / 50."""
    return min(typical / 2, 50 * float(np.log(2)) / radius)
