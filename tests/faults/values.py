"""What animate.py --dry-run says to the values of nonsense.txt and sensible.txt.

python tests/faults/values.py [N]    prints each row (each Nth one) that goes wrong, and totals

It ends with 1 if a row does that isn't among those that are known too late.
"""

import contextlib
import csv
import functools
import importlib.util
import io
import os
import shlex
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[1]
PROMPT = "a panda is dancing"
LATE = "known too late"  # a group of rows that a dry run takes


@dataclass
class Row:
    """A line of a table."""

    group: str
    words: list[str]  # as a shell reads them

    def __str__(self) -> str:
        return f"[{self.group}] {shlex.join(self.words)}"


def rows(name: str) -> list[Row]:
    """The rows of nonsense.txt or sensible.txt."""
    found, group = [], ""
    for line in (HERE / name).read_text(encoding="utf-8").splitlines():
        words = shlex.split(line.replace("CHECKOUT", str(CHECKOUT)), comments=True)
        if line.startswith("["):
            group = line.strip("[]")
        elif words:
            found.append(Row(group, words))
    return found


@dataclass
class Answer:
    """What came of a row."""

    code: int | None  # exit code; None: an exception that nobody caught
    said: str  # on stderr; the traceback where there was one

    @property
    def message(self) -> str:
        """From `error:` on, without argparse's usage."""
        return self.said[self.said.find("error: ") :].strip()

    @property
    def refused(self) -> bool:
        return self.code in (1, 2) and "error: " in self.said and "Traceback" not in self.said

    def names(self, row: Row) -> bool:
        """Whether the message says which word is meant: by option, key or value."""
        parts = {part for word in row.words for part in word.partition("=")[::2]}
        parts |= {name for part in parts for name in part.split(".")[1:]}
        parts = {part.strip("-") for part in parts} - {""}
        return not parts or any(part in self.message for part in parts)


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[Path]:
    """The folder as working directory."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield folder
    finally:
        os.chdir(before)


@contextlib.contextmanager
def desk() -> Iterator[Path]:
    """A person's folder, which becomes the working directory: pictures, and what are none."""
    with tempfile.TemporaryDirectory() as name, working_in(Path(name)) as folder:
        y, x = np.mgrid[:64, :64] - 31.5
        ball = x**2 + y**2 < 20**2
        photo = np.where(ball[..., None], (130, 60, 30), 235).astype(np.uint8)
        for file in ("ball.png", "my photo.jpg"):
            Image.fromarray(photo).save(folder / file)
        alpha = np.where(ball, 255, 0).astype(np.uint8)
        Image.fromarray(np.dstack([photo, alpha])).save(folder / "rgba.png")
        whole = (folder / "ball.png").read_bytes()
        (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
        (folder / "empty.png").touch()
        one = np.zeros((*alpha.shape[:2], 4), np.uint8)
        one[5, 5] = 255
        Image.fromarray(one).save(folder / "one_pixel.png")
        for file in ("notes.txt", "notes.png"):
            (folder / file).write_text("buy bamboo\n")
        yield folder


@functools.cache
def module(path: Path):
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def dry_run(*words: str) -> Answer:
    """`animate.py WORDS --preset toy --dry-run` in this process, in the working directory."""
    from animate124.pipeline import command
    from animate124.pipeline.request import parser

    argv = ["--preset", "toy", "--dry-run", *words]
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            args = parser().parse_intermixed_args(argv)
            code = command.run(args, ["animate.py", *argv])
        except SystemExit as end:  # argparse's
            code = end.code
        except Exception:
            return Answer(None, traceback.format_exc())
    return Answer(code, said.getvalue())


def table(words: list[str]) -> Path:
    """A table of one scene with these cells, key=value."""
    cells = {"image": "ball.png", "prompt": PROMPT}
    cells |= {key: value for key, _, value in (word.partition("=") for word in words)}
    with Path("scenes.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([cells.keys(), cells.values()])
    return Path("scenes.csv")


def answer(row: Row) -> Answer:
    """A row's answer; in a `desk`."""
    if row.group == "table":
        return dry_run("--batch", str(table(row.words)))
    if row.group == "picture":
        return dry_run(*row.words, "--prompt", PROMPT)
    if "--batch" in row.words:
        return dry_run(*row.words)
    return dry_run("ball.png", "--prompt", PROMPT, *row.words)


def bring_package() -> None:
    """This checkout as `animate124`, on the bundled host."""
    sys.path.insert(0, str(CHECKOUT / "host"))
    from threestudio.extensions import load_extension

    load_extension("animate124", CHECKOUT)


def main(every: int) -> int:
    """Prints what goes wrong, and the totals."""
    bring_package()
    counts: Counter[str] = Counter()
    wrong = 0
    with desk():
        for name in ("nonsense.txt", "sensible.txt"):
            for row in rows(name)[::every]:
                got = answer(row)
                if got.code is None:
                    what = "traceback"
                elif name == "sensible.txt":
                    what = "taken" if got.code == 0 else "refused though sensible"
                elif not got.refused:
                    what = "taken though nonsense" if got.code == 0 else "refused without a word"
                else:
                    what = "refused" if got.names(row) else "refused without its name"
                counts[f"{name}: {what}"] += 1
                if what not in ("refused", "taken"):
                    wrong += row.group != LATE
                    print(f"{what:24} {row}", *got.message.splitlines()[-1:], sep="\n    ")
    for what, number in sorted(counts.items()):
        print(f"{number:4} {what}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if sys.argv[1:] else 1))
