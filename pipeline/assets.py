"""Files of a scene for other programs: animation.glb, from a stage's checkpoint.

python pipeline/assets.py --config <trial>/configs/parsed.yaml --checkpoint <trial>/ckpts/last.ckpt
--out <folder>

The scene is built without its priors and without normals.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as launch.py


def main(arguments: Sequence[str] | None = None) -> int:
    """Exports; 0, or 1 after an input that can't be used, which is one message."""
    from animate124.events import say_error, tell_messages  # pyright: ignore[reportMissingImports]
    from animate124.pipeline.exporting import write_assets  # pyright: ignore[reportMissingImports]
    from animate124.pipeline.tasks.assets import parser  # pyright: ignore[reportMissingImports]
    from threestudio.launch import INPUT_ERRORS

    args = parser().parse_args(arguments)
    tell_messages()
    try:
        write_assets(args)
    except (*INPUT_ERRORS, ImportError) as error:  # the latter names the library
        text = error.args[0] if isinstance(error, KeyError) else error
        say_error(text)
        return 1
    return 0


if __name__ == "__main__":
    # this checkout, installed or not, on the bundled host; its folders are no top-level packages
    root = Path(__file__).resolve().parent.parent
    here = (root, root / "pipeline")
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() not in here]
    sys.path.insert(0, str(root / "host"))
    try:
        from threestudio.extensions import load_extension

        load_extension("animate124", root)
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
