#!/usr/bin/env bash
# torch 2.13.0: in a Python autograd.Function, ctx.needs_input_grad says which inputs *require* a
# gradient, not which ones this backward pass was asked for. torch.autograd.grad(out, points), as
# normals from a density and warps by a deformation ask, thus computes the gradient of a trainable
# table beside the points too, if the function skips only what needs_input_grad says; it is thrown
# away.
# Expected: (True, False) when the points' gradient alone is asked for.
# Seen: (True, True); what is made for the table is dropped. requires_grad_(False) on the table turns
# it off.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install -q torch==2.13.0 numpy==2.3.5
cat > ask.py <<'PY'
import torch

asked = []


class LookUp(torch.autograd.Function):
    """Linear interpolation in a table: value and both gradients by hand."""

    @staticmethod
    def forward(ctx, points, table):
        ctx.save_for_backward(points, table)
        cell = points.floor().long()
        return torch.lerp(table[cell], table[cell + 1], points - cell)

    @staticmethod
    def backward(ctx, grad):
        asked.append(ctx.needs_input_grad)
        points, table = ctx.saved_tensors
        cell = points.floor().long()
        to_points = grad * (table[cell + 1] - table[cell]) if ctx.needs_input_grad[0] else None
        to_table = None
        if ctx.needs_input_grad[1]:
            to_table = torch.zeros_like(table)
            to_table.index_add_(0, cell, grad * (1 - (points - cell)))
            to_table.index_add_(0, cell + 1, grad * (points - cell))
        return to_points, to_table


points = (7 * torch.rand(100)).requires_grad_()
table = torch.rand(9, requires_grad=True)
(slope,) = torch.autograd.grad(LookUp.apply(points, table).sum(), points)
assert torch.equal(slope, (table[points.floor().long() + 1] - table[points.floor().long()]).detach())
assert table.grad is None
LookUp.apply(points, table).sum().backward(inputs=[points])
assert table.grad is None
table.requires_grad_(False)
torch.autograd.grad(LookUp.apply(points, table).sum(), points)
print(f"torch {torch.__version__}: grad(out, points) {asked[0]}, backward(inputs=[points]) {asked[1]}, frozen table {asked[2]}")
assert asked == [(True, True), (True, True), (True, False)]
PY
venv/bin/python ask.py 2> /dev/null
