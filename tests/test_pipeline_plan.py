"""Plans: commands that the scripts understand, options that end up where they belong."""

import argparse
import itertools
import json
import os
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import animate124
import huggingface_hub
import pytest
import threestudio.launch
from animate124.geometry.encoding import Encoding
from animate124.geometry.otypes import ENCODINGS
from animate124.pipeline.exporting import exporter_config
from animate124.pipeline.manifest import Manifest, settings_hash
from animate124.pipeline.overrides import by_task, check_handover, flags, stage_config, written
from animate124.pipeline.places import ROOT
from animate124.pipeline.plan import make_plan
from animate124.pipeline.presets import CHUNK, FAST, PRESETS, preset_of
from animate124.pipeline.request import FIELDS, Request, slug
from animate124.pipeline.run import check_here, describe, remarks
from animate124.pipeline.tasks import assets, result
from animate124.preprocess import command as preprocess
from animate124.textual_inversion.parser import parser as token_parser
from omegaconf import OmegaConf
from threestudio.utils import gpus
from threestudio.utils.config import load_config, parse_overrides

PANDA = Path(animate124.__file__).parent / "load" / "toy-panda" / "image.png"
PROMPT = "a panda is dancing"
MODEL = "stage3.system.guidance_cn.pretrained_model_name_or_path"
TOY, FULL = PRESETS["toy"], PRESETS["modelscope"]
PUBLISHED = [name for name, preset in PRESETS.items() if preset.grid]  # also of --field grid
SCENES = [(name, FIELDS[0]) for name in PRESETS] + [(name, "grid") for name in PUBLISHED]
STAGES = [stage.name for stage in TOY.stages]


def request(tmp_path, **options):
    return Request(PANDA, PROMPT, **{"out": tmp_path, "preset": "toy", **options})


def config_of(task, tmp_path):
    """The config that launch.py would make of a stage's command line."""
    args, extras = threestudio.launch.parser().parse_known_args(task.command[1:])
    assert args.train and all("=" in word for word in extras)
    return load_config(str(ROOT / args.config), cli_args=extras), args


@pytest.mark.parametrize("preset, field", SCENES)
def test_every_task_is_a_command_line_of_its_script(preset, field, tmp_path):
    plan = make_plan(request(tmp_path, preset=preset, field=field), check=True)
    assert tuple(task.name for task in plan.tasks) == PRESETS[preset].tasks
    parsers = {
        "image_preprocess.py": preprocess.parser(),
        "textual-inversion/textual_inversion.py": token_parser(),
        "pipeline/result.py": result.parser(),
        "pipeline/assets.py": assets.parser(),
    }
    for task in plan.tasks:
        script, *words = task.command
        assert (ROOT / script).is_file()
        if script in parsers:
            parsers[script].parse_args(words)


def test_toy_models_are_told_what_stays(tmp_path):
    for field, (preset, negative, refine) in itertools.product(
        FIELDS, (("toy", "a fox", "a fox is jumping"), ("modelscope", "", ""))
    ):
        asked = Request(PANDA, "a fox is jumping", out=tmp_path, preset=preset, field=field)
        plan = make_plan(asked)
        for stage in ("stage2", "stage3"):
            cfg, _ = config_of(plan[stage], tmp_path)
            assert cfg.system.prompt_processor.negative_prompt == negative
        assert cfg.system.prompt_processor_cn.negative_prompt == refine


@pytest.mark.parametrize("preset, field", SCENES)
def test_stages_read_what_the_ones_before_write(preset, field, tmp_path):
    plan = make_plan(request(tmp_path, preset=preset, field=field))
    toy = preset.startswith("toy")
    prompts = ["a toy panda" if toy else "a high resolution DSLR image of a panda"]
    prompts += [PROMPT, PROMPT]
    for stage, prompt in zip(STAGES, prompts, strict=True):
        task = plan[stage]
        cfg, args = config_of(task, tmp_path)
        assert Path(cfg.trial_dir) == task.folder
        assert task.checkpoint == Path(cfg.trial_dir, "ckpts", "last.ckpt")
        assert Path(cfg.data.image.image_path) == plan["preprocess"].outputs[0]
        assert cfg.system.prompt_processor.prompt == prompt
        assert args.gpu is None
        assert task.steps == cfg.trainer.max_steps
        before = STAGES[STAGES.index(stage) - 1]
        weights = None if stage == "stage1" else str(plan[before].checkpoint)
        assert cfg.system.weights == weights
    tile = cfg.system.prompt_processor_cn
    assert tile.prompt == "a <token> is dancing"
    assert Path(tile.learned_embeds_path) == plan["token"].outputs[0]
    shown = shlex.split(plan["stage3"].shown(again=True))
    assert shown[-1] == f"resume={plan['stage3'].checkpoint}"


