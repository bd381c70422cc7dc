"""animate.py: its command line, and one run with every step for real (two training steps each).

To save the time that a process takes to import everything, launch.py and image_preprocess.py run
in this one; the others are processes as usual.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import cv2
import imageio_ffmpeg
import numpy as np
import pytest
import threestudio.launch
from animate124.pipeline import command, process
from animate124.pipeline.places import ROOT
from animate124.pipeline.presets import PRESETS
from animate124.pipeline.process import Outcome
from animate124.pipeline.request import parser
from animate124.preprocess import command as preprocess

PROMPT = "a panda is dancing"
TASKS = PRESETS["toy"].tasks
STAGES = [stage.name for stage in PRESETS["toy"].stages]
FEW = [
    "preprocess.size=64",
    "token.max_train_steps=2",
    "token.num_validation_images=0",
    *(f"{stage}.trainer.max_steps=2" for stage in STAGES),
    *(f"{stage}.trainer.log_every_n_steps=1" for stage in STAGES),
    "stage3.trainer.limit_test_batches=1.0",
    "stage3.data.single_view.num_frames_factor=1",
    "result.size=64",
    "result.frames=4",
]


def script(name):
    """A script of the checkout, as a module."""
    spec = importlib.util.spec_from_file_location(Path(name).stem, ROOT / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def go(*words):
    """animate.py's main, in this process, which has imported everything; the exit code."""
    words = [str(word) for word in words]
    return command.run(parser().parse_intermixed_args(words), ["animate.py", *words])


def photo(path, size=96):
    """A dark ball before a light wall."""
    y, x = np.mgrid[:size, :size] - size / 2 + 0.5
    picture = np.full((size, size, 3), 235, np.uint8)
    picture[x**2 + y**2 < (size / 3) ** 2] = (30, 60, 130)
    cv2.imwrite(str(path), picture)
    return path


