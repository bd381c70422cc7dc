"""The launcher, with a toy extension: a line with two parameters, fitted to noisy points.

Batches and noise depend on (seed, step, rank) only: exact resuming asks for that.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import threestudio.launch
import torch
import yaml
from animate124 import events
from omegaconf import OmegaConf
from threestudio.check import trainer_options
from threestudio.extensions import load_extension
from threestudio.launch import parser, run
from threestudio.utils import checkpoints, gpus
from threestudio.utils.callbacks import CustomProgressBar, StopOnCtrlC, StoppedByUser
from threestudio.utils.checkpoints import VERSION
from threestudio.utils.misc import parse_version

ROOT = Path(__file__).resolve().parent.parent

TOY = """
import signal
import time
from dataclasses import dataclass

import pytorch_lightning as pl
import threestudio
import torch
from threestudio.systems.base import BaseSystem
from threestudio.utils.base import BaseModule
from threestudio.utils.config import parse_structured
from torch.utils.data import DataLoader, IterableDataset


def batch(seed, step, rank):
    generator = torch.Generator().manual_seed(1000 * seed + 10 * step + rank)
    x = torch.rand(4, generator=generator)
    return {"x": x, "y": 2 * x + 1 + 0.1 * torch.randn(4, generator=generator)}


class Points(IterableDataset):
    def __init__(self, seed, rank, first):
        self.seed, self.rank, self.step = seed, rank, first

    def __iter__(self):
        while True:
            yield batch(self.seed, self.step, self.rank)
            self.step += 1


@threestudio.register("toy-data")
class ToyData(pl.LightningDataModule):
    @dataclass
    class Config:
        seed: int = 3
        views: int = 2

    def __init__(self, cfg):
        super().__init__()
        self.cfg = parse_structured(self.Config, cfg)

    def train_dataloader(self):
        first = self.trainer.global_step * self.trainer.accumulate_grad_batches
        return DataLoader(Points(self.cfg.seed, self.trainer.global_rank, first), batch_size=None)

    def val_dataloader(self):
        return DataLoader([{"x": torch.full((1,), float(i))} for i in range(self.cfg.views)])

    test_dataloader = predict_dataloader = val_dataloader


class Line(BaseModule):
    def configure(self):
        self.slope = torch.nn.Parameter(torch.zeros(1))
        self.offset = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return self.slope * x + self.offset


@threestudio.register("toy-system")
class ToySystem(BaseSystem):
    @dataclass
    class Config(BaseSystem.Config):
        pause: float = 0.0  # seconds a step takes
        ctrl_c_at: int = -1  # step in which a Ctrl-C comes
        bug_at: int = -1  # step that raises
        second_line: bool = False

    def configure(self):
        self.line = Line({})
        if self.cfg.second_line:
            self.second_line = Line({})

    def training_step(self, batch, batch_idx):
        if self.true_global_step == self.cfg.bug_at:
            raise ValueError("a bug of the toy")
        loss = ((self.line(batch["x"]) - batch["y"]) ** 2).mean()
        self.log("train/loss_line", loss)
        time.sleep(self.cfg.pause)
        if self.true_global_step == self.cfg.ctrl_c_at:
            signal.raise_signal(signal.SIGINT)
        return loss

    def validation_step(self, batch, batch_idx):
        self.save_json(f"val-it{self.true_global_step}-{batch_idx}.json", {})

    def test_step(self, batch, batch_idx):
        y = self.line(batch["x"]).item()
        self.save_json(f"test-it{self.true_global_step}-{batch_idx}.json", {"y": y})

    def predict_step(self, batch, batch_idx):
        self.save_json(f"export-it{self.true_global_step}-{batch_idx}.json", {})
"""

CONFIG = {
    "name": "toy",
    "tag": "a_line",
    "seed": 3,
    "data_type": "toy-data",
    "data": {"views": 2},
    "system_type": "toy-system",
    "system": {
        "optimizer": {
            "name": "Adam",
            "args": {"betas": [0.9, 0.99], "eps": 1e-8},
            "params": {"line.slope": {"lr": 0.1}, "line.offset": {"lr": 0.05}},
        }
    },
    "trainer": {
        "max_steps": 8,
        "log_every_n_steps": 1,
        "num_sanity_val_steps": 0,
        "val_check_interval": 4,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "precision": "16-mixed",
    },
    "checkpoint": {
        "save_last": True,
        "save_top_k": -1,
        "every_n_train_steps": "${trainer.max_steps}",
    },
}


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """The toy extension's folder; its name is no Python name, as it may be in threestudio."""
    folder = tmp_path_factory.mktemp("extension") / "threestudio-toy"
    folder.mkdir()
    (folder / "__init__.py").write_text("from . import line\n")
    (folder / "line.py").write_text(TOY)
    load_extension("toy_extension", folder)
    return folder