@pytest.mark.parametrize(
    ("preset", "field", "gb"),
    [(name, FIELDS[0], gb) for name in PRESETS for gb in (8, 24, 44, 100)]
    + [(name, "grid", 8) for name in PUBLISHED],
)
def test_memory_options_are_options_of_the_stages(preset, field, gb, tmp_path):
    plan = make_plan(request(tmp_path, preset=preset, field=field, vram=gb), check=True)
    free = make_plan(request(tmp_path, preset=preset, field=field))
    assert bool(plan.memory) == any(stage.memory_options(gb) for stage in PRESETS[preset].stages)
    said = "\n".join(remarks(plan))
    assert (f"--vram {gb}: no option is needed" in said) == (not plan.memory)
    assert not (plan.memory and preset == "toy")  # what helps large models makes these larger
    for stage, options in plan.memory.items():
        if stage == "token":
            continue
        cfg, _ = config_of(plan[stage], tmp_path)
        usual, _ = config_of(free[stage], tmp_path)
        for key, value in options.items():
            assert OmegaConf.select(cfg, key) == value
            assert value != OmegaConf.select(usual, key)


@pytest.mark.parametrize(
    ("preset", "gb", "too_little"),
    [
        ("wan-ti2v", 12, True),
        ("wan-ti2v", 16, False),
        ("cogvideox-image", 16, True),
        ("cogvideox-image", None, False),
        ("wan", 8, False),
    ],
)
def test_too_little_memory_for_a_models_weights_is_said(preset, gb, too_little, tmp_path):
    said = "\n".join(remarks(make_plan(request(tmp_path, preset=preset, vram=gb))))
    assert (f"--vram {gb} is too little for {preset}: " in said) == too_little


def test_with_few_gb_the_token_sees_as_many_images_in_smaller_parts(tmp_path):
    small = make_plan(request(tmp_path, preset="modelscope", vram=12), check=True)["token"].command
    usual = make_plan(request(tmp_path, preset="modelscope", vram=16))["token"].command
    parts = int(small[small.index("--gradient_accumulation_steps") + 1])
    batch = int(small[small.index("--train_batch_size") + 1])
    assert parts > 1 and parts * batch == int(usual[usual.index("--train_batch_size") + 1])
    toy = make_plan(request(tmp_path, preset="toy", vram=12))
    assert "token" not in toy.memory  # its batch is small
    chosen = request(
        tmp_path, preset="modelscope", vram=12, overrides=by_task(["token.train_batch_size=2"])
    )
    assert "--gradient_accumulation_steps" not in make_plan(chosen)["token"].command


def test_a_lower_line_is_for_less_memory():
    for stage in FULL.stages:
        limits = [row.below for row in stage.memory]
        assert limits == sorted(limits, reverse=True)


def test_with_plenty_of_memory_rendering_keeps_its_graph():
    chunks = [FULL.stages[1].memory_options(gb).get(CHUNK) for gb in (24, 40, 80)]
    assert chunks[0] is None and chunks[1] == chunks[2] > 10**6
    assert FULL.stages[2].memory_options(11)[CHUNK] < 10**6


def test_12_gb_keep_the_pixels_of_stage_3_but_for_the_published_method():
    size = "system.guidance_cn.fixed_size"
    assert size not in FULL.stages[2].memory_options(12)
    assert FULL.grid[2].memory_options(12)[size] == FULL.stages[2].memory_options(11)[size] == 512


