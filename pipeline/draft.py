"""A plan in the making: what each of its tasks is made from."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .presets import Preset, Stage
from .request import Request
from .wording import Subject


@dataclass
class Draft:
    """Tasks know each other only by the files that they hand on, which are named here."""

    request: Request
    preset: Preset
    subject: Subject  # LATER until it is known
    prompts: dict[str, str]  # by the names that a preset's rows have for them
    last: str  # the stage whose result is shown
    words: dict[str, list[str]] = field(default_factory=dict)  # stage -> key=value of its command
    configs: dict[str, dict[str, Any]] = field(default_factory=dict)  # ... and what comes of them
    memory: dict[str, dict[str, Any]] = field(default_factory=dict)  # task -> what --vram sets

    def folder(self, task: str) -> Path:
        return self.request.folder / task

    def overrides(self, task: str) -> dict[str, str]:
        return self.request.overrides.get(task, {})

    def flags(self, task: str, *options: str) -> dict[str, Any]:
        """Of a task's script: the preset's, --vram's, and at last the person's.

        options: of animate.py, which are flags of the script too.
        """
        usual = self.preset.flags.get(task, {})
        asked = {name: getattr(self.request, name) for name in options}
        asked = {name: value for name, value in asked.items() if value not in (None, False)}
        if asked.keys() & {"seconds", "fps"}:  # they say how many frames there are
            usual = {name: value for name, value in usual.items() if name != "frames"}
        return {**usual, **self.memory.get(task, {}), **asked, **self.overrides(task)}

    @property
    def cut_out(self) -> Path:
        return self.folder("input") / "_rgba.png"

    @property
    def learned_token(self) -> Path:
        return self.folder("token") / "learned_embeds.bin"

    @property
    def refined(self) -> Stage:
        """The stage that takes the learned token."""
        return next(stage for stage in self.preset.stages if stage.token)

    def checkpoint(self, stage: str) -> Path:
        return self.folder(stage) / "ckpts" / "last.ckpt"

    def config(self, stage: str) -> Path:
        """As a stage writes it."""
        return self.folder(stage) / "configs" / "parsed.yaml"
