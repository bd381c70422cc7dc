"""What there is to see in a run's folder: animate.py's, with a folder a stage, or a trial of
launch.py, which is one stage."""

from dataclasses import dataclass
from pathlib import Path

from ..system.snapshots import SNAPSHOT

CONFIG = Path("configs", "parsed.yaml")
LAST = Path("ckpts", "last.ckpt")


@dataclass(frozen=True)
class Stage:
    """A trial, and the newest that is kept of its scene."""

    name: str
    config: Path
    checkpoint: Path
    changed: int  # when the checkpoint was written, nanoseconds


def trials(run: Path) -> list[Path]:
    """The folders of a run's stages, whether they have a checkpoint or not.

    Raises:
        ValueError: it is no run.
    """
    found = [run] if (run / CONFIG).is_file() else []
    found += sorted(config.parents[1] for config in run.glob(f"*/{CONFIG}"))
    if found:
        return found
    if not run.exists():
        raise ValueError(f"There is no folder {run}. A run's is outputs/<image>-<prompt>.")
    near = sorted(config.parents[2].name for config in run.glob(f"*/*/{CONFIG}"))
    hint = f"It has the runs {', '.join(dict.fromkeys(near))}." if near else "Has it begun?"
    raise ValueError(
        f"{run} is no run: no stage of it has {CONFIG}. A scene's folder of animate.py would do "
        f"(outputs/<image>-<prompt>), or a trial of launch.py. {hint}"
    )


def newest(trial: Path) -> Stage | None:
    """Its stage; None as long as there is neither a checkpoint nor a snapshot."""
    found = []
    for place in (LAST, Path(SNAPSHOT)):
        try:
            found.append(((trial / place).stat().st_mtime_ns, trial / place))
        except FileNotFoundError:  # not yet, or the snapshot has just gone
            continue
    if not found:
        return None
    changed, checkpoint = max(found)
    return Stage(trial.name, trial / CONFIG, checkpoint, changed)


def stages(run: Path) -> dict[str, Stage]:
    """By name, those that have a checkpoint, in order.

    Raises:
        ValueError: it is no run.
    """
    found = (newest(trial) for trial in trials(run))
    return {stage.name: stage for stage in found if stage is not None}


def chosen(run: Path, name: str | None) -> Stage:
    """The stage of that name; None is for the one that was trained last.

    Raises:
        ValueError: it is no run, has no such stage, or the stage has no checkpoint yet.
    """
    found, all_of_it = stages(run), [trial.name for trial in trials(run)]
    if name is not None and name not in all_of_it:
        raise ValueError(f"--stage {name}: {run} has {', '.join(all_of_it)}.")
    if not found or (name is not None and name not in found):
        without = name or ", ".join(all_of_it)
        there = f" {', '.join(found)} would do." if found else ""
        raise ValueError(
            f"{without} of {run} has no checkpoint yet.{there} With --follow the viewer waits for "
            "one; while it trains, animate.py's --viewer shows the scene as it becomes."
        )
    return found[name] if name else max(found.values(), key=lambda stage: stage.changed)