def test_an_encoder_is_asked_again_only_where_its_graph_is_too_large():
    redone = "system.guidance.vae_chunk"
    for name, gb in (("modelscope", 12), ("wan", 12), ("ltx", 16), ("cogvideox", 20)):
        assert redone not in PRESETS[name].stages[1].memory_options(gb)
    for name, gb in (("zeroscope", 16), ("ltx", 12), ("cogvideox", 16), ("svd", 12)):
        assert redone in PRESETS[name].stages[1].memory_options(gb)


def test_fast_takes_a_quarter_of_the_steps_and_still_validates(tmp_path):
    slow, fast = (make_plan(request(tmp_path, fast=f)) for f in (False, True))
    for name in ("token", *STAGES):  # the toy's stage 2 has few as it is
        assert fast[name].steps == slow[name].steps // (1 if name == "stage2" else 4)
    for stage in STAGES:
        cfg, _ = config_of(fast[stage], tmp_path)
        assert cfg.trainer.val_check_interval <= cfg.trainer.max_steps == fast[stage].steps


def test_full_size_models_take_the_presets_steps_and_the_published_method_its_own(tmp_path):
    for fast in (False, True):
        plan = make_plan(request(tmp_path, preset="modelscope", fast=fast))
        for row in PRESETS["modelscope"].stages:
            cfg, _ = config_of(plan[row.name], tmp_path)
            assert row.steps == cfg.trainer.max_steps * (FAST if fast else 1)
            assert cfg.trainer.val_check_interval <= cfg.trainer.max_steps
    published = make_plan(request(tmp_path, preset="modelscope", field="grid"))
    numbers = {"token": 3000, "stage1": 10000, "stage2": 10000, "stage3": 5000}
    assert {name: published[name].steps for name in numbers} == numbers


def test_a_persons_overrides_win(tmp_path):
    words = ["stage2.trainer.max_steps=7", "token.max_train_steps=9", "preprocess.size=32"]
    words += ["stage2.data.single_view.num_frames=3", "preprocess.dont_recenter=true"]
    overrides = by_task(words)
    options = {"fast": True, "vram": 8, "overrides": overrides}
    plan = make_plan(request(tmp_path, preset="modelscope", **options), check=True)
    cfg, _ = config_of(plan["stage2"], tmp_path)
    assert (cfg.trainer.max_steps, cfg.data.single_view.num_frames) == (7, 3)
    assert (plan["stage2"].steps, plan["token"].steps) == (7, 9)
    words = plan["preprocess"].command
    assert words[words.index("--size") + 1] == "32" and "--dont_recenter" in words


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("stage4.trainer.max_steps=1", "stage1, stage2, stage3"),
        ("stage2.trainer.max_step=1", "stage2: .*trainer.max_step.*max_steps"),
        ("stage3.system.guidance_cn.fixed_sise=1", "guidance_cn.fixed_sise.*fixed_size"),
        ("stage1.system.loss.lambda_rbg=1", "lambda_rbg.*lambda_rgb"),
        ("stage2.data.single_view.num_frame=1", "num_frame.*num_frames"),
        ("stage2.system.weights=x.ckpt", "--from"),
        ("stage1.exp_root_dir=x", "--out"),
        ("token.max_train_step=1", "token.max_train_step .*max_train_steps"),
        ("preprocess.sise=1", "preprocess.sise .*size"),
        ("result.frame=1", "result.frame .*frames"),
        ("assets.face=1", "assets.face .*faces"),
        ("assets.also=fbx", "assets.also=fbx: 'fbx' is no format; there are .*usdz"),
    ],
)
def test_what_nothing_would_read_is_an_error_before_anything_runs(word, says, tmp_path):
    with pytest.raises(ValueError, match=f"(?s){says}"):
        make_plan(request(tmp_path, overrides=by_task([word])), check=True)


def test_how_a_motion_plays_is_told_to_the_result(tmp_path):
    usual, asked = (
        make_plan(request(tmp_path, **given))["result"]
        for given in ({}, {"seconds": 3.5, "fps": 12, "loop": True, "camera": "-30,0,3 30,,"})
    )
    assert usual.settings == {"size": 128, "frames": 32, "fps": 16, "stage": "stage3"}
    assert "frames" not in asked.settings
    words = ["--fps", "12", "--seconds", "3.5", "--loop", "--camera=-30,0,3 30,,"]
    assert asked.command[-len(words) :] == words and asked.inputs() == usual.inputs() is None
    over = by_task(["result.fps=20"])
    assert make_plan(request(tmp_path, fps=12, overrides=over))["result"].settings["fps"] == "20"


