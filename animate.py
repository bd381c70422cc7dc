"""One image and one sentence in, a 4D scene out.

python animate.py photo.jpg --prompt "a panda is dancing"
python animate.py load/toy-panda/image.png --prompt "a panda is dancing" --preset toy
python animate.py --batch scenes.csv --gpu 0,1
python animate.py view outputs/toy-panda-a_panda_is_dancing
python animate.py check-model Wan-AI/Wan2.1-T2V-1.3B-Diffusers
"""

import importlib.util
import os
import sys
from pathlib import Path

# as launch.py: tasks are forks of this process
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

ROOT = Path(__file__).resolve().parent


def main() -> int:
    """Parses first, so that --help doesn't wait for libraries."""
    sys.path.insert(0, str(ROOT / "host"))
    # as a module of the package it would wait for the package's import
    spec = importlib.util.spec_from_file_location("request", ROOT / "pipeline" / "request.py")
    assert spec is not None and spec.loader is not None
    request = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(request)
    view, check = (sys.argv[1:2] == [name] for name in ("view", "check-model"))
    args = None if view or check else request.parser().parse_intermixed_args()
    if args is not None and args.preset in request.OFFLINE:
        os.environ["HF_HUB_OFFLINE"] = "1"  # which the hub's library reads once, for the tasks, too
    from threestudio.extensions import load_extension

    load_extension("animate124", ROOT)
    if view:
        from animate124.viewer.command import main as look  # pyright: ignore[reportMissingImports]

        return look(sys.argv[2:])
    if check:
        from animate124.evaluation import check_model  # pyright: ignore[reportMissingImports]

        return check_model.main(sys.argv[2:])
    from animate124.pipeline.command import run  # pyright: ignore[reportMissingImports] # just loaded

    return run(args, sys.argv, fresh=True)


if __name__ == "__main__":
    # the checkout's folders (data, system, ...) are no top-level packages
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # before a run began; one that did handles it
        sys.exit(130)
