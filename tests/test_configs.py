"""The stage YAMLs: their numbers are the method's, and every key in them is read by something."""

import functools
import shutil
from pathlib import Path

import animate124
import pytest
import pytorch_lightning as pl
import threestudio
import torch
from animate124.data.config import parse_data_config
from animate124.system.terms import GUIDANCE_TERMS
from omegaconf import OmegaConf, open_dict
from pytorch_lightning.callbacks import ModelCheckpoint
from threestudio.extensions import config_of
from threestudio.systems.utils import parse_optimizer
from threestudio.utils.config import load_config, parse_structured

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
FULL = sorted(CONFIGS.glob("animate124-*.yaml"))
STAGES = [path for path in FULL if "deformation" not in path.name]  # the method's
PUBLISHED = ("ms", "zs")  # its video priors
DEFORMED = [path for path in FULL if path not in STAGES and path.stem.endswith(PUBLISHED)]
OTHERS = [path for path in FULL if path not in (*STAGES, *DEFORMED)]  # with further video priors
TOYS = [CONFIGS / "toy" / f"stage{number}.yaml" for number in (1, 2, 3)]
DEFORMED_TOYS = [path.with_name(f"deformation-{path.name}") for path in TOYS]
FLOW_TOYS = [path.with_stem(f"{path.stem}-flow") for path in DEFORMED_TOYS[1:]]
ALL = sorted(CONFIGS.rglob("*.yaml"))  # ... and those of further presets
SD = "stable-diffusion-v1-5/stable-diffusion-v1-5"
TEXTS = ("prompt_processor", "prompt_processor_cn")
MODULES = ("geometry", "material", "background", "renderer", "exporter", *TEXTS)
PRIORS = ("guidance", "guidance_3d", "guidance_cn")

GIVEN = {  # what the YAMLs leave to a person
    "data.image.image_path": "panda.png",
    "system.prompt_processor.prompt": "a panda is dancing",
    "system.prompt_processor_cn.prompt": "a <token> is dancing",
    "system.prompt_processor_cn.learned_embeds_path": "learned_embeds.bin",
}


@functools.cache
def as_written(path):
    return OmegaConf.load(path)


def load(path, *overrides, folder):
    raw = as_written(path)
    given = [
        f"{key}={value}"
        for key, value in GIVEN.items()
        if (node := OmegaConf.select(raw, key.rpartition(".")[0])) is not None
        and OmegaConf.is_missing(node, key.rpartition(".")[2])
    ]
    given += [f"exp_root_dir={folder}", "use_timestamp=false"]
    return load_config(str(path), cli_args=[*given, *overrides])


def name(path):
    return str(path.relative_to(CONFIGS))


def select(cfg, key):
    node = cfg
    for part in key.split("|"):
        node = node[part]
    return OmegaConf.to_container(node) if OmegaConf.is_config(node) else node


