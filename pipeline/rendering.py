"""A trained scene seen from chosen cameras at chosen times, and the pictures made of that.

Angles are degrees, tau in [0, 1] is the frame time; T is the number of frames of a trajectory.
"""

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm import tqdm

from ..data.cameras import Cameras
from ..data.frame_times import played
from ..data.trajectories import circle
from ..events import peak_memory, progress, say
from ..files.pictures import Picture, save_png, to_picture
from ..files.videos import write_video
from ..files.whole import whole_file
from ..system.trained import Scene, load_scene
from .places import check_writable
from .request import REST, TURN, Stop, camera_stops
from .result_files import ANIMATION, PLAYBACK, REFERENCE, SHEET, TURNTABLE
from .tasks.result import number_of_frames

THUMBNAIL = 192  # pixels, the largest side of a picture in the contact sheet
INK = (60, 60, 60)
ROUNDS = 2  # times that time runs while the camera turns once
BATCH = 8  # frames rendered together


class Trajectory(NamedTuple):
    """Cameras that look at the subject, and when."""

    azimuth: Float[Tensor, " T"]  # from the reference camera
    tau: Float[Tensor, " T"]
    elevation: Float[Tensor, " T"] | None = None  # None: the reference camera's
    distance: Float[Tensor, " T"] | None = None  # likewise


def turning(tau: Float[Tensor, " F"]) -> Trajectory:
    """The camera turns once while time runs `ROUNDS` times."""
    azimuth, _ = circle(ROUNDS * len(tau))
    return Trajectory(azimuth, tau.repeat(ROUNDS))


def resting(tau: Float[Tensor, " F"]) -> Trajectory:
    """Time runs before the reference camera."""
    return Trajectory(torch.zeros(len(tau)), tau)


def passing(
    stops: Sequence[Stop], tau: Float[Tensor, " F"], elevation: float, distance: float
) -> Trajectory:
    """The camera goes evenly from place to place while time runs `ROUNDS` times.

    elevation, distance: of the reference camera, for a place that leaves them out.
    """
    usual = 0.0, elevation, distance
    places = [[u if v is None else v for v, u in zip(stop, usual, strict=True)] for stop in stops]
    frames = ROUNDS * len(tau)
    at = np.linspace(0, len(places) - 1, frames)
    azimuth, elevations, distances = (
        torch.from_numpy(np.interp(at, np.arange(len(places)), values)).float()
        for values in zip(*places, strict=True)
    )
    return Trajectory(azimuth, tau.repeat(ROUNDS), elevations, distances)


def chosen(camera: str, tau: Float[Tensor, " F"], scene: Scene) -> Trajectory:
    """The path that --camera names."""
    if camera in (TURN, REST):
        return {TURN: turning, REST: resting}[camera](tau)
    image = scene.data.image
    distance = image.default_camera_distance
    return passing(camera_stops(camera), tau, image.default_elevation_deg, distance)


def frozen(frames: int) -> Trajectory:
    """The camera turns once at tau = 0."""
    azimuth, _ = circle(frames)
    return Trajectory(azimuth, torch.zeros(frames))


def grid(views: int, times: int) -> Trajectory:
    """The pictures of a contact sheet, row by row: all times of a view, then the next view."""
    azimuth = torch.arange(views) * 360 / views
    return Trajectory(
        azimuth.repeat_interleave(times), torch.linspace(0, 1, max(times, 1)).repeat(views)
    )


def cameras_on(path: Trajectory, scene: Scene) -> Cameras:
    """A trajectory's T cameras; what it leaves out is as the reference camera has it."""
    image = scene.data.image
    elevation = image.default_elevation_deg if path.elevation is None else path.elevation
    distance = image.default_camera_distance if path.distance is None else path.distance
    azimuth = image.default_azimuth_deg + path.azimuth
    return Cameras.of(elevation, azimuth, distance, image.default_fovy_deg)


def pictures(scene: Scene, path: Trajectory, size: int | None, bar: tqdm) -> Iterator[Picture]:
    """The frames of a trajectory.

    size: pixels of a side; None for the config's eval size.
    """
    single = scene.data.single_view
    height, width = (size, size) if size else (single.eval_height, single.eval_width)
    cameras = cameras_on(path, scene)
    for part in torch.arange(len(cameras)).split(BATCH):
        few = cameras.map(lambda v, part=part: v[part])
        for picture in scene.look(few, path.tau[part], height, width)["comp_rgb"]:
            bar.update()
            progress(bar.n, bar.total, "rendering")
            yield to_picture(picture)


