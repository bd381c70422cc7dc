"""What runs again and what doesn't. A fake runner stands for the tasks' processes: it writes what a
task would, from a hash of its command's inputs, and remembers the commands."""

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import animate124
import numpy as np
import pytest
import torch
from animate124.events import Message
from animate124.pipeline import lock, process, run
from animate124.pipeline.command import go_on
from animate124.pipeline.manifest import Manifest
from animate124.pipeline.overrides import by_task
from animate124.pipeline.plan import make_plan
from animate124.pipeline.presets import PRESETS
from animate124.pipeline.process import STOPPED, Interrupt, Outcome
from animate124.pipeline.request import Request
from animate124.pipeline.run import TaskFailed, beginning, describe, run_request
from animate124.pipeline.subject import caption
from PIL import Image

PANDA = Path(animate124.__file__).parent / "load" / "toy-panda" / "image.png"
TASKS = PRESETS["toy"].tasks
STAGES = [stage.name for stage in PRESETS["toy"].stages]
GO_ON = ["python", "animate.py", "again"]
PICTURE = np.zeros((8, 8, 4), np.uint8)
PLAYBACK = {"frames": 4, "fps": 2, "seconds": 2.0, "loop": False, "camera": "turn"}
PLAYBACK |= {"end_to_start": 1.5, "largest_step": 2.0}


class Runner:
    """Instead of `process.run`. `fails` and `stops`: names of tasks that end so, once."""

    def __init__(self):
        self.folder = None  # the scene's
        self.ran = []  # (task, whether it went on)
        self.fails, self.stops = set(), set()
        self.caption = None

    def __call__(
        self, command, cwd, environment, log, interrupt, on_line, tick, note, on_event, start
    ):
        name = log.stem
        folders = {"preprocess": "input", "assets": "result"}
        task = self.folder / folders.get(name, name)
        words = " ".join(command)
        again = "resume=" in words or "--resume_from_checkpoint" in words
        self.ran.append((name, again))
        task.mkdir(parents=True, exist_ok=True)
        on_line("a line")
        on_event(Message("words", "warning"))
        if name in self.fails | self.stops:
            if name in STAGES:
                write_checkpoint(task / "ckpts" / "last.ckpt", "half")
            elif name == "token":
                write(task / "checkpoint-500" / "state.pt", "half")
            interrupt.asked = name in self.stops
            code = STOPPED if name in self.stops else 3
            self.fails.discard(name)
            self.stops.discard(name)
            return Outcome(code, 1.0, {"host": 2.0})
        content = digest(command, self.folder)
        if name == "preprocess":
            Image.fromarray(PICTURE + int(content[:2], 16)).save(task / "_rgba.png")
            if self.caption:
                write(task / "_caption.txt", self.caption)
        elif name == "token":
            learn(task / "learned_embeds.bin", list(bytes.fromhex(content)))
        elif name in STAGES:
            write(task / "ckpts" / "last.ckpt", content)
            write(task / "configs" / "parsed.yaml", content)
            write(task / "csv_logs" / "version_0" / "metrics.csv", "step,train/loss_rgb\n1,0.5\n")
        elif name == "assets":
            write(task / "animation.glb", content)
        else:
            static = "stage1" in words
            names = ["turntable.mp4"] if static else ["turntable.mp4", "animation.mp4"]
            for file in [*names, *([] if static else ["reference_view.mp4"])]:
                write(task / file, content)
            if not static:
                write(task / "playback.json", json.dumps(PLAYBACK))
            Image.fromarray(PICTURE).save(task / "contact_sheet.png")
        return Outcome(0, 1.0, {"host": 1.0})

    def take(self):
        """The names of what ran since the last call."""
        ran, self.ran = self.ran, []
        return [name for name, _ in ran]


def digest(command, folder):
    """Of a command's words, and of what is in the files and folders that they name."""
    found = hashlib.sha256(" ".join(command).replace(str(folder.parents[1]), "").encode())
    for word in command:
        path = Path(word.rpartition("=")[2])
        ours = folder.is_relative_to(path) or path.is_relative_to(folder)
        model = path.is_dir() and path.is_relative_to(folder.parents[1]) and not ours
        files = sorted(path.rglob("*")) if model else [path]
        for file in files:
            if file.is_file():
                found.update(file.read_bytes())
    return found.hexdigest()


