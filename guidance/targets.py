"""Targets that serve more than once: denoising costs more than rendering and fitting."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

Picture = Float[Tensor, "B *F 3 H W"]
# of a batch, each [N]: what tells a view from others
VIEW = ("elevation", "azimuth", "camera_distances", "frame_times")


class KeptTargets:
    """What was made for cameras and clips that come again (`data.single_view.n_cameras`,
    `n_clips`), each for as many uses. Checkpoints on the way have them (`kept`, `take`).
    """

    def __init__(self, uses: int):
        self.uses = uses
        self.kept: dict[Any, tuple[Tensor, int]] = {}  # and the uses that are left

    def take(self, kept: dict[Any, tuple[Tensor, int]], device: torch.device | str) -> None:
        """Goes on with what a run before this one kept."""
        self.kept = {key: (target.to(device), left) for key, (target, left) in kept.items()}

    def of(self, camera: dict[str, Any], shape: torch.Size, make: Callable[[], Picture]) -> Picture:
        """The target of a batch's cameras and of that shape, made anew where none is left: a run
        may go on with pictures of another size."""
        if self.uses == 1:
            return make()
        key = (tuple(shape), *(tuple(camera[name].tolist()) for name in VIEW))
        target, left = self.kept.get(key) or (make(), self.uses)
        if left > 1:
            self.kept[key] = target, left - 1
        else:
            self.kept.pop(key)
        return target
