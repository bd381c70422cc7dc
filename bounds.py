"""The bundled host's `bounds`, also inside the real threestudio, which has no such module."""

import os
from typing import TYPE_CHECKING

from .host import utility

if TYPE_CHECKING:
    from threestudio.utils import bounds as _bounds
else:
    _bounds = utility("bounds")

_bounds.FOLDERS.append(os.path.dirname(__file__))  # the YAMLs name pictures and models in load/
Bounded = _bounds.Bounded
bounded = _bounds.bounded
check_bounds = _bounds.check_bounds
expand_paths = _bounds.expand_paths
in_order = _bounds.in_order
needed = _bounds.needed
path_of = _bounds.path_of
