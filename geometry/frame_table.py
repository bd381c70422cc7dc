"""One frame of the 4D field is a grid over space alone: layout and definition of its table.

H3 and H4 have the same lattice lines in space. At a fixed tau, what a lattice point adds to
E(., tau) = H3 + H4 is therefore one value: H3's entry plus H4's two entries on the lines around
tau, interpolated. A table of these values, the frame's table, turns all look-ups of that frame
from 8 + 16 corners into 8, and its gradient passes on to both tables, entry by entry.

Dense levels of a frame have one more lattice point a side than H3's, which wraps around where H4
does not. In hashed levels an entry of the frame stands for all lattice points of that hash: H4's
hash is H3's joined with the time line's key, so they share their entries there too.
"""

import functools
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from .hash_grid_torch import Gather, GridSpec, Level, join, signed, wrap


@dataclass(frozen=True)
class FrameSpec(GridSpec):
    """The grid over space that a frame is; its settings are those of H3."""

    @functools.cached_property
    def levels(self) -> tuple[Level, ...]:
        levels, offset = [], 0
        for level in GridSpec(**asdict(self)).levels:
            size, multipliers = level.size, level.multipliers
            if not level.hashed:
                side = multipliers[1] + 1
                size, multipliers = (side**3 + 7) // 8 * 8, (1, side, side**2)
            levels.append(Level(level.scale, size, offset, level.hashed, multipliers))
            offset += size
        return tuple(levels)


@functools.cache
def frame_spec(space: GridSpec) -> FrameSpec:
    """Layout of a frame's table."""
    return FrameSpec(**asdict(space))


def frame_table_torch(
    space_table: Float[Tensor, " M3"],
    time_table: Float[Tensor, " M4"],
    tau: Float[Tensor, "1 1"],
    space: GridSpec,
    time: GridSpec,
) -> Float[Tensor, " M"]:
    """The table of the frame at tau, laid out as `frame_spec(space)` says."""
    features = space.n_features_per_level
    of_space = space_table.view(-1, features).split([level.size for level in space.levels])
    of_time = time_table.view(-1, features).split([level.size for level in time.levels])
    parts = []
    keys = lattice_keys(space, time, tau.device)
    for (entry, key), own, timed, level in zip(keys, of_space, of_time, time.levels, strict=True):
        position = tau[0].clamp(0, 1) * level.scale + 0.5
        line = position.floor()
        above = position - line
        low = line.int() * signed(level.multipliers[3])
        high = low + signed(level.multipliers[3])
        on_low, on_high = (
            Gather.apply(timed, wrap(join(key, k, level), level)) for k in (low, high)
        )
        parts.append(Gather.apply(own, entry) + ((1 - above) * on_low + above * on_high))
    return torch.cat(parts).flatten()


@functools.cache
def lattice_keys(
    space: GridSpec, time: GridSpec, device: torch.device
) -> list[tuple[Int32[Tensor, " _"], Int32[Tensor, " _"]]]:
    """For each entry of a frame's levels its entry in H3, and its key in H4 less that of time."""
    keys = []
    for own, of_space, of_time in zip(
        frame_spec(space).levels, space.levels, time.levels, strict=True
    ):
        entry = torch.arange(own.size, dtype=torch.int32, device=device)
        if own.hashed:  # an entry is its own key
            keys.append((entry, entry))
            continue
        side = own.multipliers[1]
        index = key = torch.zeros_like(entry)
        for axis, number in enumerate((entry % side, entry // side % side, entry // side**2)):
            index = index + number * of_space.multipliers[axis]
            key = join(key, number * signed(of_time.multipliers[axis]), of_time)
        keys.append((wrap(index, of_space), key))
    return keys