# docs/method.md, sections 1 to 4
EVERY_STAGE = {
    "system|geometry|pos_encoding_config|otype": "HashGridSpatialTime",
    "system|geometry|pos_encoding_config|n_levels": 16,
    "system|geometry|pos_encoding_config|n_features_per_level": 2,
    "system|geometry|pos_encoding_config|log2_hashmap_size": 19,
    "system|geometry|pos_encoding_config|base_resolution": 16,
    "system|geometry|pos_encoding_config|per_level_scale": 1.447269237440378,
    "system|geometry|density_bias": "blob_magic3d",
    "system|geometry|finite_difference_normal_eps": 0.01,
    "system|renderer|num_samples_per_ray": 256,
    "system|background|color": [1, 1, 1],
    "data|single_view|elevation_range": [-45, 45],
    "data|single_view|azimuth_range": [-180, 180],
    "data|single_view|camera_distance_range": [2.5, 2.5],
    "data|single_view|fovy_range": [40, 40],
    "data|single_view|width": 128,
    "data|single_view|height": 128,
    "data|image|default_elevation_deg": 0,
    "data|image|default_camera_distance": 2.5,
    "data|image|default_fovy_deg": 40,
    "system|guidance|guidance_scale": 100,
    "system|guidance_3d|guidance_scale": 5,
    "system|guidance_3d|min_step_percent": 0.2,
    "system|guidance_3d|max_step_percent": 0.6,
    "system|guidance_3d|size": 256,
    "system|loss|lambda_rgb": 1000,
    "system|loss|lambda_mask": 100,
    "system|loss|lambda_normal_smoothness_2d": 1000,
    "system|optimizer|name": "Adam",
    "system|optimizer|args|betas": [0.9, 0.99],
    "system|optimizer|args|eps": 1e-8,
    "trainer|precision": "16-mixed",
    "trainer|val_check_interval": 1000,
    "data|single_view|n_val_views": 4,
    "seed": 0,
}
STATIC = {
    "name": "animate124-stage1",
    "trainer|max_steps": 10000,
    "system|geometry|pos_encoding_config|static": True,
    "data|prob_single_view_video": 0,
    "system|guidance|pretrained_model_name_or_path": SD,
    "system|guidance|min_step_percent": 0.2,
    "system|guidance|max_step_percent": 0.6,
    "system|guidance|size": 512,
    "system|guidance_3d|pretrained_model_name_or_path": "bennyguo/zero123-xl-diffusers",
    "system|loss|lambda_sd": 0.025,
    "system|loss|lambda_3d_sd": 1,
    "system|loss|lambda_sds_video": 0,
    "system|loss|lambda_cn_sds": 0,
}
DYNAMIC = {
    "name": "animate124-stage2",
    "trainer|max_steps": 10000,
    "system|geometry|pos_encoding_config|static": False,
    "data|prob_single_view_video": 1,
    "data|single_view|num_frames": 16,
    "data|single_view|sample_rand_frames": "fps",
    "data|single_view|train_dynamic_camera": True,
    "data|single_view|num_frames_factor": 4,
    "data|single_view|test_traj": "motion_smooth",
    "system|guidance|min_step_percent": 0.02,
    "system|guidance|max_step_percent": 0.98,
    "system|guidance_3d|pretrained_model_name_or_path": "bennyguo/zero123-diffusers",
    "system|loss|lambda_sd": 0,
    "system|loss|lambda_3d_sd": 40,
    "system|loss|lambda_sds_video": 1,
    "system|loss|lambda_cn_sds": 0,
}
REFINED = {
    **DYNAMIC,
    "name": "animate124-stage3",
    "trainer|max_steps": 5000,
    "system|loss|lambda_cn_sds": 3,
    "system|guidance_cn|pretrained_model_name_or_path": SD,
    "system|guidance_cn|controlnet_name_or_path": "lllyasviel/control_v11f1e_sd15_tile",
    "system|guidance_cn|guidance_scale": 7.5,
    "system|guidance_cn|min_step_percent": 0.02,
    "system|guidance_cn|max_step_percent": 0.98,
    "system|guidance_cn|fixed_size": 1024,
    "system|guidance_cn|fixed_frames": 2,
}
MODELSCOPE = {
    "system|guidance|pretrained_model_name_or_path": "damo-vilab/text-to-video-ms-1.7b",
    "data|single_view|width_vid": 128,
    "data|single_view|height_vid": 128,
    "system|guidance|width": 256,
    "system|guidance|height": 256,
}
ZEROSCOPE = {
    "system|guidance|pretrained_model_name_or_path": "cerspense/zeroscope_v2_576w",
    "data|single_view|width_vid": 144,
    "data|single_view|height_vid": 80,
    "system|guidance|width": 576,
    "system|guidance|height": 320,
}
NUMBERS = {
    "animate124-stage1.yaml": EVERY_STAGE | STATIC,
    "animate124-stage2-ms.yaml": EVERY_STAGE | DYNAMIC | MODELSCOPE,
    "animate124-stage2-zs.yaml": EVERY_STAGE | DYNAMIC | ZEROSCOPE,
    "animate124-stage3-ms.yaml": EVERY_STAGE | REFINED | MODELSCOPE,
    "animate124-stage3-zs.yaml": EVERY_STAGE | REFINED | ZEROSCOPE,
}


