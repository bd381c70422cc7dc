#!/usr/bin/env bash
# diffusers 0.42.1: Wan's transformers keep norms, times and modulation in float32 (_keep_in_fp32_modules)
# when a folder is read by from_pretrained(torch_dtype=bfloat16 or float16). from_single_file with the
# same torch_dtype rounds them: it ends with model.to(torch_dtype), after having kept them in float32
# (for float16; for bfloat16 it doesn't even try). The same weights then give other predictions.
# Expected: the two ways to load the same weights give the same model.
# Way round: from_single_file without torch_dtype, then cast all but those modules.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install -q torch==2.13.0 diffusers==0.42.1 transformers==5.23.0 accelerate
cat > load.py <<'PY'
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file

torch.manual_seed(0)
model = WanTransformer3DModel(num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
                              text_dim=16, freq_dim=16, ffn_dim=24, num_layers=2)
model.save_pretrained("model/transformer")
save_file(model.state_dict(), "model.safetensors")
for dtype in (torch.bfloat16, torch.float16):
    folder = WanTransformer3DModel.from_pretrained("model", subfolder="transformer", torch_dtype=dtype)
    one = WanTransformer3DModel.from_single_file("model.safetensors", config="model", subfolder="transformer",
                                                 torch_dtype=dtype, local_files_only=True)
    kinds = [{str(p.dtype) for p in m.parameters()} for m in (folder, one)]
    print("folder:", *sorted(kinds[0]), "| single file:", *sorted(kinds[1]))
    assert kinds == [{"torch.float32", str(dtype)}, {str(dtype)}]
PY
venv/bin/python load.py
