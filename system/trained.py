"""A trained scene, for whoever looks at it: the pipeline, evaluation, benchmarks."""

from pathlib import Path
from typing import Any

import threestudio
import torch
from jaxtyping import Float
from omegaconf import DictConfig, OmegaConf
from threestudio.systems.base import BaseLift3DSystem
from threestudio.utils.config import load_yaml
from torch import Tensor

from ..data.cameras import Cameras
from ..data.config import parse_data_config
from ..geometry.times import is_static
from . import checkpoints
from .finite import check_loaded

NEAR = 1e-4  # of the scene's size: that near to the truth tracks are
PARTS = ("geometry", "renderer")  # whose classes say what they can do without, to be looked at


class Scene:
    """A scene that nothing trains: without its priors, and as light as looking at it allows."""

    def __init__(self, system: BaseLift3DSystem, data: Any) -> None:
        self.system = system
        self.data = data  # the trial's data config: where its reference camera is

    @property
    def static(self) -> bool:
        """Whether it stands still."""
        return is_static(self.system.geometry)

    def loop(self) -> None:
        """Makes the motion's end meet its start: from here on tau = 1 looks as tau = 0 does.

        Raises:
            ValueError: the scene moves, but isn't bent over time.
        """
        deformation = getattr(self.system.geometry, "deformation", None)
        if deformation is not None:
            deformation.close()
        elif not self.static:
            raise ValueError(
                "What a loop is made of is a scene that is bent over time, and this one is painted "
                "anew at each moment: leave --loop out, or train with --field deformation."
            )

    @torch.no_grad()
    def look(
        self, cameras: Cameras, tau: Float[Tensor, " B"], height: int, width: int
    ) -> dict[str, Float[Tensor, "B H W _"]]:
        """The renderer's pictures from cameras at their times, on the scene's device."""
        view = cameras.batch(height, width, tau)
        device = self.system.device
        view = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in view.items()}
        return self.system(view)

    def tracks(
        self, points: Float[Tensor, "N 3"], taus: Float[Tensor, " T"]
    ) -> Float[Tensor, "T N 3"]:
        """Where points of the scene at tau = 0, in the world, are at other times. A warning counts
        those that aren't known to NEAR of the scene's size, where a deformation folds space.

        Raises:
            ValueError: the scene moves, but its geometry can't follow points.
        """
        geometry = self.system.geometry
        follow = getattr(geometry, "tracks", None)
        if self.static:
            return points.expand(len(taus), -1, -1)
        if follow is None:
            raise ValueError(
                f"{type(geometry).__name__} can't follow points of a scene that moves: it has no "
                "`tracks`. A scene with pos_encoding_config.otype=HashGridDeformation can."
            )
        places, errors = follow(points, taus)
        far = errors > NEAR * 2 * geometry.cfg.radius
        if far.any():
            threestudio.warn(
                f"{int(far.sum())} of {far.numel()} places are off, by up to {errors.max():.2g}: "
                "the deformation folds space there."
            )
        return places


def load_scene(config: Path, checkpoint: Path, normals: bool = False) -> Scene:
    """The scene of a trial: its configs/parsed.yaml, and what it trained.

    normals: whether they are rendered too, by finite differences.

    Raises:
        ValueError, FileNotFoundError: files that aren't a trial's, or don't go together.
    """
    cfg = load_yaml(str(config))
    if not OmegaConf.is_dict(cfg.get("system")) or not cfg.get("system_type"):
        raise ValueError(
            f"{config} describes no trial (it has the keys {', '.join(map(str, cfg))}). A "
            "trial's own is its configs/parsed.yaml."
        )
    state_dict, epoch, global_step = checkpoints.read(checkpoint)
    check_loaded(state_dict, str(checkpoint))
    lighten(cfg.system, normals)
    data = parse_data_config(cfg.get("data"))
    system = threestudio.find(cfg.system_type)(cfg.system, resumed=True)
    try:
        checkpoints.check_fit(system, state_dict, checkpoint.name)
        system.load_state_dict(state_dict)
    except (ValueError, RuntimeError) as error:  # the latter is torch's, of other modules
        raise ValueError(f"{checkpoint} doesn't fit {config}: {error}") from error
    system.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    system.do_update_step(epoch, global_step, on_load_weights=True)
    return Scene(system, data)


def lighten(system: DictConfig, normals: bool = False) -> None:
    """Leaves out of a system's config what only training needs, normals among it if they aren't
    asked for."""
    system.weights = None
    for part in PARTS:
        kind = threestudio.find(system[f"{part}_type"])
        light = getattr(kind, "with_normals" if normals else "light", {})
        for key, value in light.items():
            OmegaConf.update(system, f"{part}.{key}", value)
