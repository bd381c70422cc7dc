"""The result of a scene: videos and a contact sheet, rendered from a stage's checkpoint.

python pipeline/result.py --config <trial>/configs/parsed.yaml --checkpoint <trial>/ckpts/last.ckpt
--out <folder>

The scene is built without its priors and without normals. Angles are degrees, tau is in [0, 1].
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as launch.py


def main(arguments: Sequence[str] | None = None) -> int:
    """Renders; 0, or 1 after an input that can't be used, which is one message."""
    from animate124.events import say_error, tell_messages  # pyright: ignore[reportMissingImports]
    from animate124.pipeline.rendering import write_result  # pyright: ignore[reportMissingImports]
    from animate124.pipeline.tasks.result import parser  # pyright: ignore[reportMissingImports]
    from threestudio.launch import INPUT_ERRORS

    args = parser().parse_args(arguments)
    tell_messages()
    try:
        write_result(args)
    except INPUT_ERRORS as error:
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
