"""CUDA kernels as plain C++: their arithmetic where there is no GPU.

Blocks run one after the other, and so do their threads; or, of kernels whose threads talk, those of
a block beside each other."""

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
#include <memory>
#include <thread>
#include <vector>
using std::max;
using std::min;
#define __device__
#define __global__
#define __forceinline__ inline
#define __constant__ static const
#define __shared__ static
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)
struct Place { int x, y; };
static Place blockDim, gridDim;
static thread_local Place blockIdx, threadIdx;
struct float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float x) { return std::exp(x); }
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline float norm3df(float x, float y, float z) { return std::sqrt(x * x + y * y + z * z); }

inline float number(unsigned short bits) {
  _Float16 value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
inline unsigned short bits_of(float number) {
  _Float16 value = number;
  unsigned short bits;
  std::memcpy(&bits, &value, sizeof(value));
  return bits;
}

struct Warp {
  std::barrier<> barrier;
  unsigned char slots[32][16];
  Warp(int threads) : barrier(threads) {}
};
static std::barrier<>* whole = nullptr;  // a block; none whose threads run one after the other
static thread_local Warp* warp;
inline void __syncthreads() { if (whole) whole->arrive_and_wait(); }
inline void __syncwarp() { warp->barrier.arrive_and_wait(); }
inline int place() { return threadIdx.y * blockDim.x + threadIdx.x; }
inline int lane() { return place() % 32; }
template <class T> T __shfl_sync(unsigned, T value, int source) {
  std::memcpy(warp->slots[lane()], &value, sizeof(T));
  __syncwarp();
  std::memcpy(&value, warp->slots[source], sizeof(T));
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
  warp->slots[lane()][0] = vote;
  __syncwarp();
  unsigned votes = 0;
  for (int i = 0; i < 32; i++) votes |= (unsigned)warp->slots[i][0] << i;
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
TOGETHER = """
extern "C" void run_{name}(const int* blocks, const int* threads, void** p) {{
  gridDim = {{blocks[0], blocks[1]}}, blockDim = {{threads[0], threads[1]}};
  int count = threads[0] * threads[1];
  for (int block = 0; block < blocks[0] * blocks[1]; block++) {{
    std::barrier<> all(count);
    whole = &all;
    std::vector<std::unique_ptr<Warp>> warps;
    for (int first = 0; first < count; first += 32)
      warps.push_back(std::make_unique<Warp>(min(32, count - first)));
    std::vector<std::thread> running;
    for (int i = 0; i < count; i++)
      running.emplace_back([=, &warps, &all] {{
        blockIdx = {{block % blocks[0], block / blocks[0]}};
        threadIdx = {{i % threads[0], i / threads[0]}}, warp = warps[i / 32].get();
        {name}({arguments});
        warp->barrier.arrive_and_drop(), all.arrive_and_drop();  // nobody waits for it any more
      }});
    for (std::thread& one : running) one.join();
    whole = nullptr;
  }}
}}
"""
RUNNER = """
extern "C" void run_{name}(const int* blocks, const int* threads, void** p) {{
  gridDim = {{blocks[0], blocks[1]}}, blockDim = {{threads[0], threads[1]}};
  for (blockIdx.y = 0; blockIdx.y < blocks[1]; blockIdx.y++)
    for (blockIdx.x = 0; blockIdx.x < blocks[0]; blockIdx.x++)
      for (threadIdx.y = 0; threadIdx.y < threads[1]; threadIdx.y++)
        for (threadIdx.x = 0; threadIdx.x < threads[0]; threadIdx.x++)
          {name}({arguments});
}}
"""


class HostProgram(Program):
    """Stands in for the kernels of a GPU.

    kernels: by name the types of their arguments, as C++ has them; talking: whether their threads
        wait for each other.
    """

    def __init__(
        self,
        source: str,
        include: Path,
        folder: Path,
        kernels: dict[str, Sequence[str]],
        talking: bool = False,
    ) -> None:
        compiler = shutil.which("c++") or shutil.which("g++")
        if compiler is None:
            pytest.skip("needs a C++ compiler")
        runners = [
            (TOGETHER if talking else RUNNER).format(
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
    talking: bool = False,
) -> None:
    """A module's kernels, of whatever constants, run here instead; `program`: what makes them."""

    def compiled(source: str, device: torch.device, include: Path = SOURCES) -> HostProgram:
        return HostProgram(source, include, Path(mkdtemp(dir=folder)), kernels, talking)

    make = inspect.unwrap(getattr(module, program))  # without what checks its types, and the cache
    monkeypatch.setattr(module, "Program", compiled)
    monkeypatch.setattr(module, program, functools.cache(make))


def argument(place: int, kind: str) -> str:
    return f"*({kind}*)p[{place}]"


def boxed(value):
    if value is None or isinstance(value, torch.Tensor):
        return ctypes.c_void_p(None if value is None else value.data_ptr())
    return ctypes.c_int(value) if isinstance(value, int) else ctypes.c_float(value)
