"""Presets: the stages as rows, what the other tasks are told, and what --vram sets.

Numbers that someone may want to change stand here and nowhere else in this folder.
"""

import difflib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from .request import FIELDS, GRID, Request

Options = Mapping[str, Any]
FAST = 4  # --fast divides training steps by this, where a stage has no number of its own
# tasks around the stages; the latter look at one
BEFORE, AFTER = ("preprocess",), ("result", "assets")


class Cost(NamedTuple):
    """A guess of what a task takes, until it is known."""

    start_s: float  # before the first training step and after the last one, seconds
    step_s: float = 0.0  # a training step, seconds


class Memory(NamedTuple):
    """--vram N sets `key` with at least `least` GB and less than `below`."""

    least: float
    below: float
    key: str
    value: Any


@dataclass(frozen=True)
class Stage:
    """A row: one training, by launch.py."""

    name: str
    config: str  # YAML
    prompts: Mapping[str, str]  # key of the config -> which of the prompts (prompts.py) it takes
    cost: Cost
    starts_from: str | None = None  # the stage whose checkpoint it begins with
    token: str | None = None  # key of the config that takes the learned token's file
    memory: tuple[Memory, ...] = ()  # of two about the same key the later one wins
    steps: int | None = None  # training steps, if others than the YAML's
    fast: int = FAST  # what --fast divides its steps by

    def memory_options(self, vram: float | None) -> dict[str, Any]:
        """What --vram sets.

        vram: GB; None for as many as it takes.
        """
        if vram is None:
            return {}
        return {row.key: row.value for row in self.memory if row.least <= vram < row.below}


@dataclass(frozen=True)
class Preset:
    stages: tuple[Stage, ...]
    grid: tuple[Stage, ...]  # those of --field grid instead; () where there are none
    static_prompt: str  # of a scene that stands still, of {noun} or {phrase}
    video_negative: str  # negative prompt of the video prior, likewise
    refine_negative: str  # negative prompt of the tile prior, of {prompt}
    flags: Mapping[str, Options]  # of the other tasks' scripts
    costs: Mapping[str, Cost]  # ... and what those take, on the machine it is for
    grid_flags: Mapping[str, Options] = field(default_factory=dict)  # --field grid's, where others
    on_cpu: bool = False  # its models are small enough for one
    words: str | None = None  # JSON of the only words that its models know
    least_gb: float = 0  # that stage 2 took with all that --vram sets, where weights are most of it

    @property
    def tasks(self) -> tuple[str, ...]:
        """Their names, in order."""
        token = ["token"] if any(stage.token for stage in self.stages) else []
        return (*BEFORE, *token, *(stage.name for stage in self.stages), *AFTER)

    def after(self, task: str | None) -> tuple[str, ...]:
        """A task and those that come after it; none for None."""
        return self.tasks[self.tasks.index(task) :] if task is not None else ()


TEXT = "system.prompt_processor.prompt"
NEGATIVE = "system.prompt_processor.negative_prompt"
STILL = {TEXT: "static"}
MOVING = {TEXT: "prompt", NEGATIVE: "video_negative"}
REFINED = {
    **MOVING,
    "system.prompt_processor_cn.prompt": "refine",
    "system.prompt_processor_cn.negative_prompt": "refine_negative",
}
TOKEN_KEY = "system.prompt_processor_cn.learned_embeds_path"

# Measured with 12, 16, 24 and 40 GB in all (benchmarks/README.md); those for less than 12 were not.
CHUNK = "system.renderer.train_chunk_size"
VAE_CHUNK = "system.guidance.vae_chunk"
MOVING_MEMORY = (
    Memory(32, math.inf, CHUNK, 2**23),
    Memory(0, 12, VAE_CHUNK, 4),
    Memory(0, 12, "system.renderer.num_samples_per_ray", 128),
    Memory(0, 10, "system.guidance.low_ram_vae", 4),
    Memory(0, 10, "data.single_view.num_frames", 8),
)
TILE_MEMORY = (  # what stage 3 has besides
    Memory(0, 24, "system.speed.beside", False),
    Memory(0, 20, "system.guidance_3d.weights_wait", True),
    Memory(0, 16, "system.guidance_cn.vae_chunk", 1),
    Memory(0, 12, CHUNK, 2**18),
    Memory(0, 12, "system.guidance_cn.fixed_size", 512),
)
REFINED_MEMORY = (
    MOVING_MEMORY[0],
    *TILE_MEMORY,
    *MOVING_MEMORY[1:],
)
# ... and where each frame has an encoding of its own, as the published method's
GRID_MEMORY = (
    *REFINED_MEMORY,
    Memory(0, 20, CHUNK, 2**18),
    Memory(0, 16, "system.guidance_cn.fixed_size", 512),
)
WIDE = Memory(0, 20, VAE_CHUNK, 4)  # clips of more than twice the pixels
# the token's training, below so many GB, takes so many images of its batch at a time
TOKEN_IMAGES = {8: 4, 16: 8}


