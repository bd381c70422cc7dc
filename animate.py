"""One image and one sentence in, a 4D scene out.

python animate.py photo.jpg --prompt "a panda is dancing"
python animate.py load/toy-panda/image.png --prompt "a panda is dancing" --preset toy
python animate.py --batch scenes.csv --gpu 0,1
"""

import argparse
import os
import re
import sys
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as launch.py
sys.path.insert(0, str(Path(__file__).resolve().parent / "host"))

from argument_types import finite_number, path, positive_int, text_with_content

ROOT = Path(__file__).resolve().parent


def gigabytes(text: str) -> float:
    """An argparse type: 16, 16GB or "16 GB"."""
    return finite_number(1, 1024)(re.sub(r"\s*gi?b?$", "", text, flags=re.IGNORECASE))


def parser() -> argparse.ArgumentParser:
    text = text_with_content
    p = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        usage="%(prog)s IMAGE --prompt TEXT [options] [task.key=value ...]\n"
        "       %(prog)s --batch scenes.csv [options] [task.key=value ...]",
        epilog="Tasks: preprocess, token, stage1, stage2, stage3, result. task.key=value changes "
        "a stage's config (stage2.trainer.max_steps=500) or a flag of another task's script "
        "(token.max_train_steps=500, result.size=256). Run it again to go on where it stopped: "
        "what is done is skipped.",
        allow_abbrev=False,
    )
    p.add_argument("words", nargs="*", metavar="IMAGE", help="a photo, or an RGBA cut-out")
    p.add_argument("--prompt", help='what happens: "a panda is dancing"')
    p.add_argument(
        "--subject", type=text, help="who moves (default: from the prompt, or a caption)"
    )
    p.add_argument(
        "--static-prompt", type=text, help="stage 1's prompt (default: the preset's, of SUBJECT)"
    )
    p.add_argument(
        "--refine-prompt",
        type=text,
        help="stage 3's prompt (default: the prompt, <token> for the subject)",
    )
    p.add_argument(
        "--preset", default="modelscope", help="toy, modelscope or zeroscope (modelscope)"
    )
    p.add_argument(
        "--vram", type=gigabytes, metavar="GB", help="sets options that fit this much GPU memory"
    )
    p.add_argument(
        "--gpu", metavar="N,N", help="as launch.py's, or cpu; with --batch: one scene each"
    )
    p.add_argument("--out", type=path, default=Path("outputs"), help="results go to OUT/<name>")
    p.add_argument("--fast", action="store_true", help="a quarter of the training steps")
    p.add_argument("--from", dest="start", metavar="TASK", help="do this task and all after again")
    p.add_argument("--until", default="result", metavar="TASK", help="stop after this task")
    p.add_argument("--dry-run", action="store_true", help="print the plan and its command lines")
    p.add_argument(
        "--batch", type=path, metavar="CSV", help="table of many scenes: image, prompt, ..."
    )
    p.add_argument(
        "--launcher", choices=["local", "submitit"], default="local", help="with --batch"
    )
    p.add_argument("--slurm-partition", type=text, metavar="NAME", help="with --launcher submitit")
    p.add_argument(
        "--slurm-time", type=positive_int, metavar="MINUTES", help="with --launcher submitit"
    )
    return p


def main() -> int:
    """Parses first, so that --help doesn't wait for libraries."""
    args = parser().parse_intermixed_args()
    from threestudio.extensions import load_extension

    load_extension("animate124", ROOT)
    from animate124.pipeline.command import run

    return run(args, sys.argv)


if __name__ == "__main__":
    # the checkout's folders (data, system, ...) are no top-level packages
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # before a run began; one that did handles it
        sys.exit(130)
