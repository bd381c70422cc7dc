"""A run's folder: what an earlier run left there is put aside."""

from pathlib import Path

from .checkpoints import checkpoints

RESULTS = ("learned_embeds*", "loss.csv", "loss.png", "validation")  # beside checkpoints


def make_output_dir(folder: Path) -> None:
    """
    Raises:
        OSError: the folder can't be made or written to.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(
            f"--output_dir {folder} is a file. Give a folder; it is made where it doesn't exist."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink(missing_ok=True)  # another process may have done it
    except OSError as error:
        raise OSError(
            f"--output_dir {folder} can't be written to ({error.strerror}). Give another folder."
        ) from error


def put_earlier_aside(folder: Path) -> Path | None:
    """Before a run that starts anew: an earlier one's checkpoints and results go to the folder
    that is returned, earlier-1, earlier-2 ...; None where there are none."""
    there = [*checkpoints(folder), *(p for pattern in RESULTS for p in folder.glob(pattern))]
    if not there:
        return None
    n = 1
    while (folder / f"earlier-{n}").exists():
        n += 1
    aside = folder / f"earlier-{n}"
    aside.mkdir()
    for path in there:
        path.rename(aside / path.name)
    return aside
