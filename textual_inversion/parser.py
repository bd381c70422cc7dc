"""The flags of textual inversion. No library is loaded, so that --help and a wrong flag answer at
once."""

import argparse
import os

from ..host.argument_types import finite_number, positive_float, text_with_content, whole_number

SCHEDULES = (
    "linear cosine cosine_with_restarts polynomial constant constant_with_warmup".split()  # noqa: SIM905
)
DEFAULT_STEPS = 3000
DEFAULT_WARMUP = 500
MOST = 10**7  # of anything that is counted
COUNT = whole_number(1, MOST)
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


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Of the command `prog`; None: of the script that runs."""
    p = argparse.ArgumentParser(
        prog=prog,
        description="Learns a word for the subject of a picture: textual inversion (Gal et al. "
        "2022).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    add_model(p)
    add_word(p)
    add_training(p)
    add_speed(p)
    add_files(p)
    return p


def add_model(p: argparse.ArgumentParser) -> None:
    g = p.add_argument_group("model")
    g.add_argument(
        "--pretrained_model_name_or_path",
        required=True,
        type=text_with_content,
        help="folder in diffusers' format, or hub id",
    )
    g.add_argument("--revision", help="branch, tag or commit of a hub id")
    g.add_argument("--variant", help="weight files' variant, such as fp16")
    g.add_argument("--tokenizer_name", help="folder or hub id of another tokenizer")


def add_word(p: argparse.ArgumentParser) -> None:
    g = p.add_argument_group("what is learnt")
    g.add_argument(
        "--train_data_dir",
        required=True,
        type=text_with_content,
        help="one image, or a folder of images",
    )
    g.add_argument(
        "--placeholder_token", required=True, type=one_word, help="the new word, such as _panda_"
    )
    g.add_argument(
        "--initializer_token",
        required=True,
        type=text_with_content,
        help="the word to start from; of several, the mean",
    )
    g.add_argument("--learnable_property", choices=["object", "style"], default="object")
    g.add_argument("--num_vectors", type=whole_number(1, 75), default=1, help="tokens of the word")
    g.add_argument(
        "--repeats",
        type=COUNT,
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
        "--center_crop",
        action="store_true",
        help="crop to the central square (otherwise padded with white)",
    )
    g.add_argument(
        "--use_augmentations",
        action="store_true",
        help="rotation, crop, colour, grey, blur and flip; without it only the flip",
    )


def add_training(p: argparse.ArgumentParser) -> None:
    g = p.add_argument_group("training")
    g.add_argument("--train_batch_size", type=COUNT, default=16, help="a process and micro-step")
    g.add_argument("--gradient_accumulation_steps", type=COUNT, default=1)
    g.add_argument("--max_train_steps", type=COUNT, help=f"default: {DEFAULT_STEPS}")
    g.add_argument("--num_train_epochs", type=COUNT, help="in place of max_train_steps")
    g.add_argument("--learning_rate", type=finite_number(above=0, most=10), default=5e-4)
    g.add_argument(
        "--scale_lr",
        action="store_true",
        help="learning_rate x batch size x accumulation steps x processes",
    )
    g.add_argument("--lr_scheduler", choices=SCHEDULES, default="constant")
    g.add_argument(
        "--lr_warmup_steps", type=whole_number(0, MOST), help=f"default: {DEFAULT_WARMUP}"
    )
    g.add_argument("--lr_num_cycles", type=COUNT, help="of cosine_with_restarts; default: 1")
    g.add_argument("--adam_beta1", type=finite_number(0, below=1), default=0.9)
    g.add_argument("--adam_beta2", type=finite_number(0, below=1), default=0.999)
    g.add_argument(
        "--adam_weight_decay", type=finite_number(0), default=1e-2, help="of the new rows"
    )
    g.add_argument("--adam_epsilon", type=positive_float, default=1e-8)
    g.add_argument(
        "--seed", type=whole_number(-1, 2**63 - 1), help="default, and -1: a random one, printed"
    )


def add_speed(p: argparse.ArgumentParser) -> None:
    g = p.add_argument_group("speed and memory")
    g.add_argument(
        "--mixed_precision",
        choices=["no", "fp16", "bf16"],
        help="of the frozen models; default: what accelerate is set to, or else fp16 on a GPU",
    )
    g.add_argument(
        "--allow_tf32", action="store_true", help="TF32 for what is computed in float32 on a GPU"
    )
    g.add_argument("--gradient_checkpointing", action="store_true", help="less memory, slower")
    g.add_argument(
        "--enable_xformers_memory_efficient_attention",
        action="store_true",
        help="xformers' attention where it is installed, else PyTorch's own",
    )
    g.add_argument(
        "--compile", action="store_true", help="torch.compile the UNet: slow to start, then faster"
    )
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


def add_files(p: argparse.ArgumentParser) -> None:
    g = p.add_argument_group("what is written")
    g.add_argument("--output_dir", type=text_with_content, default="text-inversion-model")
    g.add_argument("--save_steps", type=COUNT, default=500, help="learned_embeds-steps-N every N")
    g.add_argument(
        "--no_safe_serialization", action="store_true", help="only .bin, no .safetensors"
    )
    whole = g.add_mutually_exclusive_group()
    whole.add_argument(
        "--only_save_embeds", action="store_true", help="as is the default: no copy of the model"
    )
    whole.add_argument(
        "--save_as_full_pipeline",
        action="store_true",
        help="also the whole model with the new word in it",
    )
    g.add_argument("--checkpointing_steps", type=COUNT, default=500)
    g.add_argument("--checkpoints_total_limit", type=COUNT, help="keep that many; default: all")
    g.add_argument(
        "--resume_from_checkpoint", help="`latest`, a checkpoint's name in output_dir, or its path"
    )
    g.add_argument(
        "--validation_prompt",
        help="sampled every validation_steps; without it the word is sampled once, at the end",
    )
    g.add_argument("--num_validation_images", type=whole_number(0, 99), default=4, help="0: none")
    g.add_argument("--validation_steps", type=COUNT, help="default: 100")
    g.add_argument("--validation_epochs", type=COUNT, help="in place of validation_steps")
    g.add_argument(
        "--report_to", choices=TRACKERS, default="tensorboard", help="logs losses and pictures"
    )
    g.add_argument("--logging_dir", default="logs", help="the tracker's folder in output_dir")
    g.add_argument("--push_to_hub", action="store_true")
    g.add_argument("--hub_token", help="default: the one of `hf auth login`")
    g.add_argument("--hub_model_id", help="default: output_dir's name")


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
