"""A moving mesh as a file, every format side by side: megabytes, seconds, and the skeleton's error.

python benchmarks/assets.py outputs/<scene>/stage3

Beside them what other 4D projects hand out: an OBJ a frame, and a GLB with a shape key a frame in
full (24 bytes a vertex and frame, as Blender exports it; reckoned, not written). Formats whose
library isn't there are left out.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from animate124.exporter.assets_4d import ANIMATION, Assets4DExporter
from animate124.exporter.field import survey
from animate124.exporter.frame_files import ANIMATED, FRAME_WRITERS, OBJ
from animate124.exporter.mesh_files import write_material
from animate124.exporter.morph_glb import write_moving_glb
from animate124.exporter.moving_files import MOVING_WRITERS, Playing, check_moving_formats
from animate124.exporter.moving_mesh import MovingMesh
from animate124.exporter.surface import sample_surface
from animate124.exporter.texture import textured
from animate124.files.figures import record
from animate124.host.argument_types import positive_float, positive_int
from animate124.system.trained import load_scene

SHAPE_KEY = 24  # bytes of a vertex in a frame: position and normal in full


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("trial", type=Path, help="folder of stage 2's or 3's trial")
    parser.add_argument("--frames", type=positive_int, default=32, help="as a toy result has (32)")
    parser.add_argument(
        "--faces", type=positive_int, help="of the mesh, at most; else the exporter's"
    )
    parser.add_argument(
        "--texture", type=positive_int, default=1024, help="texels of a side (1024)"
    )
    parser.add_argument("--fps", type=positive_float, default=16.0)
    parser.add_argument("--figures", type=Path, help="figures.json to write into")
    return parser


def make_exporter(args: argparse.Namespace) -> Assets4DExporter:
    scene = load_scene(args.trial / "configs" / "parsed.yaml", args.trial / "ckpts" / "last.ckpt")
    given = {} if args.faces is None else {"faces": args.faces}
    system = scene.system
    return Assets4DExporter(
        {"num_frames": args.frames, "fps": args.fps, "texture": args.texture, **given},
        geometry=system.geometry,
        material=system.material,
        background=system.background,
    )


@torch.no_grad()
def make_meshes(exporter: Assets4DExporter) -> tuple[MovingMesh, MovingMesh]:
    """With colours at its vertices, and with a texture if the exporter's config has one."""
    cfg = exporter.cfg
    found = survey(exporter.field, [0.0], cfg.threshold, cfg.resolution, lambda: None)
    plain = exporter.moving_mesh(*found)
    return plain, textured(plain, exporter.field, cfg.texture) if cfg.texture else plain


def writers(
    exporter: Assets4DExporter, plain: MovingMesh, mesh: MovingMesh
) -> dict[str, Callable[[Path], object]]:
    """Format -> who writes it into a folder; a file a frame is of the mesh without texture,
    but for OBJ."""
    cfg = exporter.cfg
    playing, rng = Playing(cfg.fps, cfg.lit, cfg.bones), np.random.default_rng(0)

    def moving(kind: str) -> Callable[[Path], object]:
        name, write = MOVING_WRITERS[kind]
        return lambda folder: write(folder / name, mesh, playing)

    def each_frame(kind: str) -> Callable[[Path], object]:
        pattern, write = FRAME_WRITERS[kind]
        shown = mesh if kind == OBJ else plain

        def write_all(folder: Path) -> None:
            for i in range(len(plain.taus)):
                frame = shown.frame(i)
                path = folder / pattern.format(i)
                path.parent.mkdir(exist_ok=True)
                cloud = kind == "points"
                write(path, sample_surface(frame, cfg.num_points, rng) if cloud else frame)
            if kind == OBJ and mesh.texture is not None:
                write_material(folder / "meshes", mesh.texture, cfg.lit)

        return write_all

    return {
        ANIMATED: lambda folder: write_moving_glb(folder / ANIMATION, mesh, cfg.fps, cfg.lit),
        **{kind: moving(kind) for kind in MOVING_WRITERS},
        **{f"{kind} a frame": each_frame(kind) for kind in FRAME_WRITERS},
    }


def measured(write: Callable[[Path], object]) -> tuple[int, float, object]:
    """Bytes, seconds, and what the writer returns."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        said = write(Path(folder))
        seconds = time.perf_counter() - start
        files = [path for path in Path(folder).rglob("*") if path.is_file()]
        return sum(path.stat().st_size for path in files), seconds, said


def main() -> None:
    args = options().parse_args()
    exporter = make_exporter(args)
    plain, mesh = make_meshes(exporter)
    size = "none" if mesh.texture is None else " x ".join(map(str, mesh.texture.shape[:2]))
    print(
        f"{len(plain.colours):,} vertices ({len(mesh.colours):,} with seams), "
        f"{len(plain.faces):,} triangles, {len(plain.taus)} frames, texture {size}\n\n"
        "| format | MB | of animation.glb | s |\n|---|---|---|---|"
    )
    sizes, error = {}, {}
    for kind, write in writers(exporter, plain, mesh).items():
        try:
            check_moving_formats([kind], can_follow=True)
        except ImportError as missing:
            print(f"| {kind} | {missing} | | |")
            continue
        sizes[kind], seconds, said = measured(write)
        error |= said["skeleton"] if isinstance(said, dict) else {}
        share = sizes[kind] / sizes[ANIMATED]
        print(f"| {kind} | {sizes[kind] / 1e6:.2f} | {share:.2f} | {seconds:.2f} |")
    keys = SHAPE_KEY * len(mesh.colours) * (args.frames - 1) / 1e6
    print(f"| shape keys in full (reckoned) | {keys:.2f} and more | | |")
    print(
        f"\nskeleton of {error['bones']} bones: off by {error['rms_error']:.2%} of the scene's "
        f"size (root mean square), {error['max_error']:.2%} at most"
    )
    if args.figures:
        figures = {
            "glb.bytes": (sizes[ANIMATED], "bytes"),
            "skin.bytes": (sizes["skinned-glb"], "bytes"),
            "skin.error": (error["rms_error"], "of the scene's size, root mean square"),
        }
        command = (
            f"python benchmarks/assets.py TRIAL --frames {args.frames} --texture {args.texture}"
        )
        record(figures, command, args.figures)


if __name__ == "__main__":
    main()
