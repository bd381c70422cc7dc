"""From a command line to an exit code."""

import argparse
import os
import sys

from ..events import say_error, tell_messages
from .parser import conflicts, parser


def is_out_of_memory(error: BaseException) -> bool:
    """Of the GPU, or of the machine; both are RuntimeErrors that only their text tells."""
    words = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def learn(args: argparse.Namespace) -> int:
    """A run from its flags to its files; the exit code."""
    from .run import TextualInversion  # libraries: a wrong flag doesn't wait for them

    tell_messages()
    try:
        inversion = TextualInversion(args, conflicts(args))
    except (ValueError, OSError) as error:
        say_error(error)
        return 2
    try:
        return inversion.run()
    except FloatingPointError as error:
        say_error(f"{error} What was written before stays.")
    except OSError as error:
        say_error(error)
    return 1


def main(arguments: list[str] | None = None, prog: str | None = None) -> int:
    args = parser(prog).parse_args(arguments)
    if args.local_rank >= 0 and "WORLD_SIZE" in os.environ:
        os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    try:
        return learn(args)
    except KeyboardInterrupt:
        print("\nStopped; nothing was saved since the last checkpoint.", file=sys.stderr)
        return 130
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        say_error(
            f"out of memory ({str(error).partition('. ')[0]}). Try --train_batch_size "
            f"{max(1, args.train_batch_size // 2)} with --gradient_accumulation_steps "
            f"{2 * args.gradient_accumulation_steps}, or --gradient_checkpointing "
            "(animate.py: a smaller --vram)."
        )
        return 1
