#!/usr/bin/env bash
# imageio-ffmpeg 0.8.1 (and imageio 2.38.1 through it): a short clip that ffmpeg can't encode is
# "written" without an exception. The writer never looks at ffmpeg's exit code: it only notices a
# broken pipe, which a few small frames fit into whole. With macro_block_size=1 (the size is kept,
# as pixel-exact comparisons of renders need) an odd side makes x264 refuse.
# Expected: an error from the writer when it is closed.
# Seen: 3 frames of 33 x 33: no exception, a file of 0 bytes. 200 frames of it: OSError (broken pipe).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install -q imageio==2.38.1 imageio-ffmpeg==0.8.1 numpy==2.3.5
cat > write.py <<'PY'
import os

import imageio
import numpy as np

def write(frames: int, side: int) -> tuple[str | None, int]:
    """The exception's name, if any, and the file's size."""
    path, error = f"{frames}-{side}.mp4", None
    try:
        imageio.mimwrite(path, list(np.zeros((frames, side, side, 3), np.uint8)), macro_block_size=1)
    except Exception as caught:
        error = type(caught).__name__
    return error, os.path.getsize(path)

found = {case: write(*case) for case in ((3, 32), (3, 33), (200, 33))}
for (frames, side), (error, size) in found.items():
    print(f"{frames} frames of {side} x {side}: exception {error}, {size} bytes")
assert found[3, 32][0] is None and found[3, 32][1] > 0
assert found[3, 33] == (None, 0)
assert found[200, 33] == ("OSError", 0)
PY
venv/bin/python write.py 2> /dev/null
