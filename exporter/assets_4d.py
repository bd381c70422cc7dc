"""A trained 4D scene as files for other programs: meshes a frame, one animated GLB, point clouds.

The surface at frame time tau is where the density crosses a threshold, one for all frames, so that
it does not breathe. The exporter doesn't know where a host saves: it writes into a folder of its
own, which goes when the exporter goes, and hands every file to the system's `save_file`, which both
hosts have."""

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import threestudio
import torch
from jaxtyping import Float
from threestudio.models.exporters.base import Exporter, ExporterOutput
from threestudio.utils.misc import get_rank
from torch import Tensor
from tqdm import tqdm

from ..bounds import Bounded, bounded
from ..geometry.times import is_static
from .gltf import write_glb
from .mesh_files import write_obj, write_ply
from .old_files import drop_old_files
from .surface import (
    Mesh,
    automatic_threshold,
    drop_small_parts,
    isosurface,
    load_marching_cubes,
    sample_surface,
    typical_density,
)

# format -> (file name, writer of one frame); `animated-glb` holds all frames, at the end
FRAME_WRITERS: dict[str, tuple[str, Callable[[Path, Mesh], None]]] = {
    "glb": ("meshes/frame_{:04d}.glb", lambda path, mesh: write_glb(path, [mesh])),
    "ply": ("meshes/frame_{:04d}.ply", write_ply),
    "obj": ("meshes/frame_{:04d}.obj", write_obj),
    "points": ("points/frame_{:04d}.ply", write_ply),
}
FORMATS = ["animated-glb", *FRAME_WRITERS]
SURVEY_RESOLUTION = 64  # lattice points an edge of the box, for threshold and extent


