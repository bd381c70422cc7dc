#!/usr/bin/env bash
# diffusers 0.42.1: AutoencoderKLWan.encode takes clips of any length, but what comes behind the last
# 4 k + 1 frames is never looked at: no error, no warning, and a gradient of exactly zero. Whoever
# optimises pixels through it (score distillation, inversion) never moves those frames.
# Expected: an error for a length that doesn't fit, or padding.
# Seen (tiny random weights): 8 frames give the latents of the first 5, to the bit.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install -q torch==2.13.0 diffusers==0.42.1 transformers==5.23.0
cat > encode.py <<'PY'
import torch
from diffusers import AutoencoderKLWan

torch.manual_seed(0)
vae = AutoencoderKLWan(base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
                       temperal_downsample=[False, True, True], latents_mean=[0.0] * 4, latents_std=[1.0] * 4).eval()
clip = torch.rand(1, 3, 8, 16, 16, requires_grad=True)
latents = vae.encode(clip).latent_dist.mode()
latents.square().sum().backward()
moved = clip.grad.abs().amax((0, 1, 3, 4)) > 0
first = vae.encode(clip[:, :, :5]).latent_dist.mode()
print("8 frames ->", latents.shape[2], "latent frames; frames with a gradient:", moved.nonzero().flatten().tolist())
assert moved.tolist() == [True] * 5 + [False] * 3
assert torch.equal(latents, first)
PY
venv/bin/python encode.py
