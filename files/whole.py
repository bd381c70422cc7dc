"""The bundled host's `whole`, also inside the real threestudio, which has no such module."""

from typing import TYPE_CHECKING

from ..host import utility

if TYPE_CHECKING:
    from threestudio.utils import whole as _whole
else:
    _whole = utility("whole")

PART = _whole.PART
FULL = _whole.FULL
check_room = _whole.check_room
clear_parts = _whole.clear_parts
in_words = _whole.in_words
running = _whole.running
whole_file = _whole.whole_file
