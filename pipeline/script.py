"""What the scripts of this folder do once the package is there."""

import argparse
from collections.abc import Callable

from threestudio.launch import INPUT_ERRORS

from ..events import say_error, tell_messages


def run(
    act: Callable[[argparse.Namespace], None],
    args: argparse.Namespace,
    *errors: type[Exception],
) -> int:
    """0, or 1 after an input that can't be used, which is one message.

    errors: further ones that say what to do.
    """
    tell_messages()
    try:
        act(args)
    except (*INPUT_ERRORS, *errors) as error:
        text = error.args[0] if isinstance(error, KeyError) else error
        say_error(text)
        return 1
    return 0