@pytest.mark.parametrize("path", STAGES, ids=name)
def test_the_numbers_are_the_methods(path, tmp_path):
    cfg = load(path, folder=tmp_path)
    numbers = NUMBERS[path.name]
    assert {key: select(cfg, key) for key in numbers} == numbers
    assert cfg.trial_name == "a_panda_is_dancing"
    rates = {key: group["lr"] for key, group in cfg.system.optimizer.params.items()}
    grids = {"geometry.encoding.encoding.encoding": 0.01}
    if path.name != "animate124-stage1.yaml":
        grids = {
            "geometry.encoding.encoding.encoding": 1e-4,
            "geometry.encoding.encoding.encoding_time": 0.01,
        }
    assert rates == grids | {"geometry.density_network": 1e-3, "geometry.feature_network": 1e-3}


# what the deformation's own YAMLs may change of those numbers, for where and how things move;
# stage 2, which keeps the scene as it is, compares it with nothing
MOVED = ("geometry|pos_encoding_config", "optimizer|params", "loss|lambda_normal_smoothness_2d")
MOVED += ("renderer|return_comp_normal", "renderer|occupancy_moments", "weights")
MOVED += ("loss|lambda_arap", "loss|lambda_fold")
UNSEEN = ("guidance_3d_type", "guidance_3d", "loss|lambda_rgb", "loss|lambda_mask")
UNSEEN += ("loss|lambda_3d_sd",)
# a clip is rendered in one piece, and the tile's frames keep their graph
WHOLE = ("renderer|prune_alpha_threshold", "renderer|train_chunk_size", "guidance_cn|vae_chunk")


def flat(node, key=""):
    """Every number of a YAML by its key."""
    if not isinstance(node, dict):
        return {key: node}
    found = [flat(value, f"{key}|{name}".lstrip("|")) for name, value in node.items()]
    return {key: value for part in found for key, value in part.items()}


@pytest.mark.parametrize("path", DEFORMED, ids=name)
def test_a_deformation_changes_how_things_move_and_no_other_number(path):
    published = path.with_name(path.name.replace("deformation-", ""))
    ours, theirs = (flat(OmegaConf.to_container(as_written(p))) for p in (path, published))
    changed = {key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)}
    freezes = ours["system|geometry|pos_encoding_config|freeze_canonical"]
    assert freezes == ("stage2" in path.name)
    may = ["name"] + [f"system|{key}" for key in MOVED + UNSEEN * freezes + WHOLE]
    assert {key for key in changed if not key.startswith(tuple(may))} == set()
    same = ("n_levels", "n_features_per_level", "log2_hashmap_size", "base_resolution")
    for setting in (*same, "per_level_scale"):  # those of stage 1, whose scene it moves
        assert f"system|geometry|pos_encoding_config|{setting}" not in changed
    assert ours["system|geometry|pos_encoding_config|otype"] == "HashGridDeformation"
    assert ours["system|loss|lambda_arap"] > 0 and ours["system|loss|lambda_fold"] > 0


@pytest.mark.parametrize("path", OTHERS, ids=name)
def test_a_further_video_prior_changes_no_other_number(path):
    stage = path.name.removeprefix("animate124-deformation-").partition("-")[0]
    usual = path.with_name(f"animate124-deformation-{stage}-ms.yaml")
    ours, theirs = (flat(OmegaConf.to_container(as_written(p))) for p in (path, usual))
    changed = {key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)}
    may = ("data|single_view|num_frames", "data|single_view|width_vid")
    may += ("data|single_view|height_vid", "data|single_view|reference_rate")
    may += ("system|guidance|", "system|guidance_type")
    may += ("system|prompt_processor|", "system|prompt_processor_type")
    assert {key for key in changed if not key.startswith(may)} == set()
    kind = threestudio.find(ours["system|guidance_type"])
    kind.check_frames(ours["data|single_view|num_frames"])


def test_the_stages_and_toys_of_both_fields_are_there():
    assert {path.name for path in STAGES} == set(NUMBERS)
    moving = {path for path in STAGES if path.name != "animate124-stage1.yaml"}
    assert {path.name.replace("deformation-", "") for path in DEFORMED} == {p.name for p in moving}
    assert set(ALL) == {*STAGES, *TOYS, *DEFORMED, *OTHERS, *DEFORMED_TOYS, *FLOW_TOYS}
    further = {path.name.replace("stage3", "stage2") for path in OTHERS}
    assert {path.name for path in OTHERS if "stage2" in path.name} == further


