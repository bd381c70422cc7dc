"""What is read into a system: an earlier stage's weights, a run that goes on, a scene to look at.

A file is read once and looked at before anything of it is taken over: whether it is what was
written, whether its numbers are numbers, and whether it is of a geometry like the system's.
"""

import importlib.util
import os
from collections.abc import Mapping, Sequence
from typing import Any

import threestudio
from threestudio.systems.base import BaseLift3DSystem
from threestudio.utils.misc import load_module_weights
from torch import Tensor, nn

from ..files.torch_files import check_zip
from .finite import check_loaded, some

# the bundled host asks the checksums of what it reads itself; the real threestudio doesn't
HOST_ASKS = importlib.util.find_spec("threestudio.utils.checkpoints") is not None
GEOMETRY = "geometry."  # what its keys begin with


def check_file(path: str | os.PathLike) -> None:
    """A ValueError for a damaged file, where the host that reads it doesn't look."""
    if not HOST_ASKS:
        check_zip(path)


def read(
    path: str | os.PathLike, ignored: Sequence[str] = ()
) -> tuple[dict[str, Tensor], int, int]:
    """(state dict without those of the `ignored` modules, epoch, step) of a checkpoint.

    Raises:
        ValueError: it is damaged, or something else; FileNotFoundError: there is none.
    """
    check_file(path)
    try:
        return load_module_weights(str(path), ignore_modules=list(ignored), map_location="cpu")
    except KeyError as error:  # the real threestudio's answer
        raise ValueError(
            f"{path} has no {error}: it isn't a checkpoint. A trial's ckpts/last.ckpt would do."
        ) from error


def check_fit(
    system: BaseLift3DSystem,
    state_dict: Mapping[str, Tensor],
    path: str | os.PathLike,
    ignored: Sequence[str] = (),
) -> None:
    """Gets the system's geometry ready for what was read from `path`.

    Raises:
        ValueError: it holds numbers that are none, or is of another geometry.
    """
    check_loaded(state_dict, str(path))
    take_layout = getattr(system.geometry, "take_layout", None)
    if take_layout is not None:  # it can load tables of another layout
        take_layout(state_dict, GEOMETRY)
    expected = geometry_parameters(system, ignored)
    for key in may_lack(system, state_dict):
        expected.pop(key, None)
    check_geometry(state_dict, expected, path)


def geometry_parameters(system: nn.Module, ignored: Sequence[str] = ()) -> dict[str, Tensor]:
    """By state-dict name, without those of ignored modules."""
    without = tuple(f"{module}." for module in ignored)
    return {
        key: value
        for key, value in system.named_parameters()
        if key.startswith(GEOMETRY) and not key.startswith(without)
    }


def may_lack(system: BaseLift3DSystem, state_dict: Mapping[str, Tensor]) -> list[str]:
    """The geometry's parameters that begin anew with this stage, where a state dict has none."""
    fresh = tuple(GEOMETRY + name for name in getattr(system.geometry, "fresh", ()))
    if not fresh or any(key.startswith(fresh) for key in state_dict):
        return []
    return [key for key in geometry_parameters(system) if key.startswith(fresh)]


def ever_moved(system: BaseLift3DSystem, state_dict: Mapping[str, Tensor]) -> bool:
    """Whether what is read was ever trained to move; True where its geometry can't tell."""
    tells = getattr(system.geometry, "ever_moved", None)
    return tells is None or tells(state_dict, GEOMETRY)


def say_misfits(
    loaded: Any,
    path: str | os.PathLike,
    ignored: Sequence[str] = (),
    expected: Sequence[str] = (),
) -> None:
    """Warns of what a checkpoint lacks and of what it has too much.

    loaded: what torch's load_state_dict returned. expected: keys that it may lack; of a checkpoint
    that lacks any, another kind of encoding's grids are no surprise either.
    """
    without = tuple(f"{module}." for module in ignored)
    lacks = [k for k in loaded.missing_keys if not k.startswith(without) and k not in expected]
    if lacks:
        threestudio.warn(f"{path} lacks {some(lacks, 8)}: they keep their initial values.")
    others = [k for k in loaded.unexpected_keys if not (expected and k.startswith(GEOMETRY))]
    if others:
        threestudio.warn(f"{path} also has {some(others, 8)}: not used here.")


def check_geometry(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: str | os.PathLike
) -> None:
    """A ValueError if a state dict isn't one of a geometry like `expected`; keys `geometry...`.

    path: of the checkpoint that it comes from.
    """
    ours = {key: tuple(value.shape) for key, value in expected.items()}
    theirs = {k: tuple(v.shape) for k, v in found.items() if k.startswith(GEOMETRY)}
    if ours and not theirs:
        raise ValueError(
            f"The checkpoint {path} holds no geometry (no key starts with {GEOMETRY!r}; it has "
            f"{sorted(found)[:5]}...). The ckpts/last.ckpt of an earlier stage would do."
        )
    wrong = [
        f"{key}: {theirs.get(key, 'missing')} in the checkpoint, {shape} in this config"
        for key, shape in ours.items()
        if theirs.get(key) != shape
    ]
    if wrong:
        raise ValueError(
            f"The checkpoint {path} is of another geometry than this stage's config describes:\n  "
            + "\n  ".join(wrong)
            + "\nAll stages of a scene share system.geometry: a checkpoint of the toy configs fits "
            "only the toy configs, and an override of system.geometry.pos_encoding_config or "
            "mlp_network_config has to be given to each stage."
        )


def check_goes_on(checkpoint: Mapping[str, Any], stage: Mapping[str, Any]) -> None:
    """A ValueError where a run that is to go on is of another stage."""
    theirs = checkpoint.get("animate124_stage", stage)
    if theirs != stage:
        raise ValueError(
            f"resume goes on with a run of the same stage, but the checkpoint is of {theirs} "
            f"and this config is {stage}. To start this stage from another stage's "
            "result, give its checkpoint as system.weights instead of resume."
        )


def without_copies(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict without what the original has twice: its time grid's and space grid's entries
    are also called `geometry_encoding.`, beside `geometry.encoding.encoding.`."""
    return {k: v for k, v in state_dict.items() if not k.startswith("geometry_encoding.")}


def reordered(groups: Sequence[dict[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """An optimizer's saved parameter groups in the order of these names, by which torch takes them.

    A ValueError where they aren't the same ones.
    """
    saved = {group.get("name"): group for group in groups}
    if sorted(map(str, saved)) != sorted(names):
        raise ValueError(
            f"The checkpoint was trained with the optimizer's groups {', '.join(map(str, saved))}, "
            f"but system.optimizer.params has {', '.join(names)}: give it the same ones to go on, "
            "or start from the checkpoint's weights with system.weights=... in place of resume=..."
        )
    return [saved[name] for name in names]


def reorder_groups(checkpoint: Mapping[str, Any], names: Sequence[str]) -> None:
    """Brings the optimizers' groups into the order of these names, in place; () leaves it."""
    for optimizer in checkpoint.get("optimizer_states", []) if names else []:
        optimizer["param_groups"] = reordered(optimizer["param_groups"], names)
