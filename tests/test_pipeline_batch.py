"""Tables of scenes, run here and through submitit. A small script stands for animate.py."""

import itertools
import json
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import animate124
import pytest
from animate124.pipeline import batch
from animate124.pipeline.process import STOPPED, Interrupt
from animate124.pipeline.request import Request
from threestudio.utils import gpus

PANDA = Path(animate124.__file__).parent / "load" / "toy-panda" / "image.png"
SCRIPT = """
import glob, json, os, signal, sys, time
here, label, fails = sys.argv[1:4]
began = time.time()
print("hello", flush=True)
if "waits" in sys.argv[4]:
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
    time.sleep(30)
if "meets" in sys.argv[4]:  # two scenes have to be at work together
    open(f"{here}/{label}.met", "w").close()
    until = time.time() + 30
    while len(glob.glob(f"{here}/*.met")) < 2 and time.time() < until:
        time.sleep(0.01)
    if time.time() >= until:
        sys.exit(7)
gpu = os.environ.get("CUDA_VISIBLE_DEVICES")
with open(f"{here}/{label}.json", "w") as file:
    json.dump({"gpu": gpu, "began": began, "ended": time.time()}, file)
sys.exit(5 if fails == label else 0)
"""


def table(tmp_path, text):
    path = tmp_path / "scenes.csv"
    path.write_text(text)
    return path


def entries(tmp_path, *labels):
    """Scenes whose pictures have their names."""
    return [
        batch.Entry(
            Request(Path(f"{label}.png"), "", out=tmp_path / "out"),
            [label],
            tmp_path / "logs" / f"{label}.log",
        )
        for label in labels
    ]


