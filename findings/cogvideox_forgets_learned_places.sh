#!/usr/bin/env bash
# diffusers 0.42.1: a CogVideoX transformer with learned positional embeddings (CogVideoX-5b-I2V) refuses clips of another height or
# width than it was trained with, but takes clips of another length without a word, and adds freshly computed sinusoids
# in place of what it learned.
# Expected: the learned embeddings of the first frames (time is their slowest axis), or an error as for height and width.
# Seen (tiny random weights, learned embeddings set to 100): at the trained length they are what is added, at any other they
# change nothing.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install -q torch==2.13.0 diffusers==0.42.1 transformers==5.23.0
cat > places.py <<'PY'
import torch
from diffusers import CogVideoXTransformer3DModel

torch.manual_seed(0)
model = CogVideoXTransformer3DModel(
    num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=8, text_embed_dim=8, num_layers=1,
    sample_width=8, sample_height=4, sample_frames=9, max_text_seq_length=4,
    use_rotary_positional_embeddings=True, use_learned_positional_embeddings=True,
)
embed = model.patch_embed
text = torch.randn(1, 4, 8)
for latent_frames in (3, 2, 1):  # of clips of 9 (as trained), 5 and 1 frames
    clip = torch.randn(1, latent_frames, 4, 4, 8)
    seen = []
    for learned in (0.0, 100.0):
        embed.pos_embedding.fill_(learned)
        seen.append(embed(text, clip))
    counts = not torch.equal(*seen)
    print(f"{4 * latent_frames - 3} frames: the learned embeddings {'count' if counts else 'are not looked at'}")
    assert counts == (latent_frames == 3)
PY
venv/bin/python places.py
