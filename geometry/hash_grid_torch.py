"""The hash grid's definition: layout, indexing and interpolation of tiny-cuda-nn's `HashGrid`.

Points lie in [0, 1]^D. Level l is a lattice: a coordinate x sits at x * scale + 0.5 between two
lattice lines. A line's key is its number times the level's multiplier for that axis; a corner's
key joins the keys of its D lines, and modulo the level's size it is the corner's entry:
    dense level    multipliers 1, r, r^2, ... (x fastest), joined by +
    hashed level   multipliers 1 and three large primes, joined by XOR, all modulo 2^32
All levels' entries lie in one flat vector, one level after the other, features innermost.
Instant-NGP (arXiv 2201.05989), section 3; the numbers are tiny-cuda-nn's, so that a table trained
there is the same field here.
"""

import functools
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int32
from torch import Tensor

PRIMES = (1, 2654435761, 805459861, 3674653429)
FINEST = 2**24  # cells a side; a float32 has no more digits


@dataclass(frozen=True)
class Level:
    scale: float  # lattice spacings across [0, 1]
    size: int  # entries; a power of two if hashed
    offset: int  # entries of all levels before
    hashed: bool
    multipliers: tuple[int, ...]  # of the axes, in [0, 2^32)


@dataclass(frozen=True)
class GridSpec:
    """Settings of a hash grid, and what follows from them."""

    dims: int  # 3: space, 4: space and time
    n_levels: int = 16
    n_features_per_level: int = 2
    log2_hashmap_size: int = 19  # a level has at most 2^this entries
    base_resolution: int = 16  # lattice points a side of the coarsest level
    per_level_scale: float = 1.447269237440378  # resolution of a level over the level before
    float64_scale: bool = False  # scales in float64, as tables of this project's 0.1 are laid out

    def __post_init__(self):
        for name, low, high in (
            ("dims", 3, 4),
            ("n_levels", 1, 32),
            ("n_features_per_level", 1, 8),
            ("log2_hashmap_size", 3, 28),  # twice a level's size must fit in int32
            ("base_resolution", 2, 2**16),
            ("per_level_scale", 1, 16),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"A hash grid's {name} is from {low} to {high}, but {value} came.")
        if self.scales[-1] > FINEST:
            raise ValueError(
                f"The finest level of {self} has {self.scales[-1]:.3g} cells a side, but float32 "
                f"tells 2^24 apart at most. Take a smaller n_levels or per_level_scale."
            )

    @functools.cached_property
    def scales(self) -> list[float]:
        """base_resolution * per_level_scale^l - 1 of each level l, rounded as tiny-cuda-nn does it:
        log2 of the growth, its multiple, the power and the product each to float32."""
        if self.float64_scale:
            growth = self.per_level_scale
            return [self.base_resolution * growth**level - 1 for level in range(self.n_levels)]
        level = torch.arange(self.n_levels, dtype=torch.float32, device="cpu")
        growth = torch.tensor(self.per_level_scale, dtype=torch.float32, device="cpu")
        # by way of float64, so that each is the nearest float32 on every machine
        power = (level * growth.double().log2().float()).double().exp2().float()
        return (power * self.base_resolution - 1).tolist()

    @functools.cached_property
    def levels(self) -> tuple[Level, ...]:
        levels, offset = [], 0
        for scale in self.scales:
            resolution = math.ceil(scale) + 1
            points = resolution**self.dims
            size = min((points + 7) // 8 * 8, 2**self.log2_hashmap_size)
            hashed = points > size
            multipliers = PRIMES if hashed else tuple(resolution**d for d in range(4))
            levels.append(Level(scale, size, offset, hashed, multipliers[: self.dims]))
            offset += size
        return tuple(levels)

    @property
    def n_params(self) -> int:
        return sum(level.size for level in self.levels) * self.n_features_per_level

    @property
    def n_output_dims(self) -> int:
        return self.n_levels * self.n_features_per_level


def hash_grid_torch(
    x: Float[Tensor, "N D"], table: Float[Tensor, " M"], spec: GridSpec
) -> Float[Tensor, "N E"]:
    """Features of points in [0, 1]^D. Any float type; differentiable, also twice, in both."""
    entries = table.view(-1, spec.n_features_per_level)
    # split, not indexed, because its gradient is one concatenation
    tables = entries.split([level.size for level in spec.levels])
    levels = zip(tables, spec.levels, strict=True)
    return torch.cat([level_features(x, own, level) for own, level in levels], dim=-1)


def level_features(
    x: Float[Tensor, "N D"], entries: Float[Tensor, "M C"], level: Level
) -> Float[Tensor, "N C"]:
    """D-linear interpolation of the 2^D corners of each point's cell in one level."""
    position = x * level.scale + 0.5
    cell = position.detach().floor()
    index, weight = corners(cell.int().T, (position - cell).T, level)
    values = Gather.apply(entries, index)
    return (weight[..., None] * values).sum(dim=0)


def corners(
    cell: Int32[Tensor, "D N"], fraction: Float[Tensor, "D N"], level: Level
) -> tuple[Int32[Tensor, "K N"], Float[Tensor, "K N"]]:
    """Entry and weight of each of a cell's K = 2^D corners, built by doubling, axis by axis.

    Keys are taken modulo 2^32, which int32's two's complement wrap-around does: its bits are
    those of uint32, and a hashed level keeps only the lowest. Dense keys never grow that large.
    """
    key = torch.zeros_like(cell[:1])
    weight = torch.ones_like(fraction[:1])
    for axis, multiplier in enumerate(level.multipliers):
        lower = cell[axis] * signed(multiplier)
        upper = lower + signed(multiplier)
        key = torch.cat([join(key, lower, level), join(key, upper, level)])
        weight = torch.cat([weight * (1 - fraction[axis]), weight * fraction[axis]])
    return wrap(key, level), weight


def signed(multiplier: int) -> int:
    """The int32 with the bits of a uint32."""
    return multiplier - 2**32 if multiplier >= 2**31 else multiplier


def join(a: Int32[Tensor, "..."], b: Int32[Tensor, "..."], level: Level) -> Int32[Tensor, "..."]:
    return a ^ b if level.hashed else a + b


def wrap(key: Int32[Tensor, "..."], level: Level) -> Int32[Tensor, "..."]:
    """The entry of a key. A dense level wraps too: the lattice point beyond the last is the next
    row's first."""
    return key & (level.size - 1) if level.hashed else key.remainder(level.size)


class Gather(torch.autograd.Function):
    """entries[index]. It and `Scatter` are each other's gradient, hence differentiable for ever.

    On CPUs this is several times faster than what autograd derives from indexing.
    """

    @staticmethod
    def forward(ctx, entries, index):
        ctx.save_for_backward(index)
        ctx.size = entries.shape[0]
        return entries.index_select(0, index.flatten()).view(*index.shape, entries.shape[1])

    @staticmethod
    def backward(ctx, grad):
        (index,) = ctx.saved_tensors
        return Scatter.apply(grad, index, ctx.size), None


class Scatter(torch.autograd.Function):
    """Sum of the values [K N C] that carry the same index [K N], for each of `size` entries."""

    @staticmethod
    def forward(ctx, values, index, size):
        ctx.save_for_backward(index)
        columns = [  # ten times faster on CPUs than adding rows of two
            values.new_zeros(size).index_add_(0, index.flatten(), column.flatten())
            for column in values.unbind(-1)
        ]
        return torch.stack(columns, dim=-1)

    @staticmethod
    def backward(ctx, grad):
        (index,) = ctx.saved_tensors
        return Gather.apply(grad, index), None, None
