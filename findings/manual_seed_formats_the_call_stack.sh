#!/usr/bin/env bash
# torch 2.13.0 (2.13.0+cpu): each torch.manual_seed formats the caller's whole stack, three times, for accelerators
# that aren't there (it may one day have to say who asked for the seed that is still to be set on them). A training
# loop that seeds each step, so that a resumed run draws the same numbers, pays for it with the depth of its stack:
# 120 calls deep more than a hundred times what the generator's own seeding takes.
# Expected: at most once, when an accelerator is there that isn't ready. torch.default_generator.manual_seed gives
# the same numbers and formats nothing.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install -q torch==2.13.0 numpy==2.4.6
cat > seed.py <<'PY'
import traceback

import torch

formatted = []
format_stack = traceback.format_stack


def counted(*args, **kwargs):
    lines = format_stack(*args, **kwargs)
    formatted.append(len(lines))
    return lines


traceback.format_stack = counted


def deep(call, depth):
    return call() if depth == 0 else deep(call, depth - 1)


print("torch", torch.__version__, "- an accelerator is there:", torch.cuda.is_available())
if torch.cuda.is_available():
    raise SystemExit("with CUDA it is another count: nothing to see here")
for call in (1, 2, 3):
    formatted.clear()
    deep(lambda: torch.manual_seed(7), 120)
    print(f"manual_seed, call {call}: the stack was formatted {len(formatted)} times")
    assert len(formatted) == 3
first = torch.rand(4)
formatted.clear()
deep(lambda: torch.default_generator.manual_seed(7), 120)
same = torch.equal(torch.rand(4), first)
print(f"default_generator.manual_seed: {len(formatted)} times, the same numbers: {same}")
assert not formatted and same
PY
venv/bin/python seed.py
