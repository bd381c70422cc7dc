"""The launcher: one trial of a config, on CUDA where there is some, else on the CPU.

launch.py --config stage.yaml --train data.image.image_path=panda.png trainer.max_steps=1000
"""

import argparse
import os
import shlex
import shutil
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf.errors import OmegaConfBaseException
from pytorch_lightning.callbacks import LearningRateMonitor
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from threestudio.check import check_experiment, trainer_options
from threestudio.extensions import ExtensionImportError, config_of, load_extension
from threestudio.log import aside, info, warn
from threestudio.log import configure as configure_logging
from threestudio.registry import find
from threestudio.utils import events, gpus
from threestudio.utils.callbacks import (
    ConfigSnapshotCallback,
    CustomProgressBar,
    ProgressEvents,
    StopOnCtrlC,
    StoppedByUser,
    TrialCheckpoint,
)
from threestudio.utils.checkpoints import AtomicCheckpointIO
from threestudio.utils.config import (
    ExperimentSettings,
    config_to_primitive,
    merge_config,
    parse_structured,
    split_override,
)
from threestudio.utils.misc import get_rank
from threestudio.utils.trials import keep_earlier, say_what_resumes

# what a person's input can raise; anything else is shown with its traceback
INPUT_ERRORS = (
    ValueError,
    KeyError,
    OSError,
    OmegaConfBaseException,
    MisconfigurationException,
)
OUT_OF_MEMORY = (
    "The GPU's memory ran out. animate.py --vram GB sets what fits; of a stage alone "
    "system.speed.beside=false, system.guidance.vae_chunk=4, "
    "system.renderer.train_chunk_size=262144 and system.guidance_cn.fixed_size=512 take less "
    '(README, "Less memory, or more").'
)
PLACES = {"name", "tag", "exp_root_dir", "use_timestamp", "timestamp"}  # where a trial is
STEPS = {"training_step", "validation_step", "test_step", "predict_step", "backward"}


def parser() -> argparse.ArgumentParser:
    """threestudio's flags; what they leave over are key=value overrides of the config."""
    p = argparse.ArgumentParser(
        usage="%(prog)s --config FILE --train|--validate|--test|--export [options] [key=value ...]",
        epilog="key=value overrides the config: trainer.max_steps=100 system.loss.lambda_rgb=500",
        allow_abbrev=False,
    )
    p.add_argument("--config", required=True, metavar="FILE", help="the YAML file of a stage")
    p.add_argument(
        "--gpu",
        metavar="N,N",
        help="GPUs to use, one process each, counted from 0 among those that CUDA_VISIBLE_DEVICES "
        "lists, else among all (default: all that it lists, else 0)",
    )
    action = p.add_mutually_exclusive_group(required=True)
    action.add_argument("--train", action="store_true", help="train, then test")
    action.add_argument(
        "--validate", action="store_true", help="the validation views of resume=<checkpoint>"
    )
    action.add_argument("--test", action="store_true", help="the test video of resume=<checkpoint>")
    action.add_argument(
        "--export", action="store_true", help="the exporter's files of resume=<checkpoint>"
    )
    p.add_argument("--verbose", action="store_true", help="debug messages, and full tracebacks")
    p.add_argument(
        "--typecheck",
        action="store_true",
        help="check shapes and types at every call of the extension",
    )
    return p