def frames(path):
    reader = imageio_ffmpeg.read_frames(str(path))
    width, height = next(reader)["size"]
    return [np.frombuffer(f, np.uint8).reshape(height, width, 3) for f in reader]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a scene after a whole run, the commands that ran, and what was printed before
    by --dry-run."""
    folder = tmp_path_factory.mktemp("animate")
    words = [photo(folder / "ball.png"), "--prompt", PROMPT, "--preset", "toy"]
    words += ["--out", folder / "out", *FEW]
    dry = subprocess.run(
        [sys.executable, ROOT / "animate.py", *map(str, words), "--dry-run"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert dry.returncode == 0, dry.stderr
    assert not (folder / "out").exists()
    ran = []
    run = process.run
    here = {
        "launch.py": lambda words: threestudio.launch.run(words, extension="animate124"),
        "image_preprocess.py": preprocess.main,
    }

    def run_here(words, *rest, **more):
        ran.append(words)
        if words[1] in here:
            return Outcome(here[words[1]](words[2:]), 1.0, {"host": 1.0})
        return run(words, *rest, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)  # where tasks run
        patch.setattr(process, "run", run_here)
        assert go(*words) == 0
        first = list(ran)
        assert go(*words) == 0
        assert ran == first  # the second time nothing ran
    return folder / "out" / "ball-a_panda_is_dancing", first, dry.stdout, words


def test_the_tasks_ran_as_the_dry_run_said(finished):
    _, ran, dry, _ = finished
    assert len(ran) == len(TASKS)
    plain = dry.replace("'", "")
    for line in ran:
        assert " ".join(line[1:]) in plain


def test_the_videos_show_the_scene(finished):
    folder = finished[0]
    result = folder / "result"
    counts = {"animation.mp4": 8, "reference_view.mp4": 4, "turntable.mp4": 4}
    for name, count in counts.items():
        assert len(frames(result / name)) == count
    # the launcher's own test video, which was asked for, begins with azimuth 0, tau 0, too
    theirs = frames(folder / "stage3" / "save" / "it2-test.mp4")[0].astype(float)
    for name in counts:
        ours = frames(result / name)[0].astype(float)
        assert np.abs(ours - theirs).mean() < 2
    assert not [*folder.glob("stage[12]/save/*.mp4")], "the result has the videos"
    assert theirs.std() > 10  # there is something to see
    sheet = cv2.imread(str(result / "contact_sheet.png"))
    assert sheet.shape[0] > 4 * 192 and sheet.shape[1] > 5 * 192


def test_the_report_has_every_task(finished):
    facts = json.loads((finished[0] / "result" / "report.json").read_text())
    tasks = {task["name"]: task for task in facts["steps"]}
    assert tuple(tasks) == TASKS
    for task in tasks.values():
        assert task["state"] == "done"
        assert task["seconds"] > 0 and task["peak_memory_gb"]["host"] > 0
    for name in ("token", *STAGES):
        assert tasks[name]["steps"] == 2
        assert all(len(loss["curve"]) <= 2 for loss in tasks[name]["losses"].values())
    assert "loss_cn_sds" in tasks["stage3"]["losses"]
    assert set(facts["files"]) == {p.name for p in (finished[0] / "result").glob("*.*g*")} | {
        "animation.mp4",
        "reference_view.mp4",
        "turntable.mp4",
    }


def test_a_change_of_stage_3_leaves_the_rest_alone(finished, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)  # elsewhere a plan also says where its commands run
    words = finished[3]
    assert go(*words, "stage3.seed=1", "--dry-run") == 0
    out = capsys.readouterr().out
    states = dict(line[2:].split(": ", 1) for line in out.splitlines() if line.startswith("# "))
    assert [states[name] for name in TASKS] == ["done"] * 4 + ["runs"] * 3


def test_help_names_presets_and_tasks():
    text = parser().format_help()
    for word in (*PRESETS, *TASKS):
        assert word in text


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--prompt", PROMPT], "One image is needed, none"),
        (["a.png", "b.png", "--prompt", PROMPT], "a.png, b.png"),
        (["nowhere.png", "--prompt", PROMPT], "no image nowhere.png"),
        (["IMAGE"], "--prompt is needed"),
        (["IMAGE", "--prompt", PROMPT, "--preset", "toi"], "did you mean toy"),
        (["IMAGE", "--prompt", PROMPT, "--until", "stage"], "stage1"),
        (["IMAGE", "--prompt", PROMPT, "--from", "stage3", "--until", "stage1"], "after"),
        (["IMAGE", "--prompt", PROMPT, "stage2.trainer.max_step=1"], "max_steps"),
        (["IMAGE", "--prompt", PROMPT, "--slurm-time", "9"], "--batch"),
        (["IMAGE", "--prompt", PROMPT, "result.size=abc"], "result.size=abc"),
        (["--batch", "nowhere.csv"], "no table"),
        (["IMAGE", "--batch", "nowhere.csv"], "those of the table"),
    ],
)
def test_errors_are_one_message(words, says, tmp_path, capsys):
    image = photo(tmp_path / "ball.png")
    words = [image if word == "IMAGE" else word for word in words]
    assert go(*words, "--out", tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert says in said and said.startswith("error: ") and "Traceback" not in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("stage2.trainer.max_step", ["5", "max_steps"]),
        ("preset", ["toys", "did you mean toy"]),
        ("vram", ["lots", "--vram: 'lots'"]),
        ("token.learning_rate", ["-1", "token.learning_rate=-1"]),
        ("until", ["stage7", "stage1"]),
    ],
)
def test_a_tables_rows_are_checked_before_the_first_scene(column, values, tmp_path, capsys):
    table, (value, says) = tmp_path / "scenes.csv", values
    picture = photo(tmp_path / "ball.png")
    good = {"until": "token", "preset": "toy", "vram": "16GB"}.get(column, "")
    table.write_text(f"image,prompt,{column}\n{picture},a,{good}\n{picture},{PROMPT},{value}\n")
    options = ["--preset", "toy", "--subject", "panda", "--refine-prompt", "<token>"]
    assert go("--batch", table, *options, "--out", tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert "row 3: " in said and says in said and (good == "" or "row 2" not in said)
    assert not (tmp_path / "out").exists()


def test_a_table_is_printed_as_command_lines(tmp_path, capsys):
    table = tmp_path / "scenes.csv"
    table.write_text(f"image,prompt\n{photo(tmp_path / 'ball.png')},{PROMPT}\n")
    words = ["--batch", table, "--preset", "toy", "--fast", "stage1.seed=3", "--dry-run"]
    assert go(*words) == 0
    line = capsys.readouterr().out
    assert "--preset toy" in line and "--fast" in line and "stage1.seed=3" in line
    assert Path(table).parent.name in line
