"""What a plan asks of the machine that it begins on. A start without it is refused; --dry-run only
says so, as a plan may be made elsewhere."""

from collections.abc import Iterable

from threestudio.utils import gpus

from ..pretrained.models import unreachable
from .places import located
from .presets import Preset
from .request import OFFLINE, Request

CPU = "cpu"  # what --gpu takes beside numbers


def cards(gpu: str | None) -> list[str]:
    """The GPUs that --gpu means, as CUDA_VISIBLE_DEVICES names them; none: the CPU.

    Raises:
        ValueError: no such GPU.
    """
    return [] if gpu == CPU else gpus.chosen(gpu)


def variables(gpu: str | None) -> dict[str, str]:
    """What gives a script without --gpu the first of them."""
    if gpu == CPU:
        return {"CUDA_VISIBLE_DEVICES": ""}
    found = cards(gpu)
    if not found or len(gpus.visible()) == 1:
        return {}
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": found[0]}


def lacks(request: Request, preset: Preset, models: Iterable[str]) -> list[str]:
    """One sentence for each thing that isn't here.

    models: those that the tasks which are left name.
    """
    found = []
    if not preset.on_cpu and request.gpu != CPU and not cards(request.gpu):
        found.append(
            f"The preset {request.preset} needs a GPU and there is none that can be used: on a CPU "
            "it would take weeks. --preset toy suits a CPU; --gpu cpu takes it all the same."
        )
    offline = request.preset in OFFLINE
    missing = unreachable(map(located, models), offline)
    if missing:
        why = "this preset never asks the hub" if offline else "HF_HUB_OFFLINE is set"
        found.append(
            f"{', '.join(missing)}: neither a folder nor in the hub's cache, and {why}. Give a "
            "local folder, or fetch it with `hf download`."
        )
    return found
