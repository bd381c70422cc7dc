"""Textual inversion: the script from its command line to its files, and its maths. Random tiny
models, but for one test with the trained ones of load/toy-priors.
"""

import csv
import hashlib
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import animate124
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from animate124.guidance.noise import DDPM, add_noise
from animate124.pretrained.learned_tokens import read_learned_tokens
from animate124.pretrained.text_readers import ClipReader
from animate124.textual_inversion import command
from animate124.textual_inversion.denoising import (
    Batch,
    denoising_loss,
    denoising_target,
    draw_batch,
    reseed,
)
from animate124.textual_inversion.latent_bank import LatentBank, encode_bank
from animate124.textual_inversion.learned_rows import SplicedEmbedding
from animate124.textual_inversion.loss_curve import running_mean
from animate124.textual_inversion.parser import conflicts, parser
from animate124.textual_inversion.run import TextualInversion
from animate124.textual_inversion.schedule import plan_steps
from animate124.textual_inversion.watch import MOST_UNDONE, Watch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.optimization import get_cosine_schedule_with_warmup
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

ROOT = Path(animate124.__file__).parent
SCRIPT = ROOT / "textual-inversion" / "textual_inversion.py"
PANDA = ROOT / "load" / "toy-panda" / "_rgba.png"
TOY = ROOT / "load" / "toy-priors" / "sd"
PADDED = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}


@pytest.fixture(autouse=True)
def device(request, monkeypatch):
    """Runs are on the CPU, in float32, also where there is a GPU, but for the tests of one."""
    AcceleratorState._reset_state(reset_partial_state=True)  # it keeps its first device
    if request.node.get_closest_marker("gpu") is None:
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def flags(random_priors, tmp_path):
    """A short run's command line; later flags win over earlier ones."""

    def flags(text="", model=random_priors / "sd", data=PANDA, out=tmp_path / "out"):
        return [
            *("--pretrained_model_name_or_path", str(model)),
            *("--train_data_dir", str(data), "--output_dir", str(out)),
            *("--placeholder_token", "_panda_", "--initializer_token", "panda"),
            *("--resolution", "64", "--train_batch_size", "2", "--max_train_steps", "4"),
            *("--learning_rate", "1e-2", "--repeats", "3", "--seed", "0"),
            *("--num_validation_images", "0", "--report_to", "none"),
            *shlex.split(text),
        ]

    return flags


@pytest.fixture
def learn(flags):
    """Runs the script in this process -> its exit code."""
    return lambda *args, **kwargs: command.main(flags(*args, **kwargs))


@pytest.fixture
def inversion(flags):
    """A run that is ready to begin."""

    def inversion(*args, **kwargs):
        return TextualInversion(parser().parse_args(flags(*args, **kwargs)))

    return inversion


def rows_in(folder, stem="learned_embeds"):
    return read_learned_tokens(folder / f"{stem}.safetensors")["_panda_"]


def loss_curve(folder):
    with (folder / "loss.csv").open() as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------------- the whole command


