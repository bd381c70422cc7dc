"""What a prior that sees a first frame is to be shown where a clip starts later or elsewhere than
the given picture: the rendered frame, the picture where it fits, or none. Development characters.

    python benchmarks/first_frames.py [--jobs 4] [--out FOLDER] [key=value ...]

Stage 2 of the preset toy-flow on each of CHARACTERS by each of WAYS, one core each (about four
minutes a character); the table has the means of evaluation/measures.py's figures. What is done in
FOLDER isn't run again.
"""

import argparse
import concurrent.futures
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from animate124.host.argument_types import positive_int

CHARACTERS = (  # species, motion, seed: 10000 to 14999 are development's
    ("fox", "jump", 10001),
    ("cat", "wave", 10002),
    ("panda", "dance", 10003),
    ("robot", "walk", 10004),
    ("bear", "spin", 10005),
    ("duck", "nod", 10006),
)
# where half of the clips that start at time 0 begin at the picture's camera, they are shown it
PICTURE = ("stage2.data.single_view.reference_rate=0.5",)
NONE = ("stage2.system.guidance.first_frame=none",)
WAYS = {
    "rendered": (),
    "picture, else rendered": PICTURE,
    "picture, else none": (*PICTURE, *NONE),
    "none": NONE,
}
SHOWN = ("identity_share", "identity_share_worst", "motion_energy_ratio", "novel_view_psnr")


def runs(who: tuple[str, str, int], out: Path, words: list[str]) -> dict[str, dict]:
    """Each way's figures of a character, one after the other from the same stage 1."""
    species, motion, seed = who
    folder = out / species
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "animate124.evaluation.suite", "--stage", "2", "--cpu"]
    command += ["--no-ablation", "--preset", "toy-flow", "--out", str(folder / "run")]
    command += ["--species", species, "--motion", motion, "--seed", str(seed)]
    found = {}
    for way, settings in WAYS.items():
        file = folder / f"{way.replace(', ', '-').replace(' ', '-')}.json"
        if not file.exists():
            with open(folder / "log.txt", "a") as log:
                said = subprocess.run(
                    [*command, *settings, *words],
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    check=True,
                ).stdout
            file.write_text(said.splitlines()[-1])
        found[way] = json.loads(file.read_text())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=" ".join(__doc__.split("\n\n")[0].split()))
    parser.add_argument("--jobs", type=positive_int, default=1)
    parser.add_argument("--out", type=Path, help="where runs stay")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of every run")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        out = args.out or Path(temporary)
        with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
            every = list(pool.map(lambda who: runs(who, out, args.overrides), CHARACTERS))
    print(f"| first frame | named | {' | '.join(SHOWN)} | stage 2, s |")
    print("|---" * (len(SHOWN) + 3) + "|")
    for way in WAYS:
        rows = [found[way] for found in every]
        named = sum(row["named"] == row["motion"] for row in rows)
        means = [f"{statistics.mean(row[key] for row in rows):.2f}" for key in SHOWN]
        seconds = statistics.mean(row["seconds"]["stage2"] for row in rows)
        cells = [way, f"{named} of {len(rows)}", *means, f"{seconds:.0f}"]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
