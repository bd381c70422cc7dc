#!/usr/bin/env bash
# torch 2.13.0, on a CPU: aten.native_group_norm_backward, called directly as an autograd.Function of one's own does, gives other
# numbers for the same gradient if that lies with its channels innermost and x doesn't: without an error, and far off. Autograd's own
# group norm gives the right ones, since it lays the gradient as x lies before it asks the operator.
# Expected: a result by values and shape, or an error. Way round: grad.contiguous() in x's layout.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install -q torch==2.13.0 numpy
cat > norm.py <<'PY'
import torch
import torch.nn.functional as F

torch.manual_seed(0)
n, channels, height, width, groups = 2, 8, 5, 7, 4
x, weight = torch.randn(n, channels, height, width), torch.randn(channels)
plain = torch.randn_like(x)
sizes = n, channels, height * width, groups
_, mean, rstd = torch.native_group_norm(x, weight, None, *sizes, 1e-5)
off = []
for grad in (plain, plain.to(memory_format=torch.channels_last)):
    assert torch.equal(grad, plain)
    asked = torch.ops.aten.native_group_norm_backward(grad, x, mean, rstd, weight, *sizes, [True, False, False])[0]
    leaf = x.clone().requires_grad_()
    F.group_norm(leaf, groups, weight).backward(grad)
    off.append(float((asked - leaf.grad).abs().max() / leaf.grad.abs().max()))
print(f"largest error, of the largest gradient: {off[0]:.1e} laid as x, {off[1]:.2f} with channels innermost")
assert off[0] < 1e-5 and off[1] > 0.1
PY
venv/bin/python norm.py