def test_the_published_command_works_as_it_stands(random_priors, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = (
        f"--pretrained_model_name_or_path={random_priors / 'sd'} --train_data_dir={PANDA} "
        '--learnable_property="object" --placeholder_token="_panda_" --initializer_token="_panda_" '
        "--resolution=64 --train_batch_size=16 --gradient_accumulation_steps=1 "
        "--max_train_steps=3 --learning_rate=5.0e-04 --lr_scheduler=constant --lr_warmup_steps=0 "
        "--output_dir=outputs-textual/x --enable_xformers_memory_efficient_attention "
        "--use_augmentations"
    )
    assert command.main(shlex.split(text)) == 0
    out = tmp_path / "outputs-textual" / "x"
    names = {p.relative_to(out).as_posix() for p in out.rglob("*") if "logs" not in p.parts}
    assert names == {
        *("learned_embeds.bin", "learned_embeds.safetensors", "loss.csv", "loss.png"),
        *("validation", "validation/step-000003.png"),
    }
    assert list((out / "logs").rglob("events.*"))  # tensorboard, as in diffusers
    said = capsys.readouterr().out
    assert "'_panda_' is 3 tokens (_, panda, _): starting from the mean" in said
    assert "PyTorch's own attention is used" in said
    assert "100 pictures encoded once" in said
    assert Image.open(out / "validation" / "step-000003.png").size == (5 * 64 + 4 * 4, 64)


def digests(modules):
    """A hash of every tensor's bytes."""
    return {
        f"{name}.{key}": hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()
        for name, module in modules.items()
        for key, tensor in module.state_dict().items()
    }


def test_every_other_weight_stays_bit_identical(inversion, random_priors):
    run = inversion("--num_vectors 2 --adam_weight_decay 0.5 --num_validation_images 1")
    models = run.inputs.models
    modules = {"text": models.text_encoder, "unet": models.unet, "vae": models.vae}
    before, start = digests(modules), run.training.rows.detach().clone()
    assert run.run() == 0
    after = digests(modules)
    changed = {name for name in before if before[name] != after[name]}
    assert len(changed) == 1 and changed.pop().endswith("token_embedding.rows")
    assert (run.training.rows != start).any(dim=1).all()
    # and they are the ones on disk
    for kind, part in ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae")):
        on_disk = kind.from_pretrained(random_priors / "sd", subfolder=part)
        assert digests({part: on_disk}).items() <= after.items()


@pytest.mark.parametrize("vectors", [1, 3])
def test_the_files_mean_the_same_in_diffusers_and_in_our_prompts(
    inversion, random_priors, tmp_path, vectors
):
    model, prompt = str(random_priors / "sd"), "a photo of a _panda_ dancing"
    run = inversion(f"--num_vectors {vectors} --validation_prompt '{prompt}'")
    run.run()
    with torch.no_grad():
        ours = run.inputs.models.text_encoder(run.inputs.word.shown)[0][0]
    for suffix in (".bin", ".safetensors"):
        file = tmp_path / "out" / f"learned_embeds{suffix}"
        pipeline = StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
        pipeline.load_textual_inversion(file)
        spelt_out = pipeline.maybe_convert_prompt(prompt, pipeline.tokenizer)
        with torch.no_grad():
            theirs = pipeline.text_encoder(pipeline.tokenizer(spelt_out, **PADDED).input_ids)[0][0]
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)
        processed, _, left = ClipReader(model, read_learned_tokens(file), "cpu").read(prompt)
        torch.testing.assert_close(processed, ours, rtol=1e-4, atol=1e-5)
        assert not left
    content = load_file(tmp_path / "out" / "learned_embeds.safetensors")
    assert content["_panda_"].shape == ((32,) if vectors == 1 else (3, 32))
    whole = file.read_bytes()
    file.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    with pytest.raises(ValueError, match=r"learned_embeds\.safetensors' cannot be read"):
        read_learned_tokens(file)


def test_the_whole_pipeline_is_saved_with_the_word(learn, tmp_path):
    assert learn("--save_as_full_pipeline") == 0
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "out", safety_checker=None)
    row = pipeline.tokenizer.convert_tokens_to_ids("_panda_")
    table = pipeline.text_encoder.get_input_embeddings().weight
    torch.testing.assert_close(table[row][None], rows_in(tmp_path / "out"))


def test_the_word_is_learnt(inversion):
    """On trained models: a lower loss than with the initializer, at held-out noise and times."""
    run = inversion("--max_train_steps 30 --train_batch_size 4 --learning_rate 1e-2", model=TOY)
    models = run.inputs.models

    @torch.no_grad()
    def held_out_loss():
        picture = 2 * run.inputs.pictures[0][None] - 1
        z = models.vae.encode(picture).latent_dist.mean.expand(64, -1, -1, -1)
        z = z * models.vae.config.scaling_factor
        dice = torch.Generator().manual_seed(99)
        noise = torch.randn(z.shape, generator=dice)
        t = torch.linspace(5, 995, 64).long()
        ids = run.inputs.word.shown[:1].expand(64, -1)
        text = models.text_encoder(ids)[0]
        z_t = add_noise(z, noise, *DDPM(run.training.alpha_bar).scales(t))
        batch = Batch(z_t, noise, t, ids)
        return denoising_loss(models.unet, batch, text)

    before = held_out_loss()  # the row is the initializer's
    assert run.run() == 0
    assert held_out_loss() < 0.97 * before