def animate124(
    configs: tuple[str, str, str],
    costs: tuple[Cost, Cost, Cost],
    moving: tuple[Memory, ...] = (),
    refined: tuple[Memory, ...] = (),
    steps: tuple[int | None, int | None, int | None] = (None, None, None),
) -> tuple[Stage, ...]:
    """The method's three stages: the image as a static scene, motion, and detail of the subject.

    moving, refined: what --vram sets in stages 2 and 3; nothing where their models fit every GPU.
    steps: None for as many as the YAML has.
    """
    names = ("stage1", "stage2", "stage3")
    first, second, third = zip(names, configs, (STILL, MOVING, REFINED), costs, strict=True)
    return (
        Stage(*first, steps=steps[0]),
        Stage(*second, starts_from="stage1", memory=moving, steps=steps[1]),
        Stage(*third, starts_from="stage2", token=TOKEN_KEY, memory=refined, steps=steps[2]),
    )


def toy_stages(video: str) -> tuple[Stage, ...]:
    """Those of the quickstart; `video` as in `toy`.

    Fewer of stage 2's steps are too coarse ones for D: of four characters of development 25 steps
    came to nobody's motion, 50 to two, and 80 to all.
    """
    first, second, third = animate124(
        (
            "configs/toy/deformation-stage1.yaml",
            f"configs/toy/deformation-stage2{video}.yaml",
            f"configs/toy/deformation-stage3{video}.yaml",
        ),
        (Cost(4, 0.1), Cost(6, 0.3), Cost(8, 0.6)),
    )
    return first, replace(second, fast=1), third


def full(video: str, *more: Memory) -> Preset:
    """Full-size models; `video`: which video prior, as the configs' names end; `more`: what --vram
    sets besides in stages 2 and 3."""
    static = "configs/animate124-stage1.yaml"
    first, second, third = Cost(90, 0.05), Cost(150, 0.18), Cost(150, 0.33)
    return Preset(
        stages=animate124(
            (
                static,
                f"configs/animate124-deformation-stage2-{video}.yaml",
                f"configs/animate124-deformation-stage3-{video}.yaml",
            ),
            (first, second._replace(step_s=0.09), third._replace(step_s=0.24)),
            (*MOVING_MEMORY, *more),
            (*REFINED_MEMORY, *more),
            steps=(3000, 2500, 1200),
        ),
        grid=animate124(
            (
                static,
                f"configs/animate124-stage2-{video}.yaml",
                f"configs/animate124-stage3-{video}.yaml",
            ),
            (first, second, third),
            (*MOVING_MEMORY, *more),
            (*GRID_MEMORY, *more),
        ),
        static_prompt="a high resolution DSLR image of {phrase}",
        video_negative="",
        refine_negative="",
        flags={
            "preprocess": {"size": 512},
            "token": {
                "resolution": 512,
                "train_batch_size": 16,
                "max_train_steps": 1000,
                "learning_rate": 5e-4,
                "seed": 0,
            },
        },
        grid_flags={"token": {"max_train_steps": 3000}},
        costs={  # one H200
            "preprocess": Cost(30),
            "token": Cost(40, 0.12),
            "result": Cost(90),
            "assets": Cost(30),
        },
    )


def further(
    video: str, memory: tuple[Memory, ...], alone: tuple[Memory, ...] | None = None
) -> Preset:
    """... with a video prior that has YAMLs of the deformation alone, and what --vram sets then.

    memory: of stages 2 and 3; stage 3's tile prior has its own besides.
    alone: of stage 2, where it needs others.
    """
    preset = full(video)
    static, moving, refined = preset.stages
    moving = replace(moving, memory=memory if alone is None else alone)
    refined = replace(refined, memory=(*memory, *TILE_MEMORY))
    return replace(preset, stages=(static, moving, refined), grid=())


