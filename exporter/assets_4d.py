"""A trained 4D scene as files for other programs: one mesh that moves, or meshes a frame, point
clouds.

The surface at frame time tau is where the density crosses a threshold, one for all frames, so that
it does not breathe. Where points of a scene can be followed (one that is bent over time, one that
stands still), the surface of tau = 0 is, and all files have its triangles; else each frame has a
surface of its own. The exporter doesn't know where a host saves: it writes into a folder of its
own, which goes when the exporter goes, and hands every file to the system's `save_file`, which both
hosts have."""

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator
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
from ..files.whole import FULL, in_words
from .field import Field, Lattice, survey
from .flip_book import write_glb
from .following import moving_mesh
from .frame_files import ANIMATED, FORMATS, FRAME_WRITERS, OBJ
from .mesh_files import write_material
from .morph_glb import write_moving_glb
from .moving_files import MOVING_WRITERS, Playing, check_moving_formats, write_moving_files
from .moving_mesh import MovingMesh
from .old_files import drop_old_files
from .surface import Mesh, drop_small_parts, isosurface, load, sample_surface, simplify
from .texture import textured

ANIMATION = "animation.glb"
NOTABLE = 0.1  # of a surface's faces: more in small pieces than floaters have


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


@contextlib.contextmanager
def told_where(folder: Path) -> Iterator[None]:
    """A full disk's error says where files are made before a host saves them, and what to try."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL or error.filename is not None:
            raise
        raise OSError(error.errno, in_words(error, folder), str(folder)) from error


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
        # parts with less than this share of the largest one's faces are dropped
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
        with torch.autocast(self.geometry.bbox.device.type, enabled=False), told_where(folder):
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
        """All files, and `frames.json`, which says what they are."""
        cfg, taus, follow = self.cfg, self.frame_times(), self.field.can_follow()
        looks = taus[:1] if follow else taus  # surveyed: all of it is there at tau = 0
        rng = np.random.default_rng(int(torch.randint(2**31, (1,))))
        with tqdm(total=self._steps(follow), desc="Exporting 4D assets", unit="step") as bar:

            def done() -> None:
                bar.update()
                progress(bar.n, int(bar.total), "assets")

            threshold, lattice = survey(self.field, looks, cfg.threshold, cfg.resolution, done)
            threestudio.info(f"Surface at density {threshold:.4g}, lattice of {lattice.shape}.")
            write = self._write_moving if follow else self._write_flip_book
            said = write(folder, threshold, lattice, rng, done)
        rows = said.pop("frames")
        each = {folder / name for row in rows for name in row.values() if isinstance(name, str)}
        whole = {path for path in folder.rglob("*") if path.is_file()} - each
        summary = {"threshold": threshold, "fps": cfg.fps, **said}
        summary["files"] = sorted(path.relative_to(folder).as_posix() for path in whole)
        summary |= {"animation": ANIMATION if ANIMATED in cfg.formats else None, "frames": rows}
        (folder / "frames.json").write_text(json.dumps(summary, indent=1) + "\n")

    def _steps(self, follow: bool) -> int:
        """How often `_export` is done with a part of its work: a look at a time, following, a
        texture, a frame's files, a file of all frames."""
        formats, frames = set(self.cfg.formats), len(self.frame_times())
        if not follow:
            return 2 * frames + (ANIMATED in formats)
        each = frames if formats.intersection(FRAME_WRITERS) else 0
        return 2 + self._paints() + each + len(formats.intersection([ANIMATED, *MOVING_WRITERS]))

    def _paints(self) -> bool:
        """Whether what moves has files with a texture."""
        return bool(
            self.texture and {ANIMATED, OBJ, *MOVING_WRITERS}.intersection(self.cfg.formats)
        )

    def _write_moving(
        self,
        folder: Path,
        threshold: float,
        lattice: Lattice,
        rng: np.random.Generator,
        done: Callable[[], None],
    ) -> dict[str, Any]:
        """All files of one mesh that moves; returns what is to be said of them."""
        cfg = self.cfg
        plain = painted = self.moving_mesh(threshold, lattice)
        done()
        if self._paints():
            painted = textured(plain, self.field, self.texture)
            done()
        rows = []
        for i, tau in enumerate(self.frame_times()):
            rows.append(self._write_frame(folder, i, tau, plain.frame(i), rng, painted.frame(i)))
            if FRAME_WRITERS.keys() & set(cfg.formats):
                done()
        if OBJ in cfg.formats and painted.texture is not None:
            write_material(folder / "meshes", painted.texture, cfg.lit)
        if ANIMATED in cfg.formats:
            write_moving_glb(folder / ANIMATION, painted, cfg.fps, cfg.lit)
            done()
        playing = Playing(cfg.fps, cfg.lit, cfg.bones)
        return write_moving_files(folder, cfg.formats, painted, playing, done) | {"frames": rows}

    def _write_flip_book(
        self,
        folder: Path,
        threshold: float,
        lattice: Lattice,
        rng: np.random.Generator,
        done: Callable[[], None],
    ) -> dict[str, Any]:
        """All files of a mesh a frame, one by one; then the one that needs all of them."""
        meshes, rows = [], []
        for i, tau in enumerate(self.frame_times()):
            meshes.append(self._frame(tau, threshold, lattice))
            rows.append(self._write_frame(folder, i, tau, meshes[-1], rng))
            done()
        if ANIMATED in self.cfg.formats:
            write_glb(folder / ANIMATION, meshes, self.cfg.fps, self.cfg.lit)
            done()
        return {"frames": rows}

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
        self,
        folder: Path,
        frame: int,
        tau: float,
        mesh: Mesh,
        rng: np.random.Generator,
        painted: Mesh | None = None,
    ) -> dict[str, Any]:
        """Frame number `frame` in each format that has a file a frame; returns its row of
        frames.json: format -> file name.

        painted: the same with a texture, for those that can have one."""
        row: dict[str, Any] = {"tau": tau, "faces": len(mesh.faces)}
        for kind, (pattern, write) in FRAME_WRITERS.items():
            if kind in self.cfg.formats:
                row[kind] = pattern.format(frame)
                path = folder / row[kind]
                path.parent.mkdir(exist_ok=True)
                shown = painted or mesh if kind == OBJ else mesh
                cloud = kind == "points"
                write(path, sample_surface(mesh, self.cfg.num_points, rng) if cloud else shown)
        return row

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
        kept = drop_small_parts(mesh, self.cfg.min_part)
        lost = 1 - len(kept.faces) / len(mesh.faces)
        if lost > NOTABLE:
            threestudio.warn(
                f"At tau = {tau:.4g} {lost:.0%} of the surface are in small pieces, which are "
                "dropped. system.exporter.min_part=0 keeps them; if they are fog, a higher density "
                "may be a better surface: system.exporter.threshold (of animate.py: "
                f"assets.threshold), which is {threshold:.4g}."
            )
        return simplify(kept, self.faces)