@contextmanager
def _environment() -> Iterator[None]:
    """Puts the environment back afterwards: launches set variables for their child processes."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def train_callbacks(args: argparse.Namespace, cfg: Any) -> list[pl.Callback]:
    """Checkpoints, the config's copy, and (if not switched off) learning rates."""
    ckpts = os.path.join(cfg.trial_dir, "ckpts")
    callbacks: list[pl.Callback] = [
        ConfigSnapshotCallback(args.config, cfg, os.path.join(cfg.trial_dir, "configs"))
    ]
    if cfg.trainer.get("enable_checkpointing") is not False:
        checkpoint = config_to_primitive(cfg.checkpoint)
        callbacks.append(TrialCheckpoint(**{"dirpath": ckpts, **checkpoint}))
        # on the way to a checkpoint at the end, so that a killed run has something to resume from
        part = min(500, (cfg.trainer.get("max_steps") or 0) // 4)
        if 0 < part < (checkpoint.get("every_n_train_steps") or 0):
            callbacks.append(
                TrialCheckpoint(ckpts, save_last=True, save_top_k=0, every_n_train_steps=part)
            )
    if cfg.trainer.get("logger") is not False:
        callbacks.append(LearningRateMonitor(logging_interval="step"))
    return callbacks


def progress_bar(trainer: Mapping[str, Any]) -> list[pl.Callback]:
    """The bar, if it is not switched off; off a terminal, where each refresh is a line, calmer."""
    if trainer.get("enable_progress_bar") is False:
        return []
    calm = min(100, max(1, (trainer.get("max_steps") or 0) // 20))
    return [CustomProgressBar(refresh_rate=1 if sys.stdout.isatty() else calm)]


def trial_of(config: str) -> Path | None:
    """The trial whose own parsed.yaml this is, if it is one."""
    path = Path(config).absolute()
    return path.parent.parent if path.parts[-2:] == ("configs", "parsed.yaml") else None


def say_what_shows(args: argparse.Namespace, cfg: Any) -> None:
    """Says where an action without resume= shows something else than what was trained."""
    weights = cfg.system.get("weights")
    trial = trial_of(args.config)
    last = None if trial is None else trial / "ckpts" / "last.ckpt"
    if last is not None and last.is_file():
        shown = "only system.weights, which it started from" if weights else "an untrained scene"
        trained = shlex.quote(f"resume={os.path.relpath(last)}")
        warn(f"This shows {shown}; {trained} shows what the trial of {args.config} trained.")
    elif not weights:
        warn("Neither resume= nor system.weights= was given: this shows an untrained scene.")


def stay_in_place(cfg: Any, config: str, extras: list[str]) -> None:
    """A trial that was moved or copied, and is started from its own parsed.yaml, writes where it
    lies now, unless the words name another place."""
    trial = trial_of(config)
    named = {split_override(word)[0] for word in extras if "=" in word}
    if trial is None or not named.isdisjoint(PLACES):
        return
    if os.path.isdir(cfg.trial_dir) and os.path.samefile(cfg.trial_dir, trial):
        return
    info(f"The trial of {config} was made in {cfg.trial_dir}; results go to {trial}.")
    cfg.exp_dir, cfg.trial_name, cfg.trial_dir = str(trial.parent), trial.name, str(trial)


def _called() -> list[str]:
    """The words before the options: a script's, or the command of an installed package."""
    door = sys.argv[0]
    return ["python", door] if door.endswith(".py") else [os.path.basename(door)]


def _write_command(cfg: Any, args: argparse.Namespace) -> None:
    """How this trial was started."""
    command = shlex.join([*_called(), *sys.argv[1:]])
    Path(cfg.trial_dir, "cmd.txt").write_text(f"{command}\n{args}\n")


def resume_command(args: argparse.Namespace, trial_dir: str) -> str | None:
    """How to go on with a stopped trial that has a checkpoint, in its own folder."""
    ckpts = sorted(Path(trial_dir, "ckpts").glob("*.ckpt"), key=lambda p: p.stat().st_mtime)
    if not ckpts:
        return None
    config = os.path.join(trial_dir, "configs", "parsed.yaml")
    gpu = [] if args.gpu is None else ["--gpu", args.gpu]
    command = [*_called(), "--config", config, "--train", *gpu]
    return shlex.join([*command, f"resume={ckpts[-1]}"])


def _stop_children(trainer: pl.Trainer) -> None:
    """Ends the processes that Lightning's DDP started from this one."""
    for process in getattr(getattr(trainer.strategy, "launcher", None), "procs", []):
        if hasattr(process, "poll") and process.poll() is None:
            process.terminate()


def leave_process_group() -> None:
    """Ends DDP's threads: Gloo's, if they outlive the interpreter, sometimes abort the process.

    Only after a run that went well: elsewhere it could wait for processes that failed.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _say_how_to_resume(args: argparse.Namespace, trial_dir: str) -> None:
    command = resume_command(args, trial_dir)
    if command is not None:
        aside(f"To go on from the last checkpoint:\n  {command}")


def main(
    args: argparse.Namespace,
    extras: list[str],
    extension: str | None = None,
    folder: Path | None = None,
) -> str:
    """Runs what the flags ask for; returns the trial's folder.

    `extension` is the name of a package whose modules the config may use, `folder` where it lies
    if it isn't installed.
    """
    with _environment():
        return _main(args, extras, extension, folder)


def _main(args, extras, extension, folder) -> str:
    configure_logging(args.verbose)
    if get_rank() == 0:
        events.tell_messages()
    if extension is not None:
        load_extension(extension, folder, typecheck=args.typecheck)
        args.config = config_of(extension, args.config)
    if not args.verbose:
        # data modules here make their batches in the process; a new trial folder, and fewer
        # callbacks where nothing is trained, are what resume is expected to have
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message="The dirpath has changed from.*")
        warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`")
        warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")  # Lightning's own
    n_gpus = gpus.select(args.gpu)
    merged = merge_config(args.config, cli_args=extras, n_gpus=max(1, n_gpus))
    cfg = parse_structured(ExperimentSettings, merged)
    stay_in_place(cfg, args.config, extras)
    check_experiment(cfg, n_gpus, train=args.train, export=args.export)
    os.makedirs(cfg.trial_dir, exist_ok=True)
    if cfg.trainer.get("accelerator") == "cpu" and n_gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # so that get_device() says cpu as well
    trial = Path(cfg.trial_dir)
    new = not any(trial.iterdir())
    stop = StopOnCtrlC(str(trial / "ckpts" / "last.ckpt"))
    try:
        _run(args, cfg, n_gpus, stop)
    except BaseException:
        empty = args.train or not any(trial.iterdir())
        if get_rank() == 0 and new and empty and not stop.began:
            shutil.rmtree(trial)  # nothing is in it but the logs of a launch that failed at once
        raise
    finally:
        if n_gpus and torch.cuda.is_available():
            events.peak_memory(torch.cuda.max_memory_allocated())
    leave_process_group()
    if n_gpus and torch.cuda.is_available():
        info(f"Peak GPU memory: {torch.cuda.max_memory_allocated() / 1e9:.2f} GB")
    aside(f"Done: {cfg.trial_dir}")
    return cfg.trial_dir


def _run(args: argparse.Namespace, cfg: Any, n_gpus: int, stop: StopOnCtrlC) -> None:
    """Builds the config's data module and system, and hands them to Lightning."""
    options = trainer_options(config_to_primitive(cfg.trainer), n_gpus)
    files = AtomicCheckpointIO(args.train)
    if cfg.resume is not None:
        ckpt = files.read(cfg.resume)
        status = int(ckpt.get("epoch", 0)), int(ckpt.get("global_step", 0))
        del ckpt
        if args.train:
            say_what_resumes(cfg, status[1])
    pl.seed_everything(cfg.seed + get_rank(), workers=True)
    datamodule = find(cfg.data_type)(cfg.data)
    system = find(cfg.system_type)(cfg.system, resumed=cfg.resume is not None)
    system.set_save_dir(os.path.join(cfg.trial_dir, "save"))

    callbacks = [ProgressEvents(), *progress_bar(cfg.trainer)]
    loggers: Any = []
    if args.train:
        callbacks += [stop, *train_callbacks(args, cfg)]
        loggers = [
            TensorBoardLogger(cfg.trial_dir, name="tb_logs"),
            CSVLogger(cfg.trial_dir, name="csv_logs"),
            *system.get_loggers(),
        ]
    defaults = {
        "callbacks": callbacks,
        "logger": loggers,
        "plugins": [files],
    }
    trainer = pl.Trainer(**{**defaults, **options})

    if args.train:
        if cfg.resume is None and get_rank() == 0:
            keep_earlier(Path(cfg.trial_dir))
        _fit(trainer, system, datamodule, args, cfg)
        return
    if cfg.resume is not None:
        # Lightning restores weights here, but not the step
        system.set_resume_status(*status)
    else:
        say_what_shows(args, cfg)
    act = trainer.validate if args.validate else trainer.test if args.test else trainer.predict
    act(system, datamodule=datamodule, ckpt_path=cfg.resume)


def _fit(
    trainer: pl.Trainer, system: Any, datamodule: Any, args: argparse.Namespace, cfg: Any
) -> None:
    """Training, then the test; what stops early says how to go on."""
    if get_rank() == 0:
        _write_command(cfg, args)
    try:
        trainer.fit(system, datamodule=datamodule, ckpt_path=cfg.resume)
        if trainer.interrupted:  # an older Lightning returns after Ctrl-C
            raise KeyboardInterrupt
    except StoppedByUser:
        aside(f"Stopped after step {trainer.global_step}; everything is saved.")
        _say_how_to_resume(args, cfg.trial_dir)
        raise
    except SystemExit:
        if not trainer.interrupted:
            raise
        # a newer Lightning ignores further Ctrl-C and exits
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _say_how_to_resume(args, cfg.trial_dir)
        raise KeyboardInterrupt from None
    except BaseException as error:
        _stop_children(trainer)
        if not isinstance(error, FloatingPointError):  # the same settings would lead there again
            _say_how_to_resume(args, cfg.trial_dir)
        raise
    trainer.test(system, datamodule=datamodule)


def _from_a_step(error: BaseException) -> bool:
    """Whether the error came out of a training, validation or test step: a bug, not an input."""
    return any(frame.name in STEPS for frame in traceback.extract_tb(error.__traceback__))


def run(
    argv: list[str] | None = None, extension: str | None = None, folder: Path | None = None
) -> int:
    """The command line: `main`, with errors of input as one message. Returns the exit code."""
    args, extras = parser().parse_known_args(argv)
    try:
        main(args, extras, extension, folder)
    except StoppedByUser:
        # Lightning kills all processes when one that it started doesn't return 0
        return 130 if get_rank() == 0 else 0
    except KeyboardInterrupt:
        return 130
    except ExtensionImportError as error:
        traceback.print_exception(error.__cause__)
        print(file=sys.stderr)
        events.say_error(f"{error} Nothing was run; the traceback above says why.")
        return 1
    except torch.cuda.OutOfMemoryError as error:
        if args.verbose:
            traceback.print_exc()
        print(file=sys.stderr)
        events.say_error(f"{OUT_OF_MEMORY} ({str(error).splitlines()[0]})")
        return 1
    except (*INPUT_ERRORS, FloatingPointError) as error:
        a_bug = _from_a_step(error) and not isinstance(error, FloatingPointError)
        if args.verbose or a_bug or not str(error):
            traceback.print_exc()
        if get_rank() == 0:
            print(f"\nerror: {error}", file=sys.stderr)
            if not a_bug:  # of which the traceback says more
                events.message(str(error), "error")
            if not args.verbose:
                print("(--verbose shows where it came from.)", file=sys.stderr)
        return 1
    return 0