def run_here(scenes, gpus, interrupt):
    out = scenes[0].request.out
    return batch.run_here(scenes, gpus, interrupt, batch.compare(scenes, out))


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Makes the commands of entries those of SCRIPT; returns what each scene wrote."""
    script = tmp_path / "stand_in.py"
    script.write_text(SCRIPT)
    options = {"fails": "", "waits": ""}

    def command(entry):
        words = [str(tmp_path), entry.label, options["fails"], options["waits"]]
        return [sys.executable, str(script), *words]

    def written(label):
        return json.loads((tmp_path / f"{label}.json").read_text())

    monkeypatch.setattr(batch, "command", command)
    return options, written


def read(path, common=(), check=lambda words: None):
    return batch.read_table(path, common, path.parent / "out", check)


def test_a_row_is_a_command_line(tmp_path):
    path = table(
        tmp_path,
        "image,prompt,subject,static_prompt,fast,stage2.trainer.max_steps\n"
        f'{PANDA},"a panda, old, is dancing",,a bear,yes,7\n'
        "photo.png,it jumps,-fox\n",
    )
    (tmp_path / "photo.png").touch()
    first, second = read(path, ["--preset", "toy"])
    assert first.words == [
        *(str(PANDA), "--prompt", "a panda, old, is dancing", "--preset", "toy"),
        *("--static-prompt", "a bear", "--fast", "stage2.trainer.max_steps=7"),
    ]
    # an image beside the table, from wherever the command is run
    assert second.words[0] == str(tmp_path / "photo.png")
    assert second.words[-1:] == ["--subject=-fox"]  # no option
    assert second.label == f"{tmp_path.name}-it_jumps"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("picture,prompt\na,b\n", "image should be there"),
        ("a,b\n", "image and prompt should be there"),
        ("image,prompt,colour\na,b,c\n", "'colour'.*subject"),
        ("image,prompt,prompt\na,b,c\n", "column prompt twice"),
        ("image,prompt,stage5.seed\na,b,1\n", "stage5"),
        ("image,prompt\na,\n", "row 2: has no prompt"),
        ("image,prompt\na,b,c\n", "row 2: 'c' stands below no column"),
        ("image,prompt\na/x.png,b\n\nb/x.png,b\n", "row 4: goes to .*x-b, as .* row 2 does"),
        ("image,prompt,fast\na,b,perhaps\n", "row 2: fast: 'perhaps' is neither"),
        ('image,prompt\na,b\nc,"d\ne,f\n', "row 3: .*quote"),
        ('image,prompt\na,"b\nc,d\ne,f"\n', "row 2: .*quote"),
        ("image,prompt\n", "no scenes"),
        ("", "(none)"),
        ("PK\x03\x04...", "spreadsheet.*CSV UTF-8"),
        ("image,prompt\na,\0\n", "no text.*CSV UTF-8"),
    ],
)
def test_a_table_that_cant_be_meant_is_an_error(text, says, tmp_path):
    with pytest.raises(ValueError, match=f"(?s)scenes.csv.*{says}|{says}"):
        read(table(tmp_path, text))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read(tmp_path / "nowhere.csv")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_tables_are_read_as_spreadsheets_save_them(delimiter, encoding, end, tmp_path, capsys):
    rows = [["Image", "prompt", "", ""], ["a.png", '"Bär; a, b"', "", ""], [""] * 4]
    rows += [["b.png", "é, ist", "", ""] if delimiter != "," else ["b.png", '"é, ist"'], [""] * 4]
    path = tmp_path / "scenes.csv"
    path.write_bytes(end.join(delimiter.join(row) for row in rows).encode(encoding))
    assert [entry.words[2] for entry in read(path)] == ["Bär; a, b", "é, ist"]
    said = capsys.readouterr().out
    assert ("Bär" in said and "CSV UTF-8" in said) == (encoding == "cp1252")  # a guess is said


def test_excels_line_about_the_delimiter_is_read(tmp_path):
    assert len(read(table(tmp_path, "sep=;\r\nimage;prompt\r\na;b\r\n"))) == 1


def test_yes_and_no_are_the_rows(tmp_path):
    yes, no = ["TRUE", "ja", "x", "1", "Vrai"], ["FALSE", "nein", "0", ""]
    rows = "".join(f"a,number {n},{word}\n" for n, word in enumerate([*yes, *no]))
    path = table(tmp_path, f"image,prompt,fast\n{rows}")
    fast = ["--fast" in entry.words for entry in read(path)]
    assert fast == [True] * len(yes) + [False] * len(no)
    fast = ["--fast" in entry.words for entry in read(path, ["--fast"])]
    assert fast == [True] * len(yes) + [False] * (len(no) - 1) + [True]  # a blank cell says nothing


def test_all_rows_that_cant_be_run_are_named_at_once(tmp_path):
    def check(words):
        if "bad" in words:
            raise KeyError("nothing reads it")

    path = table(tmp_path, "image,prompt\na,bad\n,no image\nb,good\n")
    with pytest.raises(ValueError, match=r"(?s)2 of 3 .*row 2: nothing reads.*row 3: has no image"):
        read(path, check=check)


def test_one_scene_a_gpu_at_a_time_and_no_gpu_idle(tmp_path, stand_in, capsys):
    stand_in[0]["waits"] = "meets"
    labels = ["a", "b", "c", "d"]
    code = run_here(entries(tmp_path, *labels), ["4", "5"], Interrupt())
    assert code == 0
    runs = [stand_in[1](label) for label in labels]
    assert {run["gpu"] for run in runs} == {"4", "5"}
    for gpu in ("4", "5"):
        mine = sorted((r["began"], r["ended"]) for r in runs if r["gpu"] == gpu)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(mine))
    out = capsys.readouterr().out
    assert "a: hello" in out and "4 of 4 scenes are done" in out
    assert "hello" in (tmp_path / "logs" / "c.log").read_text()


def test_how_long_each_gpu_had_a_scene_is_said(tmp_path, stand_in, capsys):
    """As the scenes' own clocks have it, whose processes are there a little longer than that."""
    labels = [*"abcdef"]
    began = time.time()
    assert run_here(entries(tmp_path, *labels), ["4", "5"], Interrupt()) == 0
    whole = time.time() - began
    runs = [stand_in[1](label) for label in labels]
    said = dict(re.findall(r"GPU (\d) ([\d.]+)%", capsys.readouterr().out))
    assert {*said} == {"4", "5"}
    for gpu, share in said.items():
        mine = [run["ended"] - run["began"] for run in runs if run["gpu"] == gpu]
        assert sum(mine) / whole - 1e-3 <= float(share) / 100 <= 1
    run_here(entries(tmp_path, "a"), [None], Interrupt())
    assert "Had a scene" not in capsys.readouterr().out