def learn(path, vector):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"<token>": torch.tensor(vector, dtype=torch.float32)}, path)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_checkpoint(path, text):
    """A zip with checksums, as torch.save writes them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", text)


def files_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


class World:
    def __init__(self, tmp_path, runner):
        self.image = tmp_path / "ball.png"
        shutil.copy(PANDA, self.image)
        self.out, self.runner = tmp_path / "out", runner
        runner.folder = self.folder

    def request(self, *words, prompt="a panda is dancing", **options):
        return Request(
            self.image,
            prompt,
            **{"out": self.out, "preset": "toy", "overrides": by_task(words), **options},
        )

    def go(self, *words, **options):
        """Runs; returns the names of the tasks that ran."""
        self.code = run_request(self.request(*words, **options), GO_ON, Interrupt())
        return self.runner.take()

    @property
    def folder(self):
        return self.request().folder


@pytest.fixture
def world(tmp_path, monkeypatch):
    world = World(tmp_path, Runner())
    monkeypatch.setattr(process, "run", world.runner)
    return world


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The output folder of a whole run."""
    world = World(tmp_path_factory.mktemp("finished"), Runner())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process, "run", world.runner)
        world.go()
    return world.out


@pytest.fixture
def done(world, finished):
    """A world in which everything was run; a scene's folder may be copied."""
    shutil.copytree(finished, world.out)
    return world


def test_everything_runs_once_and_in_order(world):
    assert tuple(world.go()) == TASKS
    assert world.code == 0
    assert world.go() == []
    assert world.go(gpu="cpu") == []  # where it runs plays no part
    assert (world.folder / "result" / "report.html").is_file()


@pytest.mark.parametrize(
    ("words", "options", "runs"),
    [
        (["stage3.system.loss.lambda_rgb=5"], {}, ["stage3", "result", "assets"]),
        (["stage2.seed=1"], {}, ["stage2", "stage3", "result", "assets"]),
        (["result.size=9"], {}, ["result"]),
        (["result.frames=9"], {}, ["result", "assets"]),
        (["assets.faces=9"], {}, ["assets"]),
        (["token.seed=3"], {}, ["token", "stage3", "result", "assets"]),
        ([], {"refine_prompt": "the <token> is dancing"}, ["stage3", "result", "assets"]),
        ([], {"static_prompt": "a toy"}, [*STAGES, "result", "assets"]),
        ([], {"fast": True}, list(TASKS[1:])),
        (["preprocess.size=64"], {}, list(TASKS)),
    ],
)
def test_a_change_reruns_what_depends_on_it_and_nothing_else(words, options, runs, done):
    assert done.go(*words, **options) == runs


def test_another_picture_reruns_everything_and_the_same_one_elsewhere_nothing(done):
    shutil.copy(done.image, done.image.with_suffix(".copy"))
    done.image.write_bytes(done.image.with_suffix(".copy").read_bytes())  # a new time stamp
    assert done.go() == []
    with Image.open(PANDA) as picture:
        picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(done.image)
    assert done.go() == list(TASKS)


def test_the_manifest_decides_and_not_a_files_existence(done, capsys):
    write(done.folder / "stage2" / "ckpts" / "last.ckpt", "of someone else")
    assert done.go() == ["stage2"]  # its new checkpoint is the old one, so the rest stands
    said = capsys.readouterr().out
    assert "stage2: stage2/ckpts/last.ckpt isn't what it wrote any more" in said
    kept = done.folder / "earlier" / "stage2-1"
    assert f"stage2: what it made before is kept in {kept}" in said
    assert (kept / "ckpts" / "last.ckpt").read_text() == "of someone else"
    (done.folder / "token" / "learned_embeds.bin").unlink()
    assert done.go() == ["token"]
    (done.folder / "manifest.json").unlink()
    assert done.go() == list(TASKS)


