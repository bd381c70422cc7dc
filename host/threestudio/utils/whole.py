"""Files that appear under their name only when they are whole.

A file is written beside its place and then renamed, so a killed process leaves no broken one and
what was there before stays. The name it is written under holds the number of the process, so that
what a killed one left can be told from what is being written, and a random one, so that nobody can
put something in its way.
"""

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil

FULL = (errno.ENOSPC, errno.EDQUOT)
WAY_OUT = "make room there, or use another disk (for files in between, TMPDIR says which)"
PART = re.compile(r"\..+\.(\d+)-[0-9a-f]{8}\.part(\.\w+)?")


@contextlib.contextmanager
def whole_file(path: Path, ends_alike: bool = True) -> Iterator[Path]:
    """A new, empty file, which becomes `path` if the block ends well. It has `path`'s suffix, by
    which some writers know what to write, unless `ends_alike` is False: then nobody who looks for
    files of that kind finds it.

    Raises:
        OSError: it can't be written; the message has `path`, and of a full disk what to try.
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
        if not isinstance(why, OSError):
            raise
        if why.errno is None:  # of a writer that has words alone
            raise OSError(str(why).replace(str(part), str(path))) from error
        names = {str(name) for name in (why.filename, why.filename2) if name is not None}
        if names and str(part) not in names:  # another file's
            raise
        raise OSError(why.errno, in_words(why, path), str(path)) from error
    finally:
        part.unlink(missing_ok=True)


def in_words(error: OSError, path: Path) -> str:
    """What kept `path` from being written; of a full disk how full, and what to try."""
    said = error.strerror or str(error)
    if error.errno not in FULL:
        return said
    return f"{said}, {_megabytes(shutil.disk_usage(path.parent).free)} are free; {WAY_OUT}"


def check_room(path: Path, size: int) -> None:
    """For writers that say nothing of a full disk, or take the process with them.

    size: bytes that the file may have.

    Raises:
        OSError: its disk has no room for them.
    """
    free = shutil.disk_usage(path.parent).free
    if free < size:
        full = os.strerror(errno.ENOSPC)
        said = f"{full}, {_megabytes(size)} may be needed and {_megabytes(free)} are free"
        raise OSError(errno.ENOSPC, f"{said}; {WAY_OUT}", str(path))


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


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
