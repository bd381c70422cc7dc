#!/usr/bin/env bash
# pytorch-lightning 2.6.6: ModelCheckpoint(save_last=True, every_n_train_steps=10) and max_steps=23: when fit is
# over, last.ckpt is of step 20, and what the last three steps learnt is in no file. The look at the end of
# training saves only if nothing was saved before.
# Expected: last.ckpt is the end of the training.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install -q torch==2.13.0 pytorch-lightning==2.6.6 numpy==2.4.6
cat > fit.py <<'PY'
import logging
import warnings

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

warnings.simplefilter("ignore")
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


class Line(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, x, index):
        return self.layer(x).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


trainer = pl.Trainer(max_steps=23, logger=False, enable_progress_bar=False, enable_model_summary=False,
                     accelerator="cpu", callbacks=[ModelCheckpoint("ckpts", save_last=True, every_n_train_steps=10)])
trainer.fit(Line(), DataLoader(torch.rand(100, 1), batch_size=1))
last = torch.load("ckpts/last.ckpt", weights_only=True)["global_step"]
print("trained", trainer.global_step, "steps; last.ckpt is of step", last)
assert (trainer.global_step, last) == (23, 20)
PY
venv/bin/python fit.py
