"""A sheet of pictures, large enough to judge faces by."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ..data.cameras import Cameras
from ..system.trained import Scene
from .measures import pictures
from .truth import RING, TAU, Subject, front

LARGE = 128  # pixels of a picture's side


def faces(subject: Subject, scene: Scene) -> Float[Tensor, "R N 3 S S"]:
    """Rows, of the truth and then of ours: in motion from the front and from 45 degrees to the
    left, at every second time; and all around at tau = 0. Of a scene that stands still, the latter
    alone.
    """
    tau = TAU[::2]
    side = Cameras.of(15.0, 45.0).frames(len(tau))
    views = [(front(len(tau)), tau), (side, tau)] if not scene.static else []
    rows = []
    for cameras, times in [*views, (RING, torch.zeros(len(RING)))]:
        rows.append(subject.pictures(cameras, times, size=LARGE))
        rows.append(pictures(scene, cameras, times, LARGE))
    return torch.stack(rows).permute(0, 1, 4, 2, 3)
