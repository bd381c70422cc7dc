"""The three stages through the launcher, on random tiny priors and tiny pictures."""

import itertools
import json
import re
import shutil
from pathlib import Path

import animate124
import cv2
import imageio_ffmpeg
import numpy as np
import pytest
import threestudio
import torch
from animate124.guidance.zero123 import Zero123Guidance
from animate124.system.trained import load_scene
from threestudio.launch import main, parser
from threestudio.utils.config import load_config

CONFIGS = Path(animate124.__file__).parent / "configs"
TIME_GRID = "geometry.encoding.encoding.encoding_time.params"
MOTION = "geometry.encoding.encoding.deformation."
NAMES = {  # docs/method.md, sections 1 and 4
    "geometry.encoding.encoding.encoding.params",
    TIME_GRID,
    "geometry.density_network.layers.0.weight",
    "geometry.density_network.layers.2.weight",
    "geometry.feature_network.layers.0.weight",
    "geometry.feature_network.layers.2.weight",
}
SIZES = {
    "data.image": {"width": 16, "height": 16},
    "data.single_view": {
        "width": 16,
        "height": 16,
        "width_vid": 16,
        "height_vid": 16,
        "num_frames": 2,
        "num_frames_factor": 1,
        "eval_width": 16,
        "eval_height": 18,
        "n_test_views": 3,
    },
    "system.renderer": {"num_samples_per_ray": 16, "return_comp_normal": True},
    "trainer": {
        "max_steps": 2,
        "val_check_interval": 2,
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "enable_model_summary": False,
    },
}


def subject(path, size=40):
    """An orange ball on nothing."""
    y, x = np.mgrid[:size, :size] - size / 2 + 0.5
    ball = np.full((size, size, 4), (30, 130, 230, 255), np.uint8)
    ball[x**2 + y**2 > (size / 3) ** 2] = 0
    cv2.imwrite(str(path), ball)
    return path


def token(path, width, seed):
    embedding = torch.randn(width, generator=torch.Generator().manual_seed(seed))
    torch.save({"<token>": embedding}, path)
    return path


class World:
    """A working directory with a subject, a learned token and the priors, where stages run."""

    def __init__(self, folder, priors):
        self.folder, self.priors = folder, priors
        self.image = subject(folder / "_rgba.png")
        encoder = json.loads((priors / "sd" / "text_encoder" / "config.json").read_text())
        self.width = encoder["hidden_size"]
        self.token = token(folder / "learned_embeds.bin", self.width, seed=1)

    def overrides(self, config, *others):
        """The command line of a stage; `others` win."""
        stage = int(config.split("stage")[1][0])
        model = "pretrained_model_name_or_path"
        pairs = {
            f"{section}.{key}": value
            for section, keys in SIZES.items()
            for key, value in keys.items()
        }
        pairs |= {
            "data.image.image_path": self.image,
            "system.prompt_processor.prompt": "a panda is dancing",
            f"system.guidance.{model}": self.priors / ("sd" if stage == 1 else "text-to-video"),
        }
        if "deformation-stage2" not in config:  # that one keeps the scene as it is
            pairs[f"system.guidance_3d.{model}"] = self.priors / "zero123"
        if "deformation" in config and "stage1" not in config:
            pairs["system.guidance.unet_name_or_path"] = self.priors / "image-to-video"
        if stage == 3:
            pairs |= {
                f"system.guidance_cn.{model}": self.priors / "sd",
                "system.guidance_cn.controlnet_name_or_path": self.priors / "controlnet-tile",
                "system.prompt_processor_cn.prompt": "a <token> is dancing",
                "system.prompt_processor_cn.learned_embeds_path": self.token,
            }
        return [*(f"{key}={value}" for key, value in pairs.items()), *others]

    def config(self, config, *others):
        """A stage's config, without the stage before."""
        where = [f"exp_root_dir={self.folder}/configs-only", "system.weights=null"]
        path = str(CONFIGS / f"{config}.yaml")
        return load_config(path, cli_args=self.overrides(config, *where, *others))

    def run(self, config, *others, action="--train"):
        """Runs a stage through the launcher; returns its folder."""
        flags = ["--config", str(CONFIGS / f"{config}.yaml"), action]
        args = parser().parse_args(flags)
        return Path(main(args, self.overrides(config, *others), extension="animate124"))


