"""What people bring who come from the original: its key names (tests/published/ has whole configs
of ours that use them), the registered names in them, and its checkpoints."""

import json
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path

import numpy as np
import pytest
import threestudio
import torch
from animate124.data import original_keys
from animate124.data.config import DataConfig, parse_data_config
from animate124.data.original_keys import adopt
from animate124.data.reference_image import reference
from animate124.guidance.clips import usual_size
from animate124.pipeline.overrides import check_stage
from animate124.system.checkpoints import reordered
from animate124.system.terms import check_clips
from omegaconf import OmegaConf
from PIL import Image, ImageDraw
from threestudio.launch import main, parser
from threestudio.utils.config import load_config, parse_structured

PUBLISHED = Path(__file__).parent / "published"
CONFIGS = Path(__file__).parents[1] / "configs"
STAGES = ("stage1", "stage2-ms", "stage2-zs", "stage3-ms", "stage3-zs")
SECTIONS = ("geometry", "material", "background", "renderer", "guidance", "guidance_3d")
SECTIONS += ("guidance_cn", "prompt_processor", "prompt_processor_cn")
STEPS = 3


@pytest.fixture
def said(monkeypatch):
    """What `info` and `warn` were given: (kind, text)."""
    lines = []
    for kind in ("info", "warn"):
        monkeypatch.setattr(threestudio, kind, lambda text, kind=kind: lines.append((kind, text)))
    return lines


def whole(data=None, system=None):
    """A config as the launcher has it, whose sections are parts of one."""
    return OmegaConf.create(
        {
            "data_type": "animate124-image-video-combined-camera-datamodule",
            "data": data or {},
            "system_type": "animate124-system",
            "system": system or {},
        }
    )


def published(stage, folder, *overrides):
    given = {
        "data.image.image_path": "panda.png",
        "system.prompt_processor.prompt": "a panda is dancing",
        "exp_root_dir": folder,
    }
    if stage != "stage1":
        given["system.weights"] = "last.ckpt"
    if "stage3" in stage:
        given["system.prompt_processor_cn.prompt"] = "a <token> is dancing"
        given["system.prompt_processor_cn.learned_embeds_path"] = "learned_embeds.bin"
    pairs = [f"{key}={value}" for key, value in given.items()]
    return load_config(str(PUBLISHED / f"animate124-{stage}.yaml"), cli_args=[*pairs, *overrides])


@pytest.mark.parametrize("stage", STAGES)
def test_every_key_of_the_published_configs_is_read(stage, tmp_path, said):
    cfg = published(stage, tmp_path)
    data = parse_data_config(cfg.data)
    system = adopt(cfg.system, "system")
    parse_structured(threestudio.find(cfg.system_type).Config, system)
    for name in SECTIONS:
        if kind := system.get(f"{name}_type"):
            parse_structured(threestudio.find(kind).Config, system.get(name, {}))
    assert (data.prob_single_view_video, data.prob_multi_view) == (stage != "stage1", 0)
    [warning] = [text for kind, text in said if kind == "warn"]
    for key in ("system.stage", "system.sr", "system.prompt_processor.spawn", "num_frames"):
        assert key in warning
    # as it is written down in the trial, it says nothing any more
    again = OmegaConf.create(OmegaConf.to_yaml(cfg))
    del said[:]
    assert parse_data_config(again.data) == data and not said


def test_the_original_has_no_test_trajectory_in_stage_1(tmp_path):
    for stage, path, frames in (("stage1", "circle", 120), ("stage2-ms", "motion_smooth", 256)):
        cfg = published(stage, tmp_path)
        module = threestudio.find(cfg.data_type)(cfg.data)
        module.setup("test")
        assert module.cfg.test_traj == path
        assert len(module.test_dataset) == frames


CLIPS = "prob_single_view_video"
MOVES = [  # data, system, the clips' probability, what is said of it
    ({"single_view": {CLIPS: 0.7}}, {}, 0.7, "is read as data.prob_single_view_video=0.7"),
    ({}, {CLIPS: 0.7}, 0.7, "system.prob_single_view_video=0.7 is read as"),
    ({"single_view": {CLIPS: 0.7}}, {CLIPS: 0.7}, 0.7, "is read as"),
    ({CLIPS: 0.2}, {CLIPS: 0.7}, 0.2, "passed over: data.prob_single_view_video is 0.2"),
    ({CLIPS: None}, {CLIPS: 0.7}, 0.7, "is read as"),
    ({"single_view": {"static": True, CLIPS: 1.0}}, {CLIPS: 0.5}, 0.0, "static=True is read as"),
    ({CLIPS: 1.0, "single_view": {"static": True}}, {}, 1.0, "static=True is passed over"),
    ({"single_view": {"static": False}}, {CLIPS: 1.0}, 1.0, "is read as"),
]


