"""What becomes of damaged files: every kind of file that a program here reads, damaged in several
ways each, and what reads it run on that. A case is well where it heals (the result is what it is
without the damage, or the step runs again), or where one line names the file and a way out.

python tests/faults/damaged.py [WORD ...]    cases whose name has a WORD; prints a table, and totals

Everything happens in a temporary folder, with a scene of the toy preset of two steps a stage and
random models of a few kilobytes. It takes minutes: it is no part of the tests.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as launch.py

import values
from values import CHECKOUT, PROMPT

# what a way out is said with
WAY_OUT = re.compile(
    r"again|delete|remove|give|pass|take|took|start|use |save|is needed|will do|would do|unset|"
    r"--\w+|write|download|should|has to|close|make|put|lies? in|own is",
    re.IGNORECASE,
)
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 3819\n"
STAGES = ("stage1", "stage2", "stage3")
SCENE = "ball-a_panda_is_dancing"
DONE = f"done/{SCENE}"


# ---------------------------------------------------------------------------------- damages

Damages = dict[str, Callable[[Path], None]]  # by name


def rewrite(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """A damage of a file's bytes."""
    return lambda path: path.write_bytes(change(path.read_bytes())) and None


def flip(content: bytes, at: float = 0.5) -> bytes:
    """One bit of the byte at this share of the content is another."""
    place = int(len(content) * at)
    return content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :]


def into_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def nan_weights(path: Path) -> None:
    """Every tensor of a checkpoint's weights, or of a file of embeddings, is NaN."""
    held = torch.load(path, weights_only=True)
    for value in held.get("state_dict", held).values():
        if value.is_floating_point():
            value.fill_(float("nan"))
    torch.save(held, path)


def torch_file(content: Any) -> Callable[[Path], None]:
    """A sound file of PyTorch with something else in it."""

    return lambda path: torch.save(content, path)


def other_shapes(path: Path) -> None:
    """A checkpoint's weights have more rows."""
    held = torch.load(path, weights_only=True)
    for name, value in held["state_dict"].items():
        if value.ndim:
            held["state_dict"][name] = torch.cat([value, value])
    torch.save(held, path)


def in_json(**changed: Any) -> Callable[[Path], None]:
    """A JSON file with other values."""
    return lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | changed)) and None