def build_or_parse(system):
    """Builds what needs no model of the system section, and parses the rest of it."""
    parts = {
        kind: threestudio.find(system[f"{kind}_type"])(system[kind])
        for kind in ("geometry", "material", "background")
    }
    threestudio.find(system.renderer_type)(system.renderer, **parts)
    for section in (*PRIORS, *TEXTS, "exporter"):
        if system.get(f"{section}_type"):
            module = threestudio.find(system[f"{section}_type"])
            parse_structured(module.Config, system.get(section, {}))
    return parts["geometry"]


def read_everything(cfg):
    """An error for a key that nothing reads, anywhere in the config."""
    parse_data_config(cfg.data)
    system = threestudio.find(cfg.system_type)
    checked = parse_structured(system.Config, cfg.system)
    geometry = build_or_parse(checked)
    host = torch.nn.Module()
    host.geometry = geometry
    parse_optimizer(checked.optimizer, host)
    small = OmegaConf.merge(checked, {"weights": None})
    system(small)
    pl.Trainer(accelerator="cpu", logger=False, **OmegaConf.to_container(cfg.trainer))
    ModelCheckpoint(**OmegaConf.to_container(cfg.checkpoint))


def small(path):
    """Overrides that build the geometry in no time."""
    log2 = "system.geometry.pos_encoding_config.log2_hashmap_size=8"
    return [log2, "trainer.precision=32", "system.weights=null"]


@pytest.mark.parametrize("path", ALL, ids=name)
def test_every_key_is_read(path, tmp_path):
    read_everything(load(path, *small(path), folder=tmp_path))


@pytest.mark.parametrize("stage", ["animate124-stage1.yaml", "toy/stage3.yaml"])
def test_a_key_that_nothing_reads_is_an_error_in_every_section(stage, tmp_path):
    path = CONFIGS / stage
    cfg = load(path, *small(path), folder=tmp_path)
    sections = [("data",), ("data", "image"), ("data", "single_view"), ("data", "multi_view")]
    sections += [("system",), ("system", "loss"), ("system", "optimizer", "args")]
    sections += [("system", key) for key in (*MODULES, *PRIORS) if cfg.system.get(key)]
    sections += [("system", "geometry", k) for k in ("pos_encoding_config", "mlp_network_config")]
    sections += [("trainer",), ("checkpoint",)]
    for section in sections:
        node = functools.reduce(lambda node, key: node[key], section, cfg)
        with open_dict(cfg):
            node.misspelt_key = 1
            with pytest.raises(Exception, match="misspelt_key"):
                read_everything(cfg)
            del node.misspelt_key
    with pytest.raises(Exception, match="misspelt_key"):
        load(path, *small(path), "misspelt_key=1", folder=tmp_path)


@pytest.mark.parametrize("path", ALL, ids=name)
def test_the_optimizer_has_every_trained_parameter_once(path, tmp_path):
    cfg = load(path, *small(path), folder=tmp_path)
    system = threestudio.find(cfg.system_type)(cfg.system)
    groups = system.configure_optimizers()["optimizer"].param_groups
    listed = [id(p) for group in groups for p in group["params"]]
    trained = [id(p) for p in system.parameters() if p.requires_grad]
    assert sorted(listed) == sorted(trained)


@pytest.mark.parametrize("path", ALL, ids=name)
def test_priors_read_the_same_model_and_the_same_image(path, tmp_path):
    cfg = load(path, "data.image.default_azimuth_deg=7", folder=tmp_path).system
    model = "pretrained_model_name_or_path"
    if cfg.get("prompt_processor_type"):
        assert cfg.prompt_processor[model] == cfg.guidance[model]
    if "guidance_cn" in cfg:
        assert cfg.prompt_processor_cn[model] == cfg.guidance_cn[model]
    if "guidance_3d" in cfg:
        assert cfg.guidance_3d.cond_azimuth_deg == 7
        assert cfg.guidance_3d.cond_image_path.endswith(".png")


