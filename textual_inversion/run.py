"""One run of textual inversion: reads every input, trains the new rows, writes the results."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import transformers

from .augmentations import image_files
from .checkpoints import asked_checkpoint
from .inputs import read_inputs
from .processes import Processes
from .progress import Progress
from .results import Results
from .run_folder import make_output_dir, put_earlier_aside
from .schedule import plan_steps
from .stopping import SoftStop
from .training import Training


class TextualInversion:
    """Made from the command line's flags; whatever they name is read here, and errors come here.

    Raises:
        ValueError, OSError: an input that can't be used.
    """

    def __init__(self, args: argparse.Namespace, notes: Sequence[str] = ()):
        transformers.utils.logging.disable_progress_bar()
        self.args, self.folder = args, Path(args.output_dir)
        make_output_dir(self.folder)
        files = image_files(Path(args.train_data_dir).expanduser())
        self.on = Processes(self.folder, args.report_to, args.logging_dir)
        for note in notes:
            self.on.say(note)
        resumed = asked_checkpoint(self.folder, args.resume_from_checkpoint, self.on.say)
        self.inputs = read_inputs(args, files, resumed, self.on)
        steps = plan_steps(args, len(files), self.on.count)
        self.training = Training(args, self.inputs, steps.total, self.on)
        self.resumed = resumed is not None
        if resumed:
            self.training.restore(resumed)
        self.results = Results(args, self.inputs, self.training, steps.validate_every, self.on)

    def run(self) -> int:
        """Trains, writes everything; the exit code: 0, or 128 + the signal that stopped it.

        Raises:
            FloatingPointError: the loss or the rows are no numbers any more, or nothing is learnt.
                What was written before stays.
            OSError: a file can't be written.
        """
        training = self.training
        training.prepare()
        if self.on.is_main and not self.resumed and (aside := put_earlier_aside(self.folder)):
            self.on.say(f"an earlier run's files are kept in {aside}")
        self.start_trackers()
        with SoftStop(self.on) as stop, Progress(training, self.on) as progress:
            while training.step < training.total:
                training.train_step()
                progress.stepped()
                if self.on.is_main:
                    self.results.write_due()
                if number := stop.asked(training.step):
                    return self.stopped(number)
        progress.summarise()
        if self.on.is_main:
            self.results.finish()
        self.on.accelerator.end_training()
        return 0

    def start_trackers(self) -> None:
        config = {**vars(self.args), "seed": self.inputs.seed}
        config = {k: v for k, v in config.items() if k != "hub_token" and v is not None}
        self.on.accelerator.init_trackers("textual_inversion", config=config)

    def stopped(self, number: int) -> int:
        """Saves a checkpoint, says how to go on and gives the exit code of a signal."""
        if self.on.is_main:
            path = self.results.save()
            self.on.say(
                f"\nStopped after step {self.training.step} of {self.training.total}; {path} is "
                "saved. To go on: the same command with --resume_from_checkpoint latest",
                aside=True,
            )
        self.on.accelerator.end_training()
        return 128 + number
