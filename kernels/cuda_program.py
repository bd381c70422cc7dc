"""CUDA kernels without a build step: NVRTC compiles their source when they are first used, or
beforehand, beside other work. What it made is kept (kept_code.py).

It needs no compiler and no CUDA toolkit, only NVIDIA's `cuda-bindings` and the NVRTC library, both
of which PyTorch's CUDA packages for Linux bring along since 2.11.
"""

import ctypes
import functools
import os
import struct
import threading
import warnings
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from .kept_code import kept_code


class Program:
    """The kernels of one source, compiled for one device.

    include: a folder whose files the source may include.
    """

    def __init__(self, source: str, device: torch.device, include: Path | None = None):
        from cuda.bindings import driver  # pyright: ignore[reportAttributeAccessIssue] # compiled

        self.device = device
        binary = code_of(source, architecture_of(device), include).result()
        self.context = self.call(driver.cuDevicePrimaryCtxRetain, device.index)
        with torch.cuda.device(device):
            self.call(driver.cuCtxSetCurrent, self.context)
            self.module = self.call(driver.cuModuleLoadData, binary)
        self.kernels: dict[str, tuple] = {}
        self.lock = threading.Lock()  # a kernel's arguments lie in one place

    def launch(self, name: str, grid: tuple, block: tuple, *arguments) -> None:
        """Run a kernel on the current stream. Arguments: tensors or None (as pointers), int, float.

        Nothing checks them against the kernel: the caller sees to types, sizes and layout.
        """
        from cuda.bindings import driver  # pyright: ignore[reportAttributeAccessIssue] # compiled

        if name not in self.kernels:
            kernel = self.call(driver.cuModuleGetFunction, self.module, name.encode())
            self.kernels[name] = kernel, Arguments(arguments)
        kernel, memory = self.kernels[name]
        grid, block = (*grid, 1, 1)[:3], (*block, 1, 1)[:3]
        index = self.device.index  # torch takes a microsecond to read it out of a device
        with self.lock, torch.cuda.device(index):
            # a thread of autograd's may have no context yet
            self.call(driver.cuCtxSetCurrent, self.context)
            stream = torch.cuda.current_stream(index).cuda_stream
            address = memory.write(arguments)
            self.call(driver.cuLaunchKernel, kernel, *grid, *block, 0, stream, address, 0)

    @staticmethod
    def call(function, *arguments):
        """The result of a call to the driver."""
        error, *results = function(*arguments)
        if error != 0:
            raise RuntimeError(f"{function.__name__} answered {error!r}.")
        return results[0] if results else None


class Arguments:
    """The memory in which a kernel's arguments are handed over: 8 bytes each, and their addresses.

    The bindings can build it from Python's values, but take longer than the launch itself.
    """

    def __init__(self, arguments: tuple):
        self.layout = struct.Struct("=" + "".join(map(self.code, arguments)))
        self.memory = ctypes.create_string_buffer(max(self.layout.size, 1))
        first = ctypes.addressof(self.memory)
        addresses = range(first, first + self.layout.size, 8)
        self.pointers = (ctypes.c_void_p * len(arguments))(*addresses)

    @staticmethod
    def code(argument) -> str:
        if argument is None or isinstance(argument, Tensor):
            return "Q"
        return "i4x" if isinstance(argument, int) else "f4x"

    def write(self, arguments: tuple) -> int:
        """Puts values there; the address of their addresses."""
        values = (x.data_ptr() if isinstance(x, Tensor) else x or 0 for x in arguments)
        self.layout.pack_into(self.memory, 0, *values)
        return ctypes.addressof(self.pointers)


def source_of(path: Path, constants: Mapping[str, int], *lines: str) -> str:
    """A file's source after the constants that it asks for, and after these lines."""
    defines = [f"#define {name} {value}" for name, value in constants.items()]
    return "\n".join([*defines, *lines, path.read_text()])


@functools.cache
def code_of(source: str, architecture: str, include: Path | None = None) -> Future[bytes]:
    """Machine code that is being compiled, by a thread."""
    return compilers().submit(code_now, source, architecture, include)


@functools.cache
def compilers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="NVRTC")


def code_now(source: str, architecture: str, include: Path | None) -> bytes:
    from cuda.bindings import nvrtc  # pyright: ignore[reportAttributeAccessIssue] # compiled

    files = [] if include is None else sorted(include.glob("*.cu*"))
    made_of = [source.encode(), architecture.encode(), repr(nvrtc.nvrtcVersion()).encode()]
    made_of += [file.read_bytes() for file in files]
    return kept_code(made_of, functools.partial(compile_source, source, architecture, include))


def architecture_of(device: torch.device) -> str:
    return "sm_{}{}".format(*torch.cuda.get_device_capability(device))


def compile_source(source: str, architecture: str, include: Path | None = None) -> bytes:
    """Machine code of CUDA C++, which may include the files of one folder."""
    from cuda.bindings import nvrtc  # pyright: ignore[reportAttributeAccessIssue] # compiled

    options = [f"--gpu-architecture={architecture}".encode(), b"--std=c++17"]
    if include is not None:
        options.append(f"--include-path={include}".encode())
    _, program = nvrtc.nvrtcCreateProgram(source.encode(), b"animate124.cu", 0, [], [])
    (error,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    if error != 0:
        _, size = nvrtc.nvrtcGetProgramLogSize(program)
        log = b" " * size
        nvrtc.nvrtcGetProgramLog(program, log)
        raise RuntimeError(f"NVRTC answered {error!r} for {architecture}: {log.decode()}")
    _, size = nvrtc.nvrtcGetCUBINSize(program)
    binary = b" " * size
    nvrtc.nvrtcGetCUBIN(program, binary)
    nvrtc.nvrtcDestroyProgram(program)
    return binary


@functools.cache
def is_usable(device: torch.device) -> bool:
    """Whether kernels can be compiled for a device; if not, a warning says why, once."""
    try:
        source = 'extern "C" __global__ void nothing(int) {}'
        Program(source, device).launch("nothing", (1,), (1,), 0)
    except Exception as error:
        warnings.warn(
            f"No CUDA kernel can be compiled for {device} ({type(error).__name__}: {error}), so "
            f"slower operations stand in, with the same results. `pip install cuda-bindings` of "
            f"the major version of PyTorch's CUDA ({torch.version.cuda}) may help.",
            stacklevel=2,
        )
        return False
    return True
