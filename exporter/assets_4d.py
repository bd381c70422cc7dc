"""A trained 4D scene as files for other programs: one mesh that moves, or meshes a frame, point
clouds.

The surface at frame time tau is where the density crosses a threshold, one for all frames, so that
it does not breathe. Where points of a scene can be followed (one that is bent over time, one that
stands still), the surface of tau = 0 is, and all files have its triangles; else each frame has a
surface of its own. The exporter doesn't know where a host saves: it writes into a folder of its
own, which goes when the exporter goes, and hands every file to the system's `save_file`, which both
hosts have."""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import threestudio
import torch
from threestudio.models.exporters.base import Exporter, ExporterOutput
from threestudio.utils.misc import get_rank
from tqdm import tqdm

from ..bounds import Bounded, bounded
from ..events import progress
from .field import Field, Lattice, survey
from .flip_book import write_glb
from .following import moving_mesh
from .frame_files import ANIMATED, FORMATS, FRAME_WRITERS
from .morph_glb import write_moving_glb
from .moving_files import MOVING_WRITERS, Playing, check_moving_formats, write_moving_files
from .moving_mesh import MovingMesh
from .old_files import drop_old_files
from .surface import Mesh, drop_small_parts, isosurface, load, sample_surface, simplify
from .texture import textured

ANIMATION = "animation.glb"


def if_there(value: int, module: str, package: str, need: str, instead: str) -> int:
    """The value of an option; 0, with a warning, where the library isn't there that it needs: of a
    threestudio that was installed by itself."""
    if value:
        try:
            load(module, package, need)
        except ImportError as error:
            threestudio.warn(f"{error} Until then {instead}.")
            return 0
    return value