def test_stages_share_the_scene():
    how = ("static", "otype", "freeze_canonical", "deformation_cells", "deformation_spans")
    full_size = CONFIGS / "animate124-stage1.yaml"
    for group in (STAGES, TOYS, [full_size, *DEFORMED, *OTHERS], DEFORMED_TOYS):
        scenes = []
        for path in group:
            system = as_written(path).system
            scene = {key: select(system, key) for key in ("geometry", "material", "background")}
            grid = scene["geometry"]["pos_encoding_config"]
            scene["geometry"]["pos_encoding_config"] = {k: grid[k] for k in grid if k not in how}
            scenes.append(scene)
        assert all(scene == scenes[0] for scene in scenes)
    for group in ([*DEFORMED, *OTHERS], DEFORMED_TOYS[1:]):  # ... and the deformation
        grids = [as_written(path).system.geometry.pos_encoding_config for path in group]
        assert len({str([grid[key] for key in how[3:]]) for grid in grids}) == 1


@pytest.mark.parametrize("path", [p for p in ALL if "stage1" not in p.name], ids=name)
def test_a_stage_starts_from_the_newest_run_of_the_one_before(path, tmp_path):
    cfg = load(path, folder=tmp_path)
    before = cfg.name[:-1] + str(int(cfg.name[-1]) - 1)
    if before == "animate124-deformation-stage1":  # at full size stage 1 is the same
        before = "animate124-stage1"
    expected = f"{tmp_path}/{before}/a_panda_is_dancing@LAST/ckpts/last.ckpt"
    assert cfg.system.weights == expected
    earlier = [p for p in path.parent.glob("*.yaml") if as_written(p).name == before]
    assert earlier


def test_a_toy_has_the_modules_and_terms_of_its_stage():
    def terms(loss):  # what pulls; regularisers depend on the size
        pulling = ("lambda_rgb", "lambda_mask", *(term.weight for term in GUIDANCE_TERMS))
        return {key for key in pulling if loss[key] != 0}

    pairs = [*zip(TOYS, ["stage1", "stage2-ms", "stage3-ms"], strict=True)]
    pairs += zip(DEFORMED_TOYS[1:], ["deformation-stage2-ms", "deformation-stage3-ms"], strict=True)
    for toy, stage in pairs:
        theirs = as_written(CONFIGS / f"animate124-{stage}.yaml").system
        ours = as_written(toy).system
        kinds = [key for key in theirs if key.endswith("_type")]
        expected = {key: theirs[key] for key in kinds}
        if toy in DEFORMED_TOYS:  # there is such a prior of the toy world alone
            expected["guidance_type"] = "animate124-image-to-video-guidance"
        assert {key: ours[key] for key in kinds} == expected
        assert terms(ours.loss) == terms(theirs.loss)
        assert ours.loss.keys() == theirs.loss.keys()
        assert ours.optimizer.params.keys() == theirs.optimizer.params.keys()


def test_the_toy_of_rectified_flow_differs_in_its_prior_alone():
    for path, usual in zip(FLOW_TOYS, DEFORMED_TOYS[1:], strict=True):
        ours, theirs = (OmegaConf.to_container(as_written(p)) for p in (path, usual))
        assert ours["data"]["single_view"].pop("num_frames") == 9
        assert ours["data"]["single_view"].pop("reference_rate") == 0  # the default
        assert theirs["data"]["single_view"].pop("num_frames") == 8
        for key in ("guidance", "guidance_type", "prompt_processor_type"):
            assert ours["system"].pop(key) != theirs["system"].pop(key)
        assert ours == theirs


def test_a_config_is_found_by_its_name_in_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    package = tmp_path / "package"
    shutil.copytree(CONFIGS, package / "configs")
    trial = package / "outputs" / "fox" / "stage1" / "configs" / "parsed.yaml"
    trial.parent.mkdir(parents=True)
    trial.touch()
    monkeypatch.setattr(animate124, "__path__", [str(package)])
    found = config_of("animate124", "toy/stage1.yaml")
    assert Path(found).samefile(package / "configs" / "toy" / "stage1.yaml")
    with pytest.raises(FileNotFoundError, match=r"toy/stage1\.yaml"):
        config_of("animate124", "stage1.yaml")
    Path("stage1.yaml").touch()
    assert config_of("animate124", "stage1.yaml") == "stage1.yaml"  # a person's own comes first
