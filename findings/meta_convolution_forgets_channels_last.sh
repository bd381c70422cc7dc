#!/usr/bin/env bash
# torch 2.13.0 (2.13.0+cpu): where a convolution's result lies in memory is another thing on the meta device than on the
# device that it stands for. With its image, its weight or both channels_last, a CPU's result has its channels innermost,
# a fake tensor's too, and a meta tensor's hasn't. Who counts a network's copies or its traffic with meta tensors, as it
# needs neither weights nor a GPU, then counts one behind each convolution that the real network never makes.
# Expected: the strides of the CPU, as a fake tensor has them. Seen: a contiguous result, and a copy in `contiguous`.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install -q torch==2.13.0 numpy==2.4.6
cat > strides.py <<'PY'
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

LAST = torch.channels_last


class Copies(TorchDispatchMode):
    made = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.made += function is torch.ops.aten.clone.default
        return function(*args, **(kwargs or {}))


def convolved(device, image_last, weight_last):
    image, weight = torch.ones(1, 8, 6, 6, device=device), torch.ones(8, 8, 3, 3, device=device)
    image = image.contiguous(memory_format=LAST) if image_last else image
    weight = weight.contiguous(memory_format=LAST) if weight_last else weight
    with Copies() as copies:
        result = torch.nn.functional.conv2d(image, weight, padding=1)
        result.contiguous(memory_format=LAST)
    return result.stride(), copies.made


print("torch", torch.__version__)
for image_last, weight_last in ((False, True), (True, False), (True, True)):
    cpu, meta = (convolved(device, image_last, weight_last) for device in ("cpu", "meta"))
    with FakeTensorMode():
        fake = convolved("cpu", image_last, weight_last)
    print(f"channels_last: image {image_last}, weight {weight_last}; strides and copies:")
    print(f"  cpu {cpu}, fake {fake}, meta {meta}")
    assert cpu == fake == ((288, 1, 48, 8), 0)
    assert meta == ((288, 36, 6, 1), 1)
PY
venv/bin/python strides.py
