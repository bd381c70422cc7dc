"""CUDA kernels as plain C++: their arithmetic where there is no GPU.

Threads run one after the other; or, of kernels that talk within a warp, a warp's 32 beside each
other, one warp after the other. Kernels whose whole block waits for something can't run so."""

import ctypes
import functools
import inspect
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from tempfile import mkdtemp
from types import ModuleType

import pytest
import torch
from animate124.kernels.cuda_program import Program

SOURCES = Path(__file__).parents[1]  # includes nothing, where a program names no folder

# What CUDA has and C++ hasn't, and for each kernel a function that runs all of its threads.
PREAMBLE = """
#define ON_HOST
#include <algorithm>
#include <barrier>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <initializer_list>
#include <thread>
#include <vector>
using std::max;
using std::min;
#define __device__
#define __global__
#define __forceinline__ inline
#define __constant__ static const
#define __shared__ static
#define __launch_bounds__(threads)
struct Place { int x, y; };
static Place blockDim;
static thread_local Place blockIdx, threadIdx;
struct float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline void __syncthreads() {}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline float norm3df(float x, float y, float z) { return std::sqrt(x * x + y * y + z * z); }

static std::barrier<> warp(32);
static unsigned char slots[32][16];
inline void __syncwarp() { warp.arrive_and_wait(); }
inline int lane() { return threadIdx.x % 32; }
template <class T> T __shfl_sync(unsigned, T value, int source) {
  std::memcpy(slots[lane()], &value, sizeof(T));
  __syncwarp();
  std::memcpy(&value, slots[source], sizeof(T));
  __syncwarp();
  return value;
}
template <class T> T __shfl_up_sync(unsigned all, T value, int step) {
  return __shfl_sync(all, value, lane() < step ? lane() : lane() - step);
}
template <class T> T __shfl_down_sync(unsigned all, T value, int step) {
  return __shfl_sync(all, value, lane() + step < 32 ? lane() + step : lane());
}
template <class T> T __shfl_xor_sync(unsigned all, T value, int bits) {
  return __shfl_sync(all, value, lane() ^ bits);
}
inline unsigned __ballot_sync(unsigned, bool vote) {
  slots[lane()][0] = vote;
  __syncwarp();
  unsigned votes = 0;
  for (int i = 0; i < 32; i++) votes |= (unsigned)slots[i][0] << i;
  __syncwarp();
  return votes;
}
inline void atomicAdd(float* entry, float value) { *entry += value; }
inline void atomic_add(float2* entry, float2 value) { entry->x += value.x; entry->y += value.y; }
inline void atomic_add(float2* pair, float2 first, float2 second) {
  atomic_add(pair, first);
  atomic_add(pair + 1, second);
}
"""
WARPS = """
extern "C" void run_{name}(const int* blocks, const int* threads, void** p) {{
  blockDim = {{threads[0], threads[1]}};
  for (int block = 0; block < blocks[0]; block++)
    for (int first = 0; first < threads[0]; first += 32) {{
      std::vector<std::thread> lanes;
      for (int i = 0; i < 32; i++)
        lanes.emplace_back([=] {{
          blockIdx = {{block, 0}}, threadIdx = {{first + i, 0}};
          {name}({arguments});
        }});
      for (std::thread& one : lanes) one.join();
    }}
}}
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


class HostProgram(Program):
    """Stands in for the kernels of a GPU.

    kernels: by name the types of their arguments, as C++ has them; in_warps: whether their threads
        talk within a warp.
    """

    def __init__(
        self,
        source: str,
        include: Path,
        folder: Path,
        kernels: dict[str, Sequence[str]],
        in_warps: bool = False,
    ) -> None:
        compiler = shutil.which("c++") or shutil.which("g++")
        if compiler is None:
            pytest.skip("needs a C++ compiler")
        runners = [
            (WARPS if in_warps else RUNNER).format(
                name=name, arguments=", ".join(map(argument, range(len(types)), types))
            )
            for name, types in kernels.items()
        ]
        file, library = folder / "kernels.cpp", folder / "kernels.so"
        file.write_text("\n".join([PREAMBLE, source, *runners]))
        options = ["-std=c++20", "-O1", "-w", "-pthread", "-shared", "-fPIC", f"-I{include}"]
        subprocess.run([compiler, *options, str(file), "-o", str(library)], check=True)
        self.library = ctypes.CDLL(str(library))

    def launch(self, name: str, grid: tuple, block: tuple, *arguments) -> None:
        held = [boxed(value) for value in arguments]
        addresses = (ctypes.c_void_p * len(held))(*(ctypes.addressof(box) for box in held))
        blocks, threads = ((ctypes.c_int * 2)(*(*size, 1)[:2]) for size in (grid, block))
        getattr(self.library, f"run_{name}")(blocks, threads, addresses)


def run_on_host(
    monkeypatch: pytest.MonkeyPatch,
    module: ModuleType,
    folder: Path,
    kernels: dict[str, Sequence[str]],
    *,
    program: str = "program",
    in_warps: bool = False,
) -> None:
    """A module's kernels, of whatever constants, run here instead; `program`: what makes them."""

    def compiled(source: str, device: torch.device, include: Path = SOURCES) -> HostProgram:
        return HostProgram(source, include, Path(mkdtemp(dir=folder)), kernels, in_warps)

    make = inspect.unwrap(getattr(module, program))  # without what checks its types, and the cache
    monkeypatch.setattr(module, "Program", compiled)
    monkeypatch.setattr(module, program, functools.cache(make))


def argument(place: int, kind: str) -> str:
    return f"*({kind}*)p[{place}]"


def boxed(value):
    if value is None or isinstance(value, torch.Tensor):
        return ctypes.c_void_p(None if value is None else value.data_ptr())
    return ctypes.c_int(value) if isinstance(value, int) else ctypes.c_float(value)
