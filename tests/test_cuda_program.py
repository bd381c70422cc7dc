"""What a CUDA kernel is handed; that kernels run is for the tests of each."""

import ctypes

import torch
from animate124.geometry.cuda_program import Arguments


def test_arguments_lie_where_their_addresses_say():
    tensor = torch.zeros(3)
    arguments = (tensor, 7, None, 1.5, -3, True)
    types = (
        ctypes.c_void_p,
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_float,
        ctypes.c_int,
        ctypes.c_int,
    )
    memory = Arguments(arguments)

    def read(address):
        pointers = ctypes.cast(address, ctypes.POINTER(ctypes.c_void_p))
        return [kind.from_address(pointers[i]).value for i, kind in enumerate(types)]

    assert read(memory.write(arguments)) == [tensor.data_ptr(), 7, None, 1.5, -3, 1]
    assert read(memory.write((None, 0, tensor, 0.0, 2**31 - 1, False))) == [
        *(None, 0, tensor.data_ptr(), 0.0, 2**31 - 1, 0)
    ]
    assert memory.write(arguments) == ctypes.addressof(memory.pointers)
