"""Textual inversion of a full-size Stable Diffusion 1.5 with random weights: ours, variant by
variant, beside the straightforward loop.

    python benchmarks/textual_inversion.py [--steps 60] [--variants fp16 fp16-layers fp16-plain]
        [--parts 4 --memory-fraction-gb 12]        # our loop as `animate.py --vram 12` has it
        [--kernels 4]                              # which kernels so many more steps go to
    python benchmarks/textual_inversion.py --tiny      # a dry run for any CPU

fp16 is what a GPU does by default: the UNet's and the text encoder's layers are ours
(guidance/frozen_unet.py, textual_inversion/frozen_text.py), and loss and gradient are recorded.
fp16-layers doesn't record, fp16-recorded has diffusers' and transformers' layers, fp16-plain both.
Of fp16 with 16 images of 512 pixels in one piece, ms and GB go into figures.json as token.ms and
token.gb (`--figures FILE`: elsewhere; none with --tiny); with `--prompt-length 32`, as this script
once had it, as token.prompt32.ms and .gb.

The straightforward loop is that of the usual example script: images are encoded in every step, the
whole embedding matrix gets gradients and is restored but for the new row, the UNet and VAE are cast
to half precision and the text encoder runs under autocast. A last line compares the gradients of
the new row at each precision with float32's.
"""

import argparse
import gc
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from animate124.host.argument_types import positive_float, positive_int
from animate124.textual_inversion import parser as run_flags
from animate124.textual_inversion.denoising import draw_batch, reseed
from animate124.textual_inversion.run import TextualInversion
from animate124.toyworld.random_priors import WORDS, byte_pairs, write_tokenizer
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from full_size_models import TEXT_L as TEXT
from full_size_models import UNET_2D as UNET
from full_size_models import VAE
from measuring import FIGURES, cap_memory, now, record
from profiles import kernels_of, kind, profiler, table
from torch.utils.data import DataLoader, RandomSampler
from transformers import CLIPTextConfig, CLIPTextModel

ROOT = Path(__file__).resolve().parents[1]
PANDA = ROOT / "load" / "toy-panda" / "_rgba.png"
STEPS_OF_A_RUN = 3000
CLIP_LENGTH = 77  # tokens of a prompt
PUBLISHED = 16, 1, 512  # images, parts that they are taken in, pixels a side

SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
TINY_UNET = UNET | {
    "block_out_channels": [32, 32, 64, 64],
    "attention_head_dim": 2,
    "cross_attention_dim": 32,
}
TINY_VAE = VAE | {"block_out_channels": [32, 32, 32, 32], "layers_per_block": 1}
TINY_TEXT = TEXT | {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "projection_dim": 32,
}
VARIANTS = ["fp16", "fp16-layers", "fp16-recorded", "fp16-plain", "bf16", "fp16-compile"]


def write_model(folder: Path, tiny: bool, device: str, length: int = CLIP_LENGTH) -> None:
    """A diffusers folder with random weights in float16, made on the device, which is quick.

    length: tokens of a prompt.
    """
    torch.manual_seed(0)
    with torch.device(device):
        parts = {
            "unet": UNet2DConditionModel(**(TINY_UNET if tiny else UNET)),
            "vae": AutoencoderKL(**(TINY_VAE if tiny else VAE)),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**(TINY_TEXT if tiny else TEXT))),
        }
    for name, part in parts.items():
        part.half().save_pretrained(folder / name)
    DDPMScheduler(**SCHEDULE).save_pretrained(folder / "scheduler")
    # its words lie within the full vocabulary's 49408 ids
    write_tokenizer(folder / "tokenizer", *byte_pairs(WORDS.split()), length)


