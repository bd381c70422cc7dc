"""A trained scene seen from chosen cameras at chosen times, and the pictures made of that.

Angles are degrees, tau in [0, 1] is the frame time; T is the number of frames of a trajectory.
"""

import argparse
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm import tqdm

from ..data.cameras import Cameras
from ..data.trajectories import circle
from ..events import peak_memory, progress, say
from ..files.pictures import Picture, save_png, to_picture
from ..files.videos import write_video
from ..system.trained import Scene, load_scene
from .places import check_writable
from .result_files import ANIMATION, REFERENCE, SHEET, TURNTABLE

THUMBNAIL = 192  # pixels, the largest side of a picture in the contact sheet
INK = (60, 60, 60)
ROUNDS = 2  # times that time runs while the camera turns once
BATCH = 8  # frames rendered together


class Trajectory(NamedTuple):
    """Cameras on a circle around the subject, and when they look."""

    azimuth: Float[Tensor, " T"]  # from the reference camera
    tau: Float[Tensor, " T"]


def turning(frames: int) -> Trajectory:
    """The camera turns once while time runs from 0 to 1, `ROUNDS` times."""
    azimuth, _ = circle(ROUNDS * frames)
    return Trajectory(azimuth, torch.linspace(0, 1, frames).repeat(ROUNDS))


def resting(frames: int) -> Trajectory:
    """Time runs from 0 to 1 before the reference camera."""
    return Trajectory(torch.zeros(frames), torch.linspace(0, 1, frames))


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


def pictures(scene: Scene, path: Trajectory, size: int | None, bar: tqdm) -> Iterator[Picture]:
    """The frames of a trajectory at the reference camera's elevation and distance.

    size: pixels of a side; None for the config's eval size.
    """
    image, single = scene.data.image, scene.data.single_view
    height, width = (size, size) if size else (single.eval_height, single.eval_width)
    for azimuth, tau in zip(path.azimuth.split(BATCH), path.tau.split(BATCH), strict=True):
        cameras = Cameras.of(
            image.default_elevation_deg,
            image.default_azimuth_deg + azimuth,
            image.default_camera_distance,
            image.default_fovy_deg,
        )
        for picture in scene.look(cameras, tau, height, width)["comp_rgb"]:
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


def write_result(args: argparse.Namespace) -> None:
    """Renders and writes everything; options are those of tasks/result.py."""
    check_writable(args.out)
    scene = load_scene(args.config, args.checkpoint)
    videos = {TURNTABLE: frozen(args.frames)}
    if not scene.static:
        videos = {ANIMATION: turning(args.frames), REFERENCE: resting(args.frames)} | videos
    times = 1 if scene.static else args.times
    sheet = grid(args.views, times)
    total = sum(len(path.tau) for path in [*videos.values(), sheet])
    with tqdm(total=total, desc="Rendering") as bar:
        small = list(pictures(scene, sheet, args.size, bar))
        columns = sheet.tau[:times].tolist()
        picture = contact_sheet(small, sheet.azimuth[::times].tolist(), columns)
        save_png(args.out / SHEET, picture)
        for name, path in videos.items():
            frames = pictures(scene, path, args.size, bar)
            write_video(args.out / name, frames, args.fps)
    if torch.cuda.is_available():
        peak_memory(torch.cuda.max_memory_allocated())
        say(f"Peak GPU memory: {torch.cuda.max_memory_allocated() / 1e9:.2f} GB")