def test_a_field_that_is_painted_anew_has_no_loop(tmp_path):
    with pytest.raises(ValueError, match=r"--loop: with --field grid .*--field deformation can"):
        make_plan(request(tmp_path, field="grid", loop=True))


@pytest.mark.parametrize(
    "word",
    [
        *(f"token.learning_rate={value}" for value in ("abc", "nan", "-1", "-inf", "", "false")),
        *(f"token.max_train_steps={value}" for value in ("abc", "0", "1.5", "null")),
        *("token.lr_scheduler=const", "token.use_augmentations=maybe", "token.resolution=63"),
        *("token.output_dir=/x", "token.placeholder_token=x", "result.out=/x"),
        *("preprocess.size=abc", "preprocess.background=magic"),
        *(f"result.{key}={value}" for key in ("size", "frames", "fps") for value in ("0", "abc")),
        *("stage1.trainer=5", "stage1.system.loss.lambda_rgb=[", "stage1.seed=${nothing}"),
    ],
)
def test_a_value_that_its_task_would_refuse_is_refused_before_the_first_one(word, tmp_path):
    key = word.partition("=")[0]
    with pytest.raises(ValueError, match="stage1: " if key.startswith("stage") else key):
        make_plan(request(tmp_path, overrides=by_task([word]), until="token"), check=True)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """The current folder, which is not the checkout, with a model in it."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for folder in ("here/models/sd", "home/sd"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "here" / "a_file").touch()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def test_models_are_looked_for_where_the_person_is(elsewhere):
    for word, found in {
        "models/sd": elsewhere / "here" / "models" / "sd",
        "'models/sd'": elsewhere / "here" / "models" / "sd",
        "~/sd": elsewhere / "home" / "sd",
        "someone/model": "someone/model",
    }.items():
        assert by_task([f"{MODEL}={word}"])["stage3"][MODEL.partition(".")[2]] == str(found)
    weights = by_task(["stage2.system.geometry.weights=a_file:geometry"])["stage2"]
    assert weights == {"system.geometry.weights": f"{elsewhere / 'here' / 'a_file'}:geometry"}
    # one of the checkout's own is named from there
    inside = os.path.relpath(ROOT / "load" / "toy-priors" / "sd")
    assert by_task([f"token.tokenizer_name={inside}"])["token"]["tokenizer_name"] == str(
        Path("load", "toy-priors", "sd")
    )


@pytest.mark.parametrize(
    "value", ["/nowhere", "./sd", "sd", "~/models", "a/b/c", "a_file", "load/toy-priors"]
)
def test_a_path_to_no_model_is_never_taken_for_a_hub_id(value, elsewhere):
    for key in (MODEL, "token.tokenizer_name", "preprocess.depth_model"):
        with pytest.raises(FileNotFoundError, match=f"{key}={value}: "):
            by_task([f"{key}={value}"])
    with pytest.raises(FileNotFoundError, match="no file"):
        by_task(["stage1.system.guidance_3d.cond_image_path=nowhere.png"])


def test_where_one_calls_from_plays_no_part(elsewhere, monkeypatch):
    there = make_plan(request(elsewhere))
    monkeypatch.chdir(ROOT)
    here = make_plan(request(elsewhere))
    for name in TOY.tasks:
        assert here[name].settings == there[name].settings
        assert here[name].command == there[name].command


def test_a_photo_that_is_none_and_a_folder_that_is_a_file_are_refused(tmp_path):
    photo = tmp_path / "photo.png"
    photo.write_text("no picture")
    with pytest.raises(ValueError, match=str(photo)):
        make_plan(Request(photo, PROMPT, out=tmp_path, preset="toy"), check=True)
    with pytest.raises(OSError, match=f"{photo} is a file"):
        make_plan(request(photo), check=True)


def test_unclear_options_say_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="modelscope"):
        make_plan(request(tmp_path, preset="modelscop"))
    with pytest.raises(ValueError, match=r"--field gird: .*did you mean grid"):
        make_plan(request(tmp_path, field="gird"))
    with pytest.raises(ValueError, match="--refine-prompt"):
        make_plan(request(tmp_path, subject="bear"))
    with pytest.raises(ValueError, match="<token>"):
        make_plan(request(tmp_path, refine_prompt="a panda is dancing"))
    plan = make_plan(request(tmp_path, subject="bear", refine_prompt="a <token> dances"))
    assert plan.prompts["stage1"] == "a toy bear"


def test_assets_play_as_the_result_does(tmp_path):
    def told(*words, **given):
        task = make_plan(request(tmp_path, overrides=by_task(words), **given))["assets"]
        args = assets.parser().parse_args(task.command[1:])
        return exporter_config(args)

    def seconds(config):
        return (config["num_frames"] - 1) / config["fps"]

    usual = told()
    assert usual["num_frames"] == 32 and usual["fps"] == pytest.approx(16)
    assert told("result.fps=8")["fps"] == pytest.approx(8)
    long = told(seconds=10.0, fps=24)
    assert long["num_frames"] == 33 and seconds(long) == pytest.approx(10 - 1 / 24)
    assert seconds(told(seconds=10.0, fps=24, loop=True)) == pytest.approx(10)
    assert told("assets.keys=1")["num_frames"] == 1
    assert told("assets.also=usdz,tracks")["formats"] == ["animated-glb", "usdz", "tracks"]
    with pytest.raises(ValueError, match=r"assets.fps=3: animate.py sets fps itself; --seconds"):
        told("assets.fps=3")


def test_a_format_whose_library_is_missing_is_said_at_once(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pxr", None)
    asked = request(tmp_path, overrides=by_task(["assets.also=usdz"]))
    with pytest.raises(ValueError, match=r"assets\.also=usdz: .*pip install"):
        make_plan(asked, check=True)


def test_formats_that_need_tracks_are_refused_before_anything_is_trained(tmp_path):
    asked = request(tmp_path, field="grid", overrides=by_task(["assets.also=tracks"]))
    with pytest.raises(ValueError, match=r"tracks: .*can't be followed.*--field deformation"):
        make_plan(asked, check=True)
    make_plan(replace(asked, until="stage1"), check=True)  # what stands still can be


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("until", TOY.tasks)
def test_until_ends_with_that_tasks_result(until, field, tmp_path):
    plan = make_plan(request(tmp_path, until=until, field=field))
    names = [task.name for task in plan.tasks]
    rest = ["result", "assets"] if until in STAGES else []
    assert names == [*TOY.tasks[: TOY.tasks.index(until) + 1], *rest]
    for name in rest:
        assert plan[name].reads["checkpoint"].parts[-3] == until
    if rest:
        shown = {path.name for path in plan["result"].outputs}
        assert ("animation.mp4" in shown) == (until != "stage1")
        assert [path.name for path in plan["assets"].outputs] == ["animation.glb"]


def test_all_tasks_get_the_persons_gpus(tmp_path, monkeypatch):
    """In the order of the bus, counted among those that are visible."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpus, "visible", lambda: ["0", "1", "2", "3"])
    plan = make_plan(request(tmp_path, gpu="2,3"))
    _, args = config_of(plan["stage1"], tmp_path)
    assert args.gpu == "2,3"
    assert "CUDA_VISIBLE_DEVICES" not in plan["stage1"].environment  # launch.py sets it
    for name in ("preprocess", "token", "result"):
        assert plan[name].environment["CUDA_VISIBLE_DEVICES"] == "2"
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=2" in plan["token"].shown()
    assert make_plan(request(tmp_path))["token"].environment["CUDA_VISIBLE_DEVICES"] == "0"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6,7")
    monkeypatch.setattr(gpus, "visible", lambda: ["6", "7"])
    assert make_plan(request(tmp_path, gpu="1"))["token"].environment["CUDA_VISIBLE_DEVICES"] == "7"
    for word in ("2", "abc", "cuda:1"):
        with pytest.raises(ValueError, match=f"--gpu.*{word}"):
            make_plan(request(tmp_path, gpu=word))
    for task in make_plan(request(tmp_path, gpu="cpu")).tasks:
        assert task.environment["CUDA_VISIBLE_DEVICES"] == "" and "--gpu" not in task.command