@pytest.mark.parametrize(("data", "system", "expected", "line"), MOVES)
def test_a_key_with_a_counterpart_gives_it_its_value(data, system, expected, line, said):
    cfg = whole(data, system)
    assert parse_data_config(cfg.data).prob_single_view_video == expected
    [text] = [text for _, text in said]
    assert line in text
    assert not cfg.system and CLIPS not in (cfg.data.get("single_view") or {})


def test_two_keys_of_the_original_must_not_contradict_each_other():
    cfg = whole({"single_view": {CLIPS: 1.0}}, {CLIPS: 0.5})
    with pytest.raises(ValueError, match=r"says 1\.0, system\.prob_single_view_video says 0\.5"):
        adopt(cfg.system, "system")


def test_random_cameras_of_image_batches_go_to_those_of_all(said):
    cfg = whole({"image": {"random_camera": {"batch_size": 2, "height": 64, "light_x": 1}}})
    data = parse_data_config(cfg.data)
    assert (data.single_view.batch_size, data.single_view.height) == (2, 64)
    cfg = whole({"image": {"random_camera": {"heigth": 64}}})
    with pytest.raises(KeyError, match=r"'heigth' in data\.single_view\. Close names: height"):
        parse_data_config(cfg.data)


@pytest.mark.parametrize("kind", ["zero123-unified-guidance", "animate124-image-guidance"])
def test_a_key_that_asks_for_what_is_not_done_is_an_error(kind):
    cfg = whole(system={"guidance_3d_type": kind, "guidance_3d": {"guidance_type": "vsd"}})
    with pytest.raises(ValueError, match=r"guidance_3d\.guidance_type is 'vsd', but only 'sds'"):
        adopt(cfg.system, "system")
    cfg = whole(system={"loss": {"lambda_sd_img": 0.1}})
    with pytest.raises(ValueError, match=r"lambda_sd_img is 0\.1"):
        adopt(cfg.system, "system")


def test_keys_that_are_in_no_table_stay_for_the_usual_error(said):
    for data in ({"single_view": {"statics": True}}, {"prob_single_view": 1}, {"stage": 1}):
        with pytest.raises(KeyError, match="Nothing reads"):
            parse_data_config(whole(data).data)
    cfg = whole(system={"stages": 1, "guidance": {"guidence_type": "sds"}})
    assert adopt(cfg.system, "system") == cfg.system and cfg.system.stages == 1
    assert not said


class Foreign:
    """A prompt processor of somebody else's, which reads `spawn`, as threestudio's do."""

    @dataclass
    class Config:
        spawn: bool = True


def test_what_a_module_reads_itself_is_left_to_it(said, monkeypatch):
    monkeypatch.setitem(threestudio.__modules__, "foreign-prompts", Foreign)
    section = {"prompt_processor_type": "foreign-prompts", "prompt_processor": {"spawn": True}}
    assert adopt(whole(system=section).system, "system") == section
    assert not said


def test_no_key_of_the_tables_is_one_of_ours():
    """A key that we begin to read has to leave the tables."""
    kinds = {
        "system": "animate124-system",
        "geometry": "animate124-implicit-volume",
        "material": "no-material",
        "renderer": "animate124-nerf-volume-renderer",
        "prompt_processor*": "animate124-textual-inversion-prompt-processor",
        "guidance*": "animate124-controlnet-tile-guidance",
    }
    ours = {f"system.{name}" for name in names(threestudio.find("animate124-system").Config)}
    for section, kind in kinds.items():
        ours |= {f"system.{section}.{name}" for name in names(threestudio.find(kind).Config)}
    ours |= {f"data.{name}" for name in names(DataConfig)}
    tables = {*original_keys.MOVED, *original_keys.LEFT_OUT}
    assert "data.single_view.num_frames" in ours and not tables & ours


def names(config):
    """A dataclass's keys, nested ones with dots."""
    for field in fields(config):
        yield field.name
        if is_dataclass(field.type):
            yield from (f"{field.name}.{name}" for name in names(field.type))


def test_the_picture_that_published_lines_name_is_there():
    folder = Path(__file__).parents[1] / "load" / "panda-dance"
    rgb, mask = reference(folder / "_rgba.png", 128, 128)
    assert 0.1 < mask.mean() < 0.6
    with Image.open(folder / "image.jpg") as photo, Image.open(folder / "_rgba.png") as cut_out:
        assert photo.size == cut_out.size == (512, 512)
        small = torch.from_numpy(np.array(photo.resize((128, 128)))).float() / 255
    assert (((small - rgb) * mask).abs().sum() / mask.sum() / 3) < 0.03