@threestudio.register("animate124-4d-exporter")
class Assets4DExporter(Exporter):
    """Writes `animation.glb` and other files of what moves, `meshes/`, `points/` and `frames.json`
    (which file has which tau)."""

    @dataclass
    class Config(Exporter.Config, Bounded):
        # frame times, evenly from tau = 0 to 1; a static geometry has one
        num_frames: int = bounded(16, 1, 2**16)
        fps: float = bounded(16.0, above=0, high=1e4)  # frames a second in animation.glb
        # lattice points along the longest edge of the object's box
        resolution: int = bounded(128, 2, 4096)
        # density at the surface, per unit of length; auto: surface.py's automatic_threshold
        threshold: Any = bounded("auto", above=0, names=("auto",))
        # parts with less than this share of a frame's faces are dropped
        min_part: float = bounded(0.01, 0, 1)
        faces: int = bounded(12_000, 0, 2**31)  # of a mesh, at most; 0: as many as the lattice has
        # texels along the longer side of what moves' texture; 0: colours at the vertices, as where
        # points can't be followed
        texture: int = bounded(512, 0, 2**14)
        lit: bool = False  # animations are shaded by a viewer's lights; else colours as they are
        bones: int = bounded(16, 1, 256)  # of the skeleton in skinned.glb, at most
        formats: list[str] = bounded(["animated-glb", "ply", "points"], names=FORMATS)
        num_points: int = bounded(100_000, 1, 2**31)  # points of a frame's point cloud
        chunk_size: int = bounded(2**18, 1, 2**31)  # points a geometry call

        def __post_init__(self) -> None:
            super().__post_init__()
            if not self.formats:
                raise ValueError(f"formats is empty: choose from {', '.join(FORMATS)}.")

    cfg: Config

    def configure(self, geometry, material, background) -> None:
        super().configure(geometry, material, background)
        load("skimage.measure", "scikit-image")  # missing? then say so now, not after the videos
        simplifier = "fast_simplification", "fast-simplification", "Fewer faces"
        self.faces = if_there(self.cfg.faces, *simplifier, "meshes keep all of theirs")
        xatlas = "xatlas", "xatlas", "Textures"
        self.texture = if_there(self.cfg.texture, *xatlas, "colours are at the vertices")
        if not hasattr(geometry, "forward_density"):
            raise TypeError(
                "animate124-4d-exporter needs an implicit geometry with a density, but "
                f"{type(geometry).__name__} has no forward_density. Try the host's mesh-exporter."
            )
        check_moving_formats(self.cfg.formats, self.field.can_follow())

    @property
    def field(self) -> Field:
        return Field(self.geometry, self.material, self.cfg.chunk_size)

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
        """What moves as one, or all frames, one by one; then what needs all of them."""
        cfg, taus, field = self.cfg, self.frame_times(), self.field
        follow = field.can_follow()
        looks = taus[:1] if follow else taus  # surveyed: all of it is there at tau = 0
        rng = np.random.default_rng(int(torch.randint(2**31, (1,))))
        meshes, rows = [], []
        with tqdm(total=len(looks) + len(taus) + 1, desc="Exporting 4D assets", unit="step") as bar:

            def done() -> None:
                bar.update()
                progress(bar.n, int(bar.total), "assets")

            threshold, lattice = survey(field, looks, cfg.threshold, cfg.resolution, done)
            threestudio.info(f"Surface at density {threshold:.4g}, lattice of {lattice.shape}.")
            moving = self.moving_mesh(threshold, lattice) if follow else None
            for i, tau in enumerate(taus):
                mesh = moving.frame(i) if moving else self._frame(tau, threshold, lattice)
                files = self._write_frame(folder, i, mesh, rng)
                rows.append({"tau": tau, "faces": len(mesh.faces), **files})
                meshes.append(mesh)
                done()
            summary: dict[str, Any] = {"threshold": threshold, "fps": cfg.fps}
            if moving is not None:
                summary |= self._write_moving(folder, moving)
            elif ANIMATED in cfg.formats:
                write_glb(folder / ANIMATION, meshes, cfg.fps, cfg.lit)
            done()
        summary["files"] = sorted(path.name for path in folder.iterdir() if path.is_file())
        summary |= {"animation": ANIMATION if ANIMATED in cfg.formats else None, "frames": rows}
        (folder / "frames.json").write_text(json.dumps(summary, indent=1) + "\n")

    def _write_moving(self, folder: Path, moving: MovingMesh) -> dict[str, Any]:
        """The files that hold all of what moves; returns what is to be said of them."""
        cfg = self.cfg
        if self.texture and {ANIMATED, *MOVING_WRITERS}.intersection(cfg.formats):
            moving = textured(moving, self.field, self.texture)
        if ANIMATED in cfg.formats:
            write_moving_glb(folder / ANIMATION, moving, cfg.fps, cfg.lit)
        playing = Playing(cfg.fps, cfg.lit, cfg.bones)
        return write_moving_files(folder, cfg.formats, moving, playing)

    def moving_mesh(self, threshold: float, lattice: Lattice) -> MovingMesh:
        """The surface at tau = 0, followed to all frame times."""
        mesh = self._surface(0.0, threshold, lattice)
        moving, mended = moving_mesh(self.field, mesh, self.frame_times())
        if mended:
            threestudio.info(
                f"{mended:.2%} of the vertices' places are their neighbours', since the "
                "deformation folds space there."
            )
        return moving

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
        if self.field.static:
            return [0.0]
        return np.linspace(0, 1, self.cfg.num_frames).tolist()

    def _frame(self, tau: float, threshold: float, lattice: Lattice) -> Mesh:
        """The coloured surface at one frame time."""
        mesh = self._surface(tau, threshold, lattice)
        mesh.colours = self.field.colours(torch.from_numpy(mesh.vertices), tau).numpy()
        return mesh

    def _surface(self, tau: float, threshold: float, lattice: Lattice) -> Mesh:
        density = self.field.density(lattice, tau).cpu().numpy()
        low, high = float(density.min()), float(density.max())
        if not low < threshold < high:
            raise ValueError(
                f"No surface at tau = {tau:.4g}: densities there lie in [{low:.4g}, {high:.4g}], "
                f"the threshold is {threshold:.4g}. Try a density in between, for example "
                f"system.exporter.threshold={(low + high) / 2:.3g} (of animate.py: "
                "assets.threshold). If there is next to nothing, the scene is empty: look at its "
                "videos, and at system.weights or resume."
            )
        mesh = isosurface(density, threshold, lattice.origin.cpu().numpy(), lattice.step)
        return simplify(drop_small_parts(mesh, self.cfg.min_part), self.faces)
