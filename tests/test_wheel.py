"""The installed package: a wheel without this checkout, on libraries that are there already."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# what a checkout has beside the package
BESIDE = {"tests", "benchmarks", "docs", "findings", "console", "outputs", "build", "dist"}
BESIDE_FILES = {"setup.py", "pyproject.toml", "constraints.txt", "Makefile"}
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PIP_"))}


def of_the_package() -> set[str]:
    """The files that a wheel has to hold: all of this checkout's rooms, whatever they are."""
    found = set()
    for path in ROOT.rglob("*"):
        place = path.relative_to(ROOT)
        hidden = any(
            p.startswith(".") or p.endswith((".egg-info", "__pycache__")) for p in place.parts
        )
        beside = place.parts[0] in BESIDE | BESIDE_FILES or place.suffix in (".md", ".cff")
        if path.is_file() and not hidden and not beside and place.name != "LICENSE":
            found.add(place.as_posix())
    return found | {p.relative_to(ROOT).as_posix() for p in ROOT.glob("load/**/*.md")}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, so that the checkout stays as it is."""
    folder = tmp_path_factory.mktemp("wheel")
    skip = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "outputs", "build", "dist")
    shutil.copytree(ROOT, folder / "source", ignore=skip)
    pip("wheel", "--no-build-isolation", "-w", folder, folder / "source")
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder of an environment with the wheel, which sees this one's libraries."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    libraries = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "libraries.pth").write_text("\n".join(libraries))
    pip("--python", folder, "install", wheel)
    return folder


def pip(*words: object) -> None:
    """Without a network, and without a look at what the package needs."""
    before, after = words[: words.index("install") + 1] if "install" in words else words[:1], ()
    after = words[len(before) :]
    command = [sys.executable, "-m", "pip", *before, "--no-index", "--no-deps", *after]
    subprocess.run([*map(str, command)], check=True, env=ENVIRONMENT, capture_output=True)


def run(installed: Path, folder: Path, *words: object, code: int = 0) -> str:
    """A command of the environment in a folder; what it prints."""
    command = [str(installed / "bin" / str(words[0])), *map(str, words[1:])]
    environment = {**ENVIRONMENT, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def files(folder: Path) -> set[str]:
    """All below a folder but what Python and numba keep beside a module that was imported."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {path.as_posix() for path in found if "__pycache__" not in path.parts}


def test_a_wheel_has_every_room_and_what_goes_with_it(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    held = {name.removeprefix("animate124/") for name in names if name.startswith("animate124/")}
    assert held == of_the_package()
    assert "animate124_commands.py" in names


def test_the_commands_work_from_any_folder(installed, tmp_path):
    (site,) = installed.glob("lib/python*/site-packages")
    before = files(site)
    panda = site / "animate124" / "load" / "toy-panda" / "image.png"
    shutil.copy(panda, tmp_path / "photo.png")
    prompt = ["photo.png", "--prompt", "a panda is dancing", "--preset", "toy"]

    plan = run(installed, tmp_path, "animate124", *prompt, "--dry-run")
    assert f"{site / 'animate124' / 'launch.py'} --config" in plan and "not here" not in plan
    assert files(tmp_path) == {"photo.png"}

    said = run(installed, tmp_path, "python", "-m", "animate124.textual_inversion", "--help")
    assert said.startswith("usage: python -m animate124.textual_inversion")

    short = [
        "trainer.max_steps=2",
        "trainer.val_check_interval=2",
        "data.single_view.n_test_views=2",
    ]
    words = ["--config", "toy/stage1.yaml", "--train", "use_timestamp=false", "tag=a", *short]
    said = run(installed, tmp_path, "animate124-launch", *words)
    assert "Done: outputs/" in said
    assert list(tmp_path.glob("outputs/*/a/ckpts/last.ckpt"))
    assert list(tmp_path.glob(".threestudio_cache/*/*.safetensors"))
    said = run(installed, tmp_path, "animate124-launch", *words, "--config", "stage1.yaml", code=1)
    assert "There is no config 'stage1.yaml'; animate124 has toy/stage1.yaml" in said
    assert files(site) == before
