"""Checkpoint files: read safely, written whole or not at all."""

import os
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.__version__ import version as lightning_version
from pytorch_lightning.plugins.io import TorchCheckpointIO
from threestudio.utils.git_lfs import refuse_pointer
from threestudio.utils.whole import clear_parts, whole_file

VERSION = "pytorch-lightning_version"  # Lightning's key, which it wants to find in a checkpoint


class _Inert:
    """Stands where a checkpoint holds an object that is not data; takes anything, does nothing."""

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass

    def append(self, item):
        pass

    def extend(self, items):
        pass

    def __setitem__(self, key, value):
        pass

    def __hash__(self):
        return 0


class _InertConfig(_Inert):
    """OmegaConf's list, dict or value, as the real threestudio hands them to its optimizers."""

    def __setstate__(self, state):
        self.content = state.get("_content", state.get("_val"))


def _plain(value: Any) -> Any:
    """The same with lists, dicts and values in place of what was an OmegaConf config."""
    if isinstance(value, _InertConfig):
        return _plain(value.content)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_plain, value))
    return value


def _has_inert(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_inert, [*value, *value.values()]))
    return isinstance(value, _Inert) or (
        isinstance(value, (list, tuple, set)) and any(map(_has_inert, value))
    )


class _TensorUnpickler(pickle.Unpickler):
    """Builds tensors and plain containers; other classes become inert, so no code runs."""

    allowed = {  # noqa: RUF012
        ("collections", "OrderedDict"),
        ("collections", "defaultdict"),
        ("torch._utils", "_rebuild_tensor_v2"),
        ("torch._utils", "_rebuild_parameter"),
        ("torch", "Size"),
        ("torch", "device"),
        ("builtins", "dict"),
        ("builtins", "list"),
        ("builtins", "set"),
        ("builtins", "int"),
        ("builtins", "float"),
        ("builtins", "str"),
        ("builtins", "bool"),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self.allowed or (module == "torch" and name.endswith("Storage")):
            return super().find_class(module, name)
        config = module in ("omegaconf.listconfig", "omegaconf.dictconfig", "omegaconf.nodes")
        return type(name, (_InertConfig if config else _Inert,), {})


class _TensorPickle:
    """What torch.load asks of a pickle module."""

    Unpickler = _TensorUnpickler
    load = staticmethod(lambda file, **kwargs: _TensorUnpickler(file, **kwargs).load())


def _ask_checksums(path: Path) -> None:
    """zipfile compares each record's checksum, which torch.load doesn't; BadZipFile if it differs.

    A checksum of 0 was not written (torch.serialization.set_crc32_options(False)).
    """
    with zipfile.ZipFile(path) as archive:
        for record in archive.infolist():
            if record.CRC:
                with archive.open(record) as content:
                    while content.read(1 << 22):
                        pass


def _check_there(path: Path) -> None:
    """An error that names the folder's checkpoints, unless it is a file."""
    if path.is_file():
        return
    folder = path.parent
    siblings = sorted(p.name for p in folder.glob("*.ckpt")) if folder.is_dir() else []
    what = ", ".join(siblings) or "no checkpoint"
    raise FileNotFoundError(f"There is no checkpoint {str(path)!r}. {folder} has {what}.")


def _load(path: Path, map_location: Any) -> Any:
    """What is in the file; objects that are no tensors and settings are inert."""
    if zipfile.is_zipfile(path):
        _ask_checksums(path)
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError:
        if not zipfile.is_zipfile(path):
            raise
    held = torch.load(
        path, map_location=map_location, weights_only=False, pickle_module=_TensorPickle
    )
    return _plain(held)


def read_checkpoint(
    path: str | os.PathLike, map_location: Any = "cpu", weights: bool = True
) -> dict[str, Any]:
    """A Lightning checkpoint as a dict with a `state_dict`; nothing in the file is executed.

    A checkpoint of the real threestudio may also hold config objects, in its optimizer's settings:
    they are read as plain lists and numbers. Other objects don't matter for its `weights` and are
    left out; to go on training from it (`weights=False`) they would, and reading it is an error.
    """
    path = Path(path)
    _check_there(path)
    refuse_pointer(path)
    try:
        ckpt = _load(path, map_location)
    except Exception as error:  # torch's own about bytes that are none of its: of many kinds
        raise ValueError(
            f"{str(path)!r} cannot be read as a checkpoint: it is damaged, incomplete, or "
            "something else. Take another one of its folder, or run its stage again."
        ) from error
    if not weights and _has_inert(ckpt):
        raise ValueError(
            f"{str(path)!r} holds Python objects besides tensors and settings, so training "
            "cannot go on from it here. Start from its weights instead: system.weights=... in "
            "place of resume=..."
        )
    if not isinstance(ckpt, dict) or not isinstance(ckpt.get("state_dict"), Mapping):
        holds = (
            ", ".join(map(str, list(ckpt)[:8])) if isinstance(ckpt, dict) else type(ckpt).__name__
        )
        raise ValueError(
            f"{str(path)!r} is no Lightning checkpoint: it has no `state_dict` (it holds {holds}). "
            "Checkpoints of a stage lie in its trial folder, in ckpts/."
        )
    if not weights and not {"optimizer_states", "loops", VERSION} <= ckpt.keys():
        raise ValueError(
            f"{str(path)!r} holds weights, but not the state of a training, so training cannot go "
            "on from it. Start from its weights instead: system.weights=... in place of resume=..."
        )
    return ckpt


def shortened(names: Iterable[str], most: int = 8) -> str:
    """The names as a list that fits in a message."""
    names = list(names)
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def misfits(
    own: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor]
) -> dict[str, list[str]]:
    """Entries of a state dict that are missing, unexpected or wrongly shaped."""
    return {
        "missing": [k for k in own if k not in given],
        "unexpected": [k for k in given if k not in own],
        "wrong shape": [
            f"{k} (has {list(given[k].shape)}, should be {list(own[k].shape)})"
            for k in given
            if k in own and given[k].shape != own[k].shape
        ],
    }


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's way to files: a checkpoint is written beside its place and then moved there.

    So a process killed while saving leaves the previous checkpoint whole. `to_train` asks of those
    read that training can go on from them. What a launch looks at first (`read`) isn't read again
    when Lightning loads it.
    """

    def __init__(self, to_train: bool = True) -> None:
        self.to_train = to_train
        self.waiting: tuple[str, dict[str, Any]] | None = None  # for Lightning: path, content

    def read(self, path: Any) -> dict[str, Any]:
        """A checkpoint's content, on the CPU; the next `load_checkpoint` of it gives it away."""
        self.waiting = str(path), read_checkpoint(path, weights=not self.to_train)
        return self.waiting[1]

    def save_checkpoint(self, checkpoint: dict, path: Any, storage_options: Any = None) -> None:
        if storage_options is not None:
            raise TypeError(
                f"{type(self).__name__} takes no storage_options, got {storage_options!r}."
            )
        path = Path(path)
        clear_parts(path.parent)
        with whole_file(path, ends_alike=False) as part, open(part, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", **kwargs: Any) -> dict:
        # a newer Lightning also says whether to read weights_only: nothing else is ever done here
        waiting, self.waiting = self.waiting, None
        if waiting is not None and waiting[0] == str(path):
            ckpt = waiting[1]
        else:
            ckpt = read_checkpoint(path, map_location=map_location, weights=not self.to_train)
        return {VERSION: lightning_version, **ckpt}
