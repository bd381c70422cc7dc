"""What a prior is shown as a clip's first frame: the given picture where the clip starts at time 0
from the camera that took it, else the rendered frame, without its graph, or none.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..bounds import bounded, path_of
from ..data.reference_image import reference
from .clips import Clips
from .codecs import CausalVideoCodec
from .conditions import Condition, both

RENDERED, NONE = "rendered", "none"
SAME = 1e-3  # degrees, scene units, and frame time: cameras and moments that differ by less


def starts_at(
    camera: dict[str, Any], n_clips: int, place: tuple[float, float, float]
) -> Bool[Tensor, " B"]:
    """Which clips start at time 0 from that elevation and azimuth (degrees) and distance.

    camera: of frames, those of a clip adjacent; without `frame_times` (of another host) no clip is
        known to start at time 0.
    """
    names = ("elevation", "azimuth", "camera_distances", "frame_times")
    if "frame_times" not in camera:
        return torch.zeros(n_clips, dtype=torch.bool, device=camera["azimuth"].device)
    length = len(camera["azimuth"]) // n_clips
    elevation, azimuth, distance, tau = (camera[name][::length] for name in names)
    turn = (azimuth - place[1] + 180) % 360 - 180
    off = torch.stack([elevation - place[0], turn, distance - place[2], tau])
    return (off.abs() < SAME).all(0)


class FirstFrameDistillation(Clips):
    """A prior of clips whose network is shown the first frame."""

    @dataclass
    class Config(Clips.Config):
        # what it is shown as the first frame of a clip that doesn't start with the given picture:
        # the rendered one, or none
        first_frame: str = bounded(RENDERED, names=(RENDERED, NONE))
        # the given picture, RGBA: the first frame of a clip that starts at time 0 from the camera
        # that took it; null: it isn't shown
        cond_image_path: str | None = path_of("file", None)
        cond_elevation_deg: float = bounded(0.0, -90, 90)  # degrees, of that camera
        cond_azimuth_deg: float = bounded(0.0, -720, 720)  # degrees
        cond_camera_distance: float = bounded(2.5, 1e-3, 1e3)  # scene units

    cfg: Config
    picture: Float[Tensor, "1 3 H W"] | None = None

    def configure(self) -> None:
        super().configure()
        if self.cfg.cond_image_path is not None:
            rgb, _ = reference(self.cfg.cond_image_path, self.height, self.width)
            self.picture = rgb.permute(2, 0, 1)[None].to(self.device)

    @torch.no_grad()
    def shown_frames(
        self, clips: Float[Tensor, "B F 3 H W"], camera: dict[str, Any]
    ) -> Float[Tensor, "B 3 H W"]:
        """Each clip's first frame: the given picture or what was rendered, without a graph."""
        rendered = clips[:, 0].detach()
        if self.picture is None:
            return rendered
        there = self.starts_there(camera, len(clips)).to(clips.device)
        return torch.where(there[:, None, None, None], self.picture, rendered)

    def first_frames(
        self, clips: Float[Tensor, "B F 3 H W"], camera: dict[str, Any]
    ) -> Float[Tensor, "B 3 H W"] | None:
        """`shown_frames`, or None where `first_frame` is none and not all clips start with the
        picture."""
        if self.cfg.first_frame == NONE and not self.all_start_there(camera, len(clips)):
            return None
        return self.shown_frames(clips, camera)

    def all_start_there(self, camera: dict[str, Any], n_clips: int) -> bool:
        return self.picture is not None and bool(self.starts_there(camera, n_clips).all())

    def starts_there(self, camera: dict[str, Any], n_clips: int) -> Bool[Tensor, " B"]:
        """Which clips start where the picture was taken."""
        cfg = self.cfg
        place = cfg.cond_elevation_deg, cfg.cond_azimuth_deg, cfg.cond_camera_distance
        return starts_at(camera, n_clips, place)


class CleanFirstFrameDistillation(FirstFrameDistillation):
    """... as the first latent frame, clean, which a causal VAE makes of the first frame alone."""

    codec: CausalVideoCodec
    first_mode: ClassVar[bool]  # the mode of the VAE's posterior, or a sample

    @torch.no_grad()
    def clip_condition(
        self, clips: Float[Tensor, "B F 3 H W"], camera: dict[str, Any]
    ) -> Condition:
        frames = self.first_frames(clips, camera)
        if frames is None:
            return {}
        if clips.shape[1] == 1:
            raise ValueError(
                "Clips have one frame, which this model is shown clean, so that it says nothing: "
                "more are needed (data.single_view.num_frames=5, for instance), or "
                "first_frame=none."
            )
        return {"first": both(self.codec.encode_clips(frames[:, None], mode=self.first_mode))}
