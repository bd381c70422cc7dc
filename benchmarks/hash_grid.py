"""Milliseconds of the hash grid's backends, forward and backward, side by side.

python benchmarks/hash_grid.py [--samples 237000] [--levels 16] [--log2 19] [--device cpu|cuda]
    [--baseline] [--runs 1 4 8] [--figures FILE]

The samples lie on one frame's rays inside the blob that training starts from. Each stands for seven
points, its own and its six neighbours for the normal: 237,000 samples are 1.66 million points.
`--baseline` adds the original's figures (tinycudann on an H200, the same points). `--runs` measures
the CUDA kernel's gradient of the table alone, by how many samples a thread takes one after the
other: of points, as a deformation's are, and of stencils. These figures go into figures.json
(`--figures FILE`: elsewhere; of other sizes: nowhere else).
"""

import argparse
from pathlib import Path
from statistics import median

import animate124  # noqa: F401, brings the bundled host where there is no threestudio
import torch
from animate124.data.cameras import Cameras
from animate124.geometry import hash_grid_cuda
from animate124.geometry.hash_grid import hash_grid, hash_grid_stencil
from animate124.geometry.hash_grid_torch import GridSpec
from animate124.geometry.implicit_volume import ImplicitVolume
from animate124.geometry.space_time_encoding import SpaceTimeEncoding
from animate124.geometry.stencil import neighbours
from animate124.geometry.usable import is_usable
from animate124.host.argument_types import positive_int
from measuring import FIGURES, milliseconds, record

WARM_UP = 2  # calls
EPS = 0.01  # the neighbours' distance in the world, whose box is 2 wide
ORIGINAL = {"H3, 7 points": 11.8, "H4, 7 points": 17.6}  # backward, ms, float32


