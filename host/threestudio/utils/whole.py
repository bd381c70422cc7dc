"""Files that appear under their name only when they are whole.

A file is written beside its place and then renamed, so a killed process leaves no broken one and
what was there before stays. The name it is written under holds the number of the process, so that
what a killed one left can be told from what is being written, and a random one, so that nobody can
put something in its way.
"""

import contextlib
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

import psutil

PART = re.compile(r"\..+\.(\d+)-[0-9a-f]{8}\.part(\.\w+)?")


@contextlib.contextmanager
def whole_file(path: Path, ends_alike: bool = True) -> Iterator[Path]:
    """A new, empty file, which becomes `path` if the block ends well. It has `path`'s suffix, by
    which some writers know what to write, unless `ends_alike` is False: then nobody who looks for
    files of that kind finds it.

    Raises:
        OSError: it can't be written; the message has `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    stem, suffix = (path.stem, path.suffix) if ends_alike else (path.name, "")
    part = path.with_name(f".{stem}.{os.getpid()}-{secrets.token_hex(4)}.part{suffix}")
    try:
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield part
        os.replace(part, path)
    except (OSError, RuntimeError) as error:
        why = error.__context__ if isinstance(error, RuntimeError) else error  # torch.save's
        if not isinstance(why, OSError) or why.errno is None or why.filename is not None:
            raise
        raise OSError(why.errno, why.strerror, str(path)) from error  # such as a full disk
    finally:
        part.unlink(missing_ok=True)


def running(pid: int) -> bool:
    """Whether this machine has such a process, and it hasn't ended unnoticed (a zombie)."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.AccessDenied:  # someone else's
        return True
    except (psutil.NoSuchProcess, OverflowError):
        return False


def clear_parts(folder: Path) -> list[Path]:
    """Removes what killed processes left unfinished below a folder; returns what that was.

    To be called before this process writes: a part with its own number is of one before it.
    """
    found = []
    for path in folder.rglob(".*"):
        match = PART.fullmatch(path.name)
        if (
            match
            and path.is_file()
            and (int(match[1]) == os.getpid() or not running(int(match[1])))
        ):
            path.unlink(missing_ok=True)
            found.append(path)
    return found