# ------------------------------------------------------------------ checkpoints and stopping


def test_a_resumed_run_equals_an_uninterrupted_one(learn, tmp_path):
    options = "--lr_scheduler cosine --lr_warmup_steps 2 --gradient_accumulation_steps 2 "
    options += "--use_augmentations --max_train_steps 5 "
    assert learn(options, out=tmp_path / "whole") == 0
    assert learn(options + "--checkpointing_steps 3", out=tmp_path / "parts") == 0
    for file in (tmp_path / "parts").glob("l*"):
        file.unlink()
    assert learn(options + "--resume_from_checkpoint latest", out=tmp_path / "parts") == 0
    assert torch.equal(rows_in(tmp_path / "whole"), rows_in(tmp_path / "parts"))
    assert loss_curve(tmp_path / "whole") == loss_curve(tmp_path / "parts")


def test_ctrl_c_saves_a_checkpoint_and_says_how_to_go_on(flags, tmp_path, learn, capsys):
    """As a user runs it: `python textual_inversion.py`, from another folder."""
    options = "--max_train_steps 100000 --train_batch_size 1"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, SCRIPT, *flags(options)],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    said = ""
    for line in process.stdout:
        said += line
        if line.startswith("step "):
            process.send_signal(signal.SIGINT)
            break
    said += process.stdout.read()
    assert process.wait() == 130, said
    assert "--resume_from_checkpoint latest" in said
    (checkpoint,) = (tmp_path / "out").glob("checkpoint-*")
    step = int(checkpoint.name.removeprefix("checkpoint-"))
    resumed = f"{options} --max_train_steps {step + 1} --resume_from_checkpoint {checkpoint}"
    assert learn(resumed) == 0
    assert len(loss_curve(tmp_path / "out")) == step + 1
    assert f"step {step}\n" in capsys.readouterr().out


def test_what_is_written_on_the_way(learn, tmp_path):
    assert learn("--checkpointing_steps 1 --checkpoints_total_limit 2 --save_steps 3") == 0
    out = tmp_path / "out"
    assert {p.name for p in out.glob("checkpoint-*")} == {"checkpoint-3", "checkpoint-4"}
    assert (out / "learned_embeds-steps-3.bin").is_file()
    on_the_way = rows_in(out, "learned_embeds-steps-3")
    saved = torch.load(out / "checkpoint-3" / "state.pt", weights_only=True)
    assert torch.equal(on_the_way, saved["rows"])
    assert not torch.equal(on_the_way, rows_in(out))
    assert not list(out.rglob(".*"))  # no half-written file
    assert learn("--no_safe_serialization", out=tmp_path / "bin") == 0
    assert not list((tmp_path / "bin").glob("*.safetensors"))


def test_resuming_with_other_settings_says_so_and_takes_the_new_ones(learn, tmp_path, capsys):
    assert learn("--checkpointing_steps 2 --learning_rate 1e-3") == 0
    assert learn("--max_train_steps 6 --learning_rate 2e-3 --resume_from_checkpoint latest") == 0
    assert "learning_rate was 0.001, is now 0.002" in capsys.readouterr().out
    assert [row["learning_rate"] for row in loss_curve(tmp_path / "out")][-1] == "0.002"
    assert learn("--num_vectors 2 --resume_from_checkpoint checkpoint-4") == 2
    assert "another --num_vectors" in capsys.readouterr().err


def test_latest_without_a_checkpoint_starts_anew(learn, capsys):
    assert learn("--resume_from_checkpoint latest --max_train_steps 1") == 0
    assert "no checkpoint to go on from" in capsys.readouterr().out


