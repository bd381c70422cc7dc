"""threestudio-animate124: one image and one sentence in, a 4D scene out.

Importing this package registers its modules. Where no `threestudio` is importable, the bundled one
(host/) is brought in first.
"""

import importlib.util
import sys
from os.path import dirname, realpath

# `python -m` in the checkout: its folders (kernels, data, ...) are no top-level packages, and a
# library that imports one of such a name means another
if _here := [place for place in sys.path if realpath(place or ".") == dirname(realpath(__file__))]:
    sys.path[:] = [place for place in sys.path if place not in _here]

if importlib.util.find_spec("threestudio") is None:
    from .host import activate

    activate()

from .data import image_video_datamodule
from .exporter import assets_4d
from .geometry import implicit_volume
from .guidance import (
    animatediff,
    cogvideox,
    image,
    image_to_video,
    ltx,
    skyreels,
    svd,
    tile,
    video,
    wan,
    wan_ti2v,
    wan_vace,
    zero123,
)
from .prompt_processors import cogvideox as cogvideox_prompts
from .prompt_processors import ltx as ltx_prompts
from .prompt_processors import textual_inversion as learned_prompts
from .prompt_processors import video as video_prompts
from .prompt_processors import view_dependent
from .prompt_processors import wan as wan_prompts
from .renderer import nerf_volume_renderer
from .system import animate124, stock_names

__version__ = "0.1.0"
__all__ = [
    "animate124",
    "animatediff",
    "assets_4d",
    "cogvideox",
    "cogvideox_prompts",
    "image",
    "image_to_video",
    "image_video_datamodule",
    "implicit_volume",
    "learned_prompts",
    "ltx",
    "ltx_prompts",
    "nerf_volume_renderer",
    "skyreels",
    "stock_names",
    "svd",
    "tile",
    "video",
    "video_prompts",
    "view_dependent",
    "wan",
    "wan_prompts",
    "wan_ti2v",
    "wan_vace",
    "zero123",
]
