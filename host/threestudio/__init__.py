"""threestudio's extension API, small: what an extension imports, without CUDA packages.

Names, signatures and semantics follow threestudio 0.2.3 (Apache-2.0), so that one extension runs
on either. Angles are degrees where a name says `_deg` or is a camera's elevation or azimuth, else
radians; images are [B H W C] in [0, 1].
"""

from threestudio.log import debug, info, warn
from threestudio.registry import __modules__, find, register

__version__ = "0.2.3"

from threestudio import models

__all__ = ["__modules__", "__version__", "debug", "find", "info", "models", "register", "warn"]