def test_a_damaged_checkpoint_leads_to_the_one_before(learn, tmp_path, capsys):
    assert learn("--checkpointing_steps 2", out=tmp_path / "whole") == 0
    assert learn("--checkpointing_steps 2") == 0
    newest = tmp_path / "out" / "checkpoint-4" / "state.pt"
    whole = newest.read_bytes()
    spoilt = bytearray(whole)
    spoilt[whole.index(rows_in(tmp_path / "out").numpy().tobytes())] ^= 1
    for content in (bytes(spoilt), whole[:-30], b"version https://git-lfs.github.com/spec/v1"):
        newest.write_bytes(content)
        os.utime(newest)  # it is the newest also where the run saved it anew
        assert learn("--resume_from_checkpoint latest") == 0
        said = capsys.readouterr().out
        assert "checkpoint-4/state.pt' " in said and "checkpoint-2, step 2" in said
        assert torch.equal(rows_in(tmp_path / "out"), rows_in(tmp_path / "whole"))
    newest.write_bytes(bytes(spoilt))
    assert learn("--resume_from_checkpoint checkpoint-4") == 2
    assert "checkpoint-4/state.pt' is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("spoil", ["rows", "optimizer"])
def test_a_checkpoint_that_holds_nan_is_no_checkpoint(learn, tmp_path, spoil, capsys):
    assert learn("--checkpointing_steps 4") == 0
    path = tmp_path / "out" / "checkpoint-4" / "state.pt"
    state = torch.load(path, weights_only=True)
    (state["rows"] if spoil == "rows" else state["optimizer"][0]["exp_avg"])[0, 3] = torch.nan
    torch.save(state, path)
    assert learn("--resume_from_checkpoint checkpoint-4") == 2
    assert "holds nan" in capsys.readouterr().err
    assert learn("--resume_from_checkpoint latest") == 0
    assert "holds nan" in (said := capsys.readouterr().out) and "starting anew" in said
    path.parent.mkdir()
    path.mkdir()
    assert learn("--checkpointing_steps 4 --resume_from_checkpoint latest") == 0
    assert "Is a directory" in capsys.readouterr().out and path.is_file()