def samples_on_rays(n: int, per_ray: int = 256) -> torch.Tensor:
    """n points [n 3] of one image's ray-marching lattice inside the blob, ray by ray."""
    camera = Cameras.of(torch.tensor([15.0]), torch.tensor([30.0])).batch(128, 128, torch.zeros(1))
    origins, directions = camera["rays_o"].reshape(-1, 1, 3), camera["rays_d"].reshape(-1, 1, 3)
    step = 1.732 * 2 / per_ray
    t = step * (torch.rand(len(origins), 1, 1) + torch.arange(2 * per_ray)[:, None])
    points = (origins + t * directions).view(-1, 3)
    inside = points[points.norm(dim=-1) < 0.5]
    return inside.repeat(-(-n // len(inside)), 1)[:n]


def measure(name: str, forward, parameters: list, args: argparse.Namespace) -> float:
    """Print one row; the gradient's ms. `forward` gives a list of tensors."""
    parameters = [p for p in parameters if p.requires_grad]
    ms = median(milliseconds(forward, args.repeats, WARM_UP))
    outputs = forward()
    grads = [torch.randn_like(out) for out in outputs]

    def backward():
        torch.autograd.grad(outputs, parameters, grads, retain_graph=True)

    backward_ms = median(milliseconds(backward, args.repeats, WARM_UP))
    row = f"{name:44}{ms:>10.2f}{backward_ms:>10.2f}"
    if args.baseline:
        original = [ms for start, ms in ORIGINAL.items() if name.startswith(start)]
        row += f"{original[0]:>22.1f}" if original else ""
    print(row, flush=True)
    return backward_ms


def measure_grids(points: torch.Tensor, tau: torch.Tensor, args: argparse.Namespace) -> None:
    """Each grid by itself, all seven points of a sample as points of their own, and merged."""
    step = EPS / 2
    unit = (points + 1) / 2
    all_points = torch.cat([unit, neighbours(unit, step).flatten(0, 1)])
    for dims in (3, 4):
        spec = GridSpec(dims, n_levels=args.levels, log2_hashmap_size=args.log2)
        table = torch.rand(spec.n_params, device=args.device).mul_(1e-4).requires_grad_()
        x, x7 = (
            value if dims == 3 else torch.cat([value, tau.expand(len(value), 1)], dim=-1)
            for value in (unit, all_points)
        )
        for backend in args.backends:

            def forward(x=x7, table=table, spec=spec, backend=backend):
                return [hash_grid(x, table, spec, backend)]

            measure(f"H{dims}, 7 points, {backend}", forward, [table], args)
        if "cuda" in args.backends:

            def forward(x=x, table=table, spec=spec):
                return hash_grid_stencil(x, step, table, spec, "cuda")

            measure(f"H{dims}, 7 points merged, cuda", forward, [table], args)


def measure_field(points: torch.Tensor, tau: torch.Tensor, args: argparse.Namespace) -> None:
    """H3 + H4 as training calls them, and the whole field with its networks and normals."""
    settings = {"n_levels": args.levels, "log2_hashmap_size": args.log2}
    specs = [GridSpec(dims, **settings) for dims in (3, 4)]
    encoding = SpaceTimeEncoding(*specs, static=False).to(args.device)
    unit, times = (points + 1) / 2, tau.expand(len(points), 1)

    def encode(times):
        return lambda: encoding.stencil(unit, EPS / 2, times)

    tables = list(encoding.parameters())
    measure("H3 + H4, 7 points, a tau a sample", encode(times.contiguous()), tables, args)
    measure("H3 + H4, 7 points, one frame", encode(tau), tables, args)
    for backend in ("torch", "auto"):
        grid = {**settings, "backend": backend}
        field = ImplicitVolume({"pos_encoding_config": grid}).to(args.device)

        def forward(field=field):
            out = field(points, output_normal=True, times=times)
            return [out[name] for name in ("density", "features", "normal")]

        if args.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        measure(f"field with normals, {backend}", forward, list(field.parameters()), args)
        if args.device == "cuda":
            out = forward()
            kept = torch.cuda.memory_allocated() - before
            print(f"{'':4}its graph keeps {kept / len(points):.0f} bytes a sample")
            del out


def measure_runs(points: torch.Tensor, args: argparse.Namespace) -> dict[str, tuple[float, str]]:
    """The kernel's gradient of the table, with as many samples a thread as `args.runs` says."""
    spec = GridSpec(3, n_levels=args.levels, log2_hashmap_size=args.log2)
    table = torch.rand(spec.n_params, device=args.device).mul_(1e-4).requires_grad_()
    unit, figures = (points + 1) / 2, {}
    kinds = {
        "points": lambda: [hash_grid(unit, table, spec, "cuda")],
        "stencils": lambda: hash_grid_stencil(unit, EPS / 2, table, spec, "cuda"),
    }
    for run in args.runs:
        hash_grid_cuda.RUN = run
        hash_grid_cuda.program.cache_clear()
        for kind, forward in kinds.items():
            ms = measure(f"H3, {kind}, {run} samples a thread", forward, [table], args)
            figures[f"hash_grid.run_{run}.{kind}"] = ms, "ms"
    return figures


def options(description: str, points: str, on_cuda: int, else_: int) -> argparse.ArgumentParser:
    """A benchmark's of grids; `points`: what its points are called, and how many there are."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        f"--{points}", type=positive_int, help=f"{on_cuda} on CUDA devices, else {else_}"
    )
    parser.add_argument("--levels", type=positive_int, help="16 on CUDA devices, else 8")
    parser.add_argument(
        "--log2", type=positive_int, help="of a level's most entries; 19 on CUDA, else 14"
    )
    parser.set_defaults(usual={points: (on_cuda, else_), "levels": (16, 8), "log2": (19, 14)})
    return parser


def of_usual_size(args: argparse.Namespace) -> bool:
    """Whether no size was given; those that weren't become the device's usual ones."""
    given = [name for name in args.usual if getattr(args, name)]
    for name, (on_cuda, else_) in args.usual.items():
        if name not in given:
            setattr(args, name, on_cuda if args.device == "cuda" else else_)
    return not given


def main() -> None:
    parser = options(__doc__.splitlines()[0], "samples", 237_000, 4_681)
    parser.add_argument("--repeats", type=positive_int, default=20)
    parser.add_argument("--baseline", action="store_true", help="the original's figures beside")
    parser.add_argument(
        "--runs", type=positive_int, nargs="+", help="samples a thread, on CUDA devices"
    )
    parser.add_argument("--figures", type=Path, metavar="FILE", help="where figures are written")
    args = parser.parse_args()
    usual = of_usual_size(args)
    on_cuda = args.device == "cuda"
    candidates = ("torch", "cuda", "tinycudann") if on_cuda else ("torch", "numba")
    args.backends = [name for name in candidates if name in ("torch", "cuda") or is_usable(name)]

    if args.runs and not on_cuda:
        parser.error("--runs is of the CUDA kernel: it needs --device cuda.")

    torch.manual_seed(0)
    points = samples_on_rays(args.samples).to(args.device)
    tau = torch.full((1, 1), 0.37, device=args.device)
    device = torch.cuda.get_device_name() if on_cuda else f"{torch.get_num_threads()} threads"
    print(
        f"{args.samples:,} samples, {7 * args.samples:,} points, {args.levels} levels, "
        f"2^{args.log2} entries, {device}, torch {torch.__version__}\n"
        f"{'median ms':44}{'forward':>10}{'backward':>10}"
        + (f"{'original backward':>22}" if args.baseline else "")
    )
    if args.runs:
        figures = measure_runs(points, args)
        if args.figures or usual:
            record(figures, args.figures or FIGURES)
        return
    measure_grids(points, tau, args)
    measure_field(points, tau, args)


if __name__ == "__main__":
    main()
