"""The encoding of a scene that is deformed: H3 of stage 1 at x_c = x + D(x, tau).

Nothing of the scene's appearance has a time input, so that no gradient of a moment can repaint
it. Starts from a static scene's checkpoint: its H3 is the same, and D is 0.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ..bounds import bounded
from .deformation import Deformation
from .encoding import Encoding
from .grid import GridConfig, HashGrid, grid_spec, lay_out, was_trained
from .hash_grid import hash_grid, hash_grid_stencil
from .hash_grid_torch import GridSpec
from .times import Runs

MOST_CELLS = 128  # along a side of a lattice


@dataclasses.dataclass
class DeformedConfig(GridConfig):
    """Of the canonical scene, whose settings HashGridSpatialTime has too, and of D."""

    otype: str = bounded("HashGridDeformation", names=("HashGridDeformation",))
    # cells along a side of the lattices that D is made of, coarse to fine
    deformation_cells: list = dataclasses.field(default_factory=lambda: [4, 8, 16])
    deformation_spans: int = bounded(8, 1, 64)  # of its splines in time
    freeze_canonical: bool = False  # D alone learns: neither H3 nor the networks

    def __post_init__(self) -> None:
        super().__post_init__()
        cells = list(self.deformation_cells)
        counts = all(type(n) is int and 1 <= n <= MOST_CELLS for n in cells)
        if not counts or not cells or cells != sorted(set(cells)):
            raise ValueError(
                f"pos_encoding_config.deformation_cells is {cells}, but has to be numbers of cells "
                f"from 1 to {MOST_CELLS}, each larger than the one before, such as [4, 8, 16]."
            )


class DeformedEncoding(Encoding):
    """H3 (`encoding`) and D (`deformation`)."""

    Config = DeformedConfig
    starts_from = ("HashGridSpatialTime",)
    usage = ("backend", "static", "freeze_canonical")
    fresh = ("deformation.",)
    deforms = True

    @classmethod
    def from_config(cls, cfg: Any) -> "DeformedEncoding":
        fast = cfg.backend in ("auto", "cuda")
        deformation = Deformation(list(cfg.deformation_cells), cfg.deformation_spans, fast)
        return cls(grid_spec(cfg, 3), deformation, cfg.freeze_canonical, cfg.backend)

    def __init__(
        self, space: GridSpec, deformation: Deformation, frozen: bool = False, backend: str = "auto"
    ):
        super().__init__()
        self.backend = backend
        self.encoding = HashGrid(space, backend)
        self.encoding.requires_grad_(not frozen)
        self.deformation = deformation
        self.frozen = frozen
        self.n_output_dims = space.n_output_dims

    def take_layout(self, state_dict: Mapping[str, Tensor], prefix: str) -> None:
        """
        Raises:
            ValueError: it is of a scene that HashGridSpatialTime has set in motion, or of one that
                moves by more lattices than this one.
        """
        moved = state_dict.get(f"{prefix}encoding_time.params")
        if moved is not None and was_trained(moved):
            raise ValueError(
                "The checkpoint is of a scene that HashGridSpatialTime has set in motion (its time "
                "grid is trained), which HashGridDeformation can't go on with: start from the "
                "static scene of stage 1."
            )
        own = len(self.deformation.lattices)
        there = sum(key.startswith(f"{prefix}deformation.lattices.") for key in state_dict)
        if there > own:
            raise ValueError(
                f"The checkpoint is of a scene that moves by {there} lattices, of which "
                f"pos_encoding_config.deformation_cells describes {own}: what the others say would "
                "be lost. Give the cells that it was trained with."
            )
        lay_out({"encoding": self.encoding}, state_dict, prefix)

    def ever_moved(self, state_dict: Mapping[str, Tensor], prefix: str) -> bool:
        """Whether a state dict has a D that is anything but 0."""
        own = [v for k, v in state_dict.items() if k.startswith(f"{prefix}deformation.")]
        return any(bool(values.any()) for values in own)

    def canonical(
        self, x: Float[Tensor, "N 3"], times: Float[Tensor, "#N 1"] | Runs
    ) -> Float[Tensor, "N 3"]:
        return self.deformation(x, times)

    def forward(
        self, x: Float[Tensor, "N 3"], times: Float[Tensor, "#N 1"] | None = None
    ) -> Float[Tensor, "N E"]:
        x = x if times is None else self.canonical(x, times)
        return hash_grid(x, self.encoding.params, self.encoding.spec, self.backend)

    def stencil(
        self, x: Float[Tensor, "N 3"], step: float, times: Float[Tensor, "#N 1"] | None = None
    ) -> tuple[Float[Tensor, "N E"], Float[Tensor, "N 6 E"]]:
        """Features of points and of each one's neighbours, in the canonical scene where `times`
        are None."""
        if times is not None:
            return super().stencil(x, step, times)
        return hash_grid_stencil(x, step, self.encoding.params, self.encoding.spec, self.backend)