def test_a_run_that_starts_anew_keeps_what_an_earlier_one_made(learn, tmp_path, capsys):
    out = tmp_path / "out"
    assert learn("--checkpointing_steps 2 --seed 1") == 0
    (out / "notes.txt").write_text("mine")
    first = {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    for n in (1, 2):
        assert learn("--seed 2") == 0
        assert f"kept in {out / f'earlier-{n}'}" in capsys.readouterr().out
    assert (out / "notes.txt").read_text() == "mine"
    kept = {p.relative_to(out / "earlier-1"): p.read_bytes() for p in out.glob("earlier-1/**/*.*")}
    del first[Path("notes.txt")]
    assert kept == first and len(kept) == 6
    assert not list(out.glob("checkpoint-*"))  # this run saved none, and those were another's


def test_old_checkpoints_go_but_what_else_lies_there_stays(learn, tmp_path):
    assert learn("--checkpointing_steps 2") == 0
    (tmp_path / "out" / "checkpoint-2" / "notes.txt").write_text("mine")
    options = "--checkpointing_steps 1 --checkpoints_total_limit 1 --max_train_steps 5"
    assert learn(f"{options} --resume_from_checkpoint latest") == 0
    left = {p.relative_to(tmp_path / "out").as_posix() for p in tmp_path.glob("out/check*/*")}
    assert left == {"checkpoint-2/notes.txt", "checkpoint-5/state.pt"}


# ------------------------------------------------------------------------- numbers that aren't


def written(folder):
    """Content by name, of what a later step may read."""
    return {p: p.read_bytes() for p in folder.rglob("*") if p.suffix in (".bin", ".pt")}


@pytest.mark.parametrize("lr", [1e25, math.inf])
def test_a_run_that_comes_apart_stops_and_writes_nothing(flags, tmp_path, capsys, lr):
    args = parser().parse_args(flags("--checkpointing_steps 1 --save_steps 1"))
    assert command.learn(args) == 0
    good = written(tmp_path / "out")
    args.max_train_steps, args.resume_from_checkpoint = 9, "latest"
    args.learning_rate = lr
    assert command.learn(args) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "Try a smaller --learning_rate" in error
    assert written(tmp_path / "out") == good  # of four steps, a checkpoint each


def with_nan(run):
    """A prior one of whose weights was lost."""
    run.inputs.models.unet.conv_in.weight[0, 0, 0, 0] = torch.nan
    return run


def scaled(training):
    """As on a GPU in float16: the scaler undoes a step whose gradient overflows."""
    training.scaler = torch.amp.GradScaler("cpu")
    training.watch = Watch(0, scaled=True)
    return training


def test_a_model_that_gives_no_number_stops_the_first_step(inversion):
    run = with_nan(inversion("--max_train_steps 1"))
    with pytest.raises(FloatingPointError, match=r"The loss is nan at step 1.*another copy"):
        run.run()
    assert not written(run.folder)


def test_overflows_that_the_scaler_answers_end_no_run(inversion):
    run = inversion("--max_train_steps 9 --checkpointing_steps 1")
    training = scaled(run.training)
    rows = training.rows
    rows.register_hook(lambda grad: grad * (torch.inf if training.step < 5 else 1))
    start = rows.detach().clone()
    assert run.run() == 0
    assert training.optimizer.state[rows]["step"] == 9 - 5
    assert (rows != start).all() and rows.isfinite().all()


def test_a_short_run_whose_every_step_overflows_leaves_no_token(inversion):
    run = with_nan(inversion("--max_train_steps 2"))
    scaled(run.training)
    with pytest.raises(FloatingPointError, match=r"steps 1 to 2 overflowed in float16.*bf16"):
        run.run()
    assert not written(run.folder)


def test_a_run_whose_every_step_overflows_says_so(inversion):
    run = with_nan(inversion(f"--max_train_steps {MOST_UNDONE + 5}"))
    scaled(run.training)
    with pytest.raises(FloatingPointError, match=r"overflowed in float16.*bf16"):
        run.run()
    assert not written(run.folder)


def test_means_leave_out_what_is_no_number():
    values = [1.0, math.nan, 3.0, math.inf, 5.0, 7.0]
    assert running_mean(values, 3) == [1, 1, 2, 3, 4, 6]
    assert np.isnan(running_mean([math.nan], 1)).all()


def test_out_of_memory_is_one_line(learn, monkeypatch, capsys):
    def full(self):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB. Traceback")

    monkeypatch.setattr(TextualInversion, "run", full)
    assert learn() == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "--train_batch_size 1 with --gradient_acc" in error
    assert "--vram" in error


# ------------------------------------------------------------------------- inputs and flags


def empty_folder(path):
    path.mkdir()
    return path


def cut_off_image(path):
    path.write_bytes(PANDA.read_bytes()[:500])
    return path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--placeholder_token panda", "already a word"),
        ("--validation_prompt 'a panda'", "has no _panda_"),
        ("--pretrained_model_name_or_path nowhere", "model folder 'nowhere' does not exist"),
        ("--revision main", "is a local folder"),
        ("--variant fp8", "no weights of the variant 'fp8'"),
        ("--resume_from_checkpoint checkpoint-7", "no such checkpoint"),
        ("--push_to_hub", "the hub can't be reached"),
        pytest.param(
            *("--report_to wandb", "pip install wandb"),
            marks=pytest.mark.skipif(find_spec("wandb") is not None, reason="wandb is installed"),
        ),
    ],
)
def test_an_input_that_cannot_be_used_is_named(learn, capsys, options, message):
    assert learn(options) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_a_variants_pickle_is_not_run(learn, random_priors, tmp_path, capsys):
    model = shutil.copytree(random_priors / "sd", tmp_path / "sd")
    for part, name in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ):
        plain = model / part / f"{name}.safetensors"
        plain.rename(plain.with_name(f"{name}.v2.safetensors"))
    assert learn("--variant v2", model=model) == 0
    for path in (model / "unet").glob("*.safetensors"):
        path.unlink()
    torch.save({"conv_in.weight": Path}, model / "unet" / "diffusion_pytorch_model.v2.bin")
    capsys.readouterr()
    assert learn("--variant v2", model=model) == 2
    error = capsys.readouterr().err
    assert "v2.bin is not a plain file of tensors" in error and "weights_only" not in error


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path, "does not exist"),
        (empty_folder, "has no image (it holds nothing)"),
        (cut_off_image, "can't be read as an image"),
    ],
)
def test_a_picture_that_is_not_there_is_named(learn, capsys, tmp_path, make, message):
    assert learn(data=make(tmp_path / "data")) == 2
    assert message in capsys.readouterr().err