@pytest.fixture
def launch(toy, tmp_path, monkeypatch):
    """Runs a command line in an empty folder with toy.yaml in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(CONFIG))

    def launch(*flags, config="toy.yaml"):
        return run(["--config", config, *flags], extension="toy_extension", folder=toy)

    return launch


def trials():
    return sorted(Path("outputs", "toy").iterdir())


def weights(path):
    state = torch.load(path, weights_only=True)["state_dict"]
    return torch.cat([state["line.slope"], state["line.offset"]])


def fit(steps, ranks=(0,)):
    """The same line by a plain loop: Adam on the mean loss over all processes' batches."""
    toy = sys.modules["toy_extension"].line
    line = toy.Line({})
    optimizer = torch.optim.Adam(
        [{"params": [line.slope], "lr": 0.1}, {"params": [line.offset], "lr": 0.05}],
        betas=(0.9, 0.99),
        eps=1e-8,
    )
    for step in range(steps):
        batches = [toy.batch(3, step, rank) for rank in ranks]
        loss = sum(((line(b["x"]) - b["y"]) ** 2).mean() for b in batches) / len(batches)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return torch.cat([line.slope, line.offset]).detach()


def test_training_writes_what_a_trial_should_have(launch, capsys):
    before = dict(os.environ)
    assert launch("--train", "tag=my line") == 0
    assert dict(os.environ) == before
    (trial,) = trials()
    assert re.fullmatch(r"my line@\d{8}-\d{6}", trial.name)
    assert {p.name for p in (trial / "ckpts").iterdir()} == {"last.ckpt", "epoch=0-step=8.ckpt"}
    torch.testing.assert_close(weights(trial / "ckpts" / "last.ckpt"), fit(8), rtol=0, atol=0)
    assert (trial / "configs" / "raw.yaml").read_text() == Path("toy.yaml").read_text()
    parsed = OmegaConf.load(trial / "configs" / "parsed.yaml")
    assert parsed.tag == "my line" and parsed.trial_dir == str(trial)
    assert parsed.checkpoint.every_n_train_steps == 8
    assert (
        "--train" in (trial / "cmd.txt").read_text()
        or "train=True" in (trial / "cmd.txt").read_text()
    )
    assert {p.name for p in (trial / "save").iterdir()} == {
        *(f"val-it{step}-{i}.json" for step in (4, 8) for i in (0, 1)),
        *(f"test-it8-{i}.json" for i in (0, 1)),  # a test follows the training
    }
    metrics = next(trial.glob("csv_logs/version_0/metrics.csv")).read_text()
    assert "train/loss_line" in metrics and "lr-Adam/line.slope" in metrics
    assert list(trial.glob("tb_logs/version_0/events*"))
    said = capsys.readouterr().err
    assert "precision=16-mixed needs a GPU; this run on the CPU uses 32-true" in said
    assert f"Done: {trial}" in said


@pytest.mark.parametrize(
    "end",
    [
        ("trainer.max_steps=8",),
        ("trainer.max_steps=8", "checkpoint.save_last=link"),
        ("trainer.max_epochs=1", "trainer.limit_train_batches=8", "trainer.max_steps=-1"),
    ],
)
def test_the_last_checkpoint_is_of_the_last_step(launch, end):
    every = "checkpoint.every_n_train_steps=3"
    assert launch("--train", "trainer.limit_val_batches=0", every, *end) == 0
    (trial,) = trials()
    saved = {path.name: torch.load(path)["global_step"] for path in trial.glob("ckpts/*")}
    assert saved.pop("last.ckpt") == 8
    assert {"epoch=0-step=6.ckpt"} <= saved.keys() and set(saved.values()) <= {3, 6}
    torch.testing.assert_close(weights(trial / "ckpts" / "last.ckpt"), fit(8), rtol=0, atol=0)