def prepare(
    model: Path, args: argparse.Namespace, precision: str, repeats: int = 100
) -> TextualInversion:
    """A run of the script, ready to step."""
    text = (
        f"--pretrained_model_name_or_path {model} --train_data_dir {PANDA} --use_augmentations "
        f"--placeholder_token _panda_ --initializer_token panda --resolution {args.resolution} "
        f"--train_batch_size {args.batch // args.parts} --gradient_accumulation_steps {args.parts} "
        f"--seed 0 --report_to none --mixed_precision {precision} "
        f"--output_dir {model.parent / 'out'} --max_train_steps 100000 "
        f"--repeats {repeats}"
    )
    run = TextualInversion(run_flags.parser().parse_args(text.split()))
    run.training.prepare()
    return run


def untouched_unet(run: TextualInversion) -> UNet2DConditionModel:
    """The run's UNet as diffusers has it."""
    return run.inputs.source.load(UNet2DConditionModel, "unet", run.inputs.dtype).to(run.on.device)


def ours(model: Path, args: argparse.Namespace, variant: str) -> Callable[[], None]:
    """One step of our loop; `variant` is a precision and what else is done to the UNet."""
    precision, _, change = variant.partition("-")
    run = prepare(model, args, precision)
    gradient = run.training.gradient
    if change == "layers":
        gradient.records = False
    elif change:
        gradient.records = gradient.records and change == "recorded"
        gradient.unet, encoder = untouched_unet(run), run.inputs.models.text_encoder
        gradient.encode = lambda ids: encoder(ids)[0]
        if change == "compile":
            gradient.unet = torch.compile(gradient.unet)
    return run.training.train_step


def straightforward(model: Path, args: argparse.Namespace, precision: str) -> Callable[[], None]:
    """One step of the usual loop, with as many workers that load images as keep up."""
    run = prepare(model, args, precision)
    models, device, dtype = run.inputs.models, run.on.device, run.inputs.dtype
    prompts, pictures = run.inputs.word.prompts, run.inputs.pictures
    vae, unet = models.vae.to(dtype), untouched_unet(run)
    text_encoder = models.text_encoder.float()
    table = text_encoder.get_input_embeddings().table
    joined = torch.nn.Embedding.from_pretrained(
        torch.cat([table.weight, run.training.rows.detach()]), freeze=False
    )
    text_encoder.set_input_embeddings(joined)
    original = joined.weight.detach().clone()
    optimizer = torch.optim.AdamW([joined.weight], lr=5e-4, weight_decay=1e-2)
    scaler = torch.amp.GradScaler(device.type, enabled=run.training.scaler.is_enabled())
    scale, scheduler = vae.config.scaling_factor, models.scheduler

    endless = RandomSampler(pictures, replacement=True, num_samples=10**7)
    workers = 0 if args.tiny else 12
    images = iter(DataLoader(pictures, args.batch, sampler=endless, num_workers=workers))
    new_row = len(table.weight)

    def step() -> None:
        pixels = 2 * next(images).to(device, dtype) - 1
        z = vae.encode(pixels).latent_dist.sample().detach() * scale
        noise = torch.randn_like(z)
        t = torch.randint(0, 1000, (len(z),), device=device)
        noisy = scheduler.add_noise(z, noise, t)
        ids = prompts[torch.randint(len(prompts), (len(z),))]
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            text = text_encoder(ids)[0].to(dtype)
            prediction = unet(noisy, t, text, return_dict=False)[0]
            loss = F.mse_loss(prediction.float(), noise.float())
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        with torch.no_grad():
            joined.weight[:new_row] = original[:new_row]
        loss.item()  # for the progress bar

    return step


def measure(
    name: str, make: Callable[[], Callable[[], None]], steps: int, batch: int, kernels: int = 0
) -> tuple[float, float]:
    """Prints one row: set-up, first step, then the mean of `steps` steps, and the memory; before it
    the `kernels` of as many further steps. Returns ms a step and bytes."""
    gpu = torch.cuda.is_available()
    gc.collect()  # the loop before this one
    start = now()
    step = make()
    ready = now()
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    step()
    first = now()
    for _ in range(3):
        step()
    warm = now()
    for _ in range(steps):
        step()
    each = (now() - warm) / steps
    if kernels:
        with profiler() as seen:
            for _ in range(kernels):
                step()
            now()
        table(f"{kind()} of {name}", kernels_of(seen), kernels, top=60)
    memory = torch.cuda.max_memory_allocated() if gpu else float("nan")
    total = (ready - start) + (first - ready) + each * STEPS_OF_A_RUN
    print(
        f"| {name:32} | {ready - start:6.1f} | {first - ready:6.1f} | {1000 * each:7.1f} "
        f"| {batch / each:7.1f} | {memory / 2**30:5.1f} | {total / 60:5.1f} |",
        flush=True,
    )
    return 1000 * each, memory


