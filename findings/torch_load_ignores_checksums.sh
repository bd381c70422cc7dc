#!/usr/bin/env bash
# torch 2.13.0: files of torch.save are zip archives with a CRC-32 of each tensor, and torch.load never asks
# it: with one bit flipped in a weight the file loads without a word, and Lightning resumes from it. Python's
# zipfile.testzip() names the damaged entry.
# Expected: an error about the file, as for a file that is cut off.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install -q torch==2.13.0 numpy==2.4.6
cat > flip.py <<'PY'
import zipfile
import torch

torch.save({"weight": torch.ones(4096)}, "model.pt")
data = bytearray(open("model.pt", "rb").read())
data[data.index(torch.ones(64).numpy().tobytes()) + 4 * 1000 + 3] ^= 0x40  # exponent of number 1000
open("flipped.pt", "wb").write(data)
weight = torch.load("flipped.pt", weights_only=True)["weight"]
print("loaded:", weight[999:1002].tolist(), "testzip:", zipfile.ZipFile("flipped.pt").testzip())
assert (weight != 1).sum() == 1
assert zipfile.ZipFile("flipped.pt").testzip() is not None and zipfile.ZipFile("model.pt").testzip() is None
PY
venv/bin/python flip.py