def test_a_run_goes_on_from_an_end_between_two_checkpoints(launch):
    every = "checkpoint.every_n_train_steps=2"
    assert launch("--train", "trainer.max_steps=3", every) == 0
    resume = "resume=outputs/toy/a_line@LAST/ckpts/last.ckpt"
    assert launch("--train", "tag=resumed", every, resume) == 0
    last = trials()[-1] / "ckpts" / "last.ckpt"
    torch.testing.assert_close(weights(last), fit(8), rtol=0, atol=0)


@pytest.mark.parametrize("flag", ["--train", "--test"])
def test_a_checkpoint_is_read_once(launch, monkeypatch, flag):
    assert launch("--train", "trainer.max_steps=3") == 0
    asked = []
    read = checkpoints.read_checkpoint
    monkeypatch.setattr(
        checkpoints, "read_checkpoint", lambda path, **k: asked.append(path) or read(path, **k)
    )
    resume = "resume=outputs/toy/a_line@LAST/ckpts/last.ckpt"
    assert launch(flag, "tag=again", "trainer.max_steps=4", resume) == 0
    assert len(asked) == 1


def test_resuming_equals_never_having_stopped(launch):
    # an older Lightning miscounts the batches of a resumed accumulation by one
    new = parse_version(pl.__version__) >= parse_version("2.6")
    batches = f"trainer.accumulate_grad_batches={2 if new else 1}"
    assert launch("--train", "trainer.max_steps=3", batches) == 0
    assert launch("--train", "tag=whole", batches) == 0
    resume = "resume=outputs/toy/a_line@LAST/ckpts/last.ckpt"
    assert launch("--train", "tag=resumed", batches, resume) == 0
    _, resumed, whole = trials()
    a, b = (torch.load(t / "ckpts" / "last.ckpt") for t in (resumed, whole))
    assert a["global_step"] == b["global_step"] == 8
    torch.testing.assert_close(a["state_dict"], b["state_dict"], rtol=0, atol=0)
    (a,), (b,) = a["optimizer_states"], b["optimizer_states"]
    torch.testing.assert_close(a["state"], b["state"], rtol=0, atol=0)
    assert a["param_groups"] == b["param_groups"]


def test_a_run_that_goes_on_within_an_epoch_counts_its_steps_out_of_all(
    launch, capsys, monkeypatch, tmp_path
):
    assert launch("--train", "trainer.max_steps=3", "use_timestamp=false") == 0
    capsys.readouterr()
    told = events.Reader(tmp_path / "events.jsonl")
    monkeypatch.setenv(events.VARIABLE, str(told.path))
    monkeypatch.setattr("threestudio.utils.events.EVERY", 0.0)
    resume = "resume=outputs/toy/a_line/ckpts/last.ckpt"
    assert launch("--train", resume, "trainer.enable_progress_bar=true") == 0
    bar = re.findall(r"Training:[^\r\n]* (\d+)/8 \[", capsys.readouterr().out)
    assert bar[0] == "3" and bar[-1] == "8" and bar == sorted(bar)
    found = told.new()
    counted = [event for event in found if isinstance(event, events.Progress)]
    assert [event.done for event in counted if event.of == "training"] == [3, 4, 5, 6, 7, 8]
    assert counted[-2:] == [events.Progress(1, 2, "test"), events.Progress(2, 2, "test")]
    words = [event.text for event in found if isinstance(event, events.Message)]
    assert any("precision=16-mixed needs a GPU" in text for text in words)
    assert not any(text.startswith("Done:") for text in words)


def test_a_seed_of_minus_one_is_drawn_and_written_down(launch):
    assert launch("--train", "trainer.max_steps=1", "seed=-1", "use_timestamp=false") == 0
    drawn = OmegaConf.load("outputs/toy/a_line/configs/parsed.yaml").seed
    assert 0 <= drawn < 2**31


