"""How busy `animate.py --batch` keeps several GPUs: the share of the time that each had a scene.

python benchmarks/many_scenes.py --gpu 0,1 [--scenes 6] [--figures FILE] [key=value ...]

The toy panda so many times, by the toy preset, as a person would run it (`key=value` goes to
animate.py, such as stage1.trainer.max_steps=100). The mean over the GPUs goes into figures.json as
`scale.batch.busy`, with the scenes an hour (`--figures FILE`: elsewhere).
"""

import argparse
import csv
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from animate124.host.argument_types import positive_int
from measuring import FIGURES, record
from runs import IMAGE, PROMPT, ROOT, SUBJECT

SAID = re.compile(r"Had a scene, of ([\d.]+) s: (.*)")


def read(said: str) -> tuple[float, list[float]]:
    """Seconds in all, and the share of each GPU, as `animate.py --batch` prints them.

    Raises:
        ValueError: it didn't.
    """
    found = SAID.search(said)
    if found is None:
        raise ValueError(f"--batch didn't say how long each GPU had a scene:\n{said[-2000:]}")
    return float(found[1]), [float(share) / 100 for share in re.findall(r"([\d.]+)%", found[2])]


def run(args: argparse.Namespace, folder: Path) -> tuple[float, list[float]]:
    """Seconds in all, and the share of each GPU."""
    table = folder / "scenes.csv"
    with table.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "prompt", "subject"])
        rows.writerows([ROOT / IMAGE, f"{PROMPT}, {n}", SUBJECT] for n in range(args.scenes))
    command = [sys.executable, str(ROOT / "animate.py"), "--batch", str(table)]
    command += ["--preset", "toy", "--gpu", args.gpu, "--out", str(folder / "out"), *args.overrides]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        print(done.stdout[-4000:])
        raise SystemExit(f"--batch failed ({done.returncode})")
    return read(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--gpu", required=True, metavar="N,N", help="as animate.py's")
    parser.add_argument("--scenes", type=positive_int, default=6)
    parser.add_argument("--figures", type=Path, metavar="FILE", help="where figures are written")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seconds, shares = run(args, Path(folder))
    busy, hourly = sum(shares) / len(shares), 3600 * args.scenes / seconds
    each = ", ".join(f"{share:.1%}" for share in shares)
    print(f"{args.scenes} scenes in {seconds:.1f} s ({hourly:.0f} an hour); at work: {each}")
    figures = {
        "scale.batch.busy": (busy, f"of the time, mean of {len(shares)} GPUs"),
        "scale.batch.scenes": (hourly, "an hour"),
    }
    record(figures, (args.figures or FIGURES).resolve())


if __name__ == "__main__":
    main()