def causal(video: str, redone_below: float = 0) -> Preset:
    """... whose VAE is causal. Its encoder's graph is redone for the gradient: in stage 2 below so
    many GB (docs/priors.md), in stage 3, which was not measured, below 20."""
    others = (
        Memory(32, math.inf, CHUNK, 2**23),
        Memory(0, 14, "system.prompt_processor.read_on_cpu", True),
        Memory(0, 12, "system.renderer.num_samples_per_ray", 128),
        Memory(0, 10, "data.single_view.num_frames", 9),
    )
    alone, beside_tile = Memory(0, redone_below, VAE_CHUNK, 8), Memory(0, 20, VAE_CHUNK, 8)
    return further(video, (beside_tile, *others), (alone, *others))


# Stable Video Diffusion takes clips of one length
OF_ITS_LENGTH = (
    MOVING_MEMORY[0],
    Memory(0, 14, VAE_CHUNK, 4),
    *(row for row in MOVING_MEMORY[2:] if "num_frames" not in row.key),
)


def toy(video: str) -> Preset:
    """Small models of the toy world; `video`: which prior moves it, as the configs' names end."""
    return Preset(
        stages=toy_stages(video),
        grid=animate124(
            ("configs/toy/stage1.yaml", "configs/toy/stage2.yaml", "configs/toy/stage3.yaml"),
            (Cost(11, 0.13), Cost(22, 0.36), Cost(28, 0.44)),
        ),
        static_prompt="a toy {noun}",
        # small models know few colours: against these, guidance pulls at what differs alone
        video_negative="a {noun}",  # the motion
        refine_negative="{prompt}",  # the individual
        flags={
            # a margin as in the pictures that the toy models were trained on
            "preprocess": {"size": 256, "border_ratio": 0.25},
            "token": {
                "resolution": 64,
                "train_batch_size": 4,
                "max_train_steps": 80,
                "learning_rate": 5e-3,
                "seed": 0,
                "num_validation_images": 2,
                "report_to": "none",
            },
            "result": {"size": 128, "frames": 32, "fps": 16},
            "assets": {"faces": 10000, "texture": 256},
        },
        costs={  # two CPU cores
            "preprocess": Cost(1),
            "token": Cost(8, 0.1),
            "result": Cost(11),
            "assets": Cost(9),
        },
        on_cpu=True,
        words="load/toy-priors/words.json",
    )


PRESETS = {
    "toy": toy(""),
    "toy-flow": replace(toy("-flow"), grid=()),
    "modelscope": full("ms"),
    "zeroscope": full("zs", WIDE),
    "wan": causal("wan"),
    "wan-ti2v": replace(causal("wan-ti2v"), least_gb=14.1),
    "ltx": causal("ltx", 14),
    "skyreels": causal("skyreels"),
    "wan-vace": causal("wan-vace"),
    "cogvideox": causal("cogvideox", 18),
    "cogvideox-image": replace(causal("cogvideox-image", 26), least_gb=17.1),
    "svd": further("svd", OF_ITS_LENGTH),
    "animatediff": further("animatediff", MOVING_MEMORY),
}


def preset_of(request: Request) -> Preset:
    """The preset that a request names, with the stages of its field.

    Raises:
        ValueError: there is no such preset, or it has no such field.
    """
    for flag, name, names in (
        ("--preset", request.preset, PRESETS),
        ("--field", request.field, FIELDS),
    ):
        if name not in names:
            raise ValueError(f"{flag} {name}: there are {', '.join(names)}{near(name, names)}")
    preset = PRESETS[request.preset]
    if request.field != GRID:
        return preset
    if not preset.grid:
        raise ValueError(f"--field {GRID}: the preset {request.preset} has no stages for that.")
    flags = {k: {**v, **preset.grid_flags.get(k, {})} for k, v in preset.flags.items()}
    return replace(preset, stages=preset.grid, flags=flags)


def near(name: str, names: Collection[str]) -> str:
    """The end of a sentence about a name that isn't among those."""
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]}?" if close else "."


def check_name(said: str, name: str, tasks: Sequence[str]) -> None:
    """A ValueError for a name that no task has; `said`: where it stands."""
    if name not in tasks:
        hint = near(name, tasks)
        raise ValueError(f"{said}: no task is called {name!r}; {', '.join(tasks)} are{hint}")


def token_memory_options(vram: float | None, batch: int) -> dict[str, int]:
    """What --vram sets for the token's training, whose steps take `batch` images."""
    most = next(
        (n for below, n in TOKEN_IMAGES.items() if vram is not None and vram < below), batch
    )
    if batch <= most:
        return {}
    parts = -(-batch // most)
    return {"train_batch_size": -(-batch // parts), "gradient_accumulation_steps": parts}
