"""PyTorch's profiler: which kernels time goes to, as tables."""

import collections
from collections.abc import Mapping, Sequence

import torch
from torch.profiler import ProfilerActivity, profile


def profiler() -> profile:
    """With the stacks and shapes that operators were called with; not started."""
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    options = {"with_stack": True, "record_shapes": True}
    # without it events have no stacks (PyTorch 2.13)
    config = torch._C._profiler._ExperimentalConfig(verbose=True)
    return profile(activities=activities, experimental_config=config, **options)


def kernels_of(seen: profile) -> Mapping[str, list[float]]:
    """Microseconds of each kernel's calls; on a CPU, of each operator's."""
    rows, on_gpu = collections.defaultdict(list), torch.cuda.is_available()
    for event in seen.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            rows[event.name].append(event.self_device_time_total)
        elif not on_gpu and event.name.startswith("aten::"):
            rows[event.name].append(event.self_cpu_time_total)
    return rows


def table(title: str, rows: Mapping[str, Sequence[float]], steps: int, top: int) -> None:
    """Prints the largest rows, each a step's share of microseconds in so many steps."""
    print(f"\n{title}\n{'ms a step':>10}{'calls':>8}")
    ordered = sorted(rows.items(), key=lambda row: -sum(row[1]))
    for name, times in ordered[:top]:
        print(f"{sum(times) / steps / 1e3:10.3f}{len(times) / steps:8.1f}  {name[:120]}")
    total = sum(sum(times) for times in rows.values())
    print(f"{total / steps / 1e3:10.3f}  in all", flush=True)


def kind() -> str:
    """What the rows of `kernels_of` are."""
    return "kernels" if torch.cuda.is_available() else "operators"
