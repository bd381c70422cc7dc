"""Logging: `info`, `warn`, `debug` and `aside` speak on rank 0 only.

An aside is for a person who started the launch by hand; a run of several tasks (utils/events.py)
says the same better.
"""

import logging
import os
import sys
from functools import partial

from tqdm import tqdm

logger = logging.getLogger("threestudio")


def get_rank() -> int:
    """This process's number among those of the run, known from the environment (0 when alone)."""
    # LOCAL_RANK comes before SLURM's, which is also set where SLURM doesn't start the processes
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"):
        if name in os.environ:
            return int(os.environ[name])
    return 0


def _on_rank_zero(speak):
    def wrapper(message, *args, **kwargs):
        if get_rank() == 0:
            speak(message, *args, stacklevel=2, **kwargs)

    return wrapper


info = _on_rank_zero(logger.info)
warn = _on_rank_zero(logger.warning)
debug = _on_rank_zero(logger.debug)
aside = _on_rank_zero(partial(logger.info, extra={"aside": True}))


class _Formatter(logging.Formatter):
    """Plain lines for information, else a word in front (coloured on a terminal)."""

    colours = {"WARNING": "\033[33m", "ERROR": "\033[31m", "DEBUG": "\033[34m"}  # noqa: RUF012

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        if record.levelname == "INFO":
            return line
        word = record.levelname.lower() + ":"
        if sys.stderr.isatty() and "NO_COLOR" not in os.environ:
            word = f"{self.colours.get(record.levelname, '')}{word}\033[0m"
        return f"{word} {line}"


class _Stderr(logging.Handler):
    """Writes to whatever sys.stderr is at the moment, beside progress bars, not into them."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def configure(verbose: bool) -> None:
    """Prints this package's messages to stderr; Lightning's own chatter only when `verbose`."""
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    if not any(isinstance(handler, _Stderr) for handler in logger.handlers):
        handler = _Stderr()
        handler.setFormatter(_Formatter())
        logger.addHandler(handler)
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.DEBUG if verbose else logging.WARNING)
