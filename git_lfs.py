"""The bundled host's `git_lfs`, also inside the real threestudio, which has no such module."""

from typing import TYPE_CHECKING

from .host import utility

if TYPE_CHECKING:
    from threestudio.utils import git_lfs as _git_lfs
else:
    _git_lfs = utility("git_lfs")

refuse_pointer = _git_lfs.refuse_pointer
