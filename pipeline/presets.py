"""Presets: the stages' configs, what the other tasks are told, and what memory options there are.

Numbers that someone may want to change stand here and nowhere else in this folder.
"""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

Options = Mapping[str, Any]
STAGES = ("stage1", "stage2", "stage3")
TASKS = ("preprocess", "token", *STAGES, "result")  # in order
FAST = 4  # --fast divides the steps of the token and of each stage by this


class Cost(NamedTuple):
    """A guess of what a task takes, until it is known."""

    start_s: float  # before the first training step and after the last one, seconds
    step_s: float = 0.0  # a training step, seconds


@dataclass(frozen=True)
class Preset:
    configs: tuple[str, str, str]  # YAML of each stage
    static_prompt: str  # stage 1's prompt, of {noun} or {phrase}
    video_negative: str  # negative prompt of the video prior, likewise
    refine_negative: str  # negative prompt of the tile prior, of {prompt}
    preprocess: Options  # flags of image_preprocess.py
    token: Options  # flags of textual_inversion.py
    result: Options  # flags of pipeline/result.py
    costs: Mapping[str, Cost]  # of the tasks, on the machine that the preset is meant for
    offline: bool = False  # everything is in this checkout: the hub isn't asked
    on_cpu: bool = False  # its models are small enough for one
    words: str | None = None  # JSON of the only words that its models know


TOKEN_FULL = {
    "resolution": 512,
    "train_batch_size": 16,
    "max_train_steps": 3000,
    "learning_rate": 5e-4,
    "seed": 0,
}
FULL: dict[str, Any] = {
    "static_prompt": "a high resolution DSLR image of {phrase}",
    "video_negative": "",
    "refine_negative": "",
    "preprocess": {"size": 512},
    "token": TOKEN_FULL,
    "result": {},
    "costs": {  # one H200
        "preprocess": Cost(30),
        "token": Cost(40, 0.12),
        "stage1": Cost(90, 0.05),
        "stage2": Cost(150, 0.18),
        "stage3": Cost(150, 0.33),
        "result": Cost(90),
    },
}
PRESETS = {
    "toy": Preset(
        configs=("configs/toy/stage1.yaml", "configs/toy/stage2.yaml", "configs/toy/stage3.yaml"),
        static_prompt="a toy {noun}",
        # small models know few colours: against these, guidance pulls at what differs alone
        video_negative="a {noun}",  # the motion
        refine_negative="{prompt}",  # the individual
        # a margin as in the pictures that the toy models were trained on
        preprocess={"size": 256, "border_ratio": 0.25},
        token={
            "resolution": 64,
            "train_batch_size": 4,
            "max_train_steps": 80,
            "learning_rate": 5e-3,
            "seed": 0,
            "num_validation_images": 2,
            "report_to": "none",
        },
        result={"size": 128, "frames": 32, "fps": 16},
        costs={  # two CPU cores
            "preprocess": Cost(1),
            "token": Cost(8, 0.1),
            "stage1": Cost(11, 0.13),
            "stage2": Cost(22, 0.36),
            "stage3": Cost(28, 0.44),
            "result": Cost(11),
        },
        offline=True,
        on_cpu=True,
        words="load/toy-priors/words.json",
    ),
    "modelscope": Preset(
        configs=(
            "configs/animate124-stage1.yaml",
            "configs/animate124-stage2-ms.yaml",
            "configs/animate124-stage3-ms.yaml",
        ),
        **FULL,
    ),
    "zeroscope": Preset(
        configs=(
            "configs/animate124-stage1.yaml",
            "configs/animate124-stage2-zs.yaml",
            "configs/animate124-stage3-zs.yaml",
        ),
        **FULL,
    ),
}


DYNAMIC = ("stage2", "stage3")
# --vram N: with at least so many GB, and less than so many, these stages get this option; of two
# lines about the same key the lower one wins. Measured with 12, 16, 24 and 40 GB and no more to be
# had (benchmarks/README.md); those for less than 12 were not.
VRAM: tuple[tuple[float, float, tuple[str, ...], str, Any], ...] = (
    (32, math.inf, DYNAMIC, "system.renderer.train_chunk_size", 2**23),
    (0, 20, DYNAMIC, "system.guidance.vae_chunk", 4),
    (0, 20, ("stage3",), "system.renderer.train_chunk_size", 2**18),
    (0, 16, ("stage3",), "system.guidance_cn.fixed_size", 512),
    (0, 12, DYNAMIC, "system.renderer.num_samples_per_ray", 128),
    (0, 10, DYNAMIC, "system.guidance.low_ram_vae", 4),
    (0, 10, DYNAMIC, "data.single_view.num_frames", 8),
)


# ... and for less than 16 the token's batch is taken so many images at a time (5.5 GB, not 14.7)
TOKEN_VRAM, TOKEN_IMAGES = 16, 4


def preset_named(name: str) -> Preset:
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise ValueError(f"--preset {name}: there are {', '.join(PRESETS)}{hint}")
    return PRESETS[name]


def memory_options(vram: float | None, stage: str) -> dict[str, Any]:
    """What --vram sets in a stage.

    vram: GB; None for as many as it takes.
    """
    if vram is None:
        return {}
    return {
        key: value
        for least, below, stages, key, value in VRAM
        if least <= vram < below and stage in stages
    }


def token_memory_options(vram: float | None, batch: int) -> dict[str, int]:
    """What --vram sets for the token's training, whose steps take `batch` images."""
    if vram is None or vram >= TOKEN_VRAM or batch <= TOKEN_IMAGES:
        return {}
    parts = -(-batch // TOKEN_IMAGES)
    return {"train_batch_size": -(-batch // parts), "gradient_accumulation_steps": parts}