def test_a_second_run_in_the_same_folder_keeps_the_first_ones_checkpoints(launch, capsys):
    for steps in (3, 1):
        assert launch("--train", f"trainer.max_steps={steps}", "use_timestamp=false") == 0
    kept = Path("outputs/toy/a_line/ckpts-earlier-1/last.ckpt")
    assert torch.load(kept)["global_step"] == 3
    assert f"kept in {kept.parent}" in capsys.readouterr().err
    again = ["tag=more", f"resume={kept}", "trainer.max_steps=3", "system.pause=0.001"]
    assert launch("--train", *again) == 0
    said = capsys.readouterr().err
    assert "step 3 and trainer.max_steps is 3: there is nothing left to train" in said
    assert "other settings than before: system.pause unset -> 0.001" in said
    assert launch("--train", "resume=outputs/toy/a_line") == 1
    said = capsys.readouterr().err
    assert "error: resume: outputs/toy/a_line is a folder; give a checkpoint, such as" in said


def test_out_of_memory_names_what_takes_less(launch, capsys, monkeypatch):
    def full(self, *_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.\nmore")

    monkeypatch.setattr(sys.modules["toy_extension"].line.ToySystem, "training_step", full)
    assert launch("--train") == 1
    said = capsys.readouterr().err
    assert "--vram" in said and "vae_chunk" in said and "Traceback" not in said


def test_ctrl_c_finishes_the_step_and_says_how_to_go_on(launch, capsys, monkeypatch):
    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(sys, "argv", ["launch.py"])
    assert launch("--train", "system.ctrl_c_at=4") == 130
    assert signal.getsignal(signal.SIGINT) is handler
    (trial,) = trials()
    said = capsys.readouterr().err
    assert "Stopping after this step" in said and "Stopped after step 5" in said
    assert not list((trial / "save").glob("test-*"))
    command = said.partition("To go on from the last checkpoint:\n")[2].split()
    assert command[:2] == ["python", "launch.py"]
    # in the same folder, with the settings of its start; last.ckpt stays the newest
    assert run([*command[2:], "system.ctrl_c_at=-1"], extension="toy_extension") == 0
    assert trials() == [trial]
    assert {p.name for p in (trial / "ckpts").iterdir()} == {"last.ckpt", "epoch=0-step=8.ckpt"}
    torch.testing.assert_close(weights(trial / "ckpts" / "last.ckpt"), fit(8), rtol=0, atol=0)


@pytest.mark.parametrize("pressed", [False, True])
def test_several_processes_ask_each_other_every_so_often_and_at_the_end(pressed):
    """The second one hears of Ctrl-C, if there is one, in step 10."""
    asked, saved = [], []

    def reduce_boolean_decision(requested, all):
        asked.append(trainer.global_step)
        return requested

    strategy = SimpleNamespace(reduce_boolean_decision=reduce_boolean_decision)
    trainer: Any = SimpleNamespace(
        world_size=2, accumulate_grad_batches=1, max_steps=20, strategy=strategy,
        save_checkpoint=saved.append,
    )  # fmt: skip
    stop = StopOnCtrlC("last.ckpt")
    with pytest.raises(StoppedByUser) if pressed else nullcontext():
        for step in range(1, 21):
            stop.requested = pressed and step >= 10
            trainer.global_step = step
            stop.on_train_batch_end(trainer, None, None, None, step - 1)
    assert asked == ([8, 16] if pressed else [8, 16, 20])
    assert saved == ["last.ckpt"] * pressed


def test_a_second_ctrl_c_stops_at_once(launch, capsys, monkeypatch):
    def press_twice(self, *_):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    # a program that a shell started in the background begins with SIGINT ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(sys.modules["toy_extension"].line.ToySystem, "backward", press_twice)
    try:
        assert launch("--train") == 130
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert not list(trials()[0].glob("ckpts/*"))


def test_the_other_actions_know_the_step_of_their_checkpoint(launch):
    assert launch("--train", "trainer.max_steps=2", "use_timestamp=false") == 0
    resume = "resume=outputs/toy/a_line/ckpts/last.ckpt"
    for action, prefix in (("--validate", "val"), ("--test", "test"), ("--export", "export")):
        assert launch(action, resume, f"tag={prefix}", "use_timestamp=false") == 0
        saved = sorted(p.name for p in Path("outputs", "toy", prefix, "save").iterdir())
        assert saved == [f"{prefix}-it2-{i}.json" for i in (0, 1)]
        assert not Path("outputs", "toy", prefix, "ckpts").exists()


def test_a_trials_config_without_resume_names_the_checkpoint_beside_it(launch, capsys, recwarn):
    assert launch("--train", "trainer.max_steps=2", "use_timestamp=false") == 0
    config, last = "outputs/toy/a_line/configs/parsed.yaml", "outputs/toy/a_line/ckpts/last.ckpt"
    weights = f"system.weights={last}"
    for words, shown in (((), "untrained"), ((weights,), "only system.weights")):
        capsys.readouterr()
        assert launch("--test", *words, config=config) == 0
        said = capsys.readouterr().err
        assert said.count(f"resume={last}") == 1 and shown in said
    assert launch("--test", f"resume={last}", config=config) == 0
    assert "untrained" not in capsys.readouterr().err
    assert launch("--test", "use_timestamp=false", "tag=no_trial") == 0
    assert "Neither resume= nor" in capsys.readouterr().err
    assert not [w for w in recwarn if "Be aware that when using" in str(w.message)]


def test_a_copied_trial_writes_where_it_lies(launch, tmp_path):
    assert launch("--train", "trainer.max_steps=2", "use_timestamp=false") == 0
    here, there = Path("outputs/toy/a_line"), tmp_path / "a copy" / "of it"
    shutil.copytree(here, there)
    before = sorted(here.rglob("*"))
    config, resume = str(there / "configs/parsed.yaml"), f"resume={there}/ckpts/last.ckpt"
    assert launch("--test", resume, config=config) == 0
    assert (there / "save/test-it2-0.json").is_file()
    assert launch("--train", resume, "trainer.max_steps=4", config=config) == 0
    assert torch.load(there / "ckpts/last.ckpt", weights_only=True)["global_step"] == 4
    assert sorted(here.rglob("*")) == before
    assert launch("--test", resume, "tag=elsewhere", config=config) == 0
    assert (here.parent / "elsewhere/save/test-it4-0.json").is_file()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--train", "systm.pause=1"], r"systm \(close keys: system"),
        (["--train", "system.pauses=1"], r"system\.pauses \(close keys: pause\)"),
        (["--train", "data.view=1"], r"data\.view \(close keys: views\)"),
        (["--train", "system_type=toy-sistem"], "'toy-sistem'. Close names: toy-system"),
        (["--train", "trainer.max_step=1"], r"trainer\.max_step \(close keys: max_steps"),
        (["--train", "checkpoint.save_lst=1"], r"checkpoint\.save_lst \(close keys: save_last"),
        (["--train", "--max_steps", "1"], "Don't know what to do with '--max_steps'"),
        (["--train", "--gpu", "one"], "--gpu takes numbers"),
        (["--train", "resume=a@LAST/ckpts/last.ckpt"], "there is no trial 'a@'"),
        (["--test", "resume=nowhere.ckpt"], "There is no checkpoint 'nowhere.ckpt'"),
        (["--train", "resume=broken.ckpt"], "'broken.ckpt' cannot be read"),
        (["--train", "system.weights=foreign.ckpt"], "Nothing in foreign.ckpt fits ToySystem"),
        (
            ["--train", "resume=foreign.ckpt"],
            r"doesn't fit ToySystem\. missing: line.slope, line.offset; unexpected: unet",
        ),
        (["--train", "trainer.precision=17"], "17"),
        (["--train", "system.optimizer.params.lines.lr=1"], r"'lines'.*Close paths: line"),
    ],
)
def test_bad_input_ends_in_one_message(launch, capsys, monkeypatch, flags, message):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    Path("broken.ckpt").write_bytes(b"nothing")
    foreign = {"state_dict": {"unet": torch.ones(1)}, "optimizer_states": [], "loops": {}}
    torch.save({**foreign, VERSION: pl.__version__}, "foreign.ckpt")
    assert launch(*flags) == 1
    said = capsys.readouterr().err
    assert re.search(f"error: .*{message}", said), said
    assert "Traceback" not in said
    assert "--verbose shows where" in said
    assert not Path("outputs", "toy").exists() or trials() == []  # nothing began


