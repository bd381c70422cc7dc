"""The bundled host's `events`, also inside the real threestudio, which has no such module."""

from typing import TYPE_CHECKING

from .host import utility

if TYPE_CHECKING:
    from threestudio.utils import events as _events
else:
    _events = utility("events")

TRAINING = _events.TRAINING
VARIABLE = _events.VARIABLE
Event = _events.Event
Message = _events.Message
PeakMemory = _events.PeakMemory
Progress = _events.Progress
Reader = _events.Reader
message = _events.message
peak_memory = _events.peak_memory
progress = _events.progress
say = _events.say
say_error = _events.say_error
tell_messages = _events.tell_messages
