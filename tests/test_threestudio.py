"""The extension in an unmodified threestudio: `THREESTUDIO_ROOT=<checkout> make test-threestudio`.

Everything runs in processes of their own, with the libraries of threestudio's time: by the Python
that THREESTUDIO_PYTHON names, or .venv-threestudio, which tests/threestudio_host/install.sh makes.
They run in a folder that has nothing but custom/threestudio-animate124, a link to this repository:
launch.py looks for `custom` where it is started, so that the checkout stays as it is."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

REPOSITORY = Path(__file__).parents[1]
HOST = REPOSITORY / "tests" / "threestudio_host"
CHECKOUT = os.environ.get("THREESTUDIO_ROOT")
PYTHON = os.environ.get("THREESTUDIO_PYTHON") or REPOSITORY / ".venv-threestudio/bin/python"

pytestmark = [
    pytest.mark.threestudio,
    pytest.mark.skipif(
        not CHECKOUT, reason="THREESTUDIO_ROOT isn't set to a checkout of threestudio"
    ),
    pytest.mark.skipif(
        not Path(PYTHON).exists(), reason=f"no {PYTHON}: `make test-threestudio` installs it"
    ),
]

OURS = {
    "animate124-system",
    "animate124-implicit-volume",
    "animate124-nerf-volume-renderer",
    "animate124-image-video-combined-camera-datamodule",
    "animate124-image-guidance",
    "animate124-zero123-guidance",
    "animate124-animatediff-guidance",
    "animate124-cogvideox-guidance",
    "animate124-cogvideox-image-guidance",
    "animate124-stable-zero123-guidance",
    "animate124-svd-guidance",
    "animate124-zeroscope-guidance",
    "animate124-image-to-video-guidance",
    "animate124-controlnet-tile-guidance",
    "animate124-ltx-guidance",
    "animate124-ltx-prompt-processor",
    "animate124-wan-guidance",
    "animate124-skyreels-guidance",
    "animate124-wan-ti2v-guidance",
    "animate124-wan-vace-guidance",
    "animate124-wan-prompt-processor",
    "animate124-prompt-processor",
    "animate124-cogvideox-prompt-processor",
    "animate124-zeroscope-prompt-processor",
    "animate124-textual-inversion-prompt-processor",
    "animate124-4d-exporter",
}
STEPS = 3
PROMPT = "a panda is dancing"
TINY = [  # overrides that make three steps and a test video take seconds
    f"trainer.max_steps={STEPS}",
    f"trainer.val_check_interval={STEPS}",
    "data.single_view.eval_width=16",
    "data.single_view.eval_height=16",
    f"system.prompt_processor.prompt={PROMPT}",
]
TINY_VIDEO = ["data.single_view.num_frames_factor=1", "data.single_view.zero_rate=1.0"]


def run(command, folder, **environment) -> str:
    """Runs a process there; its output, or a failure that shows it."""
    result = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=os.environ
        | {
            "HF_HUB_OFFLINE": "1",
            "WANDB_MODE": "disabled",
            "PYTHONDONTWRITEBYTECODE": "1",  # the checkout stays unmodified
            "HYPOTHESIS_STORAGE_DIRECTORY": str(folder / ".hypothesis"),  # likewise
            "PYTHONWARNINGS": "ignore",
            "OMP_NUM_THREADS": str(torch.get_num_threads()),
        }
        | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, f"{command}\n{result.stdout[-6000:]}"
    return result.stdout


def files_of(checkout) -> dict:
    """Every file's size and time of change; without .git, whose index `git status` refreshes."""
    files = [path for path in Path(checkout).rglob("*") if path.is_file()]
    stats = {path: path.stat() for path in files if ".git" not in path.parts}
    return {path: (stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The working folder: the extension in custom/, a picture of a disc."""
    before = files_of(CHECKOUT)
    folder = tmp_path_factory.mktemp("threestudio")
    (folder / "custom").mkdir()
    (folder / "custom" / "threestudio-animate124").symlink_to(REPOSITORY)
    image = Image.new("RGBA", (64, 64))
    ImageDraw.Draw(image).ellipse((16, 12, 48, 52), fill=(200, 120, 40, 255))
    image.save(folder / "disc_rgba.png")
    # threestudio's Zero123 reads its pipeline from there, where it is started
    (folder / "extern").symlink_to(Path(CHECKOUT).resolve() / "extern")
    yield folder
    assert files_of(CHECKOUT) == before, "the checkout was modified"


def launch(place, *arguments) -> str:
    """The checkout's launch.py, from a folder of a user's own."""
    root = Path(CHECKOUT).resolve()
    return run(
        [PYTHON, HOST / "on_cpu.py", root, root / "launch.py", *arguments, "--gpu", "0"], place
    )


def stage(number, priors, place, field="") -> list[str]:
    """Config and overrides of a toy stage on the random priors; field: how its name begins."""
    system = {
        1: {"guidance": "sd", "guidance_3d": "zero123"},
        2: {"guidance": "text-to-video", "guidance_3d": "zero123"},
        3: {"guidance": "text-to-video", "guidance_3d": "zero123", "guidance_cn": "sd"},
    }[number]
    if field and number == 2:
        del system["guidance_3d"]  # it asks the video prior alone
    paths = [
        f"system.{name}.pretrained_model_name_or_path={priors / model}"
        for name, model in system.items()
    ]
    if number == 1:
        paths.append("data.single_view.n_test_views=2")
    else:
        before = f"animate124-toy-{field}stage{number - 1}"
        previous = f"outputs/{before}/{PROMPT}@LAST/ckpts/last.ckpt"
        paths += [f"system.weights={previous}", *TINY_VIDEO]
    if field and number > 1:
        paths.append(f"system.guidance.unet_name_or_path={priors / 'image-to-video'}")
    if number == 3:
        tile = priors / "controlnet-tile"
        paths.append(f"system.guidance_cn.controlnet_name_or_path={tile}")
    return [
        "--config",
        f"custom/threestudio-animate124/configs/toy/{field}stage{number}.yaml",
        f"data.image.image_path={place / 'disc_rgba.png'}",
        *TINY,
        *paths,
    ]


def train(place, priors, field="") -> dict[int, tuple[str, Path]]:
    """Output and trial folder of the three stages, each started from the one before."""
    done = {}
    for number in (1, 2, 3):
        output = launch(place, *stage(number, priors, place, field), "--train")
        [trial] = (place / "outputs" / f"animate124-toy-{field}stage{number}").iterdir()
        done[number] = output, trial
    return done


@pytest.fixture(scope="module")
def stages(place, random_priors):
    return train(place, random_priors)


@pytest.fixture(scope="module")
def deformed(place, random_priors):
    return train(place, random_priors, "deformation-")


def checkpoint(trial) -> dict:
    return torch.load(trial / "ckpts/last.ckpt", map_location="cpu", weights_only=False)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_each_stage_trains_in_threestudios_launcher(stages, number):
    output, trial = stages[number]
    assert "threestudio-animate124" in output and "IMPORT FAILED" not in output
    state = checkpoint(trial)
    names = set(state["state_dict"])
    for grid in ("encoding", "encoding_time"):
        assert f"geometry.encoding.encoding.{grid}.params" in names
    check_trained(state, trial)


def check_trained(state, trial):
    assert state["global_step"] == STEPS
    names = set(state["state_dict"])
    for network in ("density_network", "feature_network"):
        assert {f"geometry.{network}.layers.{layer}.weight" for layer in (0, 2)} <= names
    assert all(
        torch.isfinite(v).all() for v in state["state_dict"].values() if v.is_floating_point()
    )
    assert list((trial / "save").rglob("*.mp4")), "no test video"
    assert list((trial / "save").glob("*.png")), "no validation picture"


def test_the_deformation_trains_in_threestudios_launcher(deformed):
    """Stage 2 moves D and nothing else, stage 3 the scene too."""
    states = {number: checkpoint(trial) for number, (_, trial) in deformed.items()}
    for number, (_, trial) in deformed.items():
        check_trained(states[number], trial)
    one, two, three = (states[number]["state_dict"] for number in (1, 2, 3))
    canonical = [key for key in two if key in one and key.startswith("geometry.")]
    assert any("encoding.encoding.encoding." in key for key in canonical)
    assert all(torch.equal(two[key], one[key]) for key in canonical)
    assert not all(torch.equal(three[key], one[key]) for key in canonical)
    motion = [key for key in two if ".deformation." in key and two[key].is_floating_point()]
    assert any(two[key].any() for key in motion)
    assert any(not torch.equal(three[key], two[key]) for key in motion)


@pytest.mark.parametrize("number", [2, 3])
def test_a_stage_starts_from_the_newest_run_of_the_one_before(stages, number):
    """Three Adam steps of 1e-4 move no entry of the space grid by more than about 3e-4."""
    before, after = (checkpoint(stages[n][1])["state_dict"] for n in (number - 1, number))
    grid = "geometry.encoding.encoding.encoding.params"
    assert before[grid].abs().max() > 1e-3  # stage 1 has moved it far from its start
    assert (after[grid] - before[grid]).abs().max() < 1e-3
    time_grid = "geometry.encoding.encoding.encoding_time.params"
    assert not torch.equal(after[time_grid], before[time_grid])


def test_export_writes_assets_through_threestudios_saver(stages, place, random_priors):
    _, trial = stages[3]
    launch(
        place,
        *stage(3, random_priors, place),
        "--export",
        f"resume={trial / 'ckpts/last.ckpt'}",
        "tag=exported",
        "system.exporter.num_frames=2",
        "system.exporter.resolution=24",
        "system.exporter.save_video=true",
    )
    [exported] = (place / "outputs/animate124-toy-stage3").glob("exported*")
    folder = exported / "save" / f"it{STEPS}-export"
    assert (folder / "animation.glb").read_bytes()[:4] == b"glTF"
    assert len(list((folder / "points").glob("*.ply"))) == 2
    assert list((exported / "save").rglob("*.mp4")), "save_video wrote no video"


def published(name, priors, place) -> list[str]:
    """Config and overrides of a config with the original's key names, which names modules of
    threestudio's own; these have their sizes and load fp16 files unless told not to."""
    still = "stage1" in name
    model = "pretrained_model_name_or_path"
    values = {
        "data.image.image_path": place / "disc_rgba.png",
        "data.image.width": 16,
        "data.image.height": 16,
        "data.single_view.width": 16,
        "data.single_view.height": 16,
        "system.geometry.pos_encoding_config.log2_hashmap_size": 10,
        "system.renderer.num_samples_per_ray": 16,
        "system.guidance.half_precision_weights": "false",
        f"system.guidance.{model}": priors / ("sd" if still else "text-to-video"),
        f"system.prompt_processor.{model}": priors / ("sd" if still else "text-to-video"),
        "system.guidance_3d.half_precision_weights": "false",
        f"system.guidance_3d.{model}": priors / "zero123",
        "trainer.precision": 32,
    }
    if still:
        values["data.single_view.n_test_views"] = 2
    else:
        values |= {
            "system.weights": "null",
            "data.single_view.num_frames": 2,
            "data.single_view.width_vid": 16,
            "data.single_view.height_vid": 16,
            "system.guidance.width": 64,
            "system.guidance.height": 64,
        }
    if "stage3" in name:
        values |= {
            f"system.guidance_cn.{model}": priors / "sd",
            "system.guidance_cn.controlnet_name_or_path": priors / "controlnet-tile",
            "system.guidance_cn.fixed_size": 64,
            f"system.prompt_processor_cn.{model}": priors / "sd",
            "system.prompt_processor_cn.prompt": "a panda is dancing",
            "system.prompt_processor_cn.learned_embeds_path": "null",
        }
    return [
        "--config",
        f"custom/threestudio-animate124/tests/published/animate124-{name}.yaml",
        *TINY,
        *([] if still else TINY_VIDEO),
        *(f"{key}={value}" for key, value in values.items()),
    ]


PUBLISHED = ["stage1", "stage2-ms", "stage2-zs", "stage3-ms", "stage3-zs"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_configs_with_the_originals_keys_run_in_threestudio(name, place, random_priors):
    """With threestudio's own modules where they name such, and goes on from what they wrote."""
    tag = ["use_timestamp=false", f"tag={name}"]
    output = launch(place, *published(name, random_priors, place), *tag, "--train")
    assert "These keys of the original mean nothing here: " in output
    assert "system.stage" in output and "data.prob_single_view_video=" in output
    own = "system.guidance.guidance_type" not in output if name == "stage1" else True
    assert own, "a key that threestudio's own guidance reads was taken from it"
    trial = place / "outputs" / f"animate124-{name[:6]}" / name
    assert checkpoint(trial)["global_step"] == STEPS
    assert list((trial / "save").rglob("*.mp4"))


def test_a_checkpoint_of_the_original_is_resumed_in_threestudio(place, random_priors):
    """Its state dict has the grids twice."""
    trial = place / "outputs/animate124-stage1/stage1"
    held = checkpoint(trial)
    for grid in ("encoding", "encoding_time"):
        params = held["state_dict"][f"geometry.encoding.encoding.{grid}.params"]
        held["state_dict"][f"geometry_encoding.{grid}.params"] = params
    del held["animate124_stage"]
    theirs = place / "theirs.ckpt"
    torch.save(held, theirs)
    more = [f"resume={theirs}", f"trainer.max_steps={STEPS + 1}", "use_timestamp=false", "tag=more"]
    launch(place, *published("stage1", random_priors, place), *more, "--train")
    resumed = checkpoint(place / "outputs/animate124-stage1/more")
    assert resumed["global_step"] == STEPS + 1
    assert not [key for key in resumed["state_dict"] if key.startswith("geometry_encoding.")]
    small = ["system.exporter.num_frames=1", "system.exporter.resolution=24"]
    for action, options in (("--test", []), ("--export", small)):
        more = [f"resume={theirs}", "use_timestamp=false", f"tag=more{action}", *options]
        launch(place, *published("stage1", random_priors, place), *more, action)
        saved = place / "outputs/animate124-stage1" / f"more{action}" / "save"
        assert list(saved.rglob("*.mp4" if action == "--test" else "*.glb"))


@pytest.fixture(scope="module")
def probes(place, random_priors):
    """What probe.py found in the bundled host (newest libraries) and in threestudio (its own)."""
    arguments = ["--priors", random_priors, "--image", place / "disc_rgba.png"]
    bundled, real = place / "bundled.npz", place / "real.npz"
    run([sys.executable, HOST / "probe.py", bundled, *arguments], place)
    root = Path(CHECKOUT).resolve()
    run([PYTHON, HOST / "probe.py", real, *arguments, "--checkout", root], place)
    return dict(np.load(bundled)), dict(np.load(real))


def test_both_hosts_have_our_modules_and_no_name_of_ours_is_threestudios(probes):
    bundled, real = (set(found["registered"].tolist()) for found in probes)
    assert {name for name in real if name.startswith("animate124-")} == OURS
    assert bundled >= OURS
    # all that the bundled host has besides are names of threestudio's own
    assert bundled - OURS <= real - OURS


def test_both_hosts_render_the_same(probes):
    bundled, real = probes
    names = [name for name in bundled if "/render/" in name]
    assert len(names) == 8
    for name in names:
        assert bundled[name].std() > 0.01, f"{name} shows nothing"
        np.testing.assert_allclose(real[name], bundled[name], atol=1e-4, err_msg=name)
    still, moving = bundled["stage1/render/comp_rgb"], bundled["stage3/render/comp_rgb"]
    assert np.abs(still - moving)[1:].max() > 0.01  # the time grid shows


def assert_close(actual, expected, name=""):
    """Equal to 1e-4 of the largest value."""
    largest = np.abs(expected).max()
    assert largest > 0, f"{name} is zero"
    np.testing.assert_allclose(actual, expected, atol=1e-4 * largest, rtol=0, err_msg=name)


def test_every_guidance_gives_the_same_gradient_in_both_hosts_and_library_sets(probes):
    bundled, real = probes
    names = [name for name in bundled if name.endswith(("/gradient", "/loss"))]
    assert len(names) == 8
    for name in names:
        assert_close(real[name], bundled[name], name)


def test_ours_and_threestudios_own_prompts_and_guidance_take_each_other(probes):
    """Same embeddings, so that a guidance can't tell whose prompt it was given."""
    _, real = probes
    assert_close(real["embeddings/ours"], real["embeddings/stock"])
    for guidance in ("ours", "stock"):
        ours, stock = (real[f"gradient/{guidance} on {prompt}"] for prompt in ("ours", "stock"))
        assert_close(ours, stock, guidance)


PARTS = ("guidance", "conditions", "terms", "frozen", "sds", "models", "prompt", "textual")
PARTS += ("random_priors", "exporter")


@pytest.mark.parametrize("host", ["bundled host", "threestudio"])
def test_guidance_and_prompt_tests_pass_with_threestudios_libraries(place, host):
    """The same test files, run by the old Python."""
    tests = REPOSITORY / "tests"
    files = [f for f in sorted(tests.glob("test_*.py")) if any(part in f.name for part in PARTS)]
    assert len(files) >= 5
    packages = place / "packages"
    packages.mkdir(exist_ok=True)
    if not (packages / "animate124").exists():
        (packages / "animate124").symlink_to(REPOSITORY)
    prepared = [HOST / "on_cpu.py", Path(CHECKOUT).resolve()] if host == "threestudio" else []
    options = ["-q", "-p", "no:cacheprovider", "-c", tests / "pytest.ini"]
    command = [PYTHON, *prepared, "-m", "pytest", *options, *files]
    output = run(command, place, PYTHONPATH=str(packages))
    assert " passed" in output
