"""The processes of a run, one a device, and what the main one says."""

import secrets
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, broadcast_object_list
from torch import Tensor
from tqdm import tqdm

from .. import events


class Processes:
    """
    report_to: the tracker that losses and pictures go to, `all` or `none`.

    Raises:
        ValueError: the tracker isn't installed.
    """

    def __init__(self, folder: Path, report_to: str, logging_dir: str):
        project = ProjectConfiguration(
            project_dir=str(folder), logging_dir=str(folder / logging_dir)
        )
        # precision is ours: accelerate's autocast isn't used
        self.accelerator = Accelerator(
            mixed_precision="no",
            log_with=None if report_to == "none" else report_to,
            project_config=project,
        )
        if report_to not in ("none", "all") and not self.accelerator.log_with:
            raise ValueError(
                f"--report_to {report_to}: `pip install {report_to}` first, or --report_to none."
            )
        self.device = self.accelerator.device
        self.count = self.accelerator.num_processes
        self.index = self.accelerator.process_index
        self.is_main = self.accelerator.is_main_process

    def say(self, line: str, aside: bool = False) -> None:
        """A line from the main process, past the progress bar; it is also told, but for an aside
        (as in the host's log.py)."""
        if self.is_main:
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()
            if not aside:
                events.message(line)

    def random_seed(self) -> int:
        """Alike in all processes."""
        return broadcast_object_list([secrets.randbelow(2**31)])[0]

    def mean(self, value: Tensor) -> Tensor:
        """Over all processes."""
        if self.count == 1:
            return value
        reduced: Any = self.accelerator.reduce(value, reduction="mean")
        return reduced

    def any(self, flag: bool) -> bool:
        """Whether it is so in one of the processes; waits for them and the devices."""
        flags = torch.tensor(float(flag), device=self.device)
        count: Any = self.accelerator.reduce(flags)
        return count.item() > 0
