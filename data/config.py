"""The `data:` section of a stage YAML: what can be set, in which unit, and what is refused."""

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Optional, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..bounds import bounded, check_bounds, expand_paths, path_of
from .frame_times import MODES, check_frame_times
from .original_keys import adopt
from .trajectories import TRAJECTORIES

T = TypeVar("T")

# OmegaConf 2.3 reads Optional[int], not int | None.
# ruff: noqa: UP045

DISTANCES = 1e-3, 1e3  # scene units
FOVYS = 1e-3, 179  # degrees


def pixels(default: int) -> Any:
    """A field for pixels on a side."""
    return bounded(default, 1, 2**16)


def count(default: int) -> Any:
    """A field for how many there are."""
    return bounded(default, 1, 2**31)


@dataclass
class ImageConfig:
    """The reference image and the camera that took it."""

    image_path: str = path_of("file")  # RGBA image of the subject; needed for training
    height: int = pixels(128)  # of the reference render
    width: int = pixels(128)
    default_elevation_deg: float = bounded(0.0, -90, 90)  # degrees above the xy plane
    default_azimuth_deg: float = bounded(0.0, -720, 720)  # degrees from +x towards +y
    # scene units from the origin; the scene's radius is 1
    default_camera_distance: float = bounded(2.5, *DISTANCES)
    default_fovy_deg: float = bounded(40.0, *FOVYS)  # vertical field of view, degrees


@dataclass
class RandomCameraConfig:
    """What random cameras are drawn from. Ranges are [low, high]."""

    width: int = pixels(128)  # of a random camera's render
    height: int = pixels(128)
    elevation_range: list[float] = bounded([-45.0, 45.0], -90, 90, ordered=True)  # degrees
    azimuth_range: list[float] = bounded([-180.0, 180.0], -720, 720, ordered=True)  # degrees
    camera_distance_range: list[float] = bounded(
        [2.5, 2.5], *DISTANCES, ordered=True
    )  # scene units
    fovy_range: list[float] = bounded([40.0, 40.0], *FOVYS, ordered=True)  # degrees, vertical
    # position moves by up to this, each coordinate, scene units
    camera_perturb: float = bounded(0.0, 0, 1e3)
    # standard deviation of the point looked at, scene units
    center_perturb: float = bounded(0.0, 0, 1e3)
    # standard deviation of the (unit) up vector's coordinates
    up_perturb: float = bounded(0.0, 0, 1e3)


@dataclass
class SingleViewConfig(RandomCameraConfig):
    """Independent random cameras, video clips, and the views of validation and test."""

    batch_size: int = bounded(1, 1, 2**16)  # random cameras of a batch, and clips of a video batch
    # fixed batches of random cameras, azimuths one from each part of the range, that image batches
    # take in turn; 0: ever new cameras
    n_cameras: int = bounded(0, 0, 2**20)
    # the same of clips, with their frame times and their cameras' drift
    n_clips: int = bounded(0, 0, 2**20)
    batch_uniform_azimuth: bool = False  # a batch's azimuths: one from each n-th of the range

    num_frames: int = count(16)  # frames of a clip
    width_vid: int = pixels(128)  # of a clip's render
    height_vid: int = pixels(128)
    train_dynamic_camera: bool = True  # the camera drifts along a clip
    sample_rand_frames: Optional[str] = bounded(
        "fps", names=(*MODES,)
    )  # fps, t0 or null: see frame_times.py
    frame_precision: int = count(256)  # moments that [0, 1] is divided into, fps only
    zero_rate: float = bounded(0.2, 0, 1)  # probability that a clip starts at time 0, fps only
    mirror_rate: float = bounded(0.5, 0, 1)  # probability that a clip is mirrored in time, fps only
    # probability that clips which start at time 0 begin at the reference image's camera
    reference_rate: float = bounded(0.0, 0, 1)

    eval_height: int = pixels(256)  # of validation and test pictures
    eval_width: int = pixels(256)
    eval_elevation_deg: float = bounded(0.0, -90, 90)  # degrees
    eval_camera_distance: float = bounded(2.5, *DISTANCES)  # scene units
    eval_fovy_deg: float = bounded(40.0, *FOVYS)  # degrees, vertical
    n_val_views: int = count(4)  # validation pictures, evenly spaced around the subject
    # camera path of the test video: see trajectories.py; null: motion_smooth if there are clips
    test_traj: Optional[str] = bounded(None, names=(*TRAJECTORIES, None))
    num_frames_factor: int = count(4)  # motion_smooth: num_frames times this are a round's frames
    n_test_views: int = count(120)  # circle: frames of the test video


@dataclass
class MultiViewConfig(RandomCameraConfig):
    """A ring of random cameras at one elevation, evenly spaced around a random azimuth."""

    n_view: int = count(4)  # cameras of a ring


@dataclass
class DataConfig:
    """The section `data`."""

    image: ImageConfig = field(default_factory=ImageConfig)
    single_view: SingleViewConfig = field(default_factory=SingleViewConfig)
    multi_view: MultiViewConfig = field(default_factory=MultiViewConfig)
    # probability that a batch's random cameras are a multi-view ring; null is 0
    prob_multi_view: Optional[float] = bounded(None, 0, 1)
    # probability of a video batch, else it is an image batch (tau = 0); null is 0
    prob_single_view_video: Optional[float] = bounded(0.0, 0, 1)

    @property
    def dynamic(self) -> bool:
        """Whether time runs at all: in training batches, so in validation views too."""
        return bool(self.prob_single_view_video)

    @property
    def test_traj(self) -> str:
        """The test video's camera path; a scene that stands still is best seen in a circle."""
        return self.single_view.test_traj or ("motion_smooth" if self.dynamic else "circle")


def parse_data_config(cfg: Mapping[str, Any] | None) -> DataConfig:
    """The section as typed and checked dataclasses."""
    parsed = parse_nested(DataConfig, adopt(cfg, "data"), "data")
    check(parsed)
    return parsed


def parse_nested(cls: type[T], cfg: Mapping[str, Any] | None, path: str) -> T:
    """`cfg` as an instance of the dataclass `cls`, dataclasses in its fields included.

    A key that no field has is a KeyError that names the close ones; `path` is where the section
    stands in the YAML.
    """
    given: Any = {} if cfg is None else cfg
    given = OmegaConf.create(given)
    check_keys(cls, given, path)
    try:
        built: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), given))
    except OmegaConfBaseException as error:
        key = f"{path}.{error.full_key}" if error.full_key else path
        raise ValueError(f"{key}: {str(error).splitlines()[0]}") from error
    return built


def check_keys(cls: type, cfg: Any, path: str) -> None:
    """Raise where `cfg`, at any depth, has a key that `cls` doesn't."""
    if not isinstance(cfg, Mapping):
        raise ValueError(f"{path} is {cfg!r}, but has to be a section with keys of its own.")
    fields: dict[str, Any] = {f.name: f.type for f in dataclasses.fields(cls)}
    for key, value in cfg.items():
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=3, cutoff=0.5)
            hint = f"Close names: {', '.join(near)}" if near else f"It has: {', '.join(fields)}"
            raise KeyError(f"Nothing reads {key!r} in {path}. {hint}.")
        if dataclasses.is_dataclass(fields[key]):
            check_keys(fields[key], value, f"{path}.{key}")


def check(cfg: DataConfig) -> None:
    """Raise a ValueError that names the first value out of its bounds."""
    expand_paths(cfg)
    check_bounds(cfg, "data")
    single = cfg.single_view
    check_frame_times(single.num_frames, single.sample_rand_frames, single.frame_precision)