def test_numbers_that_are_none_are_one_message_without_a_command_to_come_to_them_again(
    launch, capsys, monkeypatch
):
    def diverge(system, batch, batch_idx):
        if system.true_global_step == 5:
            raise FloatingPointError("The loss is nan.")
        return (system.line(batch["x"]) ** 2).mean()

    monkeypatch.setattr(sys.modules["toy_extension"].line.ToySystem, "training_step", diverge)
    assert launch("--train") == 1
    said = capsys.readouterr().err
    assert "error: The loss is nan." in said
    assert "Traceback" not in said and "To go on from" not in said
    (trial,) = trials()
    assert weights(trial / "ckpts" / "last.ckpt").isfinite().all()


def test_verbose_shows_the_traceback_and_so_does_a_bug(launch, capsys):
    assert launch("--train", "--verbose", "data.view=1") == 1
    assert "Traceback" in capsys.readouterr().err
    assert launch("--train", "system.bug_at=2") == 1
    said = capsys.readouterr().err
    assert "Traceback" in said and "training_step" in said and "error: a bug of the toy" in said


def test_a_missing_config_and_flags(launch, capsys):
    assert launch("--train", config="toi.yaml") == 1
    assert "no config 'toi.yaml'; . has toy.yaml" in capsys.readouterr().err
    for flags in ([], ["--train", "--test"]):
        with pytest.raises(SystemExit) as stop:
            launch(*flags)
        assert stop.value.code == 2