def contact_sheet(
    pictures: list[Picture], azimuth: list[float], tau: list[float]
) -> UInt8[np.ndarray, "sheet_H sheet_W 3"]:
    """Views (rows) x times (columns), labelled; pictures row by row."""
    height, width = pictures[0].shape[:2]
    scale = THUMBNAIL / max(height, width)
    size = round(width * scale), round(height * scale)
    small = [cv2.resize(p, size, interpolation=cv2.INTER_AREA) for p in pictures]
    rows = [
        [label(f"{degrees:.0f} deg", 80, size[1]), *small[n * len(tau) : (n + 1) * len(tau)]]
        for n, degrees in enumerate(azimuth)
    ]
    head = [label("", 80, 32), *(label(f"time {t:.2f}", size[0], 32) for t in tau)]
    return np.concatenate([np.concatenate(row, axis=1) for row in [head, *rows]], axis=0)


def label(text: str, width: int, height: int) -> UInt8[np.ndarray, "{height} {width} 3"]:
    """Dark text in the middle of white."""
    picture = np.full((height, width, 3), 255, np.uint8)
    font, size = cv2.FONT_HERSHEY_SIMPLEX, 0.45
    (w, h), _ = cv2.getTextSize(text, font, size, 1)
    place = (width - w) // 2, (height + h) // 2
    cv2.putText(picture, text, place, font, size, INK, 1, cv2.LINE_AA)
    return picture


class Steps:
    """How much a video's pictures change, as the mean over pixels and colours of bytes."""

    def __init__(self) -> None:
        self.first: Picture | None = None
        self.last: Picture | None = None
        self.largest = 0.0  # from one frame to the next

    def watched(self, frames: Iterable[Picture]) -> Iterator[Picture]:
        """The frames as they come."""
        for frame in frames:
            self.add(frame)
            yield frame

    def add(self, frame: Picture) -> None:
        if self.last is None:
            self.first = frame
        else:
            self.largest = max(self.largest, difference(self.last, frame))
        self.last = frame


def difference(a: Picture, b: Picture) -> float:
    return float(np.abs(a.astype(np.int16) - b).mean())


def write_playback(args: argparse.Namespace, frames: int, steps: Steps, end: Picture) -> None:
    """How the motion plays, and how far the picture at tau = 1 is from that at tau = 0."""
    assert steps.first is not None
    if args.loop:  # the step over the seam
        steps.add(end)
    facts = {
        "frames": frames,
        "fps": args.fps,
        "seconds": frames / args.fps,
        "loop": args.loop,
        "camera": args.camera,
        "end_to_start": round(difference(end, steps.first), 3),
        "largest_step": round(steps.largest, 3),
    }
    with whole_file(args.out / PLAYBACK) as part:
        part.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    say(
        f"From its end to its start the picture changes by {facts['end_to_start']:.1f} of 255, "
        f"from frame to frame by up to {facts['largest_step']:.1f}."
    )


def write_result(args: argparse.Namespace) -> None:
    """Renders and writes everything; options are those of tasks/result.py."""
    check_writable(args.out)
    scene = load_scene(args.config, args.checkpoint)
    frames = number_of_frames(args)
    if args.loop:
        scene.loop()
    videos, end = {TURNTABLE: frozen(frames)}, Trajectory(torch.zeros(1), torch.ones(1))
    if not scene.static:
        tau = played(frames, args.loop)
        videos = {ANIMATION: chosen(args.camera, tau, scene), REFERENCE: resting(tau)} | videos
    times = 1 if scene.static else args.times
    sheet, steps = grid(args.views, times), Steps()
    total = sum(len(path.tau) for path in [*videos.values(), sheet]) + (not scene.static)
    with tqdm(total=total, desc="Rendering") as bar:
        small = list(pictures(scene, sheet, args.size, bar))
        columns = sheet.tau[:times].tolist()
        picture = contact_sheet(small, sheet.azimuth[::times].tolist(), columns)
        save_png(args.out / SHEET, picture)
        for name, path in videos.items():
            shown = pictures(scene, path, args.size, bar)
            write_video(
                args.out / name, steps.watched(shown) if name == REFERENCE else shown, args.fps
            )
        if not scene.static:
            (last,) = pictures(scene, end, args.size, bar)
            write_playback(args, frames, steps, last)
    if torch.cuda.is_available():
        peak_memory(torch.cuda.max_memory_allocated())
        say(f"Peak GPU memory: {torch.cuda.max_memory_allocated() / 1e9:.2f} GB")