def gradient(model: Path, args: argparse.Namespace, precision: str) -> torch.Tensor:
    """The new row's gradient of one fixed batch of 4."""
    run = prepare(model, args, precision, repeats=4)
    training, word = run.training, run.inputs.word
    reseed(training.generator, 1)
    batch = draw_batch(
        training.bank, word.prompts, training.alpha_bar, "epsilon", 4, training.generator
    )
    scale = torch.tensor(2.0**16, device=run.on.device)
    return training.gradient(batch, scale).gradient.flatten() / scale


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=positive_int, default=60, help="that are timed")
    parser.add_argument("--batch", type=positive_int, default=16)
    parser.add_argument(
        "--parts", type=positive_int, default=1, help="our loop takes the batch in so many"
    )
    parser.add_argument(
        "--memory-fraction-gb", type=positive_float, help="let CUDA have no more than this"
    )
    parser.add_argument("--resolution", type=positive_int, default=512)
    parser.add_argument("--kernels", type=int, default=0, metavar="STEPS", help="profile so many")
    parser.add_argument("--prompt-length", type=positive_int, default=CLIP_LENGTH, help="in tokens")
    parser.add_argument("--variants", nargs="*", default=VARIANTS, choices=VARIANTS)
    parser.add_argument("--no-baseline", action="store_true", help="only our loop")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try the benchmark")
    parser.add_argument("--figures", type=Path, metavar="FILE", help="where figures are written")
    return parser


def main() -> None:
    parser = options()
    args = parser.parse_args()
    file = args.figures or (None if args.tiny else FIGURES)
    if args.tiny:
        args.resolution, args.batch, args.steps = 64, 2, 2
    if args.batch % args.parts:
        parser.error(f"--batch {args.batch} can't be taken in {args.parts} equal --parts")
    cap_memory(args.memory_fraction_gb)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    print(
        f"{name}, torch {torch.__version__}; batch {args.batch}, parts: {args.parts}, "
        f"{args.resolution} px, {args.steps} steps timed; total min: {STEPS_OF_A_RUN} steps"
    )
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        start = now()
        write_model(model, args.tiny, device, args.prompt_length)
        print(f"the model is written in {now() - start:.1f} s")
        half = "fp16" if device == "cuda" else "bf16"
        print(
            f"| {'loop':32} | set-up | 1st s  | ms/step | image/s |   GiB | total min |\n"
            "|---|---|---|---|---|---|---|"
        )
        for variant in args.variants:
            ms, memory = measure(
                f"ours, {variant}",
                lambda v=variant: ours(model, args, v),
                args.steps,
                args.batch,
                args.kernels,
            )
            if file and variant == half and (args.batch, args.parts, args.resolution) == PUBLISHED:
                at = "" if args.prompt_length == CLIP_LENGTH else f".prompt{args.prompt_length}"
                figures = {f"token{at}.ms": (ms, "ms a step of 16 images")}
                record(figures | {f"token{at}.gb": (memory / 1e9, "GB")}, file)
        if not args.no_baseline:
            for precision, steps in ((half, args.steps), ("no", max(2, args.steps // 6))):
                measure(
                    f"straightforward, {precision}",
                    lambda p=precision: straightforward(model, args, p),
                    steps,
                    args.batch,
                )
            exact = gradient(model, args, "no")
            for precision in ("fp16", "bf16"):
                cosine = F.cosine_similarity(exact, gradient(model, args, precision), dim=0)
                print(f"gradient in {precision} against float32: cosine {cosine:.5f}", flush=True)


if __name__ == "__main__":
    main()