def test_an_extension_that_fails_stops_the_launch_with_its_traceback(launch, tmp_path, capsys):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "__init__.py").write_text("from . import part\n")
    (broken / "part.py").write_text("import a_package_that_is_not_there\n")
    flags = ["--config", "toy.yaml", "--train"]
    assert run(flags, extension="broken_extension", folder=broken) == 1
    threestudio.registry.failed_imports.pop("broken_extension")
    said = capsys.readouterr().err
    assert "Traceback" in said and "part.py" in said and "a_package_that_is_not_there" in said
    assert "error: The extension 'broken_extension' cannot be imported" in said
    assert not Path("outputs").exists()


def test_the_machine_decides_what_the_config_leaves_open():
    assert trainer_options({}, 0)["accelerator"] == "cpu"
    assert trainer_options({"precision": 16}, 0)["precision"] == "32-true"
    assert trainer_options({"precision": "bf16-mixed"}, 0)["precision"] == "bf16-mixed"
    one = trainer_options({"precision": "16-mixed"}, 1)
    assert (one["accelerator"], one["devices"], one["precision"]) == ("gpu", -1, "16-mixed")
    assert "strategy" not in one
    assert trainer_options({}, 2)["strategy"] == "ddp_find_unused_parameters_true"
    assert trainer_options({"strategy": "ddp"}, 2)["strategy"] == "ddp"
    forced = trainer_options({"accelerator": "cpu"}, 2)
    assert forced["devices"] == 1 and "strategy" not in forced


@pytest.mark.parametrize(
    ("gpu", "listed", "count", "expected"),
    [
        (None, None, 2, ["0"]),
        (None, "7,5", 2, ["7", "5"]),  # all that the variable lists
        ("0", "7,5", 2, ["7"]),
        ("1,0", "7,5", 2, ["5", "7"]),
        ("1", "GPU-a, GPU-b", 2, ["GPU-b"]),
        ("0,1", None, 2, ["0", "1"]),
        (None, None, 0, []),
        ("0", None, 0, []),  # the CPU
        ("0", "", 0, []),
        (None, "7,5", 1, ["7"]),  # CUDA stops at a number that isn't there
        ("2", None, 2, "this machine has 2 GPUs, counted from 0: --gpu takes 0 to 1"),
        ("7", "7", 1, "CUDA_VISIBLE_DEVICES=7 leaves 1 GPU, counted from 0: --gpu 0 would do"),
        ("1", None, 0, "no GPU that can be used. Without --gpu the CPU"),
        ("cuda:1", None, 2, "--gpu takes numbers"),
        ("abc", None, 0, "--gpu takes numbers"),
        ("-1", None, 2, "--gpu takes numbers"),
        ("", None, 2, "--gpu takes numbers"),
        ("0,", None, 2, "--gpu takes numbers"),
        ("1,1", None, 2, "names a GPU twice"),
    ],
)
def test_gpus_are_counted_among_the_visible_ones(monkeypatch, gpu, listed, count, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if listed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=re.escape(expected)):
            gpus.chosen(gpu)
    else:
        assert gpus.chosen(gpu) == expected


