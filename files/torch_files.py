"""Files of tensors, by torch.save or safetensors, checked while they are read.

torch.load doesn't look at the zip's checksums, so that a flipped bit becomes another weight; here
they are compared. A .safetensors file has no checksums: its header, its sizes and NaN are looked
at, and the `digest` in its metadata if whoever wrote it put one there.
"""

import hashlib
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ..git_lfs import refuse_pointer

BLOCK = 1 << 22  # bytes read at once
DIGEST = "sha256"  # its name in a .safetensors file's metadata


def check_zip(path: str | os.PathLike) -> None:
    """Asks the checksum of each record; torch's older format, which is no zip, has none.

    Raises:
        ValueError: a record isn't what was written, or the zip is cut off.
    """
    if not _starts_as_zip(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            for record in archive.infolist():
                if record.CRC:  # 0: torch.serialization.set_crc32_options(False)
                    _read_through(archive, record)
    except Exception as error:  # what a damaged header makes zipfile raise has many classes
        raise ValueError(
            f"{str(path)!r} is damaged or cut off ({error}): it isn't what was once written. "
            "Take another copy of it, or make it anew."
        ) from error


def _starts_as_zip(path: str | os.PathLike) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"  # what torch.load goes by


def _read_through(archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> None:
    """zipfile compares the checksum when it comes to the record's end."""
    with archive.open(record) as content:
        while content.read(BLOCK):
            pass


def read_torch_file(path: str | os.PathLike, map_location: Any = "cpu") -> Any:
    """What torch.save wrote: tensors and plain containers; no code in it is run.

    Raises:
        ValueError: the file is damaged, cut off, a Git LFS pointer or something else, or it holds
            other objects. (torch's own words, which advise to run its code, aren't passed on.)
        OSError: it can't be opened.
    """
    refuse_pointer(path)
    check_zip(path)
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except OSError:
        raise
    except Exception as error:
        raise ValueError(
            f"{str(path)!r} cannot be read: it is damaged, cut off, something else than what "
            f"torch.save writes ({Path(path).stat().st_size} bytes), or holds Python objects "
            "besides tensors. Take another copy of it, or make it anew."
        ) from error


def read_safetensors(path: str | os.PathLike) -> dict[str, Tensor]:
    """
    Raises:
        ValueError: the file is damaged, cut off, a Git LFS pointer or something else.
        OSError: it can't be opened.
    """
    refuse_pointer(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            held = (file.metadata() or {}).get(DIGEST)
        problem = "its digest is another" if held not in (None, digest(tensors)) else None
    except OSError:
        raise
    except Exception as error:  # a damaged header may also name a shape or dtype that torch refuses
        problem = error
    if problem is not None:
        raise ValueError(
            f"{str(path)!r} cannot be read: it is damaged, cut off, or no .safetensors file "
            f"({problem}). Take another copy of it, or make it anew."
        )
    return tensors


def digest(tensors: Mapping[str, Tensor], *texts: str) -> str:
    """sha256 over names, types, shapes and numbers, and over texts that belong to them."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        tensor = tensor.detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    for text in texts:
        found.update(f"{len(text)} {text}".encode())
    return found.hexdigest()


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold a nan or an infinity. One pass at the speed of memory."""
    return [name for name, tensor in tensors.items() if not is_finite(tensor)]


def is_finite(tensor: Tensor) -> bool:
    """On a GPU this waits for it."""
    if not tensor.numel() or not tensor.is_floating_point():
        return True
    tensor = tensor.detach()
    low, high = (tensor if tensor.element_size() > 1 else tensor.float()).aminmax()  # keeps a nan
    return bool(low.isfinite() & high.isfinite())
