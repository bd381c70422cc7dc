"""Machine code that was compiled before, in a folder of the user's caches.

A file is named after all that its code was made of, and begins with a checksum of the code: what
another version of a source, a compiler or a device made has another name, and a damaged file is
compiled anew.
"""

import hashlib
import os
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

from ..files.whole import whole_file

CHECKSUM = hashlib.sha256


def folder() -> Path:
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "threestudio-animate124" / "kernels"


def kept_code(made_of: Iterable[bytes], compile: Callable[[], bytes]) -> bytes:
    """The code that was made of these before, or is now.

    Raises:
        Exception: what `compile` raises.
    """
    digest = CHECKSUM()
    for part in made_of:
        digest.update(CHECKSUM(part).digest())
    file = folder() / f"{digest.hexdigest()}.cubin"
    code = read(file)
    if code is None:
        code = compile()
        write(file, code)
    return code


def read(file: Path) -> bytes | None:
    """None where it isn't there, or isn't whole."""
    try:
        held = file.read_bytes()
    except OSError:
        return None
    size = CHECKSUM().digest_size
    checksum, code = held[:size], held[size:]
    return code if checksum == CHECKSUM(code).digest() else None


def write(file: Path, code: bytes) -> None:
    """Where nothing can be written, a warning says so."""
    try:
        with whole_file(file) as part:
            part.write_bytes(CHECKSUM(code).digest() + code)
    except OSError as error:
        warnings.warn(
            f"Compiled CUDA kernels can't be kept in {file.parent} ({error}), so every process "
            "compiles them again, which takes seconds. XDG_CACHE_HOME names another folder.",
            stacklevel=2,
        )