@pytest.fixture(scope="module")
def world(random_priors, tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # outputs/ and the cache of embeddings are relative
        yield World(folder, random_priors)


@pytest.fixture(scope="module")
def stages(world):
    """The folders of one run of the three stages, each from the one before."""
    return [world.run(f"toy/stage{n}") for n in (1, 2, 3)]


def checkpoint(folder, name="last"):
    return torch.load(folder / "ckpts" / f"{name}.ckpt", weights_only=True)


def build(cfg):
    return threestudio.find(cfg.system_type)(cfg.system)


def reference_view(world):
    cfg = world.config("toy/stage1")
    data = threestudio.find(cfg.data_type)(cfg.data)
    data.setup("fit")
    return data.train_dataset.collate(0)["reference"]


def frames(path):
    reader = imageio_ffmpeg.read_frames(str(path))
    width, height = next(reader)["size"]
    return [np.frombuffer(f, np.uint8).reshape(height, width, 3) for f in reader]


def test_checkpoints_carry_the_methods_names(stages):
    for n, folder in enumerate(stages, 1):
        assert [path.name for path in (folder / "ckpts").iterdir()] == ["last.ckpt"]
        saved = checkpoint(folder)
        assert {
            key for key in saved["state_dict"] if "geometry" in key and "bbox" not in key
        } == NAMES
        assert not [key for key in saved["state_dict"] if "guidance" in key or "prompt" in key]
        assert saved["global_step"] == 2
        assert folder.parent.name == f"animate124-toy-stage{n}"
        assert folder.name.startswith("a_panda_is_dancing@")


def test_only_stage_one_leaves_time_alone(stages):
    grids = [checkpoint(folder)["state_dict"] for folder in stages]
    moved = [not torch.equal(a[TIME_GRID], b[TIME_GRID]) for a, b in itertools.pairwise(grids)]
    assert moved == [True, True]
    assert grids[0][TIME_GRID].abs().max() <= 1e-4
    trained = [len(checkpoint(folder)["optimizer_states"][0]["state"]) for folder in stages]
    assert trained == [len(NAMES) - 1, len(NAMES), len(NAMES)]


def test_stage_two_starts_from_exactly_stage_ones_scene(world, stages):
    weights = stages[0] / "ckpts" / "last.ckpt"
    one = build(world.config("toy/stage1", f"system.weights={weights}")).eval()
    two = build(world.config("toy/stage2", f"system.weights={weights}")).eval()
    saved = checkpoint(stages[0])["state_dict"]
    for system in (one, two):
        for key, value in system.state_dict().items():
            assert torch.equal(value, saved[key]), key
    view = reference_view(world)
    with torch.no_grad():
        still, moving = one(view), two(view)
        two.geometry.encoding.encoding.encoding_time.params.zero_()
        at_rest = two(view)
    for key in ("comp_rgb", "opacity", "depth", "comp_normal"):
        torch.testing.assert_close(at_rest[key], still[key], atol=0, rtol=0)
    torch.testing.assert_close(moving["comp_rgb"], still["comp_rgb"], atol=1e-3, rtol=0)


def test_validation_pictures_and_test_videos_are_written(stages):
    for n, folder in enumerate(stages, 1):
        pictures = sorted(path.name for path in (folder / "save").glob("*.png"))
        assert pictures == [f"it2-{view}.png" for view in range(4)]
        assert cv2.imread(str(folder / "save" / "it2-0.png")).shape == (18, 3 * 16, 3)
        layers = ["", "-depth", "-normal"] + (["-frozen"] if n > 1 else [])
        videos = {path.name: frames(path) for path in (folder / "save").glob("*.mp4")}
        assert set(videos) == {f"it2-test{layer}.mp4" for layer in layers}
        length = 3 if n == 1 else 4 * 2  # a circle, or four rounds of two frames
        assert {len(video) for video in videos.values()} == {length}
        assert not list((folder / "save").glob("*frames*"))


@pytest.mark.parametrize(
    ("config", "half", "others"),
    [
        ("toy/stage1", 9, []),  # 16 steps: the occupancy grid is updated on the way
        ("toy/stage1", 1, ["trainer.accumulate_grad_batches=2"]),
        ("toy/stage3", 1, ["data.single_view.zero_rate=0.5"]),
        ("toy/deformation-stage2", 1, []),
        # the second half is fitted to the target that the first one made
        ("toy/deformation-stage2", 2, ["data.single_view.n_clips=1"]),
        ("toy/deformation-stage3", 1, ["data.single_view.zero_rate=0.5"]),
    ],
)
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(world, config, half, others):
    others = [*others, "system.weights=null", f"trainer.max_steps={2 * half}"]
    others += [f"checkpoint.every_n_train_steps={half}", "checkpoint.save_top_k=-1"]
    name = f"{config.replace('/', '-')}-{half}"
    whole = world.run(config, *others, f"tag=whole-{name}", f"trainer.val_check_interval={half}")
    middle = next((whole / "ckpts").glob(f"*step={half}.ckpt"))
    # other validation on the way changes nothing
    others += [f"resume={middle}", "trainer.val_check_interval=1"]
    resumed = world.run(config, *others, f"tag=resumed-{name}")
    start = torch.load(middle, weights_only=True)
    expected, found = checkpoint(whole), checkpoint(resumed)
    assert (start["global_step"], expected["global_step"]) == (half, 2 * half)
    assert found["state_dict"].keys() == expected["state_dict"].keys()
    for key, value in expected["state_dict"].items():
        assert torch.equal(found["state_dict"][key], value), key
    moments = [saved["optimizer_states"][0]["state"].values() for saved in (found, expected)]
    for a, b in zip(*moments, strict=True):
        assert all(torch.equal(a[key], b[key]) for key in b)
    layer = "geometry.density_network.layers.0.weight"
    if config == "toy/deformation-stage2":
        layer = f"{MOTION}whole.twist"
    assert not torch.equal(start["state_dict"][layer], found["state_dict"][layer])


# ---------------------------------------------------------------- a deformation


@pytest.fixture(scope="module")
def deformed(world, stages):
    """The folders of a deformation's stages 2 and 3, from the published method's stage 1."""
    second = world.run(
        "toy/deformation-stage2", f"system.weights={stages[0] / 'ckpts/last.ckpt'}", "tag=deformed"
    )
    weights = f"system.weights={second / 'ckpts/last.ckpt'}"
    return [second, world.run("toy/deformation-stage3", weights, "tag=deformed")]


def test_a_deformation_keeps_the_scene_and_then_refines_it(stages, deformed):
    scene, moved, refined = (checkpoint(f)["state_dict"] for f in (stages[0], *deformed))
    canonical = NAMES - {TIME_GRID}
    motion = {key for key in moved if key.startswith(MOTION)}
    assert {k for k in moved if k.startswith("geometry.")} >= canonical | motion
    assert TIME_GRID not in moved
    assert all(torch.equal(scene[key], moved[key]) for key in canonical)
    assert motion and all(moved[key].any() for key in motion)
    assert all(not torch.equal(refined[key], moved[key]) for key in canonical | motion)


def said_of(monkeypatch, make):
    """The warnings of checkpoints while something is made."""
    said = []
    monkeypatch.setattr(threestudio, "warn", said.append)
    made = make()
    return made, [words for words in said if ".ckpt" in words]


def test_what_a_stage_1_lacks_and_has_is_no_surprise_to_a_deformation(
    world, stages, deformed, monkeypatch
):
    weights = f"system.weights={stages[0] / 'ckpts/last.ckpt'}"
    words = world.config("toy/deformation-stage2", weights)
    system, said = said_of(monkeypatch, lambda: build(words))
    assert said == [] and not system.geometry.deformation.whole.twist.any()
    # ... while stage 3 wants a scene that moves
    _, said = said_of(monkeypatch, lambda: build(world.config("toy/deformation-stage3", weights)))
    assert len(said) == 1 and "Nothing moves in" in said[0]
    weights = f"system.weights={deformed[0] / 'ckpts/last.ckpt'}"
    config = world.config("toy/deformation-stage3", weights)
    system, said = said_of(monkeypatch, lambda: build(config))
    assert said == [] and system.geometry.deformation.whole.twist.any()


def test_a_deformation_refuses_what_the_grid_has_set_in_motion(world, stages):
    weights = stages[1] / "ckpts" / "last.ckpt"
    words = r"HashGridSpatialTime has set in motion .* start from the static scene of stage 1"
    for config in ("toy/deformation-stage2", "toy/deformation-stage3"):
        with pytest.raises(ValueError, match=words):
            build(world.config(config, f"system.weights={weights}"))


def test_a_deformed_scene_is_loaded_and_followed(deformed):
    scene = load_scene(deformed[1] / "configs" / "parsed.yaml", deformed[1] / "ckpts" / "last.ckpt")
    points = torch.rand(50, 3, device=scene.system.device) - 0.5
    places = scene.tracks(points, torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(places[0], points, atol=1e-6, rtol=0)
    assert not scene.static and not torch.allclose(places[1], points, atol=1e-5)


def test_rigidity_of_a_scene_without_deformation_is_refused(world):
    with pytest.raises(ValueError, match=r"system\.loss\.lambda_arap is 1\.0, .*otype=HashGridDef"):
        world.run("toy/stage2", "system.loss.lambda_arap=1.0", "system.weights=null")


# ---------------------------------------------------------------- numbers that are none


def steps_saved(folder):
    return {path.name: torch.load(path)["global_step"] for path in folder.glob("ckpts/*.ckpt")}


def test_a_loss_that_overflows_leaves_the_checkpoint_before_it(world):
    tag = "tag=overflows"
    weights = "system.loss.lambda_rgb=[2,1000.0,1.0e+39,4]"
    steps = ["checkpoint.every_n_train_steps=2", "trainer.limit_val_batches=0"]
    words = (
        r"step 4 is not finite: loss_rgb .* system\.loss\.lambda_rgb .* resume=(\S+last\.ckpt) goes"
    )
    with pytest.raises(FloatingPointError, match=words) as error:
        world.run("toy/stage1", tag, weights, *steps, "trainer.max_steps=8")
    [folder] = Path("outputs/animate124-toy-stage1").glob("overflows*")
    assert steps_saved(folder) == {"last.ckpt": 2}
    # with such a change, it goes on from there
    saved = re.search(words, str(error.value))[1]
    world.run("toy/stage1", "tag=mended", *steps, f"resume={saved}", "trainer.max_steps=3")
    [folder] = Path("outputs/animate124-toy-stage1").glob("mended*")
    assert steps_saved(folder) == {"last.ckpt": 3}


def test_weights_that_overflow_in_the_last_step_are_no_end(world):
    rate = "system.optimizer.params={geometry.density_network: {lr: 1e39}}"
    with pytest.raises(FloatingPointError, match=r"step 1 geometry\.density.* start again"):
        world.run("toy/stage1", "tag=last-step", rate, "trainer.max_steps=1")
    [folder] = Path("outputs/animate124-toy-stage1").glob("last-step*")
    assert steps_saved(folder) == {}


def test_a_nan_in_a_priors_weights_stops_the_run_and_names_the_prior(world, monkeypatch):
    whole = Zero123Guidance.configure

    def configure(prior):  # a file that holds it is refused
        whole(prior)
        prior.network.conv_in.weight.view(-1)[0] = float("nan")

    monkeypatch.setattr(Zero123Guidance, "configure", configure)
    with pytest.raises(
        FloatingPointError, match=r"system\.guidance_3d \(animate124-zero.*start ag"
    ):
        world.run("toy/stage1", "tag=broken-prior")


def test_a_checkpoint_that_is_not_finite_is_refused_everywhere(world, stages, tmp_path):
    saved = checkpoint(stages[0])
    saved["state_dict"]["geometry.density_network.layers.0.weight"][3, 2] = float("nan")
    path = tmp_path / "nan.ckpt"
    torch.save(saved, path)
    refused = pytest.raises(ValueError, match=r"nan\.ckpt.* holds NaN.*density_network")
    for action in ("--train", "--test", "--validate", "--export"):
        with refused:
            world.run("toy/stage1", f"resume={path}", "tag=refused", action=action)
    with refused:
        world.run("toy/stage2", f"system.weights={path}", "tag=refused")
    with refused:
        load_scene(stages[0] / "configs" / "parsed.yaml", path)


def embeddings(processor, count=4):
    angles = torch.zeros(1), torch.zeros(1), torch.full((1,), 2.5)
    return processor().get_text_embeddings(*angles)[:1]


def prompt_processor(cfg, section="prompt_processor"):
    return threestudio.find(cfg.system[f"{section}_type"])(cfg.system[section])


@pytest.mark.parametrize("stage", ["toy/stage1", "toy/stage2"])
def test_another_prompt_is_another_embedding(world, stage):
    key = "system.prompt_processor.prompt"
    first, second, again = (
        embeddings(prompt_processor(world.config(stage, f"{key}={prompt}")))
        for prompt in ("a panda is dancing", "a fox is dancing", "a panda is dancing")
    )
    assert not torch.allclose(first, second)
    assert torch.equal(first, again)


def test_another_token_is_another_embedding(world, tmp_path):
    other = token(tmp_path / "learned_embeds.bin", world.width, seed=2)
    key = "system.prompt_processor_cn.learned_embeds_path"
    cfgs = world.config("toy/stage3"), world.config("toy/stage3", f"{key}={other}")
    first, second = (embeddings(prompt_processor(cfg, "prompt_processor_cn")) for cfg in cfgs)
    assert not torch.allclose(first, second)


# ---------------------------------------------------------------- what options do


def distill(cfg, section, rgb, monkeypatch):
    """One call of a guidance on frames: the shapes its VAE was given, and the frames' gradient."""
    guidance = threestudio.find(cfg.system[f"{section}_type"])(cfg.system[section])
    text = section.replace("guidance", "prompt_processor")
    prompt = prompt_processor(cfg, text)() if f"{text}_type" in cfg.system else None
    given, encode = [], guidance.vae.encode
    monkeypatch.setattr(
        guidance.vae, "encode", lambda x: (given.append(tuple(x.shape)), encode(x))[1]
    )
    n = len(rgb)
    rgb.requires_grad_()
    zeros = torch.zeros(n)
    camera = {
        "elevation": zeros,
        "azimuth": zeros,
        "camera_distances": zeros + 2.5,
        "num_frames": n,
    }
    guidance(rgb, prompt, **camera)["loss_sds"].backward()
    return given, rgb.grad


@pytest.mark.parametrize("size", [32, 64])
def test_fixed_size_is_the_tile_guidances_resolution(world, size, monkeypatch):
    cfg = world.config("toy/stage3", f"system.guidance_cn.fixed_size={size}")
    given, _ = distill(cfg, "guidance_cn", torch.rand(4, 16, 16, 3), monkeypatch)
    assert {shape[2:] for shape in given} == {(size, size)}


@pytest.mark.parametrize("count", [1, 3])
def test_fixed_frames_are_what_the_tile_guidance_looks_at(world, count, monkeypatch):
    cfg = world.config("toy/stage3", f"system.guidance_cn.fixed_frames={count}")
    _, grad = distill(cfg, "guidance_cn", torch.rand(4, 16, 16, 3), monkeypatch)
    assert int(grad.flatten(1).any(1).sum()) == count


@pytest.mark.parametrize(("option", "count"), [(-1, 4), (1, 1), (3, 3)])
def test_low_ram_vae_keeps_the_gradient_of_so_many_frames(world, option, count, monkeypatch):
    cfg = world.config("toy/stage2", f"system.guidance.low_ram_vae={option}")
    _, grad = distill(cfg, "guidance", torch.rand(4, 16, 16, 3), monkeypatch)
    assert int(grad.flatten(1).any(1).sum()) == count


def test_samples_grow_with_num_samples_per_ray(world):
    view, counts = reference_view(world), []
    for n in (16, 64):
        options = [f"system.renderer.num_samples_per_ray={n}", "system.renderer.grid_prune=false"]
        counts.append(len(build(world.config("toy/stage1", *options))(view)["points"]))
    assert counts[1] / counts[0] == pytest.approx(4, rel=0.1)


def test_n_levels_are_the_grids(world):
    key = "system.geometry.pos_encoding_config.n_levels"
    for n in (2, 5):
        geometry = build(world.config("toy/stage1", f"{key}={n}")).geometry
        assert geometry.density_network.layers[0].weight.shape[1] == n * 2


def first_clip(cfg):
    data = threestudio.find(cfg.data_type)(cfg.data)
    data.setup("fit")
    return data.train_dataset.collate(0)


def test_clips_have_their_size_and_length(world):
    sizes = {"width_vid": 12, "height_vid": 10, "num_frames": 5}
    cfg = world.config("toy/stage2", *(f"data.single_view.{k}={v}" for k, v in sizes.items()))
    batch = first_clip(cfg)
    assert batch["clip"]["rays_o"].shape == (5, 10, 12, 3)
    assert batch["clip"]["frame_times"].shape == (5,)
    out = build(cfg)(batch["clip"])
    assert out["comp_rgb"].shape == (5, 10, 12, 3)


@pytest.mark.parametrize("stage", [2, 3])
def test_zeroscope_configs_render_and_distill_wide_clips(world, stage, monkeypatch):
    small = ["data.single_view.num_frames=2", "trainer.precision=32"]
    grid = "system.geometry.pos_encoding_config.log2_hashmap_size=8"
    wide = ["data.single_view.width_vid=144", "data.single_view.height_vid=80"]  # its own
    cfg = world.config(f"animate124-stage{stage}-zs", *small, *wide, grid)
    clip = first_clip(cfg)["clip"]
    assert clip["rays_o"].shape == (2, 80, 144, 3)
    with torch.no_grad():
        rgb = build(cfg)(clip)["comp_rgb"]
    given, grad = distill(cfg, "guidance", rgb, monkeypatch)
    assert {shape[2:] for shape in given} == {(320, 576)}
    assert grad.shape == rgb.shape and grad.any()


@pytest.mark.parametrize(("precision", "reduced"), [("32", False), ("bf16-mixed", True)])
def test_precision_32_trains_without_autocast(world, precision, reduced, monkeypatch):
    system = animate124.system.animate124.Animate124
    step, seen = system.training_step, []

    def watched(self, *args):
        seen.append(torch.is_autocast_enabled("cpu"))
        return step(self, *args)

    monkeypatch.setattr(system, "training_step", watched)
    world.run("toy/stage1", f"trainer.precision={precision}", f"tag=precision-{precision}")
    assert seen == [reduced] * 2


# ---------------------------------------------------------------- bad input


def test_a_checkpoint_of_other_sizes_is_refused(world, stages):
    weights = f"system.weights={stages[0] / 'ckpts' / 'last.ckpt'}"
    levels = "system.geometry.pos_encoding_config.n_levels=3"
    with pytest.raises(ValueError, match=r"encoding\.params: \(\d+,\) in the checkpoint") as error:
        world.run("toy/stage2", weights, levels)
    assert "All stages of a scene share system.geometry" in str(error.value)


def test_resuming_another_stage_is_refused(world, stages):
    with pytest.raises(ValueError, match=r"give its checkpoint as system\.weights"):
        world.run("toy/stage2", f"resume={stages[0] / 'ckpts' / 'last.ckpt'}")
    with pytest.raises(ValueError, match=r"give its checkpoint as system\.weights"):
        world.run("toy/stage3", f"resume={stages[1] / 'ckpts' / 'last.ckpt'}")


def test_stage_three_from_stage_one_is_warned_of(world, stages, caplog, monkeypatch):
    said = []
    monkeypatch.setattr(threestudio, "warn", said.append)
    weights = [f"system.weights={folder / 'ckpts' / 'last.ckpt'}" for folder in stages]
    build(world.config("toy/stage3", weights[1]))
    assert not said
    build(world.config("toy/stage3", weights[0]))
    assert len(said) == 1 and "stage 2's checkpoint would do" in said[0]


def test_looking_at_a_scene_needs_neither_priors_nor_earlier_stages(world, stages, tmp_path):
    alone = tmp_path / "moved.ckpt"
    shutil.copy(stages[1] / "ckpts" / "last.ckpt", alone)
    gone = [f"system.guidance.pretrained_model_name_or_path={tmp_path}/gone"]
    gone += [f"system.weights={tmp_path}/gone@LAST/last.ckpt", f"resume={alone}"]
    folder = world.run("toy/stage2", *gone, f"exp_root_dir={tmp_path}", action="--validate")
    for view in range(4):
        name = f"it2-{view}.png"
        before = cv2.imread(str(stages[1] / "save" / name))
        assert np.array_equal(cv2.imread(str(folder / "save" / name)), before)


def test_kept_frames_are_those_of_the_video(world, stages, tmp_path):
    others = ["system.keep_test_frames=true", "system.test_fps=7", f"exp_root_dir={tmp_path}"]
    last = f"resume={stages[1] / 'ckpts' / 'last.ckpt'}"
    folder = world.run("toy/stage2", last, *others, action="--test")
    video = frames(folder / "save" / "it2-test.mp4")
    pictures = [cv2.imread(str(folder / "save" / "it2-test" / f"{i}.png")) for i in range(8)]
    for frame, picture in zip(video, pictures, strict=True):
        assert np.abs(frame[..., ::-1].astype(int) - picture).mean() < 8
    reader = imageio_ffmpeg.read_frames(str(folder / "save" / "it2-test.mp4"))
    assert next(reader)["fps"] == 7