def test_an_output_dir_that_is_a_file_is_named(learn, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert learn(out=tmp_path / "file") == 2
    assert "--output_dir" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        *("--resolution 60", "--resolution 0", "--repeats 0", "--lr_schedular constant"),
        *("--learning_rate nan", "--learning_rate inf", "--learning_rate -1", "--learning_rate 0"),
        *("--learning_rate 1e25", "--adam_beta1 1", "--adam_epsilon 0", "--adam_weight_decay nan"),
        *("--max_train_steps 0", "--max_train_steps -1", "--max_train_steps 1.5"),
        *("--max_train_steps null", "--max_train_steps 99999999999", "--train_batch_size 0"),
        *("--save_steps 0", "--checkpointing_steps 0", "--checkpoints_total_limit 0"),
        *("--mixed_precision fp64", "--seed -2", "--seed 1.0", "--num_vectors 76"),
        *("--placeholder_token 'my panda'", "--placeholder_token ''", "--initializer_token ' '"),
        *("--report_to wanbd", "--output_dir ''"),
        "--only_save_embeds --save_as_full_pipeline",
    ],
)
def test_a_wrong_flag_is_refused(flags, options, capsys):
    with pytest.raises(SystemExit) as error:
        command.main(flags(options))
    assert error.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert options.split()[0] in last or "not allowed with" in last


