"""Which GPUs a program uses. The one rule: `--gpu` counts, from 0, among the GPUs that are visible:
those that CUDA_VISIBLE_DEVICES lists, in its order, else all of the machine. Without `--gpu` it is
all that the variable lists, else GPU 0. A machine without a GPU takes the CPU.
"""

import os

import torch

SELECTED = "THREESTUDIO_GPUS"  # what a launch chose, for the processes that it starts


def visible() -> list[str]:
    """The GPUs that CUDA sees, as CUDA_VISIBLE_DEVICES names them."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = map(str, range(count)) if listed is None else (n.strip() for n in listed.split(","))
    return list(names)[:count]


def chosen(gpu: str | None) -> list[str]:
    """What CUDA_VISIBLE_DEVICES has to be for `--gpu`, one name a GPU; empty: the CPU.

    Raises:
        ValueError: no such GPU, or not written as numbers with commas between them.
    """
    there = visible()
    selected = os.environ.get(SELECTED)
    if gpu is None or (selected and selected == os.environ.get("CUDA_VISIBLE_DEVICES")):
        return there if "CUDA_VISIBLE_DEVICES" in os.environ else there[:1]
    parts = [part.strip() for part in str(gpu).split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise ValueError(
            f"--gpu takes numbers with commas between them, such as 0 or 0,1; not {gpu!r}."
        )
    numbers = [int(part) for part in parts]
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"--gpu {gpu} names a GPU twice.")
    if not there and numbers == [0]:
        return []
    if max(numbers) >= len(there):
        raise ValueError(f"--gpu {gpu}: {_what_there_is(there)}")
    return [there[number] for number in numbers]


def _what_there_is(there: list[str]) -> str:
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    where = "this machine has" if listed is None else f"CUDA_VISIBLE_DEVICES={listed} leaves"
    if not there:
        return f"{where} no GPU that can be used. Without --gpu the CPU is taken."
    last = len(there) - 1
    would = "--gpu 0 would do" if last == 0 else f"--gpu takes 0 to {last}"
    return f"{where} {len(there)} GPU{'s' * (last > 0)}, counted from 0: {would}."


def select(gpu: str | None) -> int:
    """Makes the GPUs asked for the visible ones; returns how many there are (0: the CPU)."""
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    names = chosen(gpu)
    if names:
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ[SELECTED] = ",".join(names)
    return len(names)
