"""The `data:` section of a stage YAML: what can be set, in which unit, and what is refused."""

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Optional, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .frame_times import check_frame_times
from .trajectories import TRAJECTORIES

T = TypeVar("T")

# OmegaConf 2.3 reads Optional[int], not int | None.
# ruff: noqa: UP045


@dataclass
class ImageConfig:
    """The reference image and the camera that took it."""

    image_path: str = ""  # RGBA image of the subject; needed for training
    height: int = 128  # pixels of the reference render
    width: int = 128  # pixels
    default_elevation_deg: float = 0.0  # degrees above the xy plane
    default_azimuth_deg: float = 0.0  # degrees from +x towards +y
    default_camera_distance: float = 2.5  # scene units from the origin; the scene's radius is 1
    default_fovy_deg: float = 40.0  # vertical field of view, degrees


@dataclass
class RandomCameraConfig:
    """What random cameras are drawn from. Ranges are [low, high]."""

    width: int = 128  # pixels of a random camera's render
    height: int = 128  # pixels
    elevation_range: list[float] = field(default_factory=lambda: [-45.0, 45.0])  # degrees
    azimuth_range: list[float] = field(default_factory=lambda: [-180.0, 180.0])  # degrees
    camera_distance_range: list[float] = field(default_factory=lambda: [2.5, 2.5])  # scene units
    fovy_range: list[float] = field(default_factory=lambda: [40.0, 40.0])  # degrees, vertical
    camera_perturb: float = 0.0  # position moves by up to this, each coordinate, scene units
    center_perturb: float = 0.0  # standard deviation of the point looked at, scene units
    up_perturb: float = 0.0  # standard deviation of the (unit) up vector's coordinates


@dataclass
class SingleViewConfig(RandomCameraConfig):
    """Independent random cameras, video clips, and the views of validation and test."""

    batch_size: int = 1  # random cameras of a batch, and clips of a video batch
    batch_uniform_azimuth: bool = False  # a batch's azimuths: one from each n-th of the range

    num_frames: int = 16  # frames of a clip
    width_vid: int = 128  # pixels of a clip's render
    height_vid: int = 128  # pixels
    train_dynamic_camera: bool = True  # the camera drifts along a clip
    sample_rand_frames: Optional[str] = "fps"  # fps, t0 or null: see frame_times.py
    frame_precision: int = 256  # moments that [0, 1] is divided into, fps only
    zero_rate: float = 0.2  # probability that a clip starts at time 0, fps only
    mirror_rate: float = 0.5  # probability that a clip is mirrored in time, fps only

    eval_height: int = 256  # pixels of validation and test pictures
    eval_width: int = 256  # pixels
    eval_elevation_deg: float = 0.0  # degrees
    eval_camera_distance: float = 2.5  # scene units
    eval_fovy_deg: float = 40.0  # degrees, vertical
    n_val_views: int = 4  # validation pictures, evenly spaced around the subject
    test_traj: str = "motion_smooth"  # camera path of the test video: see trajectories.py
    num_frames_factor: int = 4  # motion_smooth: num_frames times this are a round's frames
    n_test_views: int = 120  # circle: frames of the test video


@dataclass
class MultiViewConfig(RandomCameraConfig):
    """A ring of random cameras at one elevation, evenly spaced around a random azimuth."""

    n_view: int = 4  # cameras of a ring


@dataclass
class DataConfig:
    """The section `data`."""

    image: ImageConfig = field(default_factory=ImageConfig)
    single_view: SingleViewConfig = field(default_factory=SingleViewConfig)
    multi_view: MultiViewConfig = field(default_factory=MultiViewConfig)
    # probability that a batch's random cameras are a multi-view ring; null is 0
    prob_multi_view: Optional[float] = None
    # probability of a video batch, else it is an image batch (tau = 0); null is 0
    prob_single_view_video: Optional[float] = 0.0

    @property
    def dynamic(self) -> bool:
        """Whether time runs at all: in training batches, so in validation views too."""
        return bool(self.prob_single_view_video)


def parse_data_config(cfg: Mapping[str, Any] | None) -> DataConfig:
    """The section as typed and checked dataclasses."""
    parsed = parse_nested(DataConfig, cfg, "data")
    check(parsed)
    return parsed


def parse_nested(cls: type[T], cfg: Mapping[str, Any] | None, path: str) -> T:
    """`cfg` as an instance of the dataclass `cls`, dataclasses in its fields included.

    A key that no field has is a KeyError that names the close ones; `path` is where the section
    stands in the YAML.
    """
    cfg = OmegaConf.create({} if cfg is None else cfg)
    check_keys(cls, cfg, path)
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), cfg))
    except OmegaConfBaseException as error:
        key = f"{path}.{error.full_key}" if error.full_key else path
        raise ValueError(f"{key}: {str(error).splitlines()[0]}") from error


def check_keys(cls: type, cfg: Any, path: str) -> None:
    """Raise where `cfg`, at any depth, has a key that `cls` doesn't."""
    if not isinstance(cfg, Mapping):
        raise ValueError(f"{path} is {cfg!r}, but has to be a section with keys of its own.")
    fields = {f.name: f.type for f in dataclasses.fields(cls)}
    for key, value in cfg.items():
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=3, cutoff=0.5)
            hint = f"Close names: {', '.join(near)}" if near else f"It has: {', '.join(fields)}"
            raise KeyError(f"Nothing reads {key!r} in {path}. {hint}.")
        if dataclasses.is_dataclass(fields[key]):
            check_keys(fields[key], value, f"{path}.{key}")


def check(cfg: DataConfig) -> None:
    """Raise a ValueError that names the first value out of its bounds."""
    image, single, multi = cfg.image, cfg.single_view, cfg.multi_view
    check_frame_times(single.num_frames, single.sample_rand_frames, single.frame_precision)
    if single.test_traj not in TRAJECTORIES:
        names = ", ".join(TRAJECTORIES)
        raise ValueError(f"data.single_view.test_traj is {single.test_traj!r}; there are: {names}.")
    for name in ("prob_multi_view", "prob_single_view_video"):
        bound(f"data.{name}", getattr(cfg, name) or 0.0, 0, 1)
    for section, path in ((image, "data.image"), (single, "data.single_view")):
        check_values(section, path)
    check_values(multi, "data.multi_view")


# bounds of a value by what its name contains; the first one that fits counts
BOUNDS: dict[str, tuple[float, float]] = {
    "elevation": (-90, 90),
    "azimuth": (-720, 720),
    "distance": (1e-3, 1e3),
    "fovy": (1e-3, 179),
    "perturb": (0, 1e3),
    "_rate": (0, 1),
    "height": (1, 2**16),
    "width": (1, 2**16),
    "batch_size": (1, 2**16),
    "n_": (1, 2**31),
    "num_": (1, 2**31),
    "precision": (1, 2**31),
}


def check_values(section: Any, path: str) -> None:
    """Check the numbers and ranges of one section against BOUNDS."""
    for name, value in vars(section).items():
        if isinstance(value, (str, bool)) or value is None:
            continue
        low, high = next(bounds for part, bounds in BOUNDS.items() if part in name)
        values = value if isinstance(value, list) else [value]
        for v in values:
            bound(f"{path}.{name}", v, low, high)
        if isinstance(value, list) and (len(value) != 2 or value[0] > value[1]):
            raise ValueError(f"{path}.{name} is {value}, but has to be [low, high].")


def bound(name: str, value: float, low: float, high: float) -> None:
    """Raise unless low <= value <= high."""
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}, but has to be between {low} and {high}.")
