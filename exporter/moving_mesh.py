"""One mesh that moves: the same triangles and colours at every frame time, vertices that go along.

Positions are in the scene's frame (z up), colours are sRGB, as everywhere in this room."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Integer, UInt8

from .surface import Mesh


@dataclass
class MovingMesh:
    """A mesh of V vertices and T triangles at F frame times, evenly spaced where they are played.

    Colours come from a texture (uv: (0, 0) is its lower left corner, its first row is the
    picture's top), or, without one, from the vertices. Vertices on a seam of the uv atlas are
    there once for each side."""

    taus: Float[np.ndarray, " F"]  # rising, in [0, 1]
    places: Float[np.ndarray, "F V 3"]  # where the vertices are
    normals: Float[np.ndarray, "F V 3"]  # unit vectors that point outwards
    faces: Integer[np.ndarray, "T 3"]  # counter-clockwise seen from outside
    colours: Float[np.ndarray, "V 3"]
    uv: Float[np.ndarray, "V 2"] | None = None
    texture: UInt8[np.ndarray, "H W 3"] | None = None

    @property
    def size(self) -> int:
        """Bytes of all that it holds, without any compression."""
        arrays = (self.places, self.normals, self.faces, self.colours, self.uv, self.texture)
        return sum(array.nbytes for array in arrays if array is not None)

    def frame(self, i: int) -> Mesh:
        """The mesh at frame time taus[i]."""
        uv = None if self.texture is None else self.uv
        return Mesh(self.places[i], self.faces, self.normals[i], self.colours, uv)
