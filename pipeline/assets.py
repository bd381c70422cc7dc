"""Files of a scene for other programs: animation.glb, from a stage's checkpoint.

python pipeline/assets.py --config <trial>/configs/parsed.yaml --checkpoint <trial>/ckpts/last.ckpt
--out <folder>

The scene is built without its priors and without normals.
"""

import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Exports; 0, or 1 after an input that can't be used, which is one message."""
    from animate124.pipeline.exporting import write_assets  # pyright: ignore[reportMissingImports]
    from animate124.pipeline.script import run  # pyright: ignore[reportMissingImports]
    from animate124.pipeline.tasks.assets import parser  # pyright: ignore[reportMissingImports]

    return run(write_assets, parser().parse_args(arguments), ImportError)  # which names the library


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from door import enter

    enter(main)
