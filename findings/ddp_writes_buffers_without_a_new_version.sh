#!/usr/bin/env bash
# torch 2.13.0: before each forward pass DistributedDataParallel copies rank 0's buffers over the other ranks' (broadcast_buffers, the
# default). Their values change, their _version does not: what is kept "until the buffer changes" (a list of occupied cells, a
# packed weight) is stale on every rank but 0, and no autograd check sees it either. Two processes, gloo, on a CPU.
# Expected: a write in place counts as one. Way round: broadcast_buffers=False, or a number that is counted by hand.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install -q torch==2.13.0 numpy
cat > buffers.py <<'PY'
import os

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel


def rank(index, place):
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=index, world_size=2)
    module = torch.nn.Linear(2, 2)
    module.register_buffer("grid", torch.zeros(4))
    wrapped = DistributedDataParallel(module)
    first, seen = module.grid._version, []
    for step in range(3):
        if index == 0:
            module.grid.add_(1)
        wrapped(torch.ones(1, 2)).sum().backward()
        seen.append((module.grid[0].item(), module.grid._version - first))
    print(f"rank {index}: value and new versions after each step {seen}", flush=True)
    assert [value for value, _ in seen] == [1, 2, 3]
    assert [count for _, count in seen] == ([1, 2, 3] if index == 0 else [0, 0, 0])
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.spawn(rank, args=(os.path.abspath("meeting"),), nprocs=2)
PY
venv/bin/python buffers.py
