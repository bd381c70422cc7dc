"""Pictures and videos: what is written is what was rendered, and nothing half-written stays."""

import cv2
import imageio_ffmpeg
import numpy as np
import pytest
import torch
from animate124.files.pictures import (
    colour_depth,
    depth_range,
    save_png,
    surface_depth,
    to_picture,
)
from animate124.files.videos import FrameStore, compose_videos, write_video


def gradients(count, height, width):
    """Smooth pictures that a video codec keeps well, each with a level of its own."""
    y, x = np.mgrid[:height, :width]
    for i in range(count):
        level = 255 * i // max(count - 1, 1)
        channels = [255 * y // height, 255 * x // width, np.full_like(x, level)]
        yield np.stack(channels, -1).astype(np.uint8)


def read_video(path):
    reader = imageio_ffmpeg.read_frames(str(path))
    meta = next(reader)
    width, height = meta["size"]
    return meta, [np.frombuffer(f, np.uint8).reshape(height, width, 3) for f in reader]


@pytest.mark.parametrize("size", [(32, 48), (31, 47)])
def test_a_video_holds_every_frame_in_a_format_that_browsers_play(tmp_path, size):
    sent = list(gradients(7, *size))
    path = write_video(tmp_path / "new folder" / "a.mp4", sent, fps=12)
    meta, frames = read_video(path)
    assert meta["codec"] == "h264"
    assert meta["pix_fmt"].startswith("yuv420p")
    assert meta["fps"] == 12
    assert meta["size"] == (48, 32)
    assert len(frames) == 7
    for frame, picture in zip(frames, sent, strict=True):
        error = np.abs(frame[: size[0], : size[1]].astype(int) - picture).mean()
        assert error < 6


def test_a_write_that_dies_leaves_the_old_file_and_no_other(tmp_path):
    path = write_video(tmp_path / "a.mp4", gradients(3, 16, 16))
    before = path.read_bytes()

    def dying():
        yield from gradients(2, 16, 16)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_video(path, dying())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_frames_of_two_sizes_or_no_frames_are_errors(tmp_path):
    with pytest.raises(ValueError, match="at least one"):
        write_video(tmp_path / "a.mp4", [])
    mixed = [*gradients(1, 16, 16), *gradients(1, 16, 32)]
    with pytest.raises(ValueError, match="a frame of"):
        write_video(tmp_path / "a.mp4", mixed)
    assert not list(tmp_path.iterdir())


def test_png_round_trip_keeps_every_byte_and_the_order_of_channels(tmp_path):
    picture = next(gradients(1, 9, 7))
    save_png(tmp_path / "a" / "b.png", picture)
    read = cv2.cvtColor(cv2.imread(str(tmp_path / "a" / "b.png")), cv2.COLOR_BGR2RGB)
    np.testing.assert_array_equal(read, picture)


def test_to_picture_rounds_clamps_and_survives_nan():
    image = torch.tensor([[[0.5, -1.0, 2.0], [float("nan"), 1 / 255, 0.9999]]])
    assert to_picture(image).tolist() == [[[128, 0, 255], [0, 1, 255]]]


def test_surface_depth_is_the_mean_distance_where_something_is():
    depth = torch.tensor([[[2.5], [1.5], [0.3]]])  # sums of weight * t
    opacity = torch.tensor([[[1.0], [0.75], [0.2]]])
    found = surface_depth(depth, opacity)
    np.testing.assert_allclose(found, [[2.5, 2.0, np.nan]])


def test_depth_range_is_of_the_whole_video_and_of_surfaces_only():
    rng = np.random.default_rng(0)
    frames = [rng.uniform(2, 3, (8, 8)).astype(np.float32) + shift for shift in (0, 1, 5)]
    everything = np.stack(frames)
    frames[0] = np.pad(frames[0], 4, constant_values=np.nan)  # background
    near, far = depth_range(frames)
    assert near == pytest.approx(np.percentile(everything, 10))
    assert far == pytest.approx(np.percentile(everything, 99))
    assert depth_range([np.full((4, 4), np.nan)]) == (0, 1)
    same = depth_range([np.full((4, 4), 2.0)])
    assert same[0] < same[1]


def test_depth_colours_are_ends_of_the_map_outside_the_range_and_white_without_surface():
    depth = np.array([[1.0, 2.0, 3.0, 4.0, np.nan]])
    colours = colour_depth(depth, 2.0, 3.0)[0].tolist()
    assert colours[0] == colours[1] and colours[2] == colours[3] and colours[1] != colours[2]
    assert colours[4] == [255, 255, 255]


def test_two_processes_frames_make_one_video_in_order(tmp_path):
    sent = list(gradients(6, 16, 16))
    FrameStore(tmp_path / "frames").clear()
    ranks = [FrameStore(tmp_path / "frames") for _ in range(2)]
    for i in (1, 0, 5, 3, 2, 4, 4):  # a sampler that pads sends a frame twice
        depth = np.full((16, 16), 2.0 + i, np.float16)
        ranks[i % 2].put(i, rgb=sent[i], normal=sent[5 - i], depth=depth)
    videos = compose_videos(ranks[0], tmp_path / "it3-test", fps=10)
    assert [v.name for v in videos] == [
        "it3-test.mp4",
        "it3-test-depth.mp4",
        "it3-test-normal.mp4",
    ]
    blue = [frame[..., 2].mean() for frame in read_video(videos[0])[1]]
    assert len(blue) == 6 and blue == sorted(blue)
    blue = [frame[..., 2].mean() for frame in read_video(videos[2])[1]]
    assert blue == sorted(blue, reverse=True)
    colours = [tuple(frame[8, 8] // 32) for frame in read_video(videos[1])[1]]
    assert len(set(colours)) >= 5  # one range for all frames


def test_a_missing_frame_is_named(tmp_path):
    store = FrameStore(tmp_path)
    for i in (0, 1, 4):
        store.put(i, rgb=np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(FileNotFoundError, match=r"\[2, 3\]"):
        compose_videos(store, tmp_path / "video")
    store.clear()
    with pytest.raises(FileNotFoundError, match=r"\[0\]"):
        compose_videos(store, tmp_path / "video")
