"""The result of a scene: videos and a contact sheet, rendered from a stage's checkpoint.

python pipeline/result.py --config <trial>/configs/parsed.yaml --checkpoint <trial>/ckpts/last.ckpt
--out <folder>

The scene is built without its priors and without normals. Angles are degrees, tau is in [0, 1].
"""

import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Renders; 0, or 1 after an input that can't be used, which is one message."""
    from animate124.pipeline.rendering import write_result  # pyright: ignore[reportMissingImports]
    from animate124.pipeline.script import run  # pyright: ignore[reportMissingImports]
    from animate124.pipeline.tasks.result import parser  # pyright: ignore[reportMissingImports]

    return run(write_result, parser().parse_args(arguments))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from door import enter

    enter(main)
