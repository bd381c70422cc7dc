"""Which kernels a training step's time goes to, and which lines of ours ask for its copies.

python benchmarks/step_kernels.py --stage 3 [--field deformation|grid] [--video ms|zs]
    [--compile graph] [--warm-up 16] [--steps 4] [--top 30] [--toy] [--tiny] [key=value ...]

The step is step.py's. PyTorch's profiler looks at `--steps` steps after the warm-up; what is
printed is a step's share. Kernels of networks that are replayed as CUDA graphs are among them, but
no line of ours: only the recording knows who launched them, so copies inside need --compile false.
The profiler slows the host: these are shares, and a step's time is step.py's. On a CPU it shows
operators in the place of kernels.
"""

import collections
import tempfile
from pathlib import Path

import pytorch_lightning as pl
import torch
from animate124.host.argument_types import positive_int
from measuring import device_name
from profiles import kernels_of, kind, profiler, table
from stages import ROOT, step_options, train, which

COPIES = ("aten::copy_", "aten::clone", "aten::_to_copy", "aten::cat", "aten::contiguous")


class Look(pl.Callback):
    """The profiler's, over so many steps after a warm-up."""

    def __init__(self, warm_up: int, steps: int):
        self.first, self.last = warm_up, warm_up + steps
        self.profile = profiler()

    def on_train_batch_start(self, trainer, system, batch, batch_idx) -> None:
        if batch_idx == self.first:
            self.profile.start()

    def on_train_batch_end(self, trainer, system, outputs, batch, batch_idx) -> None:
        if batch_idx + 1 == self.last:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.profile.stop()


def own_lines(stack: list[str]) -> str:
    """The innermost two lines of ours in a stack."""
    ours = [line for line in stack if "animate124" in line or str(ROOT) in line]
    names = [line.rpartition("/")[2] for line in ours if "/benchmarks/" not in line]
    return " < ".join(names[:2]) or "autograd, or a library alone"


def main() -> None:
    parser = step_options(__doc__.splitlines()[0])
    parser.add_argument("--steps", type=positive_int, default=4, help="that are looked at")
    parser.add_argument("--top", type=positive_int, default=30, help="rows of a table")
    args = parser.parse_args()
    look = Look(args.warm_up, args.steps)
    with tempfile.TemporaryDirectory() as folder:
        train(args, Path(folder), look, args.warm_up + args.steps)
    copies, on_gpu = collections.defaultdict(list), torch.cuda.is_available()
    for event in look.profile.events():
        if event.name in COPIES and event.device_type != torch.autograd.DeviceType.CUDA:
            time = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            if time:
                shapes = [shape for shape in event.input_shapes if shape][:1]
                copies[f"{event.name} {shapes} {own_lines(event.stack)}"].append(time)
    print(f"{which(args)}, {device_name()}, torch {torch.__version__}, {args.steps} steps")
    table(kind(), kernels_of(look.profile), args.steps, args.top)
    table("copies by line", copies, args.steps, args.top)


if __name__ == "__main__":
    main()
