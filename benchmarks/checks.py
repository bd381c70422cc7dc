"""What the looks for NaN and for damaged files cost: a training step with and without, and a file.

python benchmarks/checks.py --stage 1 --compile graph [--scene sharp] [--blocks 12] [--tiny]

The step is step.py's. Blocks of steps with and without the checks alternate in one run; the first
step of each block isn't counted, since it may wait for the other kind's numbers. Without: a
gradient's elements that aren't finite are zeroed, and nobody looks at them or at the losses. Since
that difference drowns in a busy machine's noise, the checks are also timed alone, on the step's
tensors and with the GPU idle before and after: more than they cost among other work. Then
the stage's checkpoint: writing it, of that the look for NaN at weights and moments; reading it, and
the checksums. Figures go into figures.json (`--figures FILE`: elsewhere; `--tiny`: nowhere else).
"""

import statistics
import tempfile
from pathlib import Path

import pytorch_lightning as pl
import torch
from animate124.files.torch_files import check_zip, not_finite
from animate124.guidance import sds
from animate124.host.argument_types import positive_int
from animate124.system.finite import optimizer_tensors
from animate124.system.loss_watch import LossWatch
from measuring import FIGURES, device_name, record
from measuring import milliseconds as time_of
from probes import mark, milliseconds
from stages import step_options, train, which

BLOCK = 6  # steps


def zeroed(grad: torch.Tensor) -> tuple[torch.Tensor, float]:
    """sds.finite_part without its count."""
    return torch.nan_to_num(grad, nan=0.0, posinf=0.0, neginf=0.0), 0.0


class Alone:
    """A step's checks, kept to be done again by themselves."""

    def __init__(self, watch: LossWatch):
        self.watch = watch
        self.ours = sds.finite_part, watch.gradient, watch.look
        self.gradients: list[torch.Tensor] = []
        self.noted: list[tuple] = []  # arguments of `gradient` ...
        self.looked: tuple = ()  # ... and of `look`

    def finite_part(self, grad: torch.Tensor) -> tuple:
        self.gradients.append(grad)
        return self.ours[0](grad)

    def gradient(self, *arguments) -> None:
        self.noted.append(arguments)
        self.ours[1](*arguments)

    def look(self, step: int, losses: dict, weights: dict) -> None:
        self.looked = step, {key: value.detach() for key, value in losses.items()}, weights
        self.ours[2](*self.looked)

    def again(self) -> None:
        for grad in self.gradients:
            self.ours[0](grad)
        for arguments in self.noted:
            self.ours[1](*arguments)
        self.ours[2](*self.looked)


class Alternate(pl.Callback):
    """Times steps of blocks with and without the checks, after some that warm up."""

    def __init__(self, warm_up: int, blocks: int):
        self.first, self.last = warm_up, warm_up + 2 * blocks * BLOCK
        self.starts: list = []

    def checked(self, step: int) -> bool:
        """Whether this step has the checks."""
        return (step - self.first) // BLOCK % 2 == 0

    def on_train_start(self, trainer, system) -> None:
        self.alone = Alone(system.loss_watch)

    def use(self, system, parts: tuple) -> None:
        sds.finite_part, system.loss_watch.gradient, system.loss_watch.look = parts

    def on_train_batch_start(self, trainer, system, batch, batch_idx) -> None:
        self.starts.append(mark())
        alone, nothing = self.alone, (zeroed, lambda *_: None, lambda *_: None)
        self.use(system, alone.ours if self.checked(batch_idx) else nothing)
        if batch_idx == self.last:
            self.use(system, (alone.finite_part, alone.gradient, alone.look))

    def on_train_end(self, trainer, system) -> None:
        self.use(system, self.alone.ours)

    def times(self, checked: bool) -> list[float]:
        """Milliseconds of each step that counts."""
        return [
            milliseconds(self.starts[i], self.starts[i + 1])
            for i in range(self.first, self.last)
            if self.checked(i) == checked and (i - self.first) % BLOCK
        ]


def time_checkpoint(trainer: pl.Trainer, path: Path) -> dict[str, float]:
    """Milliseconds of what happens to a checkpoint, and its megabytes."""
    save = time_of(lambda: trainer.save_checkpoint(path), 3, warm_up=1)
    system = trainer.lightning_module
    moments = {"optimizer_states": [o.state_dict() for o in trainer.optimizers]}
    tensors = {**system.state_dict(), **optimizer_tensors(moments)}
    look = time_of(lambda: not_finite(tensors), 5, warm_up=1)
    read = time_of(lambda: torch.load(path, map_location="cpu", weights_only=True), 3, warm_up=1)
    checksums = time_of(lambda: check_zip(path), 3, warm_up=1)
    parts = {"save": save, "look": look, "read": read, "checksums": checksums}
    return {
        "size": path.stat().st_size / 1e6,
        **{name: statistics.median(ms) for name, ms in parts.items()},
    }


def main() -> None:
    parser = step_options(__doc__.splitlines()[0])
    parser.add_argument(
        "--blocks", type=positive_int, default=12, help=f"of {BLOCK} steps, of each kind"
    )
    parser.add_argument("--figures", type=Path, metavar="FILE", help="where figures are written")
    args = parser.parse_args()
    figures = args.figures or (None if args.tiny else FIGURES)
    figures = figures and figures.resolve()
    args.overrides.append("data.single_view.zero_rate=0.0")  # steps of one kind
    alternate = Alternate(args.warm_up, args.blocks)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        trainer = train(args, folder, alternate, alternate.last + 1)
        alone = statistics.median(time_of(alternate.alone.again, 50, warm_up=5))
        file = time_checkpoint(trainer, folder / "last.ckpt")

    with_checks, without = (alternate.times(checked) for checked in (True, False))
    ours, plain = map(statistics.median, (with_checks, without))
    name = f"{which(args)}, {args.scene}, compile {args.compile}"
    print(f"{name}, {device_name()}, torch {torch.__version__}, {len(without)} steps of each kind")
    for label, ms in (("with the checks", with_checks), ("without", without)):
        print(f"{label:16} {statistics.median(ms):8.2f} ms ({min(ms):.2f} to {max(ms):.2f})")
    print(f"a step costs {ours / plain - 1:+.2%} more; the checks alone {alone:.3f} ms")
    print(
        f"checkpoint of {file['size']:.0f} MB: written in {file['save']:.0f} ms, of it the look "
        f"for NaN {file['look']:.1f}; read in {file['read']:.0f} ms, and its checksums in "
        f"{file['checksums']:.0f}"
    )
    if figures:
        key = f"checks/{which(args)}-{args.scene}-{args.compile}"
        record(
            {
                f"{key}/step with": (ours, "ms"),
                f"{key}/step without": (plain, "ms"),
                f"{key}/step more": (100 * (ours / plain - 1), "%"),
                f"{key}/checks alone": (alone, "ms"),
                f"{key}/checkpoint": (file["size"], "MB"),
                **{
                    f"{key}/checkpoint {part}": (file[part], "ms")
                    for part in ("save", "look", "read", "checksums")
                },
            },
            figures,
        )
        print(f"figures: {figures}")


if __name__ == "__main__":
    main()