def test_what_the_machine_lacks_is_said_before_the_first_task(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    for cards, preset, gpu, says in (
        ([], "modelscope", None, "modelscope needs a GPU.*--preset toy.*--gpu cpu"),
        ([], "modelscope", "cpu", None),
        (["0"], "modelscope", None, None),
        ([], "toy", None, None),
    ):
        monkeypatch.setattr(gpus, "visible", lambda cards=cards: cards)
        plan = make_plan(request(tmp_path, preset=preset, gpu=gpu))
        if says is None:
            assert check_here(plan)
            continue
        with pytest.raises(ValueError, match=says):
            check_here(plan)
        assert re.search(f"# not here: .*{says}", describe(plan, Manifest(tmp_path)))
    word = f"{MODEL}=someone/not-here"
    with pytest.raises(ValueError, match=r"someone/not-here: neither .*never asks the hub"):
        check_here(make_plan(request(tmp_path, overrides=by_task([word]))))
    assert not list(tmp_path.iterdir())


def test_a_result_that_cant_be_written_is_said_before_the_first_task(tmp_path, monkeypatch):
    plan = make_plan(request(tmp_path, preset="toy"))
    folder = plan["result"].folder
    folder.parent.mkdir(parents=True)
    folder.write_text("a file")
    with pytest.raises(NotADirectoryError, match=r"Nothing can be written to .*result"):
        check_here(plan)
    folder.unlink()
    folder.mkdir()
    assert check_here(plan)
    may = os.access
    locked = lambda path, mode: Path(path) != folder.absolute() and may(path, mode)  # noqa: E731
    monkeypatch.setattr(os, "access", locked)  # root may write anywhere
    with pytest.raises(PermissionError, match=r"result is read-only for you"):
        check_here(plan)


@pytest.mark.parametrize("until", ["result", "assets"])
def test_more_frames_than_anyone_waits_for_are_refused(tmp_path, until):
    long = {"preset": "toy", "until": until, "seconds": 600.0}
    assert make_plan(request(tmp_path, **long))  # the toy's 16 a second
    with pytest.raises(ValueError, match=r"--seconds 600 with --fps 240 is 144000 frames"):
        make_plan(request(tmp_path, **long, fps=240))


def test_the_toy_never_asks_the_hub(tmp_path):
    for preset in PRESETS:
        plan = make_plan(request(tmp_path, preset=preset))
        offline = {task.environment.get("HF_HUB_OFFLINE") for task in plan.tasks}
        assert offline == ({"1"} if preset.startswith("toy") else {None})


@pytest.mark.parametrize("text", ["a panda: it's # 1", "12", "true", "[a", '"quoted" start', "x=y"])
def test_any_text_arrives_as_it_is(text):
    assert parse_overrides([written("a.b", text)]) == [("a.b", text)]


@pytest.mark.parametrize(
    "text", ["${oc.env:HOME} ${", "010", "&a", "[a] 'b'", "'a'", "null", "a/b\\${c}"]
)
def test_prompts_arrive_at_the_stages_as_they_are(text, tmp_path):
    plan = make_plan(
        Request(
            PANDA,
            f"a panda {text}",
            out=tmp_path,
            subject="panda",
            static_prompt=text,
            refine_prompt=f"<token> {text}",
            preset="toy",
        )
    )
    prompts = [
        config_of(plan[stage], tmp_path)[0].system.prompt_processor.prompt for stage in STAGES
    ]
    assert prompts == [text, f"a panda {text}", f"a panda {text}"]


def test_flags():
    parser = argparse.ArgumentParser()
    parser.add_argument("photo")
    for name in ("--size", "--name", "--low"):
        parser.add_argument(name, type=int if name != "--name" else str)
    for name in ("--quick", "--slow"):
        parser.add_argument(name, action="store_true")
    options = {"size": 64, "quick": "true", "slow": False, "name": "false", "low": -3}
    words = flags("task", options, parser, "a.png")
    assert words == ["a.png", "--size", "64", "--quick", "--name", "false", "--low=-3"]
    assert parser.parse_args(words).low == -3
    for key, value in {"size": "abc", "quick": "perhaps", "sise": 1, "help": "true"}.items():
        with pytest.raises(ValueError, match=rf"task\.{key}(={value}: | )"):
            flags("task", {key: value}, parser, "a.png")


def test_names_of_scenes(tmp_path):
    assert request(tmp_path).name == "toy-panda-a_panda_is_dancing"
    assert Request(Path("photos/cat-wave.jpg"), "it waves!").name == "cat-wave-it_waves"
    assert Request(Path("x/_rgba.png"), "../../etc").name == "x-etc"
    long = slug("word " * 100)
    assert len(long) <= 80 and long != slug("word " * 101)


def test_a_cut_out_by_hand_is_taken_along_from_beside_the_photo(tmp_path):
    image, cut = tmp_path / "a photo.png", tmp_path / "_rgba.png"
    image.write_bytes(PANDA.read_bytes())
    words = {"preprocess": {"use_existing_background": "true"}}
    by_hand = Request(image, PROMPT, out=tmp_path / "out", preset="toy", overrides=words)
    with pytest.raises(FileNotFoundError, match=r"_rgba\.png"):
        make_plan(by_hand)
    cut.write_bytes(b"one")
    task = make_plan(by_hand)["preprocess"]
    folder = by_hand.folder / "input"
    assert task.copies == ((image, folder / "photo.png"), (cut, folder / "_rgba.png"))
    assert f"'{image}'" in task.shown() and f"cp {cut} {folder / '_rgba.png'}" in task.shown()
    before = task.inputs()
    cut.write_bytes(b"another")
    assert make_plan(by_hand)["preprocess"].inputs() != before
    words["preprocess"]["use_existing_background"] = "false"
    assert len(make_plan(by_hand)["preprocess"].copies) == 1


def test_a_caption_says_who_where_the_prompt_doesnt(tmp_path):
    image = tmp_path / "photo.png"
    image.write_bytes(PANDA.read_bytes())
    asked = Request(image, "it jumps for joy", out=tmp_path / "out", refine_prompt="<token>!")
    assert make_plan(asked).subject is None
    assert "--need_caption" in make_plan(asked)["preprocess"].command
    (tmp_path / "_caption.txt").write_text("a panda bear sitting on a chair\n")
    plan = make_plan(asked)
    assert plan.subject.noun == "panda bear"
    assert plan.prompts["stage1"].endswith("a panda bear")


def test_places_play_no_part(tmp_path):
    here, there = (make_plan(request(tmp_path / name)) for name in ("here", "there"))
    for name in STAGES:
        assert here[name].settings == there[name].settings
        assert str(tmp_path) not in str(here[name].settings)


def test_a_stage_config_is_what_launch_makes_of_it(tmp_path):
    words = ["trainer.max_steps=3", f"exp_root_dir={tmp_path}", "tag=x"]
    ours = stage_config(ROOT / "configs/toy/stage2.yaml", words)
    theirs = load_config(str(ROOT / "configs/toy/stage2.yaml"), cli_args=words)
    assert ours["system"] == OmegaConf.to_container(theirs.system)
    assert ours["checkpoint"]["every_n_train_steps"] == 3


def test_a_preset_has_as_many_stages_as_it_has_rows(tmp_path, monkeypatch):
    first, second, third = TOY.stages
    again = replace(third, name="again", starts_from="stage3")
    for rows, names in (
        ([first], ["preprocess", "stage1", "result", "assets"]),
        ([first, second], ["preprocess", "stage1", "stage2", "result", "assets"]),
        ([first, second, third, again], [*TOY.tasks[:-2], "again", "result", "assets"]),
    ):
        monkeypatch.setitem(PRESETS, "rows", replace(TOY, stages=tuple(rows), grid=()))
        plan = make_plan(request(tmp_path, preset="rows"), check=True)
        assert [task.name for task in plan.tasks] == names
        last = plan[rows[-1].name]
        assert plan["result"].reads["checkpoint"] == last.checkpoint
        moves = "animation.mp4" in {path.name for path in plan["result"].outputs}
        assert moves == (len(rows) > 1)
    assert last.reads["weights"] == plan["stage3"].checkpoint
    assert last.reads["token"] == plan["token"].outputs[0]
    with pytest.raises(ValueError, match=r"no task is called 'stage4'; .*stage3, again"):
        make_plan(request(tmp_path, preset="rows", until="stage4"))
    with pytest.raises(ValueError, match="--field grid: the preset rows has no stages for that"):
        make_plan(request(tmp_path, preset="rows", field="grid"))


def test_a_field_has_the_published_configs_or_its_own():
    for preset in PUBLISHED:
        fields = [preset_of(Request(PANDA, PROMPT, preset=preset, field=name)) for name in FIELDS]
        deformation, grid = ([stage.config for stage in field.stages] for field in fields)
        assert not any("deformation" in config for config in grid)
        assert all("deformation" in config for config in deformation[1:])


def test_the_published_methods_tasks_have_the_settings_of_the_release_before(tmp_path):
    """So that what was done stays done, with --field grid."""
    before = json.loads((ROOT / "tests" / "before" / "settings.json").read_text())
    for preset in PUBLISHED:
        plan = make_plan(request(tmp_path, preset=preset, field="grid"))
        settings = {task.name: settings_hash(task.settings) for task in plan.tasks}
        assert settings.pop("assets")  # it is newer
        assert settings == before[preset]


GEOMETRY = "system.geometry"
GRID = f"{GEOMETRY}.pos_encoding_config"


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([f"stage2.{GRID}.n_levels=3"], f"stage2.{GRID}.n_levels is 3, but in stage1 it is"),
        ([f"{s}.{GRID}.n_levels=3" for s in STAGES], None),
        ([f"{s}.{GRID}.n_levels=3" for s in STAGES[:2]], "stage3.*n_levels is 6, but in stage2"),
        ([f"stage3.{GEOMETRY}.radius=2"], f"stage3.{GEOMETRY}.radius is 2, but in stage2"),
        (["stage2.system.geometry.mlp_network_config.n_neurons=8"], "stage2.*n_neurons is 8"),
        ([f"stage1.{GRID}.static=false", f"stage2.{GRID}.backend=torch"], None),
    ],
)
def test_a_stage_that_starts_from_another_has_its_shape(words, says, field, tmp_path):
    asked = request(tmp_path, field=field, overrides=by_task(words))
    if says is None:
        assert make_plan(asked, check=True)
        return
    with pytest.raises(ValueError, match=says):
        make_plan(asked, check=True)