def test_processes_of_a_launch_take_its_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    for name in ("CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES", gpus.SELECTED):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    assert gpus.select("3,1") == 2 and os.environ["CUDA_VISIBLE_DEVICES"] == "3,1"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    # DDP starts the same command line again, with this environment
    assert gpus.select("3,1") == 2 and os.environ["CUDA_VISIBLE_DEVICES"] == "3,1"


def test_the_progress_bar_shows_the_losses(monkeypatch):
    class Trainer:
        max_steps, accumulate_grad_batches, loggers = 50, 2, ()
        progress_bar_metrics = {"train/loss_rgb": 0.5}  # noqa: RUF012
        callback_metrics = {  # noqa: RUF012
            "train/loss_rgb": torch.tensor(0.5),
            "train/loss_sds": torch.tensor(1234.5),
            "train/grad_norm": torch.tensor(1.0),
        }

    bar = CustomProgressBar()
    bar._trainer = Trainer()
    shown = bar.get_metrics(bar._trainer, None)
    assert shown == {"loss_rgb": "0.5", "loss_sds": "1.23e+03"}
    assert bar.total_train_batches == 100


# processes of their own


@pytest.fixture
def checkout(toy, tmp_path, monkeypatch):
    """A checkout that is not installed: the root's launch.py and host, the toy as the extension."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "some-checkout"
    shutil.copytree(toy, folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "host", folder / "host", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "launch.py", folder)
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(CONFIG))

    def start(*flags):
        command = [sys.executable, str(folder / "launch.py"), "--config", "toy.yaml", *flags]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    return start


def test_a_killed_run_resumes_to_the_same_weights(checkout, launch):
    process = checkout(
        "--train", "system.pause=0.1", "trainer.max_steps=500", "checkpoint.every_n_train_steps=2"
    )
    try:
        deadline = time.monotonic() + 120
        while not (found := list(Path("outputs").glob("toy/*/ckpts/last.ckpt"))):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.kill()  # -9
        process.communicate()
    step = torch.load(found[0])["global_step"]
    assert step >= 2
    assert (
        launch("--train", f"resume={found[0]}", f"trainer.max_steps={step + 6}", "tag=again") == 0
    )
    again = next(Path("outputs").glob("toy/again*/ckpts/last.ckpt"))
    torch.testing.assert_close(weights(again), fit(step + 6), rtol=0, atol=0)


@pytest.mark.parametrize(
    "words",
    [
        "launch.py --config toy.yaml --train",
        "animate.py image.png --prompt cat",
        "image_preprocess.py image.png",
        "textual-inversion/textual_inversion.py --train_data_dir . --placeholder_token <t> "
        "--initializer_token cat --pretrained_model_name_or_path . --output_dir out",
        "pipeline/result.py --config toy.yaml --checkpoint last.ckpt --out out",
    ],
)
def test_ctrl_c_while_libraries_are_loaded_leaves_no_traceback(words, tmp_path):
    for library in ("torch", "cv2"):
        (tmp_path / f"{library}.py").write_text("print('reached')\nraise KeyboardInterrupt\n")
    shutil.copy(ROOT / "load/toy-panda/image.png", tmp_path)
    script, *flags = words.split()
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *flags],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 130 and "reached" in done.stdout, done.stderr
    assert "Traceback" not in done.stderr


def test_two_processes_train_on_both_their_batches(checkout, launch):
    process = checkout("--train", "trainer.devices=2", "trainer.accelerator=cpu", "tag=two")
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    (trial,) = trials()  # one folder, with a timestamp, for both
    assert re.fullmatch(r"two@\d{8}-\d{6}", trial.name)
    torch.testing.assert_close(weights(trial / "ckpts" / "last.ckpt"), fit(8, ranks=(0, 1)))


def test_no_process_group_outlives_a_launch(launch):
    alone = {"store": torch.distributed.HashStore(), "rank": 0, "world_size": 1}
    torch.distributed.init_process_group("gloo", **alone)
    try:
        assert launch("--train") == 0
        assert not torch.distributed.is_initialized()  # Gloo's threads would abort the exit
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def test_help_names_the_flags(capsys):
    with pytest.raises(SystemExit):
        parser().parse_args(["--help"])
    said = capsys.readouterr().out
    for flag in ("config", "gpu", "train", "validate", "test", "export", "verbose", "typecheck"):
        assert f"--{flag}" in said