def test_one_failure_stops_no_other_and_shows_in_the_exit_code(tmp_path, stand_in, capsys):
    stand_in[0]["fails"] = "b"
    assert run_here(entries(tmp_path, "a", "b", "c"), [None], Interrupt()) == 1
    assert stand_in[1]("c")["gpu"] == os.environ.get("CUDA_VISIBLE_DEVICES")
    page = tmp_path / "out" / "batch" / "scenes.html"
    states = re.findall(r"<span[^>]*>([^<]*)", page.read_text())
    assert states == ["done", "failed (exit code 5)", "done"]
    out = capsys.readouterr().out
    assert f"Side by side: {page}" in out
    assert f"b: failed (exit code 5), see {tmp_path / 'logs' / 'b.log'}" in out
    assert "2 of 3 scenes are done" in out


def test_ctrl_c_stops_what_runs_and_begins_nothing(tmp_path, stand_in, capsys):
    stand_in[0]["waits"] = "waits"
    log = tmp_path / "logs" / "a.log"

    def press():
        while not (log.exists() and "hello" in log.read_text()):
            time.sleep(0.02)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press).start()
    with Interrupt() as interrupt:
        code = run_here(entries(tmp_path, "a", "b"), [None], interrupt)
    assert code == STOPPED
    out = capsys.readouterr().out
    assert "a: stopped" in out and "b: not begun" in out
    html = (tmp_path / "out" / "batch" / "scenes.html").read_text()
    assert ">stopped<" in html and ">not begun<" in html and "refresh" not in html


def test_a_log_that_cant_be_written_fails_its_scene_alone(tmp_path, stand_in, capsys):
    scenes = entries(tmp_path, "a", "b")
    scenes[0].log.mkdir(parents=True)
    assert run_here(scenes, [None], Interrupt()) == 1
    out = capsys.readouterr().out
    assert "a: error" in out and "a.log" in out and "1 of 2 scenes are done" in out


def test_all_scenes_stop_when_nobody_reads(tmp_path, stand_in, monkeypatch):
    class Closed:
        def write(self, text):
            raise BrokenPipeError

        def flush(self):
            raise BrokenPipeError

    interrupt = Interrupt()
    monkeypatch.setattr("sys.stdout", Closed())
    with pytest.raises(BrokenPipeError):
        run_here(entries(tmp_path, "a", "b"), [None], interrupt)
    assert interrupt.asked


def test_the_gpus_are_those_that_are_visible(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpus, "visible", lambda: ["0", "1"])
    assert batch.visible_gpus(None) == [None]
    assert batch.visible_gpus("0, 1") == ["0", "1"]
    for word in ("2", "abc", "cuda:1", "-1", ""):
        with pytest.raises(ValueError, match="--gpu"):
            batch.visible_gpus(word)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6,7")
    monkeypatch.setattr(gpus, "visible", lambda: ["6", "7"])
    assert batch.visible_gpus(None) == ["6", "7"]
    assert batch.visible_gpus("1") == ["7"]
    assert batch.visible_gpus("cpu") == [None]


def test_submitit_runs_each_scene_as_a_job(tmp_path, stand_in, capsys):
    pytest.importorskip("submitit")
    stand_in[0]["fails"] = "b"
    scenes = entries(tmp_path, "a", "b")
    jobs = batch.submit(scenes, tmp_path / "jobs", {"timeout_min": 5}, cluster="local")
    page = batch.compare(scenes, tmp_path / "out")
    assert batch.wait_for(scenes, jobs, page) == 1
    html = page.path.read_text()
    assert ">failed (exit code 1)<" in html and ">done<" in html
    assert stand_in[1]("a") and stand_in[1]("b")
    out = capsys.readouterr().out
    assert f"a: job {jobs[0].job_id}" in out and "a: done" in out
    assert "1 of 2 scenes are done" in out
    assert "hello" in jobs[0].paths.stdout.read_text()


def test_slurms_options_reach_submitit(tmp_path, stand_in, monkeypatch):
    submitit = pytest.importorskip("submitit")
    given = {}
    monkeypatch.setattr(
        submitit.AutoExecutor, "update_parameters", lambda self, **options: given.update(options)
    )
    monkeypatch.setattr(submitit.AutoExecutor, "submit", lambda self, task: None)
    batch.submit([], tmp_path, {"slurm_partition": "gpu", "timeout_min": 90}, cluster="local")
    assert given["slurm_partition"] == "gpu" and given["timeout_min"] == 90
    assert given["gpus_per_node"] == 1
