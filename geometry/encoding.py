"""What a geometry asks of an encoding, by whatever `otype` it is chosen (otypes.py)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .deformation import Deformation
from .stencil import neighbours


class Encoding(nn.Module):
    """Features of points in [0, 1]^3 at frame times in [0, 1].

    A further one says its `Config` (a dataclass with a field `otype`) and how it is made of that,
    `n_output_dims` and `forward`; what else it can is its own to say.
    """

    Config: ClassVar[type]
    starts_from: ClassVar[tuple[str, ...]] = ()  # other otypes whose checkpoints it begins with
    # settings that say how its state is used, not what it is: they may change from stage to stage
    usage: ClassVar[tuple[str, ...]] = ("static", "backend")
    # beginnings of state-dict keys that such a checkpoint lacks: they stay as they were made
    fresh: ClassVar[tuple[str, ...]] = ()
    n_output_dims: int
    static: bool = False  # whether it is the same at all times
    frozen: bool = False  # whether what the scene looks like at tau = 0 is kept as it is
    deforms: ClassVar[bool] = False  # whether its points move, and nothing else changes with time
    deformation: Deformation  # of one that deforms

    @classmethod
    def from_config(cls, cfg: Any) -> "Encoding":
        raise NotImplementedError(f"{cls.__name__} doesn't say how it is made of its config.")

    def forward(
        self, x: Float[Tensor, "N 3"], times: Float[Tensor, "#N 1"] | None = None
    ) -> Float[Tensor, "N E"]:
        """times: tau of each point, or of all; None is tau = 0."""
        raise NotImplementedError(f"{type(self).__name__} has no features of points.")

    def canonical(
        self, x: Float[Tensor, "N 3"], times: Float[Tensor, "#N 1"]
    ) -> Float[Tensor, "N 3"]:
        """x_c, where points of a scene that is deformed were at tau = 0."""
        raise NotImplementedError(f"{type(self).__name__} moves no points.")

    def stencil(
        self, x: Float[Tensor, "N 3"], step: float, times: Float[Tensor, "#N 1"] | None = None
    ) -> tuple[Float[Tensor, "N E"], Float[Tensor, "N 6 E"]]:
        """Features of points, and of each one's `neighbours`; faster where an encoding can share
        work between them."""
        if times is not None and len(times) > 1:
            times = torch.cat([times, times.repeat_interleave(6, dim=0)])
        features = self(torch.cat([x, neighbours(x, step).flatten(0, 1)]), times)
        own, near = features.split([len(x), 6 * len(x)])
        return own, near.unflatten(0, (len(x), 6))

    def take_layout(self, state_dict: Mapping[str, Tensor], prefix: str) -> None:
        """Gets ready for a state dict of another layout that it can load, if there is any."""

    def _load_from_state_dict(self, state_dict, prefix, *rest):
        self.take_layout(state_dict, prefix)  # before anything is loaded
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def ever_moved(self, state_dict: Mapping[str, Tensor], prefix: str) -> bool:
        """Whether a state dict's encoding was ever trained to change with time."""
        return True


class CompositeEncoding(nn.Module):
    """The geometry's `encoding`, whose own `encoding` is the one of an otype: threestudio's
    nesting, which names in checkpoints and optimizer groups (geometry.encoding.encoding.*) follow.
    """

    def __init__(self, encoding: Encoding):
        super().__init__()
        self.encoding = encoding
        self.n_output_dims = encoding.n_output_dims

    def forward(
        self, x: Float[Tensor, "N 3"], times: Float[Tensor, "#N 1"] | None = None
    ) -> Float[Tensor, "N E"]:
        return self.encoding(x, times)

    def stencil(
        self, x: Float[Tensor, "N 3"], step: float, times: Float[Tensor, "#N 1"] | None = None
    ) -> tuple[Float[Tensor, "N E"], Float[Tensor, "N 6 E"]]:
        return self.encoding.stencil(x, step, times)
