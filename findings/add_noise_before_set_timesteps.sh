#!/usr/bin/env bash
# diffusers 0.42.1: on a fresh DPMSolverMultistepScheduler (also DPMSolverSinglestep, UniPC, DEIS), before
# set_timesteps, add_noise runs the wrong way: at t = 999 the sample stays nearly clean, at t = 0 it is
# nearly all noise. DDPM, DDIM and PNDM do as they should. Training or distillation code that loads
# whatever scheduler a folder holds, and only ever calls add_noise, learns from reversed noise.
# Expected: z_t = sqrt(alpha_bar_t) z + sqrt(1 - alpha_bar_t) eps, as after set_timesteps(1000).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install -q torch==2.13.0 diffusers==0.42.1 transformers==5.23.0 scipy
cat > add.py <<'PY'
import diffusers
import torch

z, eps = torch.zeros(1, 1), torch.ones(1, 1)  # what comes back is sigma_t
for name in ("DDPM", "DDIM", "PNDM", "DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep", "DEISMultistep"):
    scheduler = getattr(diffusers, name + "Scheduler")(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    early, late = (float(scheduler.add_noise(z, eps, torch.tensor([t]))) for t in (0, 999))
    scheduler.set_timesteps(1000)
    after = float(scheduler.add_noise(z, eps, torch.tensor([999])))
    print(f"{name:20} noise at t = 0: {early:.3f}, at t = 999: {late:.3f}; after set_timesteps at 999: {after:.3f}")
    assert (early > late) == (name not in ("DDPM", "DDIM", "PNDM"))
    assert after > 0.99
PY
venv/bin/python add.py