def test_help_waits_for_no_library(tmp_path):
    """Of the script, in another folder; what it needs of the package is found beside it."""
    for library in ("torch", "numpy", "diffusers", "threestudio"):
        (tmp_path / f"{library}.py").write_text("raise SystemExit('a library was loaded')\n")
    done = subprocess.run(
        [sys.executable, SCRIPT, "--help"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: textual_inversion.py")


def test_a_seed_of_minus_one_is_drawn_and_written_down(inversion, capsys, tmp_path):
    run = inversion("--seed -1 --checkpointing_steps 1 --max_train_steps 1")
    assert run.inputs.seed >= 0 and f"seed: {run.inputs.seed}" in capsys.readouterr().out
    assert run.run() == 0
    again = inversion("--seed -1 --resume_from_checkpoint latest --max_train_steps 2")
    assert again.inputs.seed == run.inputs.seed


def test_flags_without_effect_are_said(flags):
    options = "--num_train_epochs 3 --lr_warmup_steps 10 --lr_num_cycles 2 --validation_steps 5 "
    args = parser().parse_args(flags(options + "--hub_model_id x --local_rank 1"))
    idle = [line.split(": ")[1].split(",")[0] for line in conflicts(args)]
    assert idle == [
        *("--num_train_epochs", "--lr_warmup_steps", "--lr_num_cycles", "--validation_steps"),
        *("--hub_token", "--local_rank"),
    ]
    assert not conflicts(parser().parse_args(flags()))


def test_epochs_count_repeats_of_images(flags):
    # 3 repeats of 1 image in batches of 2 are 2 steps
    args = parser().parse_args(flags())
    args.max_train_steps, args.num_train_epochs = None, 5
    assert plan_steps(args, images=1, processes=1) == (10, 0)
    args.validation_prompt, args.validation_epochs = "a _panda_", 4
    assert plan_steps(args, images=1, processes=1) == (10, 8)
    assert plan_steps(args, images=1, processes=2) == (5, 4)
    args.num_train_epochs = None
    assert plan_steps(args, images=1, processes=1).total == 3000  # the published command's


def test_learning_rates_are_diffusers_schedule_scaled(learn, tmp_path):
    assert learn("--scale_lr --lr_scheduler cosine --lr_warmup_steps 1 --learning_rate 0.001") == 0
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.002)  # times a batch of 2
    schedule = get_cosine_schedule_with_warmup(optimizer, 1, 4)
    expected = []
    for _ in range(4):
        expected += schedule.get_last_lr()
        optimizer.step()
        schedule.step()
    rates = [float(row["learning_rate"]) for row in loss_curve(tmp_path / "out")]
    np.testing.assert_allclose(rates, expected, rtol=1e-5)


def test_gradient_checkpointing_changes_nothing_but_memory(inversion):
    def kept(run):
        """Bytes that one step keeps for its backward pass, and the rows after it."""
        sizes = []

        def pack(tensor):
            sizes.append(tensor.nbytes)
            return tensor

        run.training.prepare()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            run.training.train_step()
        return sum(sizes), run.training.rows

    plain, rows = kept(inversion())
    checkpointed, same_rows = kept(inversion("--gradient_checkpointing"))
    assert checkpointed < 0.8 * plain
    torch.testing.assert_close(rows, same_rows)


@pytest.mark.parametrize("place", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_step_takes_the_gradient_of_its_whole_loss(inversion, place):  # a GPU records it
    run = inversion("--gradient_accumulation_steps 2 --mixed_precision no --max_train_steps 3")
    training, models, rows = run.training, run.inputs.models, run.training.rows
    assert rows.device.type == place
    training.prepare()
    taken = []
    training.optimizer.register_step_pre_hook(lambda *_: taken.append(rows.grad.clone()))

    def loss_and_gradient(step):  # whose graph is gone before the same rows' is recorded
        losses = 0
        for micro in (0, 1):
            reseed(training.generator, run.inputs.seed, 0, 2 * step + micro)
            batch = draw_batch(
                *(training.bank, run.inputs.word.prompts, training.alpha_bar, "epsilon", 2),
                training.generator,
            )
            text = models.text_encoder(batch.ids)[0]
            noise = models.unet(batch.noisy, batch.timestep, text).sample
            losses += (noise - batch.target).square().mean() / 2
        return losses.detach(), torch.autograd.grad(losses, rows)[0]

    for step in range(3):
        losses, expected = loss_and_gradient(step)
        training.train_step()
        # a GPU's products are TF32
        assert (taken[-1] - expected).norm() < (1e-5 if place == "cpu" else 0.05) * expected.norm()
        torch.testing.assert_close(training.losses[step], losses, rtol=1e-3, atol=0)


def test_bf16_trains_float32_rows(inversion):
    run = inversion("--mixed_precision bf16 --num_validation_images 1")
    models = run.inputs.models
    assert models.unet.dtype == torch.bfloat16 and models.vae.dtype == torch.float32
    assert run.run() == 0
    assert run.training.rows.dtype == torch.float32 and run.training.losses.isfinite().all()


@pytest.mark.gpu
def test_a_gpu_trains_float32_rows_through_half_precision(inversion, capsys):
    run = inversion("--max_train_steps 20 --num_validation_images 1")
    rows, models = run.training.rows, run.inputs.models
    assert rows.device.type == "cuda" and models.unet.dtype == torch.float16
    assert run.training.scaler.is_enabled()
    start = rows.detach().clone()
    assert run.run() == 0
    assert rows.dtype == torch.float32 and rows.isfinite().all() and (rows != start).all()
    assert torch.equal(rows_in(run.folder), rows.detach().cpu())
    assert "GiB" in capsys.readouterr().out


def test_styles_workers_tokenizer_and_validation_prompt(learn, random_priors, tmp_path):
    folder = empty_folder(tmp_path / "data")
    for i in range(2):
        Image.effect_noise((40, 20 + i), 50).save(folder / f"{i}.png")
    tokenizer = random_priors / "sd" / "tokenizer"
    options = f"--learnable_property style --dataloader_num_workers 1 --tokenizer_name {tokenizer} "
    options += "--validation_prompt 'a fox, _panda_' --num_validation_images 1 --validation_steps 2"
    assert learn(options, data=folder) == 0
    pictures = {p.name for p in (tmp_path / "out" / "validation").iterdir()}
    assert pictures == {"step-000002.png", "step-000004.png"}


# -------------------------------------------------------------------------------- the maths


def test_a_spliced_embedding_is_one_table():
    table, rows = nn.Embedding(7, 4).requires_grad_(False), torch.randn(2, 4)
    spliced = SplicedEmbedding(table, rows)
    joined = torch.cat([table.weight, rows]).requires_grad_()
    ids, grad = torch.tensor([[0, 7, 3], [8, 6, 7]]), torch.randn(2, 3, 4)
    assert torch.equal(spliced(ids), joined[ids])
    spliced(ids).backward(grad)
    joined[ids].backward(grad)
    torch.testing.assert_close(spliced.rows.grad, joined.grad[7:])
    assert table.weight.grad is None


def test_prompts_are_tokenized_as_by_a_tokenizer_that_knows_the_word(inversion, random_priors):
    run = inversion("--validation_prompt 'a photo of one _panda_, dancing'")
    tokenizer = CLIPTokenizer.from_pretrained(random_priors / "sd", subfolder="tokenizer")
    encoder = CLIPTextModel.from_pretrained(random_priors / "sd", subfolder="text_encoder")
    assert tokenizer.add_tokens("_panda_") == 1
    word = tokenizer.convert_tokens_to_ids("_panda_")
    assert word == encoder.get_input_embeddings().num_embeddings  # the row behind the table
    ids = tokenizer(["a photo of one _panda_, dancing", ""], **PADDED).input_ids
    assert torch.equal(run.inputs.word.shown, ids)
    assert (run.inputs.word.prompts == word).sum(dim=1).eq(1).all()


def test_several_initializer_tokens_start_at_their_mean(inversion, random_priors):
    run = inversion("--initializer_token 'panda dancing' --num_vectors 2")
    tokenizer = CLIPTokenizer.from_pretrained(random_priors / "sd", subfolder="tokenizer")
    ids = tokenizer("panda dancing", add_special_tokens=False).input_ids
    table = run.inputs.models.text_encoder.get_input_embeddings().table.weight
    torch.testing.assert_close(run.training.rows, table[ids].mean(0).expand(2, -1))


def test_targets_lead_back_to_the_noise():
    z, noise, alpha_bar = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2), torch.rand(3)
    ddpm, t = DDPM(alpha_bar, "v_prediction"), torch.arange(3)
    z_t = add_noise(z, noise, *ddpm.scales(t))
    velocity = denoising_target(z, noise, alpha_bar, "v_prediction")
    torch.testing.assert_close(ddpm.noise_of(velocity, z_t, t), noise)
    assert torch.equal(denoising_target(z, noise, alpha_bar, "epsilon"), noise)
    assert torch.equal(denoising_target(z, noise, alpha_bar, "sample"), z)
    with pytest.raises(ValueError, match="flow"):
        denoising_target(z, noise, alpha_bar, "flow")


def test_the_noise_levels_are_the_models(inversion, random_priors):
    scheduler = DDIMScheduler.from_pretrained(random_priors / "sd", subfolder="scheduler")
    torch.testing.assert_close(inversion().training.alpha_bar, scheduler.alphas_cumprod)


def test_draws_have_the_posteriors_mean_and_deviation():
    mean = torch.tensor([-2.0, 3.0]).reshape(2, 1, 1, 1).expand(2, 4, 1, 1)
    bank = LatentBank(mean, torch.full_like(mean, 0.1))
    z = bank.draw(5000, torch.Generator().manual_seed(0)).flatten()
    for mean, part in ((-2, z[z < 0]), (3, z[z > 0])):
        assert len(part) == pytest.approx(10000, abs=600)
        assert part.mean().item() == pytest.approx(mean, abs=0.004)
        assert part.std().item() == pytest.approx(0.1, abs=0.004)


def test_the_bank_holds_the_vaes_posteriors(random_priors):
    vae = AutoencoderKL.from_pretrained(random_priors / "sd", subfolder="vae")
    pictures = torch.rand(3, 3, 32, 32)
    bank = encode_bank(vae, list(pictures), batch=2)
    with torch.no_grad():
        posterior = vae.encode(2 * pictures - 1).latent_dist
    scale = vae.config.scaling_factor
    torch.testing.assert_close(bank.mean, posterior.mean * scale, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(bank.std, posterior.std * scale, rtol=1e-4, atol=1e-5)
