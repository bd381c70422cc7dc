"""CUDA sources compile, and what a kernel is handed; that kernels run is for the tests of each."""

import ctypes
import inspect

import pytest
import torch
from animate124.geometry import hash_grid_cuda, mlp_cuda
from animate124.geometry.hash_grid_torch import GridSpec
from animate124.guidance import channels_cuda, rms_norm_cuda
from animate124.kernels.cuda_program import Arguments, compile_source
from animate124.renderer import compositing_cuda, ray_marching_cuda

SPACE, TIME = GridSpec(3), GridSpec(4)
PROGRAMS = {  # module, its program's arguments
    "hash grid of points": (hash_grid_cuda, "program", (TIME, False)),
    "hash grid of stencils": (hash_grid_cuda, "program", (SPACE, True)),
    "frame table": (hash_grid_cuda, "frame_program", (SPACE, TIME)),
    "networks": (mlp_cuda, "program", (32, 64, 3)),
    "channels": (channels_cuda, "program", (320, 32)),
    "channels of one group": (channels_cuda, "program", (2560, 1)),
    "channels without groups": (channels_cuda, "program", (1280, 0)),
    "channels that are too many for a row": (channels_cuda, "program", (5120, 0)),
    "RMS norm": (rms_norm_cuda, "program", (96, torch.bfloat16)),
    "RMS norm of many channels": (rms_norm_cuda, "program", (1024, torch.float32)),
    "RMS norm of an odd number": (rms_norm_cuda, "program", (1023, torch.float16)),
    "compositing": (compositing_cuda, "program", (3, True)),
    "compositing without normals": (compositing_cuda, "program", (8, False)),
    "ray march": (ray_marching_cuda, "program", ()),
}


@pytest.mark.parametrize("architecture", ["sm_75", "sm_90"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_sources_compile_without_a_gpu(name, architecture, monkeypatch):
    pytest.importorskip("cuda.bindings.nvrtc", reason="needs cuda-bindings")
    module, function, arguments = PROGRAMS[name]
    made = []
    monkeypatch.setattr(
        module, "Program", lambda source, device, *include: made.append((source, *include))
    )
    get = inspect.unwrap(getattr(module, function))  # without what checks its types, and the cache
    get(*arguments, torch.device("cuda", 0))
    source, *include = made[0]
    assert compile_source(source, architecture, *include).startswith(b"\x7fELF")


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
