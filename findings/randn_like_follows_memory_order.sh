#!/usr/bin/env bash
# torch 2.13.0, on a CPU: what randn_like draws depends on how a tensor lies in memory. With one seed, two tensors that are equal in
# shape and in every value get other noise if the one has its channels innermost: latents that were only turned to channels_last
# get another sample. randn by shape gives the same.
# Expected: noise by seed, shape and type alone. Seen: two samples of N(0, 1) that have nothing in common.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install -q torch==2.13.0 numpy
cat > noise.py <<'PY'
import torch

plain = torch.zeros(2, 4, 8, 8)
turned = plain.to(memory_format=torch.channels_last)
assert torch.equal(plain, turned)


def drawn(make):
    torch.manual_seed(0)
    return make()


like = [drawn(lambda: torch.randn_like(latents)).flatten() for latents in (plain, turned)]
both = float(torch.corrcoef(torch.stack(like))[0, 1])
print(f"correlation of the two noises: {both:.2f}")
assert abs(both) < 0.2
assert torch.equal(*(drawn(lambda: torch.randn(latents.shape)) for latents in (plain, turned)))
PY
venv/bin/python noise.py
