"""CUDA kernels as plain C++, one thread after the other: their arithmetic where there is no GPU.
Kernels whose threads wait for each other can't run so."""

import ctypes
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

# What CUDA has and C++ hasn't, and for each kernel a function that runs all of its threads.
PREAMBLE = """
#define ON_HOST
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <initializer_list>
using std::min;
#define __device__
#define __global__
#define __forceinline__ inline
#define __constant__ static const
#define __shared__ static
#define __launch_bounds__(threads)
struct Place { int x, y; };
static Place blockIdx, blockDim, threadIdx;
struct float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline void __syncthreads() {}
inline void atomicAdd(float* entry, float value) { *entry += value; }
inline void atomic_add(float2* entry, float2 value) { entry->x += value.x; entry->y += value.y; }
inline void atomic_add(float2* pair, float2 first, float2 second) {
  atomic_add(pair, first);
  atomic_add(pair + 1, second);
}
"""
RUNNER = """
extern "C" void run_{name}(const int* blocks, const int* threads, void** p) {{
  blockDim = {{threads[0], threads[1]}};
  for (blockIdx.y = 0; blockIdx.y < blocks[1]; blockIdx.y++)
    for (blockIdx.x = 0; blockIdx.x < blocks[0]; blockIdx.x++)
      for (threadIdx.y = 0; threadIdx.y < threads[1]; threadIdx.y++)
        for (threadIdx.x = 0; threadIdx.x < threads[0]; threadIdx.x++)
          {name}({arguments});
}}
"""


class HostProgram:
    """Stands in for `cuda_program.Program`.

    kernels: by name the types of their arguments, as C++ has them.
    """

    def __init__(
        self, source: str, include: Path, folder: Path, kernels: dict[str, Sequence[str]]
    ) -> None:
        compiler = shutil.which("c++") or shutil.which("g++")
        if compiler is None:
            pytest.skip("needs a C++ compiler")
        runners = [
            RUNNER.format(name=name, arguments=", ".join(map(argument, range(len(types)), types)))
            for name, types in kernels.items()
        ]
        file, library = folder / "kernels.cpp", folder / "kernels.so"
        file.write_text("\n".join([PREAMBLE, source, *runners]))
        options = ["-std=c++17", "-O1", "-w", "-shared", "-fPIC", f"-I{include}"]
        subprocess.run([compiler, *options, str(file), "-o", str(library)], check=True)
        self.library = ctypes.CDLL(str(library))

    def launch(self, name: str, grid: tuple, block: tuple, *arguments) -> None:
        held = [boxed(value) for value in arguments]
        addresses = (ctypes.c_void_p * len(held))(*(ctypes.addressof(box) for box in held))
        blocks, threads = ((ctypes.c_int * 2)(*(*size, 1)[:2]) for size in (grid, block))
        getattr(self.library, f"run_{name}")(blocks, threads, addresses)


def argument(place: int, kind: str) -> str:
    return f"*({kind}*)p[{place}]"


def boxed(value):
    if value is None or isinstance(value, torch.Tensor):
        return ctypes.c_void_p(None if value is None else value.data_ptr())
    return ctypes.c_int(value) if isinstance(value, int) else ctypes.c_float(value)