def test_stock_names_lead_to_ours_with_the_defaults_of_threestudios():
    image = threestudio.find("stable-diffusion-unified-guidance")
    assert issubclass(image, threestudio.find("animate124-image-guidance"))
    zero123 = threestudio.find("zero123-unified-guidance")
    assert issubclass(zero123, threestudio.find("animate124-zero123-guidance"))
    prompts = threestudio.find("stable-diffusion-prompt-processor")
    assert issubclass(prompts, threestudio.find("animate124-prompt-processor"))
    for module in (image, zero123):
        assert (module.Config().min_step_percent, module.Config().max_step_percent) == (0.02, 0.98)
    assert zero123.Config().cond_camera_distance == 1.2


@pytest.mark.parametrize(
    ("model", "sample", "size"),
    [
        ("cerspense/zeroscope_v2_576w", 32, (576, 320)),
        ("/models/ZeroScope-v2", None, (576, 320)),
        ("damo-vilab/text-to-video-ms-1.7b", 32, (256, 256)),
        ("models/mine", [40, 72], (576, 320)),
        ("models/mine", None, (256, 256)),
    ],
)
def test_a_video_model_is_shown_what_it_is_made_for(model, sample, size):
    assert usual_size(model, sample, 8) == size


# ------------------------------------------------------------------ through the launcher

SMALL = {
    "data.image": {"width": 16, "height": 16},
    "data.single_view": {"width": 16, "height": 16, "eval_width": 16, "eval_height": 16},
    "system.renderer": {"num_samples_per_ray": 16},
    "system.geometry.pos_encoding_config": {"n_levels": 4, "log2_hashmap_size": 10},
    "system.guidance_3d": {"size": 64},
    "trainer": {"max_steps": STEPS, "val_check_interval": STEPS, "enable_progress_bar": False},
}
SMALL_CLIPS = {"num_frames": 2, "num_frames_factor": 1, "width_vid": 16, "height_vid": 16}
SMALL_CLIPS |= {"zero_rate": 1.0}


@pytest.fixture(scope="module")
def launch(random_priors, tmp_path_factory):
    """Runs a published config on random priors and tiny pictures; gives the trial's folder."""
    folder = tmp_path_factory.mktemp("original")
    image = Image.new("RGBA", (64, 64))
    ImageDraw.Draw(image).ellipse((16, 12, 48, 52), fill=(200, 120, 40, 255))
    image.save(folder / "_rgba.png")
    encoder = json.loads((random_priors / "sd/text_encoder/config.json").read_text())
    torch.save({"<token>": torch.ones(encoder["hidden_size"])}, folder / "token.bin")

    def run(config, *others, action="--train"):
        small = {f"{s}.{key}": value for s, keys in SMALL.items() for key, value in keys.items()}
        model = "pretrained_model_name_or_path"
        still = "stage1" in str(config)
        sd, video = random_priors / "sd", random_priors / "text-to-video"
        prompt = "a panda" if still else "a panda is dancing"
        values = {
            **small,
            "data.image.image_path": folder / "_rgba.png",
            "system.prompt_processor.prompt": prompt,
            f"system.prompt_processor.{model}": sd if still else video,
            f"system.guidance.{model}": sd if still else video,
            f"system.guidance_3d.{model}": random_priors / "zero123",
        }
        if still:
            values |= {"system.guidance.size": 64, "data.single_view.n_test_views": 2}
        else:
            values |= {f"data.single_view.{key}": value for key, value in SMALL_CLIPS.items()}
            values |= {"system.guidance.width": 64, "system.guidance.height": 64}
        if "stage3" in str(config):
            values |= {
                f"system.prompt_processor_cn.{model}": sd,
                "system.prompt_processor_cn.prompt": "a <token> is dancing",
                "system.prompt_processor_cn.learned_embeds_path": folder / "token.bin",
                f"system.guidance_cn.{model}": sd,
                "system.guidance_cn.controlnet_name_or_path": random_priors / "controlnet-tile",
                "system.guidance_cn.fixed_size": 64,
            }
        path = config if Path(config).suffix else PUBLISHED / f"animate124-{config}.yaml"
        overrides = [f"{key}={value}" for key, value in values.items()]
        flags = parser().parse_args(["--config", str(path), action])
        return Path(main(flags, [*overrides, *map(str, others)], extension="animate124"))

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield run


@pytest.fixture(scope="module")
def trained(launch):
    """Trials of the three stages, each from the one before."""
    last = "system.weights={}/ckpts/last.ckpt"
    one = launch("stage1")
    two = launch("stage2-zs", last.format(one))
    return [one, two, launch("stage3-ms", last.format(two))]


def checkpoint(trial):
    return torch.load(trial / "ckpts/last.ckpt", weights_only=True)