@pytest.mark.parametrize(("before", "now"), [("grid", "deformation"), ("deformation", "grid")])
def test_a_scene_of_another_field_is_trained_anew_and_the_person_is_told(
    world, before, now, capsys
):
    world.go(field=before)
    kept = (world.folder / "stage3" / "ckpts" / "last.ckpt").read_text()
    told = f"stage1, stage2, stage3: trained with --field {before}, which takes them as they are"
    said = describe(make_plan(world.request(field=now)), beginning(world.request(field=now)))
    assert f"# {told}" in said and f"field {now}" in said
    again = describe(make_plan(world.request(field=before)), beginning(world.request(field=before)))
    assert "trained with" not in again and world.go(field=before) == []
    capsys.readouterr()
    assert world.go(field=now) == [
        *STAGES,
        "result",
        "assets",
    ]  # the cut-out and the token serve both
    assert told in capsys.readouterr().out
    aside = world.folder / "earlier" / "stage3-1" / "ckpts" / "last.ckpt"
    assert aside.read_text() == kept


def test_a_moved_scene_stays_done(done):
    assert done.go() == []


def test_a_retrained_model_is_another_model(world, tmp_path):
    model = tmp_path / "sd"
    write(model / "model_index.json", "{}")
    word = f"stage3.system.guidance_cn.pretrained_model_name_or_path={model}"
    world.go(word)
    assert world.go(word) == []
    write(model / "unet" / "weights.safetensors", "new")
    from animate124.pipeline.manifest import model_hash

    model_hash.cache_clear()  # a new process has none
    assert world.go(word) == ["token", "stage3", "result", "assets"]


def test_an_interrupted_stage_goes_on_from_its_checkpoint(world, capsys):
    world.runner.stops = {"stage2"}
    assert world.go() == ["preprocess", "token", "stage1", "stage2"]
    assert world.code == STOPPED
    assert "Stopped in stage2. To go on:\n  python animate.py again" in capsys.readouterr().out
    code = run_request(world.request(), GO_ON, Interrupt())
    assert (code, world.runner.ran[0]) == (0, ("stage2", True))
    assert world.runner.take() == ["stage2", "stage3", "result", "assets"]
    record = json.loads((world.folder / "manifest.json").read_text())["steps"]["stage2"]
    assert record["seconds"] == 2.0  # of both runs
    assert record["peak_memory"] == {"host": 2.0}


def test_a_half_done_stage_with_other_settings_starts_anew(world):
    world.runner.stops = {"stage2"}
    world.go()
    world.go("stage2.seed=4")
    assert (world.folder / "earlier" / "stage2-1" / "ckpts" / "last.ckpt").is_file()
    assert not any(again for _, again in world.runner.ran)


def test_a_half_done_token_with_other_settings_keeps_its_checkpoints(world):
    world.runner.stops = {"token"}
    world.go()
    world.go("token.seed=3")
    assert files_in(world.folder / "earlier") == {"token-1/checkpoint-500/state.pt"}


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("input", "my picture.png"),
        ("token", "notes.txt"),
        ("stage2", "csv_logs/version_0/mine.txt"),
        ("result", "cut.mp4"),
    ],
)
def test_what_a_person_put_into_a_tasks_folder_is_kept(task, name, world):
    """Also where the task itself left nothing that is worth keeping."""
    write(world.folder / task / name, "mine")
    world.go()
    assert (world.folder / "earlier" / f"{task}-1" / name).read_text() == "mine"
    assert not (world.folder / task / name).exists()


def test_tasks_that_share_a_folder_keep_each_others_files(done):
    mesh, video = (done.folder / "result" / name for name in ("animation.glb", "animation.mp4"))
    before = mesh.read_text(), video.read_text()
    assert done.go("assets.faces=9") == ["assets"]
    assert video.read_text() == before[1] and mesh.read_text() != before[0]
    assert files_in(done.folder / "earlier") == {"assets-1/animation.glb"}
    again = mesh.read_text()
    assert done.go("assets.faces=9", "result.size=99") == ["result"]
    assert mesh.read_text() == again and video.read_text() != before[1]
    assert (done.folder / "earlier" / "result-1" / "animation.mp4").read_text() == before[1]
    assert not (done.folder / "earlier" / "result-1" / "animation.glb").exists()


