"""Moving meshes whose motion is known: what the tests of formats write and read back."""

import numpy as np
from animate124.exporter.moving_mesh import MovingMesh


def turned_about_z(angle):
    """[...] radians -> [... 3 3]."""
    c, s, o, i = np.cos(angle), np.sin(angle), np.zeros_like(angle), np.ones_like(angle)
    return np.stack([np.stack(row, -1) for row in ([c, -s, o], [s, c, o], [o, o, i])], -2)


def grid(around, along):
    """Quads of a tube as triangles, seen from outside counter-clockwise; its ends stay open."""
    ring, height = np.meshgrid(np.arange(around), np.arange(along - 1), indexing="ij")
    a, b = height * (around + 1) + ring, height * (around + 1) + ring + 1
    c, d = a + around + 1, b + around + 1
    return np.concatenate([np.stack([a, b, d], -1), np.stack([a, d, c], -1)]).reshape(-1, 3)


def bending_tube(frames=7, around=24, along=33, texture=True):
    """A tube along x in three stiff thirds; the outer ones swing about z, and all of it moves up.

    Vertices blend linearly over the two joints at x = -1/3 and 1/3, so that linear blend skinning
    with three bones makes exactly this motion. Returns the mesh and, of its bones, the weights
    [V 3], rotations [3 F 3 3] and translations [3 F 3]."""
    turn, x = np.meshgrid(np.linspace(0, 2 * np.pi, around + 1), np.linspace(-1, 1, along))
    turn, x = turn.ravel(), x.ravel()
    rest = np.stack([x, 0.2 * np.cos(turn), 0.2 * np.sin(turn)], -1)
    rest[np.isclose(turn, 2 * np.pi)] = rest[np.isclose(turn, 0)]  # exactly closed: a seam of uv
    outward = rest * [0, 5, 5]
    upper, lower = np.clip(4 * (x - 1 / 3) + 0.5, 0, 1), np.clip(-4 * (x + 1 / 3) + 0.5, 0, 1)
    weights = np.stack([lower, 1 - upper - lower, upper], -1)

    taus = np.linspace(0, 1, frames)
    angle = np.stack([-0.9 * taus, 0 * taus, 0.7 * np.sin(np.pi * taus)])
    rotations = turned_about_z(angle)
    joints = np.array([[-1 / 3, 0, 0], [0, 0, 0], [1 / 3, 0, 0]])
    translations = joints[:, None] - np.einsum("bfij,bj->bfi", rotations, joints)
    translations = translations + taus[:, None] * [0.0, 0.0, 0.4]
    places = np.einsum("vb,bfij,vj->fvi", weights, rotations, rest)
    places = places + np.einsum("vb,bfi->fvi", weights, translations)
    normals = np.einsum("vb,bfij,vj->fvi", weights, rotations, outward)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)

    uv = np.stack([turn / (2 * np.pi), (x + 1) / 2], -1)
    colours = np.stack([uv[:, 1], 0.5 + 0.4 * np.cos(turn), np.full_like(x, 0.25)], -1)
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[..., 0] = np.linspace(255, 0, 64)[:, None]  # its first row is the top, where v is 1
    picture[..., 1] = np.round(255 * (0.5 + 0.4 * np.cos(np.linspace(0, 2 * np.pi, 64))))
    picture[..., 2] = 64
    mesh = MovingMesh(
        taus,
        places.astype("f4"),
        normals.astype("f4"),
        grid(around, along),
        colours.astype("f4"),
        uv.astype("f4") if texture else None,
        picture if texture else None,
    )
    return mesh, weights, rotations, translations
