"""What a step of stage 2 costs with each family of video priors, full size, random weights.

    python benchmarks/priors.py [FAMILY ...] [--steps 12] [--compile graph] [--vram 12] [--tiny]

One after another, each in a process of its own (step.py, whose split is printed): the deformation's
stage 2 with the family's own config, at its frames and pixels. Without names: modelscope, then all.
ms of a usual step and peak GB go into figures.json as prior.<family>.ms and .gb. Once all are
measured, of those that are shown a picture and take 12 GB or less the fastest one's are also
prior.image_conditioned.gb and .ratio_to_modelscope. `--vram GB` caps CUDA there, sets what the
preset sets for so much, and writes prior.<family>.vram<GB>.ms and .gb alone. Prompts are random
embeddings of the right shape: no text encoder is there while a scene trains. `--tiny` tries it on a
CPU.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import step  # whose processes are forks of this one, so that libraries are imported once
from animate124.host.argument_types import positive_int
from animate124.pipeline.fork_server import forks
from animate124.pipeline.presets import preset_of
from animate124.pipeline.process import STOPPED, Start
from animate124.pipeline.request import Request
from measuring import FIGURES, record
from video_families import FAMILIES

CONFIGS = {"modelscope": "ms", "zeroscope": "zs"}  # preset -> end of its configs' names, if another
PRESETS = [*CONFIGS, *FAMILIES]
SMALL_GB = 12  # of a small card


def memory_options(family: str, gb: float) -> list[str]:
    """What --vram sets for stage 2."""
    stage = preset_of(Request(Path("a"), "a", preset=family)).stages[1]
    return [f"{key}={value}" for key, value in stage.memory_options(gb).items()]


def measure(
    family: str, args: argparse.Namespace, file: Path, start: Start
) -> tuple[float, float] | None:
    """ms and GB (0 on a CPU) of a step, None where it fails."""
    command = [sys.executable, step.__file__, "--stage", "2", "--figures", str(file)]
    command += ["--video", CONFIGS.get(family, family), "--compile", args.compile]
    command += ["--warm-up", str(args.warm_up), "--steps", str(args.steps), "--split-steps", "4"]
    command += ["--tiny"] * args.tiny
    if args.vram:
        command += ["--memory-fraction-gb", str(args.vram), *memory_options(family, args.vram)]
    print(f"\n=== {family}", flush=True)
    process = start([*command, *args.overrides], Path.cwd(), os.environ)
    assert process.stdout is not None
    for line in process.stdout:
        print(line.decode(), end="", flush=True)
    if process.wait():
        print(f"{family} failed")
        return None
    parts = {k.rpartition("/")[2]: v["value"] for k, v in json.loads(file.read_text()).items()}
    return parts.get("usual clip", parts.get("clip from time zero")), parts.get("peak", 0.0)


def figures_of(
    seen: dict[str, tuple[float, float]], vram: float | None
) -> dict[str, tuple[float, str]]:
    """Names, values and units."""
    at = "" if vram is None else f".vram{vram:g}"
    figures = {}
    for family, (ms, gb) in seen.items():
        figures[f"prior.{family}{at}.ms"] = ms, "ms"
        figures[f"prior.{family}{at}.gb"] = gb, "GB"
    fitting = [name for name, (_, gb) in seen.items() if name in FAMILIES and gb <= SMALL_GB]
    pictured = [name for name in fitting if FAMILIES[name].sees_picture]
    if pictured and vram is None and seen.keys() >= {"modelscope", *FAMILIES}:
        fastest = min(pictured, key=lambda name: seen[name][0])
        figures["prior.image_conditioned.gb"] = seen[fastest][1], f"GB, with {fastest}"
        ratio = seen[fastest][0] / seen["modelscope"][0]
        unit = f"of the ms with modelscope, with {fastest}"
        figures["prior.image_conditioned.ratio_to_modelscope"] = ratio, unit
    return figures


def measure_all(
    families: list[str],
    args: argparse.Namespace,
    file: Path | None,
    seen: dict[str, tuple[float, float]],
) -> None:
    """Fills `seen`, and the file of figures, family by family."""
    with forks() as start, tempfile.TemporaryDirectory() as folder:
        for family in families:
            found = measure(family, args, Path(folder) / f"{family}.json", start)
            if found is not None:
                seen[family] = found
                if file:  # what is measured stays if the next one is stopped
                    record(figures_of(seen, args.vram), file)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=", ".join(PRESETS))
    parser.add_argument("--compile", choices=["false", "graph", "inductor"], default="graph")
    parser.add_argument("--warm-up", type=positive_int, default=6, help="steps before measuring")
    parser.add_argument("--steps", type=positive_int, default=12, help="steps that are measured")
    parser.add_argument("--vram", type=float, metavar="GB", help="as animate.py's, and a cap")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="key=value")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to try this on a CPU")
    parser.add_argument("--figures", type=Path, metavar="FILE", help="where figures are written")
    args = parser.parse_args()
    families = [*dict.fromkeys(args.families or ["modelscope", *FAMILIES])]
    unknown = set(families) - set(PRESETS)
    if unknown:
        parser.error(f"no family {', '.join(sorted(unknown))}: there are {', '.join(PRESETS)}")
    if args.vram is not None and args.vram <= 0:
        parser.error(f"--vram {args.vram:g} is no memory")
    file = args.figures or (None if args.tiny else FIGURES)
    if file and not file.parent.is_dir():
        parser.error(f"--figures {file}: there is no folder {file.parent}")
    seen, stopped = {}, False
    try:
        measure_all(families, args, file, seen)
    except KeyboardInterrupt:
        stopped = True
        print(f"\nStopped; of {len(families)} families {len(seen)} are measured:")
    for name, (value, unit) in figures_of(seen, args.vram).items():
        print(f"{name}: {value:.4g} {unit}")
    sys.exit(STOPPED if stopped else len(seen) < len(families))


if __name__ == "__main__":
    main()