def test_a_launch_that_came_to_nothing_leaves_nothing(world):
    folder = world.folder / "stage1"
    for name in (
        "cmd.txt",
        "configs/parsed.yaml",
        "csv_logs/version_0/metrics.csv",
        "tb_logs/version_0/events.out.tfevents.1",
    ):
        write(folder / name, "old")
    write(world.folder / "result" / "report.html", "of a run that failed")
    world.go(until="stage1")
    assert not (world.folder / "earlier").exists()
    assert (folder / "configs" / "parsed.yaml").read_text() != "old"


def test_gaps_in_earlier_block_nothing(done):
    write(done.folder / "earlier" / "token-2" / "a", "older")
    write(done.folder / "earlier" / "token-x" / "a", "a person's")
    done.go("token.seed=3")
    assert (done.folder / "earlier" / "token-3" / "learned_embeds.bin").is_file()
    assert (done.folder / "earlier" / "token-2" / "a").read_text() == "older"


@pytest.mark.parametrize("damage", ["flip", "cut", "zeros", "empty"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(damage, world, capsys):
    world.runner.stops = {"stage2"}
    world.go()
    last = world.folder / "stage2" / "ckpts" / "last.ckpt"
    content = last.read_bytes()
    at = content.index(b"half")
    damaged = {
        "flip": content[:at] + b"holf" + content[at + 4 :],
        "cut": content[:-10],
        "zeros": bytes(4) + content[4:],
        "empty": b"",
    }
    last.write_bytes(damaged[damage])
    with pytest.raises(ValueError, match=r"last\.ckpt is damaged.*--from stage2"):
        world.go()
    write_checkpoint(last.with_name("epoch=0-step=4.ckpt"), "older")
    (last.parent / ".half.part.ckpt").touch()
    seen = []
    runner = process.run
    process.run = lambda command, *rest, **more: (
        seen.append(command) or runner(command, *rest, **more)
    )
    world.go()
    assert seen[0][-1].endswith("step=4.ckpt") and seen[0][-1].startswith("resume=")
    assert "last.ckpt is damaged" in capsys.readouterr().out


def test_a_task_that_goes_on_and_fails_says_how_to_start_it_again(world):
    world.runner.stops = {"stage2"}
    world.go()
    world.runner.fails = {"stage2"}
    with pytest.raises(TaskFailed, match="--from stage2 starts it again"):
        world.go()


def test_the_reports_own_errors_hide_nothing(world, monkeypatch, capsys):
    def breaks(*_):
        raise ZeroDivisionError("of the report")

    monkeypatch.setattr(run.report, "write", breaks)
    world.runner.fails = {"stage1"}
    with pytest.raises(TaskFailed, match="stage1 ended"):
        world.go()
    world.go()
    assert world.code == 0
    assert "The report could not be written: ZeroDivisionError" in capsys.readouterr().err


def test_a_full_disk_is_named_with_its_task(world, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "some.log")

    monkeypatch.setattr(process, "run", full)
    with pytest.raises(OSError, match=r"preprocess: .*No space left on device: 'some\.log'"):
        world.go()


def test_a_failed_task_says_so_and_the_next_run_goes_on(world):
    world.runner.fails = {"stage1"}
    with pytest.raises(TaskFailed, match=r"(?s)stage1 ended with exit code 3.*a line.*stage1\.log"):
        world.go()
    world.runner.take()
    report = json.loads((world.folder / "result" / "report.json").read_text())
    assert [step["state"] for step in report["steps"]][:4] == ["done", "done", "begun", "not run"]
    assert world.go() == ["stage1", "stage2", "stage3", "result", "assets"]


@pytest.mark.parametrize("told", [False, True])
def test_a_failed_task_names_the_persons_file(told, world, monkeypatch):
    def fails(command, cwd, environment, log, interrupt, on_line, *rest, on_event, **more):
        on_line(f"error: {command[2]} has no subject")
        if told:  # then that is all that is shown
            on_event(Message(f"{command[2]} has no subject at all", "error"))
        return Outcome(1, 1.0, {})

    monkeypatch.setattr(process, "run", fails)
    says = f"  {world.image} has no subject at all\n" if told else f"  error: {world.image} has no"
    with pytest.raises(TaskFailed, match=says):
        world.go()


def test_a_tasks_messages_are_shown_and_its_lines_are_not(world, capsys):
    world.go(until="preprocess")
    said = capsys.readouterr().out
    assert "  warning: words\n" in said and "a line" not in said


def test_from_forces_and_keeps_what_was_there(done):
    before = (done.folder / "stage2" / "ckpts" / "last.ckpt").read_text()
    assert done.go(start="stage2") == ["stage2", "stage3", "result", "assets"]
    assert (done.folder / "earlier" / "stage2-1" / "ckpts" / "last.ckpt").read_text() == before
    done.runner.stops = {"stage3"}
    assert done.go(start="stage2") == ["stage2", "stage3"]
    assert done.go() == ["stage3", "result", "assets"]  # what goes on doesn't force again


def test_a_token_that_cant_be_read_is_said_before_the_stages(done):
    learned = done.folder / "token" / "learned_embeds.bin"
    learn(learned, [float("nan")])  # as an older version may have written
    manifest = Manifest(done.folder)
    manifest.finish("token", [learned])
    with pytest.raises(ValueError, match=r"learned_embeds\.bin.*--from token"):
        done.go("stage1.seed=5")
    assert done.runner.take() == []
    assert done.go("stage1.seed=5", until="stage2") == ["stage1", "stage2", "result", "assets"]


def test_until_stops_and_later_runs_go_on(world):
    assert world.go(until="token") == ["preprocess", "token"]
    assert world.go(until="stage1") == ["stage1", "result", "assets"]
    assert not (world.folder / "result" / "animation.mp4").exists()
    assert world.go() == ["stage2", "stage3", "result", "assets"]
    assert (world.folder / "result" / "animation.mp4").exists()


def test_a_caption_completes_the_plan_or_is_asked_for(world):
    options = {"prompt": "it jumps for joy", "refine_prompt": "<token> jumps"}
    world.runner.folder = world.request(**options).folder
    with pytest.raises(ValueError, match="--subject"):
        world.go(**options)
    assert world.runner.take() == ["preprocess"]
    world.runner.caption = "a fox sitting on grass"
    assert world.go(start="preprocess", **options) == list(TASKS)
    assert world.go(**options) == []


def test_dry_run_prints_what_runs_and_writes_nothing(world, tmp_path):
    text = describe(make_plan(world.request(vram=8)), Manifest(world.folder))
    assert not world.out.exists()
    assert [line for line in text.splitlines() if line.endswith(": runs")] == [
        f"# {name}: runs" for name in TASKS
    ]
    assert "--vram 8: no option is needed" in text  # for the toy's models
    printed = []
    runner = process.run

    def listen(command, *rest, **more):
        printed.append(" ".join(command[1:]))
        return runner(command, *rest, **more)

    process.run = listen  # the fixture's patch is undone in the end
    world.runner.stops = {"stage2"}
    world.go()
    text = describe(make_plan(world.request()), Manifest(world.folder))
    assert "# stage1: done" in text and "# stage2: goes on" in text and "# stage3: runs" in text
    printed.clear()
    world.go()
    plain = text.replace("'", "")
    assert len(printed) == 4 and all(line in plain for line in printed)


def test_one_run_at_a_time_in_a_folder(world):
    with lock.locked(world.folder), pytest.raises(ValueError, match="at work"):
        world.go()


SHORT = [sys.executable, "-c", "import time; time.sleep(0.5)"]
LONG = [sys.executable, "-c", "import time; time.sleep(60)"]


def left_by_a_killed_run(folder, *processes):
    """What the lock of a run holds that ended without a word, while its task goes on."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    lines = [lock.line_of(process.pid) for process in (ended, *processes)]
    ended.wait()
    write(folder / ".holders", "\n".join(lines))
    return ended.pid


def test_a_task_of_a_killed_run_is_waited_for(world, capsys):
    with subprocess.Popen(SHORT) as task:
        run = left_by_a_killed_run(world.folder, task)
        with lock.locked(world.folder):
            assert task.poll() == 0
    assert f"(process {run})" in capsys.readouterr().out
    assert not (world.folder / ".holders").exists()


def test_a_task_that_does_not_end_is_not_waited_for_for_ever(world, monkeypatch):
    monkeypatch.setattr(lock, "GRACE", -14.9)
    with subprocess.Popen(LONG) as task:
        left_by_a_killed_run(world.folder, task)
        with pytest.raises(ValueError, match=rf"process {task.pid}\) is at work"):
            world.go()
        task.kill()
    world.go()


def test_a_process_of_a_number_that_was_used_before_holds_no_lock(world, capsys):
    with subprocess.Popen(LONG) as other:
        write(world.folder / ".holders", f"{other.pid} 12.5\n{other.pid} ended")
        with lock.locked(world.folder):
            other.kill()
    assert capsys.readouterr().out == ""


def test_what_a_killed_run_left_unfinished_is_cleared(world):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = world.folder / "stage1" / "ckpts" / f".last.ckpt.{ended.pid}-01234567.part"
    write(left, "half")
    world.go(until="token")
    assert not left.exists()


GOOD = {"inputs": "a", "finished": True, "seconds": 1.0, "peak_memory": {}, "outputs": {}}


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "",
        "[]",
        "{}",
        "\0\0",
        '{"steps": null}',
        '{"steps": {"token": null}}',
        '{"steps": [1]}',
        "[" * 100_000,
        *(
            json.dumps({"steps": {"token": {**GOOD, **change}}})
            for change in [
                {"inputs": 1},
                {"finished": "yes"},
                {"seconds": "long"},
                {"peak_memory": []},
                {"peak_memory": {"host": "much"}},
                {"outputs": None},
                {"outputs": {"a": 1}},
                {"command": 3},
            ]
        ),
    ],
)
def test_an_unreadable_manifest_says_what_to_do(text, tmp_path):
    write(tmp_path / "manifest.json", text)
    with pytest.raises(ValueError, match=r"manifest\.json.*Delete it.*earlier"):
        Manifest(tmp_path)


def test_a_damaged_caption_is_named(world):
    path = world.request().folder / "input" / "_caption.txt"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\xff\xfea fox")
    with pytest.raises(ValueError, match=r"_caption\.txt.*--subject"):
        caption(world.request())


def test_a_folder_of_another_scene_is_not_shared(world, tmp_path):
    world.go(until="preprocess")
    record = world.folder / "manifest.json"
    before = record.read_bytes()
    with pytest.raises(ValueError, match=r"another scene, the prompt .*--out"):
        world.go(prompt=world.request().prompt + "!")
    other = tmp_path / "other" / world.request().image.name
    other.parent.mkdir()
    other.write_bytes(world.request().image.read_bytes())
    Manifest(world.folder).claim(world.request().prompt, other)  # the same picture from elsewhere
    record.write_bytes(before)
    other.write_bytes(b"another picture")
    with pytest.raises(ValueError, match=r"another scene.*with the picture"):
        Manifest(world.folder).claim(world.request().prompt, other)
    held = json.loads(before)
    del held["scene"]  # as older runs wrote it
    record.write_text(json.dumps(held))
    assert world.go(until="preprocess") == []


def test_the_command_that_goes_on_does_not_force_again():
    words = ["animate.py", "a.png", "--from", "stage1", "--prompt", "x"]
    assert go_on(words)[1:] == ["animate.py", "a.png", "--prompt", "x"]
    assert go_on(["animate.py", "--from=stage1", "a.png"])[1:] == ["animate.py", "a.png"]
