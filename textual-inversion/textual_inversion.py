"""Learns a word for the subject of a picture: textual inversion (Gal et al. 2022).

    accelerate launch textual-inversion/textual_inversion.py \\
        --pretrained_model_name_or_path stable-diffusion-v1-5/stable-diffusion-v1-5 \\
        --train_data_dir load/panda/_rgba.png --placeholder_token _panda_ \\
        --initializer_token panda --output_dir outputs-textual/panda --use_augmentations

`python` instead of `accelerate launch` works too. The flags are those of diffusers' example of the
same name, plus `use_augmentations` and `compile`. Writes learned_embeds.bin and .safetensors,
pictures of the word (validation/), the loss curve (loss.csv, loss.png) and checkpoints into
output_dir; what an earlier run left there is moved to earlier-1 ... unless this one resumes. Exit
codes: 0 done, 2 an input that can't be used, 130 stopped with Ctrl-C (143 by SIGTERM), 1 anything
else.

This file holds the command line alone, so that --help and a wrong flag answer at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "host"))

from argument_types import finite_number, positive_float, text_with_content, whole_number

HERE = Path(__file__).resolve().parent
SCHEDULES = (
    "linear cosine cosine_with_restarts polynomial constant constant_with_warmup".split()  # noqa: SIM905
)
DEFAULT_STEPS = 3000
DEFAULT_WARMUP = 500
MOST = 10**7  # of anything that is counted
TRACKERS = (
    "aim clearml comet_ml dvclive mlflow swanlab tensorboard trackio wandb all none".split()  # noqa: SIM905
)


def one_word(text: str) -> str:
    """An argparse type: what a prompt can hold as one word."""
    if len(text.split()) != 1:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not one word without spaces, such as _panda_ or <my-panda>"
        )
    return text


def parser() -> argparse.ArgumentParser:
    count, text = whole_number(1, MOST), text_with_content
    p = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    yes = {"action": "store_true"}

    g = p.add_argument_group("model")
    g.add_argument(
        "--pretrained_model_name_or_path",
        required=True,
        type=text,
        help="folder in diffusers' format, or hub id",
    )
    g.add_argument("--revision", help="branch, tag or commit of a hub id")
    g.add_argument("--variant", help="weight files' variant, such as fp16")
    g.add_argument("--tokenizer_name", help="folder or hub id of another tokenizer")

    g = p.add_argument_group("what is learnt")
    g.add_argument(
        "--train_data_dir", required=True, type=text, help="one image, or a folder of images"
    )
    g.add_argument(
        "--placeholder_token", required=True, type=one_word, help="the new word, such as _panda_"
    )
    g.add_argument(
        "--initializer_token",
        required=True,
        type=text,
        help="the word to start from; of several, the mean",
    )
    g.add_argument("--learnable_property", choices=["object", "style"], default="object")
    g.add_argument("--num_vectors", type=whole_number(1, 75), default=1, help="tokens of the word")
    g.add_argument(
        "--repeats",
        type=count,
        default=100,
        help="augmented copies of each image; repeats x images make an epoch",
    )
    g.add_argument(
        "--resolution",
        type=whole_number(8, 8192, multiple_of=8),  # the VAE halves it three times
        default=512,
        help="pixels a side",
    )
    g.add_argument(
        "--center_crop", **yes, help="crop to the central square (otherwise padded with white)"
    )
    g.add_argument(
        "--use_augmentations",
        **yes,
        help="rotation, crop, colour, grey, blur and flip; without it only the flip",
    )

    g = p.add_argument_group("training")
    g.add_argument("--train_batch_size", type=count, default=16, help="a process and micro-step")
    g.add_argument("--gradient_accumulation_steps", type=count, default=1)
    g.add_argument("--max_train_steps", type=count, help=f"default: {DEFAULT_STEPS}")
    g.add_argument("--num_train_epochs", type=count, help="in place of max_train_steps")
    g.add_argument("--learning_rate", type=finite_number(above=0, most=10), default=5e-4)
    g.add_argument(
        "--scale_lr", **yes, help="learning_rate x batch size x accumulation steps x processes"
    )
    g.add_argument("--lr_scheduler", choices=SCHEDULES, default="constant")
    g.add_argument(
        "--lr_warmup_steps", type=whole_number(0, MOST), help=f"default: {DEFAULT_WARMUP}"
    )
    g.add_argument("--lr_num_cycles", type=count, help="of cosine_with_restarts; default: 1")
    g.add_argument("--adam_beta1", type=finite_number(0, below=1), default=0.9)
    g.add_argument("--adam_beta2", type=finite_number(0, below=1), default=0.999)
    g.add_argument(
        "--adam_weight_decay", type=finite_number(0), default=1e-2, help="of the new rows"
    )
    g.add_argument("--adam_epsilon", type=positive_float, default=1e-8)
    g.add_argument(
        "--seed", type=whole_number(-1, 2**63 - 1), help="default, and -1: a random one, printed"
    )

    g = p.add_argument_group("speed and memory")
    g.add_argument(
        "--mixed_precision",
        choices=["no", "fp16", "bf16"],
        help="of the frozen models; default: what accelerate is set to, or else fp16 on a GPU",
    )
    g.add_argument("--allow_tf32", **yes, help="TF32 for what is computed in float32 on a GPU")
    g.add_argument("--gradient_checkpointing", **yes, help="less memory, slower")
    g.add_argument(
        "--enable_xformers_memory_efficient_attention",
        **yes,
        help="xformers' attention where it is installed, else PyTorch's own",
    )
    g.add_argument("--compile", **yes, help="torch.compile the UNet: slow to start, then faster")
    g.add_argument(
        "--dataloader_num_workers",
        type=whole_number(0, 256),
        default=0,
        help="that augment images",
    )
    g.add_argument(
        "--local_rank",
        type=whole_number(-1),
        default=-1,
        help="set by PyTorch's old launcher, not by hand",
    )

    g = p.add_argument_group("what is written")
    g.add_argument("--output_dir", type=text, default="text-inversion-model")
    g.add_argument("--save_steps", type=count, default=500, help="learned_embeds-steps-N every N")
    g.add_argument("--no_safe_serialization", **yes, help="only .bin, no .safetensors")
    whole = g.add_mutually_exclusive_group()
    whole.add_argument("--only_save_embeds", **yes, help="as is the default: no copy of the model")
    whole.add_argument(
        "--save_as_full_pipeline", **yes, help="also the whole model with the new word in it"
    )
    g.add_argument("--checkpointing_steps", type=count, default=500)
    g.add_argument("--checkpoints_total_limit", type=count, help="keep that many; default: all")
    g.add_argument(
        "--resume_from_checkpoint", help="`latest`, a checkpoint's name in output_dir, or its path"
    )
    g.add_argument(
        "--validation_prompt",
        help="sampled every validation_steps; without it the word is sampled once, at the end",
    )
    g.add_argument("--num_validation_images", type=whole_number(0, 99), default=4, help="0: none")
    g.add_argument("--validation_steps", type=count, help="default: 100")
    g.add_argument("--validation_epochs", type=count, help="in place of validation_steps")
    g.add_argument(
        "--report_to", choices=TRACKERS, default="tensorboard", help="logs losses and pictures"
    )
    g.add_argument("--logging_dir", default="logs", help="the tracker's folder in output_dir")
    g.add_argument("--push_to_hub", **yes)
    g.add_argument("--hub_token", help="default: the one of `hf auth login`")
    g.add_argument("--hub_model_id", help="default: output_dir's name")
    return p


def conflicts(a: argparse.Namespace) -> list[str]:
    """One line for each flag that another one leaves without effect."""
    warmup = a.lr_scheduler == "constant" and a.lr_warmup_steps
    idle = {
        "--num_train_epochs: --max_train_steps decides": a.num_train_epochs and a.max_train_steps,
        "--lr_warmup_steps: constant has no warm-up, constant_with_warmup has": warmup,
        "--lr_num_cycles: only cosine_with_restarts has cycles": a.lr_num_cycles
        and a.lr_scheduler != "cosine_with_restarts",
        "--validation_epochs: --validation_steps decides": a.validation_epochs
        and a.validation_steps,
        "--validation_steps: without --validation_prompt pictures come at the end alone": (
            (a.validation_steps or a.validation_epochs) and not a.validation_prompt
        ),
        "--hub_token, --hub_model_id: --push_to_hub isn't given": (
            (a.hub_token or a.hub_model_id) and not a.push_to_hub
        ),
        "--local_rank: no launcher set WORLD_SIZE, so this is one process": a.local_rank > 0
        and "WORLD_SIZE" not in os.environ,
    }
    return [f"without effect: {line}" for line, applies in idle.items() if applies]


def bring_package() -> None:
    """This checkout as `animate124` with the bundled host, whether or not it is installed."""
    if "animate124" in sys.modules:
        return
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as in launch.py
    from threestudio.extensions import load_extension

    load_extension("animate124", HERE.parent)


def say_error(text: object) -> None:
    print(f"error: {text}", file=sys.stderr)


def is_out_of_memory(error: BaseException) -> bool:
    """Of the GPU, or of the machine; both are RuntimeErrors that only their text tells."""
    words = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def learn(args: argparse.Namespace) -> int:
    """A run from its flags to its files; the exit code."""
    from animate124.events import tell_messages
    from training import TextualInversion

    tell_messages()
    try:
        inversion = TextualInversion(args, conflicts(args))
    except (ValueError, OSError) as error:
        say_error(error)
        return 2
    try:
        return inversion.run()
    except FloatingPointError as error:
        say_error(f"{error} What was written before stays.")
    except OSError as error:
        say_error(error)
    return 1


def main(arguments: list[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    if args.local_rank >= 0 and "WORLD_SIZE" in os.environ:
        os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    try:
        bring_package()
        return learn(args)
    except KeyboardInterrupt:
        print("\nStopped; nothing was saved since the last checkpoint.", file=sys.stderr)
        return 130
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        say_error(
            f"out of memory ({str(error).partition('. ')[0]}). Try --train_batch_size "
            f"{max(1, args.train_batch_size // 2)} with --gradient_accumulation_steps "
            f"{2 * args.gradient_accumulation_steps}, or --gradient_checkpointing "
            "(animate.py: a smaller --vram)."
        )
        return 1


if __name__ == "__main__":
    sys.exit(main())
