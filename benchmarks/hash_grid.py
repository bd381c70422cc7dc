"""Milliseconds of the hash grid's backends, forward and backward, side by side.

python benchmarks/hash_grid.py [--points 32768] [--levels 8] [--log2 14] [--device cpu|cuda]
"""

import argparse
import statistics
import time

import torch
from animate124.geometry.hash_grid import hash_grid, is_usable
from animate124.geometry.hash_grid_torch import GridSpec


def timings(run, device: str, repeats: int) -> list[float]:
    """Milliseconds of each call, after one that warms up (and compiles)."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append((time.perf_counter() - start) * 1000)
    return times[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=32768)
    parser.add_argument("--levels", type=int, default=8)
    parser.add_argument("--log2", type=int, default=14, help="log2 of a level's most entries")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()

    fast = "tinycudann" if args.device == "cuda" else "numba"
    backends = ["torch", fast] if is_usable(fast) else ["torch"]
    print(
        f"{args.points} points, {args.levels} levels, 2^{args.log2} entries, {args.device}, "
        f"{torch.get_num_threads()} threads; ms: median (least)"
    )
    print(f"{'':4}{'':12}{'forward':>18}{'fwd + bwd':>18}")
    for dims in (3, 4):
        spec = GridSpec(dims, n_levels=args.levels, log2_hashmap_size=args.log2)
        x = torch.rand(args.points, dims, device=args.device)
        table = torch.rand(spec.n_params, device=args.device, requires_grad=True)
        grad = torch.rand(args.points, spec.n_output_dims, device=args.device)
        for backend in backends:

            def forward(x=x, table=table, spec=spec, backend=backend):
                return hash_grid(x, table, spec, backend)

            def both(forward=forward, table=table, grad=grad):
                table.grad = None
                forward().backward(grad)

            cells = ""
            for run in (forward, both):
                ms = timings(run, args.device, args.repeats)
                cells += f"{statistics.median(ms):>9.1f} ({min(ms):>5.1f})".rjust(18)
            print(f"{dims}D  {backend:12}{cells}", flush=True)


if __name__ == "__main__":
    main()
