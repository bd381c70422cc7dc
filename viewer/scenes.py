"""The scenes that are looked at, each loaded when it is first asked for and again when it has
changed."""

from pathlib import Path

from ..system.trained import Scene, load_scene
from . import runs
from .runs import Stage


class Scenes:
    def __init__(self, run: Path, loop: bool = False) -> None:
        self.run, self.loop = run, loop
        self.stages: dict[str, Stage] = {}
        self.loaded: dict[tuple[str, bool], tuple[int, Scene]] = {}  # with when it was written

    def look(self) -> bool:
        """Whether there is another stage or checkpoint than at the last look."""
        try:
            found = runs.stages(self.run)
        except ValueError:  # a run that hasn't begun: whoever can't wait was told before
            found = {}
        news, self.stages = found != self.stages, found
        return news

    @property
    def newest(self) -> str:
        """The stage that was written last; "" as long as there is none."""
        stages = self.stages.values()
        return max(stages, key=lambda stage: stage.changed).name if stages else ""

    def of(self, name: str, normals: bool = False) -> Scene:
        """A stage's scene.

        Raises:
            ValueError, OSError: its files aren't a trial's, or have just gone.
        """
        if name not in self.stages:
            raise FileNotFoundError(f"{self.run / name} has no checkpoint any more.")
        stage, key = self.stages[name], (name, normals)
        changed, scene = self.loaded.get(key, (None, None))
        if scene is None or changed != stage.changed:
            if scene is not None:  # what can't be read is said once, then the older one is shown
                self.loaded[key] = stage.changed, scene
            scene = load_scene(stage.config, stage.checkpoint, normals)
            if self.loop:
                scene.loop()
            self.loaded[key] = stage.changed, scene
        return scene
