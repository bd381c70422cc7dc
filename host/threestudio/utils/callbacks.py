"""Lightning callbacks of a launch."""

import math
import os
import shutil
import signal
import threading
from typing import Any

from pytorch_lightning.callbacks import Callback, ModelCheckpoint, TQDMProgressBar
from pytorch_lightning.utilities import rank_zero_only
from threestudio.log import info
from threestudio.utils import events
from threestudio.utils.config import dump_config

ASK_EVERY = 8  # steps; to ask other processes is to wait for them, and for the GPU


class ConfigSnapshotCallback(Callback):
    """Keeps the config in the trial: raw.yaml as given, parsed.yaml with everything filled in."""

    def __init__(self, config_path: str, config: Any, save_root: str) -> None:
        self.config_path = config_path
        self.config = config
        self.save_root = save_root

    @rank_zero_only
    def save_config_snapshot(self) -> None:
        os.makedirs(self.save_root, exist_ok=True)
        dump_config(os.path.join(self.save_root, "parsed.yaml"), self.config)
        raw = os.path.join(self.save_root, "raw.yaml")
        if not (os.path.exists(raw) and os.path.samefile(raw, self.config_path)):
            shutil.copyfile(self.config_path, raw)

    def on_fit_start(self, trainer, pl_module) -> None:
        self.save_config_snapshot()


class CustomProgressBar(TQDMProgressBar):
    """Shows steps out of max_steps, and the losses (all that is logged as `train/loss...`)."""

    @property
    def total_train_batches(self) -> int | float:
        if self.trainer.max_steps > 0:
            return self.trainer.max_steps * self.trainer.accumulate_grad_batches
        return super().total_train_batches

    def on_train_start(self, trainer, *args) -> None:
        super().on_train_start(trainer, *args)
        # a run that goes on within an epoch starts none, where Lightning sets the bar's total
        bar, batches = self.train_progress_bar, trainer.fit_loop.epoch_loop.batch_progress
        bar.total = None if math.isinf(self.total_train_batches) else self.total_train_batches
        bar.initial = bar.n = batches.current.processed
        bar.refresh()

    def on_train_epoch_start(self, trainer, *args) -> None:
        super().on_train_epoch_start(trainer, *args)
        self.train_progress_bar.set_description("Training")

    def get_metrics(self, trainer, pl_module) -> dict[str, Any]:
        items = dict(super().get_metrics(trainer, pl_module))
        items.pop("v_num", None)
        for name, value in trainer.callback_metrics.items():
            if name.startswith("train/loss"):
                items[name] = f"{float(value):.3g}"
        return {name.removeprefix("train/"): value for name, value in items.items()}


class ProgressEvents(Callback):
    """Tells how many batches of the training, then of the test, are done."""

    def _tell_training(self, trainer) -> None:
        total = trainer.max_steps * trainer.accumulate_grad_batches
        if total > 0 and trainer.is_global_zero:  # else epochs end it
            done = trainer.fit_loop.epoch_loop.batch_progress.total.processed
            events.progress(done, total)

    def on_train_start(self, trainer, pl_module) -> None:
        self._tell_training(trainer)  # also where a resumed one goes on

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self._tell_training(trainer)

    def on_test_batch_end(
        self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0
    ) -> None:
        total = sum(trainer.num_test_batches)
        if trainer.is_global_zero and math.isfinite(total):
            done = sum(trainer.num_test_batches[:dataloader_idx]) + batch_idx + 1
            events.progress(int(done), int(total), "test")


class TrialCheckpoint(ModelCheckpoint):
    """Overwrites: a trial's `last.ckpt` is always the newest, never `last-v1.ckpt`.

    At the end it is of the last step, which Lightning alone only sees to in steps that are
    multiples of every_n_train_steps.
    """

    def file_exists(self, filepath, trainer) -> bool:
        return False

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if trainer.global_step == trainer.max_steps:
            self._save_end(trainer)  # while the epoch is what it was in training

    def on_train_end(self, trainer, pl_module) -> None:
        self._save_end(trainer)  # of a run that isn't ended by max_steps

    def _save_end(self, trainer) -> None:
        saved = [c._last_global_step_saved for c in trainer.checkpoint_callbacks]
        if self.save_last and trainer.global_step not in saved:
            name = self.CHECKPOINT_NAME_LAST + self.FILE_EXTENSION
            trainer.save_checkpoint(os.path.join(str(self.dirpath), name), self.save_weights_only)
            self._last_global_step_saved = trainer.global_step


class StoppedByUser(Exception):
    """Ctrl-C was pressed; the step was finished and a checkpoint written."""


class StopOnCtrlC(Callback):
    """The first Ctrl-C finishes the step (of several processes the next one in which they ask each
    other) and saves a checkpoint; the second stops at once."""

    def __init__(self, checkpoint: str) -> None:
        self.checkpoint = checkpoint
        self.began = False  # whether anything was trained
        self.requested = False  # whether Ctrl-C was pressed
        self._previous: Any = None

    def _on_ctrl_c(self, *_: Any) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, self._previous)
        info("\nStopping after this step, then saving; Ctrl-C again stops at once.")

    def on_train_start(self, trainer, pl_module) -> None:
        self.began = True
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.getsignal(signal.SIGINT)
            signal.signal(signal.SIGINT, self._on_ctrl_c)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # gradients of half a step would be lost
        requested = self.requested
        if trainer.world_size > 1:
            # processes hear of it at different moments, but have to stop at the same step
            step = trainer.global_step
            if step % ASK_EVERY and step != trainer.max_steps:
                return
            requested = trainer.strategy.reduce_boolean_decision(requested, all=False)
        if requested:
            trainer.save_checkpoint(self.checkpoint)
            raise StoppedByUser

    def _restore(self) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None

    def on_train_end(self, trainer, pl_module) -> None:
        self._restore()

    def on_exception(self, trainer, pl_module, exception) -> None:
        self._restore()