CUT = {"cut": rewrite(lambda b: b[: len(b) // 2])}
EMPTY = {"empty": rewrite(lambda b: b"")}
BIT = {"a bit flipped": rewrite(flip)}
GARBAGE = {"garbage": rewrite(lambda b: bytes(range(256)) * 8)}
LATIN = {"not UTF-8": rewrite(lambda b: b[:-1] + "# für Müßiggänger\n".encode("latin-1"))}
POINTER = {"an LFS pointer": rewrite(lambda b: LFS)}
FOLDER = {"a folder": into_folder}
GONE = {"gone": Path.unlink}
LIST = {"a list": rewrite(lambda b: b"[1, 2]")}
NUMBER = {"a number": rewrite(lambda b: b"3")}
TEXT = {"text": rewrite(lambda b: b"buy bamboo\n")}
BINARY = {**CUT, **EMPTY, **BIT, **GARBAGE, **POINTER, **FOLDER}


# ---------------------------------------------------------------------------------- the bench


@dataclass
class Outcome:
    """What came of reading a file."""

    code: int | None  # exit code; None: an exception that no program catches
    said: str
    value: Any = None  # what a function gave


def guarded(function: Callable[[], Any]) -> Outcome:
    """The function's value or exit code, and what was printed, as its program ends."""
    from animate124.pipeline.run import TaskFailed
    from threestudio.launch import INPUT_ERRORS

    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            value = function()
        except SystemExit as end:
            return Outcome(end.code, said.getvalue())
        except (*INPUT_ERRORS, TaskFailed) as error:
            text = error.args[0] if isinstance(error, KeyError) else error
            return Outcome(1, f"{said.getvalue()}\nerror: {text}")
        except BaseException:
            return Outcome(None, said.getvalue() + traceback.format_exc())
    code = value if isinstance(value, int) and not isinstance(value, bool) else 0
    return Outcome(code, said.getvalue(), value)


def launch(*words: str | Path) -> int:
    """launch.py in this process."""
    import threestudio.launch

    return threestudio.launch.run([str(w) for w in words], extension="animate124", folder=CHECKOUT)


def script(name: str) -> Callable[[Sequence[str]], int]:
    """The `main` of a step's script, in this process."""
    if name == "launch.py":
        return lambda words: launch(*words)
    if name == "image_preprocess.py":
        from animate124.preprocess import command

        return command.main
    path = CHECKOUT / name
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    return values.module(path).main


def animate(*words: str | Path) -> int:
    """animate.py in this process, its steps' programs too."""
    from animate124.pipeline import command, process
    from animate124.pipeline.request import parser

    def run(line, cwd, environment, log, interrupt, on_line, tick, *rest, **more):
        outcome = guarded(lambda: script(line[1])([str(word) for word in line[2:]]))
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file:
            file.write(outcome.said)
        for text in outcome.said.splitlines():
            on_line(text)
        return process.Outcome(1 if outcome.code is None else outcome.code or 0, 1.0, {})

    before, process.run = process.run, run
    try:
        argv = [str(word) for word in words]
        args = parser().parse_intermixed_args(argv)
        return command.run(args, ["animate.py", *argv])
    finally:
        process.run = before


SIDES = ("width", "height")


def small(stage: str, priors: Path) -> list[str]:
    """Overrides that make a toy stage train four steps of next to nothing."""
    words = ["trainer.max_steps=4", "trainer.log_every_n_steps=1", "trainer.val_check_interval=4"]
    words += ["trainer.enable_progress_bar=false", "trainer.enable_model_summary=false"]
    words += ["system.geometry.pos_encoding_config.log2_hashmap_size=8"]
    words += [f"data.{part}.{side}=16" for part in ("image", "single_view") for side in SIDES]
    words += [f"data.single_view.eval_{side}=16" for side in SIDES]
    words += ["system.renderer.num_samples_per_ray=16", "data.single_view.n_val_views=1"]
    prior = "sd" if stage == "stage1" else "text-to-video"
    words += [f"system.guidance.pretrained_model_name_or_path={priors / prior}"]
    words += [f"system.guidance_3d.pretrained_model_name_or_path={priors / 'zero123'}"]
    if stage == "stage1":
        return [*words, "data.single_view.n_test_views=2"]
    words += [f"data.single_view.{side}_vid=16" for side in SIDES]
    words += ["data.single_view.num_frames=2", "data.single_view.num_frames_factor=1"]
    if stage == "stage3":
        words += [f"system.guidance_cn.pretrained_model_name_or_path={priors / 'sd'}"]
        words += [f"system.guidance_cn.controlnet_name_or_path={priors / 'controlnet-tile'}"]
    return words


class Bench:
    """A folder with one of everything, the working directory: models, a finished scene, the same
    with a half-done token and with a half-done stage 2, a person's pictures and tables."""

    def __init__(self, folder: Path, aside: Path) -> None:
        from animate124.toyworld.random_priors import make_random_priors

        self.folder, self.whole = folder, aside
        for name in ("configs", "load"):  # steps are told their configs as from the checkout
            (folder / name).symlink_to(CHECKOUT / name)
        make_random_priors(folder / "priors")
        must(lambda: self.scene("done"))
        self.leave("done", "half-token", "token")
        step = Path("half-token", SCENE, "token")
        for path in (step / "checkpoint-4", *step.glob("learned_embeds*")):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.leave("done", "half-stage", "stage2")
        shutil.rmtree(Path("half-stage", SCENE, "stage2"))
        must(lambda: launch(*self.plan("half-stage")["stage2"].words()[1:], "trainer.max_steps=2"))
        Path("scenes.csv").write_text(f"image,prompt\nball.png,{PROMPT}\n")
        Path("_caption.txt").write_text("a panda\n")
        embedded(use_cache=True)
        self.entry = str(next(Path(".threestudio_cache/text_embeddings").glob("*.safetensors")))
        Path("stage.yaml").write_text((CHECKOUT / "configs/toy/stage1.yaml").read_text())
        shutil.copytree(folder, aside, symlinks=True)

    def again(self) -> None:
        """Everything as it was."""
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        shutil.copytree(self.whole, self.folder, symlinks=True, dirs_exist_ok=True)

    def words(self, out: str) -> list[str]:
        """animate.py's words for the scene that lies in this folder."""
        words = ["ball.png", "--prompt", PROMPT, "--preset", "toy", "--out", out]
        words += ["preprocess.size=64", "token.max_train_steps=4", "token.checkpointing_steps=2"]
        words += ["token.num_validation_images=0", "token.resolution=64"]
        words += ["token.train_batch_size=1", "result.size=32", "result.frames=2"]
        words += ["result.views=1", "result.times=2"]
        for stage in STAGES:
            words += [f"{stage}.{word}" for word in small(stage, self.folder / "priors")]
        return words

    def scene(self, out: str) -> int:
        """Runs what isn't done of it."""
        return animate(*self.words(out))

    def plan(self, out: str) -> Any:
        from animate124.pipeline.command import request_of
        from animate124.pipeline.plan import make_plan
        from animate124.pipeline.request import parser

        args = parser().parse_intermixed_args(self.words(out))
        return make_plan(request_of(args))

    def leave(self, out: str, half: str, name: str) -> None:
        """A copy of the scene in which this step is half done, and nothing after it is begun."""
        shutil.copytree(out, half)
        path = Path(half, SCENE, "manifest.json")
        held = json.loads(path.read_text())
        later = list(held["steps"])[list(held["steps"]).index(name) + 1 :]
        for step in later:
            del held["steps"][step]
            shutil.rmtree(Path(half, SCENE, step))
        held["steps"][name]["finished"] = False
        path.write_text(json.dumps(held))


def must(function: Callable[[], int]) -> None:
    """What has to go well, or there is nothing to damage."""
    outcome = guarded(function)
    if outcome.code != 0:
        raise RuntimeError(outcome.said)


# ---------------------------------------------------------------------------------- readers


def scene(bench: Bench, out: str) -> int | str:
    """What a scene comes to when it is asked for (again): a hash of everything that was learned."""
    code = bench.scene(out)
    if code:
        return code
    from animate124.pipeline.result_files import file_names
    from animate124.pretrained.learned_tokens import read_learned_tokens

    folder, digest = Path(out, SCENE), hashlib.sha256()
    tensors = read_learned_tokens(folder / "token" / "learned_embeds.bin")
    for stage in STAGES:
        tensors |= torch.load(folder / stage / "ckpts" / "last.ckpt", weights_only=True)[
            "state_dict"
        ]
        for name, tensor in sorted(tensors.items()):
            digest.update(name.encode() + tensor.numpy().tobytes())
    for name in (*file_names(static=False), "report.html", "report.json"):
        if not (folder / "result" / name).is_file():
            raise RuntimeError(f"{name} isn't there")
    return digest.hexdigest()


def by_hand(action: str, *more: str) -> int:
    """launch.py with the configuration of a trained trial."""
    config = f"{DONE}/stage1/configs/parsed.yaml"
    return launch("--config", config, f"--{action}", "trainer.max_steps=6", *more)


def result() -> int:
    """result.py on a trained trial."""
    trial = f"{DONE}/stage1"
    words = ["--config", f"{trial}/configs/parsed.yaml", "--checkpoint", f"{trial}/ckpts/last.ckpt"]
    words += ["--out", "rendered", "--size", "16", "--frames", "2"]
    return script("pipeline/result.py")(words)


def yaml() -> int:
    words = small("stage1", Path("priors").absolute())
    return launch("--config", "stage.yaml", "--train", "use_timestamp=false", "tag=yaml", *words)


def prior(kind: str, **config: Any) -> str:
    """What a stage builds of a model's folder."""
    half = {"half_precision_weights": False}
    built = threestudio.find(f"animate124-{kind}-guidance")({**half, **config})
    return type(built).__name__


def embedded(use_cache: bool) -> list:
    """The text embedding of a prompt."""
    from animate124.pretrained.embedding_cache import read_texts

    return read_texts("priors/sd", [PROMPT], use_cache=use_cache).embeddings.tolist()


def learned(path: str) -> dict[str, list]:
    from animate124.pretrained.learned_tokens import read_learned_tokens

    return {token: vectors.tolist() for token, vectors in read_learned_tokens(path).items()}


def reference(path: str) -> list:
    from animate124.data.reference_image import reference

    return reference(path, 8, 8)[0].tolist()


def dry_run(*words: str) -> int:
    return animate("--preset", "toy", "--dry-run", *words)


# ---------------------------------------------------------------------------------- the cases


@dataclass
class Case:
    """A file (in the bench), a damage, and what then reads it."""

    file: str
    damage: str
    how: Callable[[Path], None]
    reader: str
    read: Callable[[], Any]
    heals: bool  # whether an undisturbed end can be right

    def __str__(self) -> str:
        return f"{self.file.replace(SCENE, '...')}, {self.damage}: {self.reader}"

    def judge(self, outcome: Outcome, sound: Any) -> str:
        """healed, named, or what is wrong; `sound`: the reader's value without the damage."""
        if outcome.code is None or "Traceback" in outcome.said:
            return "traceback"
        if outcome.code == 0:
            return "healed" if self.heals and outcome.value == sound else "silent"
        message = outcome.said[outcome.said.rfind("error: ") :]
        file = Path(self.file)
        places = {file.name, str(file.parent)} - {"."}
        if not any(place in message for place in places):
            return "unnamed"
        return "named" if WAY_OUT.search(message) else "no way out"


def cases(bench: Bench) -> list[Case]:
    """All of them."""
    found: list[Case] = []

    def add(
        file: str, reader: str, read: Callable[[], Any], *damages: Damages, heals: bool = True
    ) -> None:
        for damage in damages:
            found.extend(Case(file, name, how, reader, read, heals) for name, how in damage.items())

    nan, listed = {"NaN": nan_weights}, {"a list": torch_file([1])}
    # a finished scene, asked for again
    again = partial(scene, bench, "done")
    ask = ("the scene again", again)
    add(f"{DONE}/stage1/ckpts/last.ckpt", *ask, CUT, BIT, FOLDER)
    add(f"{DONE}/token/learned_embeds.bin", *ask, EMPTY, POINTER)
    add(f"{DONE}/input/_rgba.png", *ask, CUT, GONE)
    add(f"{DONE}/result/contact_sheet.png", *ask, CUT, FOLDER)
    add(f"{DONE}/stage2/configs/parsed.yaml", *ask, EMPTY)
    odd = {"an odd cell": rewrite(lambda b: b.replace(b"\n", b"\nzero,", 1))}
    no_step = {"no column of steps": rewrite(lambda b: b.replace(b"step", b"stop"))}
    log = f"{DONE}/stage1/csv_logs/version_0/metrics.csv"
    add(log, *ask, CUT, LATIN, GARBAGE, FOLDER, odd, no_step)
    add(f"{DONE}/token/loss.csv", *ask, GARBAGE, TEXT)
    shapes = {
        "steps are a list": in_json(steps=[1]),
        "a step is a number": in_json(steps={"stage1": 3}),
        "a step lacks its keys": in_json(steps={"stage1": {"inputs": "0"}}),
    }
    add(f"{DONE}/manifest.json", *ask, CUT, EMPTY, GARBAGE, FOLDER, LIST, NUMBER, shapes)
    # a half-done one
    go_on = ("going on with stage 2", partial(scene, bench, "half-stage"))
    add(f"half-stage/{SCENE}/stage2/ckpts/last.ckpt", *go_on, BINARY, listed, nan)
    go_on = ("going on with the token", partial(scene, bench, "half-token"))
    add(f"half-token/{SCENE}/token/checkpoint-2/state.pt", *go_on, BINARY, listed)
    # launch.py and result.py by hand
    ckpt, config = f"{DONE}/stage1/ckpts/last.ckpt", f"{DONE}/stage1/configs/parsed.yaml"
    hand = partial(add, ckpt, heals=False)
    bare = {"no weights": torch_file({"epoch": 1})}
    resumed = partial(by_hand, "train", f"resume={ckpt}")
    hand("launch.py --train resume=", resumed, CUT, BIT, GARBAGE, bare, listed)
    hand("launch.py --test resume=", partial(by_hand, "test", f"resume={ckpt}"), BIT, TEXT)
    coarse = partial(by_hand, "export", f"resume={ckpt}", "system.exporter.resolution=8")
    hand("launch.py --export resume=", coarse, EMPTY, nan)
    fresh = partial(by_hand, "train", "tag=fresh", f"system.weights={ckpt}")
    hand("launch.py system.weights=", fresh, CUT, POINTER, nan, {"other shapes": other_shapes})
    hand("result.py", result, CUT, BIT, listed, nan)
    add(config, "result.py", result, EMPTY, LIST, TEXT, heals=False)
    tab = {"a tab": rewrite(lambda b: b"a:\n\tb: 1\n" + b)}
    add("stage.yaml", "launch.py --config", yaml, EMPTY, LIST, LATIN, FOLDER, tab, heals=False)
    # embeddings
    for end, damages in {"bin": (BINARY, listed, nan), "safetensors": (BINARY,)}.items():
        path = f"{DONE}/token/learned_embeds.{end}"
        add(path, "stage 3's prompts", partial(learned, path), *damages)
    add(bench.entry, "stage 1's prompts", partial(embedded, True), BINARY)
    # models
    weights = "diffusion_pytorch_model.safetensors"
    image = partial(prior, "image", pretrained_model_name_or_path="priors/sd", size=32)
    sd = ("stage 1's prior", image)
    flow = {"of flow matching": in_json(_class_name="FlowMatchEulerDiscreteScheduler")}
    add(f"priors/sd/unet/{weights}", *sd, CUT, EMPTY, GARBAGE, POINTER, GONE)
    add(f"priors/sd/vae/{weights}", *sd, CUT, POINTER)
    add("priors/sd/unet/config.json", *sd, CUT, EMPTY, GARBAGE, LIST, GONE)
    add("priors/sd/vae/config.json", *sd, CUT, LIST)
    add("priors/sd/scheduler/scheduler_config.json", *sd, CUT, EMPTY, LIST, flow)
    text = ("stage 1's prompts", partial(embedded, False))
    add("priors/sd/text_encoder/config.json", *text, CUT, LIST)
    add("priors/sd/text_encoder/model.safetensors", *text, CUT, POINTER)
    add("priors/sd/tokenizer/vocab.json", *text, CUT, EMPTY, LIST, GONE)
    add("priors/sd/tokenizer/merges.txt", *text, GARBAGE, GONE)
    add("priors/sd/tokenizer/tokenizer_config.json", *text, CUT, LIST)
    model, picture = "priors/zero123", {"cond_image_path": "rgba.png"}
    zero = partial(prior, "zero123", pretrained_model_name_or_path=model, size=32, **picture)
    zero = ("the prior of views", zero)
    add(f"{model}/feature_extractor/preprocessor_config.json", *zero, CUT, LIST, GONE)
    add(f"{model}/clip_camera_projection/config.json", *zero, CUT, LIST)
    add(f"{model}/image_encoder/model.safetensors", *zero, POINTER)
    model, sizes = "priors/text-to-video", {"width": 32, "height": 32}
    video = partial(prior, "zeroscope", pretrained_model_name_or_path=model, **sizes)
    add(f"{model}/unet/config.json", "stage 2's prior", video, CUT, EMPTY)
    model, folders = "priors/controlnet-tile", {"pretrained_model_name_or_path": "priors/sd"}
    tile = partial(
        prior, "controlnet-tile", controlnet_name_or_path=model, fixed_size=32, **folders
    )
    tile = ("stage 3's prior", tile)
    add(f"{model}/{weights}", *tile, CUT, POINTER)
    add(f"{model}/config.json", *tile, CUT, LIST)
    # a person's files
    cut_out = partial(script("image_preprocess.py"), ["ball.png", "--size", "64"])
    rest = (BIT, GARBAGE, POINTER, FOLDER, TEXT)
    add("ball.png", "image_preprocess.py", cut_out, CUT, EMPTY, *rest, heals=False)
    picture = ("a stage's picture", partial(reference, "rgba.png"))
    add("rgba.png", *picture, CUT, EMPTY, BIT, POINTER, FOLDER)
    caption = ("the subject", partial(dry_run, "ball.png", "--prompt", "it is dancing"))
    add("_caption.txt", *caption, LATIN, EMPTY, FOLDER, GARBAGE)
    wide = {"UTF-16": rewrite(lambda b: b.decode().encode("utf-16"))}
    zeros = {"zero bytes": rewrite(lambda b: b + b"\0\0\0")}
    table = ("animate.py --batch", partial(dry_run, "--batch", "scenes.csv"))
    add("scenes.csv", *table, CUT, EMPTY, GARBAGE, LATIN, FOLDER, wide, zeros)
    return found


def main(asked: list[str]) -> int:
    """Prints what goes wrong with its message, and the totals."""
    counts: Counter[str] = Counter()
    sound: dict[Any, Outcome] = {}
    with values.desk() as folder, tempfile.TemporaryDirectory() as aside:
        bench = Bench(folder, Path(aside) / "whole")
        for case in cases(bench):
            if asked and not any(word in str(case) for word in asked):
                continue
            if case.read not in sound:
                bench.again()
                sound[case.read] = guarded(case.read)
                if sound[case.read].code != 0:
                    raise RuntimeError(f"{case.reader}, undamaged:\n{sound[case.read].said}")
            bench.again()
            case.how(Path(case.file))
            outcome = guarded(case.read)
            what = case.judge(outcome, sound[case.read].value)
            counts[what] += 1
            last = outcome.said[outcome.said.rfind("error: ") :].strip() or "nothing"
            if what == "traceback":
                last = outcome.said.strip().splitlines()[-1]
            print(
                f"{what:10} {case}", *([] if what == "healed" else [last]), sep="\n    ", flush=True
            )
    for what, number in counts.most_common():
        print(f"{number:4} {what}")
    well = counts["healed"] + counts["named"]
    print(f"{well} of {counts.total()} healed, or named with a way out")
    return 0


if __name__ == "__main__":
    values.bring_package()
    import threestudio
    import torch

    sys.exit(main(sys.argv[1:]))
