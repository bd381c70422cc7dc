"""Compiled loops of the hash grid for CPUs, one level at a time.

They compute what `hash_grid_torch` defines, in the same words (line, key, join, wrap). Every key
is wrapped to the level's size, so that no input, NaN included, reaches outside the table.

numba's disk cache finds a kernel again by its module's name, and this package has another name
inside threestudio, so `hash_grid_numba` loads this file under a name of its own. Keep it free of
relative imports.
"""

import functools
from types import SimpleNamespace

import numba
import numpy as np

HALF = np.float32(0.5)
ONE = np.float32(1)
ZERO = np.float32(0)


def kernel(function):
    """Compile once and keep it on disk; where no folder can be written, compile in each process."""
    options = {"nogil": True, "fastmath": {"contract"}}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:
        return numba.njit(**options)(function)


@numba.njit
def lines(coordinate, scale, multiplier):
    """Keys of the lattice lines below and above a coordinate, and the weight of the one above."""
    position = coordinate * scale + HALF
    lower = np.floor(position)
    key = np.uint32(np.uint32(np.int32(lower)) * multiplier)
    return key, np.uint32(key + multiplier), position - lower


@numba.njit
def join(a, b, hashed):
    return a ^ b if hashed else a + b


@numba.njit
def wrap(key, size, hashed):
    if hashed:
        return key & (size - np.uint32(1))
    return key if key < size else key % size


@numba.njit
def square(x0, x1, y0, y1, rest, size, hashed):
    """Entries of the corners (x0 y0), (x1 y0), (x0 y1), (x1 y1) with the other axes' joined key."""
    low, high = join(y0, rest, hashed), join(y1, rest, hashed)
    return (
        wrap(join(x0, low, hashed), size, hashed),
        wrap(join(x1, low, hashed), size, hashed),
        wrap(join(x0, high, hashed), size, hashed),
        wrap(join(x1, high, hashed), size, hashed),
    )


@numba.njit
def cell(point, dims, scale, multipliers):
    """`lines` of x, y and z, and of time; of three dimensions z stands in for it."""
    return (
        lines(point[0], scale, multipliers[0]),
        lines(point[1], scale, multipliers[1]),
        lines(point[2], scale, multipliers[2]),
        lines(point[dims - 1], scale, multipliers[dims - 1]),
    )


@numba.njit
def edge(k, z, t, dims, hashed):
    """Joined key and both weights of the line along z and time number k (bit 0: above in z, bit 1:
    above in time); the weight in time is 1 where there is none."""
    rest, weight_z = (z[1], z[2]) if k & 1 else (z[0], ONE - z[2])
    if dims == 3:
        return rest, weight_z, ONE
    above = k & 2
    return join(rest, t[1] if above else t[0], hashed), weight_z, t[2] if above else ONE - t[2]


@functools.cache
def kernels(dims: int, features: int, hashed: bool):
    """One level's; the arguments become constants of the compiled code."""
    return SimpleNamespace(
        forward=forward_kernel(dims, features, hashed),
        to_table=table_kernel(dims, features, hashed),
        to_points=points_kernel(dims, features, hashed),
    )


def forward_kernel(dims: int, features: int, hashed: bool):
    @kernel
    def forward(x, entries, scale, size, multipliers, out, column, start, stop):
        """Write the features of points start..stop to out[:, column : column + features]."""
        for n in range(start, stop):
            (x0, x1, fx), (y0, y1, fy), z, t = cell(x[n], dims, scale, multipliers)
            gx, gy = ONE - fx, ONE - fy
            for k in range(1 << (dims - 2)):
                rest, weight_z, weight_t = edge(k, z, t, dims, hashed)
                weight = weight_z * weight_t
                i00, i10, i01, i11 = square(x0, x1, y0, y1, rest, size, hashed)
                for c in range(features):
                    value = weight * (
                        gx * gy * entries[i00 * features + c]
                        + fx * gy * entries[i10 * features + c]
                        + gx * fy * entries[i01 * features + c]
                        + fx * fy * entries[i11 * features + c]
                    )
                    if k == 0:
                        out[n, column + c] = value
                    else:
                        out[n, column + c] += value

    return forward


def table_kernel(dims: int, features: int, hashed: bool):
    @kernel
    def to_table(x, grad_out, scale, size, multipliers, grad_entries, column):
        """Add to grad_entries what grad_out[:, column : column + features] means for it."""
        for n in range(x.shape[0]):
            (x0, x1, fx), (y0, y1, fy), z, t = cell(x[n], dims, scale, multipliers)
            gx, gy = ONE - fx, ONE - fy
            for k in range(1 << (dims - 2)):
                rest, weight_z, weight_t = edge(k, z, t, dims, hashed)
                weight = weight_z * weight_t
                i00, i10, i01, i11 = square(x0, x1, y0, y1, rest, size, hashed)
                for c in range(features):
                    grad = weight * grad_out[n, column + c]
                    grad_entries[i00 * features + c] += gx * gy * grad
                    grad_entries[i10 * features + c] += fx * gy * grad
                    grad_entries[i01 * features + c] += gx * fy * grad
                    grad_entries[i11 * features + c] += fx * fy * grad

    return to_table


def points_kernel(dims: int, features: int, hashed: bool):
    @kernel
    def to_points(x, entries, grad_out, scale, size, multipliers, grad_x, column, start, stop):
        """Add to grad_x what grad_out[:, column : column + features] means for each point."""
        for n in range(start, stop):
            (x0, x1, fx), (y0, y1, fy), z, t = cell(x[n], dims, scale, multipliers)
            gx, gy = ONE - fx, ONE - fy
            along_x = along_y = along_z = along_t = ZERO
            for k in range(1 << (dims - 2)):
                rest, weight_z, weight_t = edge(k, z, t, dims, hashed)
                weight = weight_z * weight_t
                i00, i10, i01, i11 = square(x0, x1, y0, y1, rest, size, hashed)
                v00 = v10 = v01 = v11 = ZERO  # the corners' entries along grad_out
                for c in range(features):
                    grad = grad_out[n, column + c]
                    v00 += grad * entries[i00 * features + c]
                    v10 += grad * entries[i10 * features + c]
                    v01 += grad * entries[i01 * features + c]
                    v11 += grad * entries[i11 * features + c]
                along_x += weight * (gy * (v10 - v00) + fy * (v11 - v01))
                along_y += weight * (gx * (v01 - v00) + fx * (v11 - v10))
                value = gy * (gx * v00 + fx * v10) + fy * (gx * v01 + fx * v11)
                along_z += (weight_t if k & 1 else -weight_t) * value
                if dims == 4:
                    along_t += (weight_z if k & 2 else -weight_z) * value
            grad_x[n, 0] += scale * along_x
            grad_x[n, 1] += scale * along_y
            grad_x[n, 2] += scale * along_z
            if dims == 4:
                grad_x[n, 3] += scale * along_t

    return to_points
