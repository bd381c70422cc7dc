"""The encodings that `pos_encoding_config.otype` names. A further one is a file and a row here."""

from typing import Any

from omegaconf import DictConfig
from threestudio.utils.config import parse_structured

from .deformed_encoding import DeformedEncoding
from .encoding import Encoding
from .space_time_encoding import SpaceTimeEncoding

ENCODINGS: dict[str, type[Encoding]] = {
    "HashGridSpatialTime": SpaceTimeEncoding,
    "HashGridDeformation": DeformedEncoding,
}
USUAL = "HashGridSpatialTime"


def encoding_class(settings: dict | DictConfig) -> type[Encoding]:
    """
    Raises:
        ValueError: no encoding has that name.
    """
    otype = settings.get("otype", USUAL)
    if otype not in ENCODINGS:
        key = "pos_encoding_config.otype"
        if isinstance(settings, DictConfig):
            key = settings._get_full_key("otype")
        one_of = "one of " if len(ENCODINGS) > 1 else ""
        raise ValueError(f"{key} is {otype!r}, but has to be {one_of}{', '.join(ENCODINGS)}.")
    return ENCODINGS[otype]


def parse_encoding(settings: dict | DictConfig) -> Any:
    """The settings as the otype's own Config has them; an error for what it doesn't take."""
    return parse_structured(encoding_class(settings).Config, settings)


def make_encoding(cfg: Any) -> Encoding:
    """Of a config that `parse_encoding` returned."""
    return ENCODINGS[cfg.otype].from_config(cfg)


def is_deformed(geometry: dict | DictConfig) -> bool:
    """Whether a geometry with this config has points that move: a deformation."""
    settings = geometry.get("pos_encoding_config", {})
    return ENCODINGS.get(settings.get("otype", USUAL), Encoding).deforms
