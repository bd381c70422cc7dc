#!/usr/bin/env bash
# diffusers 0.42.1: the scheduler folder of a flow-matching model (Wan, LTX, SD 3) can be loaded as a
# DDPMScheduler, DDIMScheduler or EulerDiscreteScheduler without an error or a warning, though
# scheduler_config.json says _class_name FlowMatchEulerDiscreteScheduler. The object says that the model
# predicts epsilon, and has the classes' default betas: every formula built on it is wrong.
# Expected: an error, or at least a warning, that the folder holds another class.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install -q torch==2.13.0 diffusers==0.42.1 transformers==5.23.0
cat > read.py <<'PY'
import warnings
import diffusers

warnings.simplefilter("error")
logged = []
diffusers.utils.logging.set_verbosity_debug()
diffusers.utils.logging.disable_default_handler()
import logging
handler = logging.Handler(logging.WARNING)
handler.emit = lambda record: logged.append(record.getMessage())
diffusers.utils.logging.add_handler(handler)
diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained("model/scheduler")
for name in ("DDPMScheduler", "DDIMScheduler", "EulerDiscreteScheduler"):
    scheduler = getattr(diffusers, name).from_pretrained("model", subfolder="scheduler")
    config = scheduler.config
    print(name, config.prediction_type, config.beta_start, config.beta_end, "warnings:", len(logged))
    assert (config.prediction_type, config.beta_start, config.beta_end) == ("epsilon", 0.0001, 0.02)
    assert not logged, logged
PY
venv/bin/python read.py