def test_what_two_kinds_of_encoding_share_has_to_agree(monkeypatch):
    """`Bent` starts from `Grid`, as a deformation does from the scene at rest."""
    bent = type("Bent", (Encoding,), {"starts_from": ("Grid",), "usage": ("frozen",)})
    for otype, kind in {"Bent": bent, "Grid": Encoding}.items():
        monkeypatch.setitem(ENCODINGS, otype, kind)

    def config(otype, **settings):
        geometry = {"pos_encoding_config": {"otype": otype, **settings}}
        return {"trainer": {}, "system": {"geometry": geometry}}

    grid, first = config("Grid", static=True, n=3), config("Bent", n=3, cells=[4], frozen=True)
    check_handover({"1": grid, "2": first, "3": config("Bent", n=3, cells=[4], frozen=False)})
    for says, configs in {
        "n is 4, but in 1": {"1": grid, "2": config("Bent", n=4, cells=[4])},
        "cells is .8., but in 2": {"1": grid, "2": first, "3": config("Bent", n=3, cells=[8])},
        "otype is Grid, but in 1 it is Bent": {"1": first, "2": grid},
    }.items():
        with pytest.raises(ValueError, match=says):
            check_handover(configs)


def test_what_a_result_shows_follows_from_its_stages_config(tmp_path):
    word = "stage1.system.geometry.pos_encoding_config.static=false"
    asked = request(tmp_path, until="stage1", overrides=by_task([word]))
    assert "animation.mp4" in {path.name for path in make_plan(asked)["result"].outputs}