@dataclass
class Lattice:
    """Points origin + step * (i, j, k) with (i, j, k) < shape."""

    origin: Float[Tensor, " 3"]
    step: float
    shape: tuple[int, int, int]

    @staticmethod
    def over(low: Float[Tensor, " 3"], high: Float[Tensor, " 3"], resolution: int) -> "Lattice":
        """Cubic cells in a box; its longest edge has `resolution` points, ends included."""
        step = ((high - low).max() / (resolution - 1)).item()
        nx, ny, nz = (int(n) for n in ((high - low) / step + 1e-3).floor() + 1)
        return Lattice(low, step, (nx, ny, nz))

    def points(self, chunk: int) -> Iterator[Float[Tensor, "N 3"]]:
        """All points, the last axis fastest, `chunk` of them at a time."""
        nx, ny, nz = self.shape
        for flat in torch.arange(nx * ny * nz, device=self.origin.device).split(chunk):
            ijk = torch.stack([flat // (ny * nz), flat // nz % ny, flat % nz], -1)
            yield self.origin + self.step * ijk


@threestudio.register("animate124-4d-exporter")
class Assets4DExporter(Exporter):
    """Writes `meshes/`, `points/`, `animation.glb` and `frames.json` (which file has which tau)."""

    @dataclass
    class Config(Exporter.Config, Bounded):
        # frame times, evenly from tau = 0 to 1; a static geometry has one
        num_frames: int = bounded(16, 1, 2**16)
        fps: float = bounded(16.0, above=0, high=1e4)  # frames a second in animation.glb
        # lattice points along the longest edge of the object's box
        resolution: int = bounded(128, 2, 4096)
        # density at the surface, per unit of length; auto: _survey's
        threshold: Any = bounded("auto", above=0, names=("auto",))
        # parts with less than this share of a frame's faces are dropped
        min_part: float = bounded(0.01, 0, 1)
        formats: list[str] = bounded(["animated-glb", "ply", "points"], names=tuple(FORMATS))
        num_points: int = bounded(100_000, 1, 2**31)  # points of a frame's point cloud
        chunk_size: int = bounded(2**18, 1, 2**31)  # points a geometry call

        def __post_init__(self) -> None:
            super().__post_init__()
            if not self.formats:
                raise ValueError(f"formats is empty: choose from {', '.join(FORMATS)}.")

    cfg: Config

    def configure(self, geometry, material, background) -> None:
        super().configure(geometry, material, background)
        load_marching_cubes()  # missing? then say so now, not after the videos
        if not hasattr(geometry, "forward_density"):
            raise TypeError(
                "animate124-4d-exporter needs an implicit geometry with a density, but "
                f"{type(geometry).__name__} has no forward_density. Try the host's mesh-exporter."
            )

    @torch.no_grad()
    def __call__(self) -> list[ExporterOutput]:
        if get_rank() != 0:
            return []
        self._folder = tempfile.TemporaryDirectory(prefix="assets-4d-")
        folder = Path(self._folder.name)
        # half precision is for training; lattice positions want float32
        with torch.autocast(self.geometry.bbox.device.type, enabled=False):
            self._export(folder)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return [
            ExporterOutput(
                save_name=path.relative_to(folder).as_posix(),
                save_type="file",
                params={"src_path": str(path)},
            )
            for path in files
        ]

    def tidy(self, folder: Path) -> None:
        """In the folder that its files were saved to: frames that an earlier export had more go."""
        drop_old_files(folder)

    def _export(self, folder: Path) -> None:
        """All frames, one by one, then what needs all of them."""
        taus = self.frame_times()
        rng = np.random.default_rng(int(torch.randint(2**31, (1,))))
        meshes, rows = [], []
        with tqdm(total=2 * len(taus), desc="Exporting 4D assets", unit="step") as bar:
            threshold, lattice = self._survey(taus, bar)
            threestudio.info(f"Surface at density {threshold:.4g}, lattice of {lattice.shape}.")
            for i, tau in enumerate(taus):
                mesh = self._frame(tau, threshold, lattice)
                files = self._write_frame(folder, i, mesh, rng)
                rows.append({"tau": tau, "faces": len(mesh.faces), **files})
                if "animated-glb" in self.cfg.formats:
                    meshes.append(mesh)
                bar.update()
        if meshes:
            write_glb(folder / "animation.glb", meshes, self.cfg.fps)
        animation = "animation.glb" if meshes else None
        summary = {"threshold": threshold, "fps": self.cfg.fps, "animation": animation}
        summary["frames"] = rows
        (folder / "frames.json").write_text(json.dumps(summary, indent=1) + "\n")

    def _write_frame(
        self, folder: Path, frame: int, mesh: Mesh, rng: np.random.Generator
    ) -> dict[str, str]:
        """Frame number `frame` in each format that has a file a frame: format -> file name."""
        names = {}
        for kind, (pattern, write) in FRAME_WRITERS.items():
            if kind in self.cfg.formats:
                names[kind] = pattern.format(frame)
                path = folder / names[kind]
                path.parent.mkdir(exist_ok=True)
                cloud = kind == "points"
                write(path, sample_surface(mesh, self.cfg.num_points, rng) if cloud else mesh)
        return names

    def frame_times(self) -> list[float]:
        """tau of each frame; one, 0, if nothing moves."""
        if is_static(self.geometry):
            return [0.0]
        return np.linspace(0, 1, self.cfg.num_frames).tolist()

    def _times(self, points: Float[Tensor, "N 3"], tau: float) -> dict:
        """The geometry's time argument; one that was written for static scenes gets none."""
        if is_static(self.geometry):
            return {}
        return {"times": points.new_full((1, 1), tau)}

    def _density(self, lattice: Lattice, tau: float) -> Float[Tensor, "X Y Z"]:
        """The density on a lattice at one frame time."""
        forward_density = cast(Any, self.geometry).forward_density  # no name of threestudio's base
        parts = [
            forward_density(points, **self._times(points, tau)).reshape(-1)
            for points in lattice.points(self.cfg.chunk_size)
        ]
        return torch.cat(parts).float().reshape(lattice.shape)

    def _survey(self, taus: list[float], bar: tqdm) -> tuple[float, Lattice]:
        """A coarse look at all frames: the threshold, and a lattice around what there is."""
        low, high = self.geometry.bbox.float()
        coarse = Lattice.over(low, high, min(self.cfg.resolution, SURVEY_RESOLUTION))
        densest = low.new_full(coarse.shape, -torch.inf)  # over time
        total = total_of_squares = 0.0
        for tau in taus:
            density = self._density(coarse, tau)
            densest = torch.maximum(densest, density)
            total += density.double().sum().item()
            total_of_squares += density.double().square().sum().item()
            bar.update()
        threshold = self.cfg.threshold
        if threshold == "auto":
            radius = ((high - low).max() / 2).item()
            threshold = automatic_threshold(typical_density(total, total_of_squares), radius)
        # a tenth of the threshold, and one more cell: what is thinner than a cell stays inside
        dense = (densest > threshold / 10).nonzero()
        if len(dense):
            first, last = coarse.step * (dense.amin(0) - 1), coarse.step * (dense.amax(0) + 1)
            low, high = torch.maximum(low, low + first), torch.minimum(high, low + last)
        return float(threshold), Lattice.over(low, high, self.cfg.resolution)

    def _frame(self, tau: float, threshold: float, lattice: Lattice) -> Mesh:
        """The coloured surface at one frame time."""
        density = self._density(lattice, tau).cpu().numpy()
        low, high = float(density.min()), float(density.max())
        if not low < threshold < high:
            raise ValueError(
                f"No surface at tau = {tau:.4g}: densities there lie in [{low:.4g}, {high:.4g}], "
                f"the threshold is {threshold:.4g}. Try a density in between, for example "
                f"system.exporter.threshold={(low + high) / 2:.3g}. If there is next to nothing, "
                "the scene is empty: look at its videos, and at system.weights or resume."
            )
        mesh = isosurface(density, threshold, lattice.origin.cpu().numpy(), lattice.step)
        mesh = drop_small_parts(mesh, self.cfg.min_part)
        mesh.colours = self._colours(torch.from_numpy(mesh.vertices), tau)
        return mesh

    def _colours(self, points: Float[Tensor, "N 3"], tau: float) -> Float[np.ndarray, "N 3"]:
        """The material's albedo at points of the surface, sRGB."""
        colours = []
        for part in points.to(self.geometry.bbox).split(self.cfg.chunk_size):
            output = self.geometry(part, output_normal=False, **self._times(part, tau))
            exported = self.material.export(points=part, **output)
            if "albedo" not in exported:
                raise TypeError(
                    f"The material {type(self.material).__name__} exports no albedo: the surface "
                    "would have no colours. Try system.material_type=no-material."
                )
            colours.append(exported["albedo"].float().cpu())
        return torch.cat(colours).clamp(0, 1).numpy()
