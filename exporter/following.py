"""From a surface at tau = 0 to a mesh that moves: its vertices are followed through time.

Where a deformation folds space, no place is right for a vertex, and one that is only near tears a
spike out of the surface. Such vertices go with their neighbours instead."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer

from .field import Field
from .moving_mesh import MovingMesh
from .surface import Mesh, vertex_normals

NEAR = 1e-4  # of the scene's size: a place that is further off isn't one
HOLD = 1e-3  # how much a vertex keeps of its own place beside each neighbour's say


def moving_mesh(field: Field, mesh: Mesh, taus: list[float]) -> tuple[MovingMesh, float]:
    """The mesh at `taus`, with the colours that rays see at its vertices; and the share of places
    that were mended."""
    vertices = torch.from_numpy(mesh.vertices)
    found, errors = field.tracks(vertices, torch.tensor(taus))
    places = found.float().cpu().numpy()
    lost = errors.cpu().numpy() > NEAR * 2 * field.radius
    places = mended(places, mesh.vertices, mesh.faces, lost)
    normals = vertex_normals(places, mesh.faces)
    colours = field.seen(vertices, torch.from_numpy(normals[0])).numpy()
    return MovingMesh(
        np.array(taus, np.float32), places, normals, mesh.faces, colours
    ), lost.mean().item()


def mended(
    places: Float[np.ndarray, "F V 3"],
    rest: Float[np.ndarray, "V 3"],
    faces: Integer[np.ndarray, "T 3"],
    lost: Bool[np.ndarray, "F V"],
) -> Float[np.ndarray, "F V 3"]:
    """Places whose shift from `rest` is, at `lost` vertices, the mean of that of their neighbours:
    harmonic on the graph of edges. A part that is lost as a whole stays where it is."""
    from scipy.sparse import csr_array, dia_array  # diags_array came with SciPy 1.12
    from scipy.sparse.linalg import splu

    def diagonal(values):
        return dia_array((values[None], [0]), shape=(len(values), len(values)))

    shifts = (places - rest).astype(np.float64)
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    edges = np.unique(np.sort(edges, -1), axis=0)
    edges = np.concatenate([edges, edges[:, ::-1]])
    n = len(rest)
    near = csr_array((np.ones(len(edges)), tuple(edges.T)), (n, n))
    laplacian = (diagonal(near.sum(1)) - near).tocsr()
    for frame in np.flatnonzero(lost.any(1)):
        inner, outer = np.flatnonzero(lost[frame]), np.flatnonzero(~lost[frame])
        rows = laplacian[inner]
        matrix = rows[:, inner] + HOLD * diagonal(np.ones(len(inner)))
        right = HOLD * shifts[frame, inner] - rows[:, outer] @ shifts[frame, outer]
        shifts[frame, inner] = splu(matrix.tocsc()).solve(right)
    return (rest + shifts).astype(np.float32)
