"""Networks that are seldom asked: their weights wait in the host's memory, and come to the GPU part
by part, each for as long as it computes. A part is a child of the network, or of one of its lists
of blocks: what is called as a whole.

They come in one copy a part, from page-locked memory, so that a CUDA graph can have recorded it
(speed.py): then they come to the memory of that graph, which others share.
"""

from typing import Any

import torch
from torch import Tensor, nn

ALIGNMENT = 256  # bytes: any type of number may begin there


def wait_in_host(network: Any, device: torch.device) -> None:
    """Takes the weights of a frozen network's parts out of the device's memory, in place. It still
    computes there."""
    for part in parts_of(network):
        tensors = [*part.parameters(), *part.buffers()]
        if tensors:
            waiting = WaitingTensors(tensors, device)
            part.register_forward_pre_hook(waiting.come)
            part.register_forward_hook(waiting.go)


def parts_of(network: nn.Module) -> list[nn.Module]:
    """The network's children, and those of its lists."""
    parts: list[nn.Module] = []
    for child in network.children():
        parts += child if isinstance(child, nn.ModuleList) else [child]
    return parts


class WaitingTensors:
    """Tensors with all of their bytes in one piece of the host's memory."""

    def __init__(self, tensors: list[Tensor], device: torch.device):
        self.tensors, self.device = tensors, device
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors}
        starts, size = {}, 0
        for pointer, storage in storages.items():
            starts[pointer] = size
            size += -(-storage.nbytes() // ALIGNMENT) * ALIGNMENT
        self.offsets = [  # of their numbers
            starts[t.untyped_storage().data_ptr()] // t.element_size() + t.storage_offset()
            for t in tensors
        ]
        self.held = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
        for pointer, storage in storages.items():
            own = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
            self.held[starts[pointer] :][: len(own)].copy_(own)
        self.lie_in(self.held)

    def come(self, *_call: Any) -> None:
        self.lie_in(self.held.to(self.device, non_blocking=True, copy=True))

    def go(self, *_call: Any) -> None:
        self.lie_in(self.held)

    def lie_in(self, piece: Tensor) -> None:
        """Lets the tensors be views of these bytes, as they were of their own: what shared memory
        shares it again."""
        storage = piece.untyped_storage()
        for tensor, offset in zip(self.tensors, self.offsets, strict=True):
            view = torch.empty(0, dtype=tensor.dtype, device=piece.device)
            tensor.data = view.set_(storage, offset, tensor.shape, tensor.stride())