def test_published_configs_train_from_stage_to_stage(trained):
    for trial in trained:
        assert checkpoint(trial)["global_step"] == STEPS
        assert list((trial / "save").glob("*.mp4"))
    one, two, three = (checkpoint(trial)["state_dict"] for trial in trained)
    time = "geometry.encoding.encoding.encoding_time.params"
    assert not torch.equal(one[time], two[time]) and not torch.equal(two[time], three[time])


def test_the_trials_own_config_runs_again(trained, launch):
    """It has all defaults, the trial's folder, its time stamp and the number of GPUs."""
    written = OmegaConf.load(trained[0] / "configs/parsed.yaml")
    assert {"n_gpus", "trial_dir", "timestamp"} <= set(written)
    raw = OmegaConf.load(trained[0] / "configs/raw.yaml")
    theirs = OmegaConf.merge(written, {"data": raw.data, "system": raw.system})
    path = trained[0].parents[1] / "stage1-theirs.yaml"
    OmegaConf.save(theirs, path)
    last = trained[0] / "ckpts/last.ckpt"
    assert launch(path, f"resume={last}", action="--test").resolve() == trained[0].resolve()


def as_the_original_writes_it(path, to):
    """A checkpoint of ours with what one of the original has besides, and without what is ours."""
    held = torch.load(path, weights_only=True)
    held = {key: value for key, value in held.items() if "animate124" not in key}
    state = held["state_dict"]
    for grid in ("encoding", "encoding_time"):
        params = state[f"geometry.encoding.encoding.{grid}.params"]
        state[f"geometry_encoding.{grid}.params"] = params
    [optimizer] = held["optimizer_states"]
    optimizer["param_groups"].reverse()
    settings = OmegaConf.create({"optimizer": {"args": {"betas": [0.9, 0.99]}}})
    for group in optimizer["param_groups"]:
        group["betas"] = settings.optimizer.args.betas
    torch.save(held, to)
    return to


def test_training_goes_on_from_a_checkpoint_of_the_original(trained, launch, tmp_path):
    ours = trained[1] / "ckpts/last.ckpt"
    theirs = as_the_original_writes_it(ours, tmp_path / "theirs.ckpt")
    further = [f"trainer.max_steps={STEPS + 1}", f"exp_root_dir={tmp_path}", "system.weights=null"]
    a = checkpoint(launch("stage2-zs", *further, "tag=a", f"resume={theirs}"))
    b = checkpoint(launch("stage2-zs", *further, "tag=b", f"resume={ours}"))
    assert a["global_step"] == STEPS + 1
    assert a["state_dict"].keys() == b["state_dict"].keys()
    for key, value in b["state_dict"].items():
        assert torch.equal(a["state_dict"][key], value), key


@pytest.mark.parametrize("action", ["--test", "--export"])
def test_a_checkpoint_of_the_original_is_shown_and_exported(trained, launch, tmp_path, action):
    theirs = as_the_original_writes_it(trained[1] / "ckpts/last.ckpt", tmp_path / "theirs.ckpt")
    others = [f"exp_root_dir={tmp_path}", "system.weights=null", f"resume={theirs}"]
    if action == "--export":
        others += ["system.exporter.num_frames=1", "system.exporter.resolution=16"]
    trial = launch("stage2-zs", *others, action=action)
    if action == "--export":
        assert list(trial.rglob("*.ply"))
        return
    for path in (trained[1] / "save").glob("*.mp4"):
        assert (trial / "save" / path.name).read_bytes() == path.read_bytes()


def test_parameter_groups_of_another_optimizer_are_an_error():
    groups = [{"name": "b", "lr": 2}, {"name": "a", "lr": 1}]
    assert reordered(groups, ["a", "b"]) == groups[::-1]
    with pytest.raises(ValueError, match=r"groups b, a, but system\.optimizer\.params has a, c"):
        reordered(groups, ["a", "c"])


def test_weights_for_clips_without_clips_stop_before_training(launch):
    with pytest.raises(ValueError, match=r"lambda_sds_video would do nothing.*video is 0"):
        launch("stage2-ms", "system.weights=null", "data.prob_single_view_video=0", "tag=still")
    config = CONFIGS / "toy" / "stage2.yaml"
    still = ["data.prob_single_view_video=0", "system.weights=null"]
    with pytest.raises(
        ValueError, match=r"stage2: system\.loss\.lambda_sds_video would do nothing"
    ):
        check_stage("stage2", config, still)
    check_clips({"lambda_sds_video": 0, "lambda_sd": 1}, clips=False)
    with pytest.raises(ValueError, match=r"system\.loss\.lambda_cn_sds would do nothing"):
        check_clips({"lambda_cn_sds": [0, 0.0, 1.0, 9]}, clips=False)
