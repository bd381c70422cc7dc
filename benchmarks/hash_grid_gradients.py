"""Milliseconds of the hash grid and of a field, forward and backward, by what needs a gradient.

python benchmarks/hash_grid_gradients.py [--points 1659000] [--levels 16] [--log2 19]
    [--device cpu|cuda] [--figures FILE]

To the points alone (a frozen scene behind a deformation), to points and parameters, to the
parameters alone; ours beside the torch definition. The points are the hash grid benchmark's.
Figures go into figures.json (`--figures FILE`: elsewhere; of other sizes: nowhere else).
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median

import animate124  # noqa: F401, brings the bundled host where there is no threestudio
import torch
from animate124.geometry.hash_grid import hash_grid
from animate124.geometry.hash_grid_torch import GridSpec
from animate124.geometry.implicit_volume import ImplicitVolume
from animate124.host.argument_types import positive_int
from hash_grid import of_usual_size, options, samples_on_rays
from measuring import FIGURES, device_name, milliseconds, record

WARM_UP = 2  # calls
NEEDED = {
    "points": (True, False),
    "points and parameters": (True, True),
    "parameters": (False, True),
}


def measure(
    name: str,
    call: Callable[[str, torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    parameters: dict[str, Iterable[torch.Tensor]],
    repeats: int,
) -> dict[str, tuple[float, str]]:
    """Print a row for each need, ours and torch's; `call` maps backend and points to features."""
    figures = {}
    for need, (in_points, in_parameters) in NEEDED.items():
        row = []
        for backend, own in parameters.items():
            points = x.clone().requires_grad_(in_points)
            for parameter in own:
                parameter.requires_grad_(in_parameters)
            grad = torch.randn_like(call(backend, points))

            def both_ways(backend=backend, points=points, grad=grad):
                torch.autograd.backward(call(backend, points), grad)

            row.append(median(milliseconds(both_ways, repeats, WARM_UP)))
            for tensor in (points, *own):
                tensor.grad = None
            figures[f"hash_grid_gradients.{name}.{need.replace(' ', '_')}.{backend}"] = (
                row[-1],
                "ms",
            )
        print(f"{name:12}{need:28}" + "".join(f"{ms:>10.2f}" for ms in row), flush=True)
    return figures


def main() -> None:
    parser = options(__doc__.splitlines()[0], "points", 1_659_000, 32_767)
    parser.add_argument("--repeats", type=positive_int, default=10)
    parser.add_argument("--figures", type=Path, metavar="FILE", help="where figures are written")
    args = parser.parse_args()
    usual = of_usual_size(args)
    on_cuda = args.device == "cuda"
    settings = {"n_levels": args.levels, "log2_hashmap_size": args.log2}
    ours = "cuda" if on_cuda else "numba"

    torch.manual_seed(0)
    world = samples_on_rays(args.points).to(args.device)
    unit = (world + 1) / 2
    device = device_name() if on_cuda else f"{torch.get_num_threads()} threads"
    print(f"{args.points:,} points, {settings}, {device}, torch {torch.__version__}")
    print(f"{'forward + backward, median ms':40}{ours:>10}{'torch':>10}")
    figures = {}
    for dims in (3, 4):
        spec = GridSpec(dims, **settings)
        x = torch.cat([unit, torch.full_like(unit[:, :1], 0.37)], dim=-1)[:, :dims].contiguous()
        table = torch.rand(spec.n_params, device=args.device) * 1e-4

        def features(backend, x, table=table, spec=spec):
            return hash_grid(x, table, spec, backend)

        tables = {ours: [table], "torch": [table]}
        figures |= measure(f"{args.device}.H{dims}", features, x, tables, args.repeats)

    fields = {
        backend: ImplicitVolume(
            {"pos_encoding_config": {**settings, "static": True, "backend": backend}}
        ).to(args.device)
        for backend in (ours, "torch")
    }

    def density_and_colour(backend, x):
        out = fields[backend](x)
        return torch.cat([out["density"], out["features"]], dim=-1)

    own = {backend: [*field.parameters()] for backend, field in fields.items()}
    figures |= measure(f"{args.device}.field", density_and_colour, world, own, args.repeats)
    if args.figures or usual:
        record(figures, args.figures or FIGURES)


if __name__ == "__main__":
    main()
