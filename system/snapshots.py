"""A scene as it becomes, for whoever looks at it while it trains: a file beside its checkpoints,
written anew from time to time and gone at the end.

Whoever wants it sets the variable. It is rare enough that training takes no more than SHARE longer,
and what goes wrong with it is a warning.
"""

import os
import time
from pathlib import Path

import threestudio
import torch
from threestudio.systems.base import BaseLift3DSystem
from threestudio.utils.misc import get_rank

from ..files.whole import whole_file

VARIABLE = "ANIMATE124_SNAPSHOTS"
SNAPSHOT = "snapshot.ckpt"  # in the trial's folder
SHARE = 0.02  # of the time that training takes
LEAST = 1.0  # seconds between two
SCENE = ("geometry.", "material.", "background.", "renderer.")  # what keys of it begin with


class Snapshots:
    """Of a trial; they go to `path`, or nowhere where it is None."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.next = 0.0  # by the monotonic clock

    @classmethod
    def asked_for(cls, system: BaseLift3DSystem) -> "Snapshots":
        """In the trial's folder, if the variable says so; of several processes one writes."""
        if not os.environ.get(VARIABLE) or get_rank() != 0:
            return cls(None)
        return cls(Path(system.get_save_dir()).parent / SNAPSHOT)

    def take(self, system: BaseLift3DSystem) -> None:
        """Writes one if it is time for it."""
        if self.path is None or time.monotonic() < self.next:
            return
        began = time.monotonic()
        state = {k: v for k, v in system.state_dict().items() if k.startswith(SCENE)}
        epoch, step = system.true_current_epoch, system.true_global_step
        try:
            with whole_file(self.path) as part:
                torch.save({"state_dict": state, "epoch": epoch, "global_step": step}, part)
        except (OSError, RuntimeError) as error:  # the latter is torch's of a full disk
            threestudio.warn(f"No more snapshots for the viewer: {error}")
            self.path = None
        ended = time.monotonic()
        self.next = ended + max(LEAST, (ended - began) / SHARE)

    def remove(self) -> None:
        if self.path is not None:
            self.path.unlink(missing_ok=True)
