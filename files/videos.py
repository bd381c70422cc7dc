"""Videos of a run. Their frames wait on disk in a `FrameStore`, to which every process of a run
adds its share; one of them then composes the videos.
"""

import contextlib
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import imageio_ffmpeg
import numpy as np
from jaxtyping import UInt8

from .pictures import Picture, colour_depth, depth_range
from .whole import clear_parts, whole_file


def even_size(picture: Picture) -> UInt8[np.ndarray, "even_H even_W 3"]:
    """Repeats the last row or column where a side is odd, as yuv420p needs pairs of pixels."""
    height, width = picture.shape[:2]
    return np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def write_video(path: Path, pictures: Iterable[Picture], fps: int = 30) -> Path:
    """An H.264 mp4 that browsers play (yuv420p, index in front), sides made even."""
    pictures = (np.ascontiguousarray(even_size(picture)) for picture in pictures)
    first = next(pictures, None)
    if first is None:
        raise ValueError(f"No frames came for {path}: a video needs at least one.")
    with whole_file(path) as part, encoder(part, first.shape, fps) as frames:
        frames.write(first.data)
        for picture in pictures:
            if picture.shape != first.shape:
                raise ValueError(f"{path}: a frame of {picture.shape} after {first.shape}.")
            frames.write(picture.data)
    return path


@contextlib.contextmanager
def encoder(path: Path, shape: tuple[int, int, int], fps: int) -> Iterator[IO[bytes]]:
    """ffmpeg at work: takes the bytes of RGB pictures of one shape.

    Raises:
        OSError: ffmpeg failed, as it does on a full disk. imageio_ffmpeg's own writer doesn't say.
    """
    height, width, _ = shape
    come = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps)]
    go = ["-c:v", "libx264", "-crf", "18", "-pix_fmt", "yuv420p", "-movflags", "+faststart"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", *come, "-i", "-", *go]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [*command, str(path)],
            stdin=subprocess.PIPE,
            stderr=said,
            start_new_session=True,  # Ctrl-C is for us: it ends when its input does
        )
        assert process.stdin is not None  # it is a pipe
        try:
            # a broken pipe: it has ended, and its code says why
            with contextlib.suppress(BrokenPipeError), process.stdin:
                yield process.stdin
            code = process.wait()
        finally:
            process.kill()
            process.wait()
        if code != 0:
            said.seek(0)
            reason = said.read().decode(errors="replace").strip() or f"it ended with {code}"
            raise OSError(f"ffmpeg can't write {path}: {reason}")


class FrameStore:
    """Frames in a folder, a file each, with named layers: `put` from any process, read in order."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    def clear(self) -> None:
        """Removes the frames: what a run that died left there must not get into a video."""
        clear_parts(self.folder)
        for path in self.folder.glob("[0-9]*.npz"):
            path.unlink()
        with contextlib.suppress(OSError):  # it isn't there, or holds what isn't ours
            self.folder.rmdir()

    def put(self, index: int, **layers: np.ndarray) -> None:
        with whole_file(self.folder / f"{index:05d}.npz") as part:
            np.savez_compressed(part, **layers)  # pyright: ignore[reportArgumentType] # as any name

    def paths(self) -> list[Path]:
        """The frames' files in order; a gap is an error."""
        paths = sorted(self.folder.glob("[0-9]*.npz"))
        missing = sorted(set(range(int(paths[-1].stem) + 1 if paths else 1)) - indices(paths))
        if missing:
            raise FileNotFoundError(
                f"Frames {missing} are not in {self.folder}. A process that rendered a share of "
                "them has stopped, or writes to another disk. Run the test again."
            )
        return paths

    def layers(self) -> set[str]:
        with np.load(self.paths()[0]) as frame:
            return set(frame.files)

    def read(self, layer: str) -> Iterator[np.ndarray]:
        for path in self.paths():
            with np.load(path) as frame:
                yield frame[layer]


def indices(paths: Iterable[Path]) -> set[int]:
    return {int(path.stem) for path in paths}


def compose_videos(store: FrameStore, path: Path, fps: int = 30) -> list[Path]:
    """`<path>.mp4` from the layer `rgb`, and `<path>-<layer>.mp4` from each other layer.

    The layer `depth` is coloured over its range in the whole video.
    """
    videos = []
    for layer in sorted(store.layers(), key=lambda name: (name != "rgb", name)):
        pictures = store.read(layer)
        if layer == "depth":
            near, far = depth_range(store.read(layer))
            pictures = (colour_depth(depth, near, far) for depth in pictures)
        name = path.name + ("" if layer == "rgb" else f"-{layer}") + ".mp4"
        videos.append(write_video(path.with_name(name), pictures, fps))
    return videos
