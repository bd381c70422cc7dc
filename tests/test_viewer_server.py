"""The viewer's server, asked by a websocket as viser's page asks it."""

import errno
import io
import os
import socket
import threading
import time

import imageio_ffmpeg
import numpy as np
import pytest
from animate124.system.snapshots import SNAPSHOT
from animate124.viewer.scenes import Scenes
from animate124.viewer.session import SMALLEST
from PIL import Image

from trials import write_checkpoint, write_trial

viser = pytest.importorskip("viser", reason="the extra `view` isn't installed (pip install viser)")
SIZE = 64


class Page:
    """What viser's page does, without a browser: messages are msgpack, the server's in zstd."""

    def __init__(self, port):
        from websockets.sync.client import connect

        protocol = f"viser-v{viser.__version__}"
        self.socket = connect(f"ws://127.0.0.1:{port}", subprotocols=[protocol], max_size=None)
        self.messages = []

    def send(self, kind, **values):
        import msgspec

        self.socket.send(msgspec.msgpack.encode({"type": kind, **values}))

    def stand(self, position=(2.5, 0.0, 0.0), height=200, width=300):
        view = {"position": position, "look_at": (0, 0, 0), "up_direction": (0, 0, 1)}
        view |= {"wxyz": (1, 0, 0, 0), "fov": 0.7, "near": 0.01, "far": 1000.0}
        self.send("ViewerCameraMessage", image_height=height, image_width=width, **view)

    def set(self, label, value):
        self.send("GuiUpdateMessage", uuid=self.of(label), updates={"value": value})

    def of(self, label):
        """The number of a control."""
        return self.until(lambda m: m.get("props", {}).get("label") == label)["uuid"]

    def until(self, right, seconds=20.0, after=0):
        """The first message of that kind, of those from number `after` on."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for message in self.messages[after:]:
                if right(message):
                    return message
            self.receive(end - time.monotonic())
        raise AssertionError(f"no such message among the last {len(self.messages) - after}")

    def receive(self, seconds):
        import msgspec
        import zstandard

        try:
            data = self.socket.recv(timeout=max(seconds, 0.01))
        except TimeoutError:
            return
        size = int.from_bytes(data[8:16], "little")
        inner = zstandard.ZstdDecompressor().decompress(data[16 : 16 + size])
        self.messages += msgspec.msgpack.decode(inner)["messages"]

    def picture(self, right=lambda picture: True, after=0):
        """The first picture of that kind."""

        def of(message):
            if message["type"] != "BackgroundImageMessage" or message["rgb_data"] is None:
                return False  # it begins with none
            return right(np.asarray(Image.open(io.BytesIO(message["rgb_data"]))))

        message = self.until(of, after=after)
        return np.asarray(Image.open(io.BytesIO(message["rgb_data"])))

    def file(self, label):
        """What comes when that button is pressed."""
        self.set(label, True)
        start = self.until(lambda m: m["type"] == "FileTransferStartDownload")
        self.until(lambda m: m["type"] == "FileTransferPart")
        end = time.monotonic() + 20
        while time.monotonic() < end:
            parts = [m["content"] for m in self.messages if m["type"] == "FileTransferPart"]
            if sum(map(len, parts)) == start["size_bytes"]:
                return start["filename"], b"".join(parts)
            self.receive(0.5)
        raise AssertionError("the file isn't whole")


def tall(height):
    return lambda picture: picture.shape[0] == height


def top(picture):
    """The highest row in which there is something."""
    return np.nonzero(picture.min(axis=(1, 2)) < 200)[0].min()


@pytest.fixture
def run(tmp_path):
    write_trial(tmp_path / "stage1")
    write_trial(tmp_path / "stage2", rise=0.15)
    return tmp_path


@pytest.fixture
def serve():
    from animate124.viewer.server import Viewer

    started = []

    def start(run, **options):
        viewer = Viewer(Scenes(run), size=SIZE, port=18200, **options)
        thread = threading.Thread(target=viewer.run)
        thread.start()
        started.append((viewer, thread))
        page = Page(viewer.server.get_port())
        page.stand()
        return viewer, page

    yield start
    for viewer, thread in started:
        viewer.over.set()
        thread.join(10)
        viewer.stop()
        assert not thread.is_alive()


def test_a_page_is_shown_the_newest_stage_sharper_once_it_rests(run, serve):
    _, page = serve(run)
    first = page.picture()
    assert first.shape == (SMALLEST, SMALLEST * 3 // 2, 3)
    sharp = page.picture(tall(SIZE))
    assert sharp.shape == (SIZE, SIZE * 3 // 2, 3)
    page.until(lambda m: f"{SIZE * 3 // 2} x {SIZE} pixels" in str(m), 3.0)
    assert sharp[SIZE // 2, 48].max() < 250 and sharp[0, 0].min() > 250  # the blob before white
    before = len(page.messages)
    page.stand((0.0, 0.0, 4.0))
    page.picture(lambda picture: picture.shape[0] < SIZE, after=before)
    away = page.picture(tall(SIZE), after=before)
    assert (away.min(axis=2) < 200).sum() < 0.6 * (sharp.min(axis=2) < 200).sum()
    name, content = page.file("Save a picture")
    assert name == "stage2-colour.png"
    assert Image.open(io.BytesIO(content)).size == (SIZE * 3 // 2, SIZE)


def test_time_mode_and_stage_are_chosen(run, serve):
    _, page = serve(run)
    rest = page.picture(tall(SIZE))
    before = len(page.messages)
    page.set("time", 1.0)
    risen = page.picture(tall(SIZE), after=before)
    assert top(risen) < top(rest) - 10
    before = len(page.messages)
    page.set("stage", "stage1")
    still = page.picture(tall(SIZE), after=before)
    assert abs(int(top(still)) - int(top(rest))) <= 1
    before = len(page.messages)
    page.set("shows", "opacity")
    opacity = page.picture(tall(SIZE), after=before)
    assert opacity[0, 0].max() < 5 and opacity[SIZE // 2, 48].min() > 250


def test_it_plays_and_stops(run, serve):
    viewer, page = serve(run)
    page.picture(tall(SIZE))
    page.set("play", True)
    heights = set()

    def moved(picture):
        heights.add(round(top(picture) / picture.shape[0], 2))
        return len(heights) > 2

    page.picture(moved, after=len(page.messages))
    before = len(page.messages)
    page.set("play", False)
    page.picture(tall(SIZE), after=before)  # it rests
    (person,) = viewer.people.values()
    assert person.session.tau > 0
    assert person.panel.tau.value == pytest.approx(person.session.tau, abs=1e-3)


def test_a_video_goes_where_the_camera_is_told_to(run, serve, tmp_path):
    _, page = serve(run, seconds=0.25)
    page.picture(tall(SIZE))
    before = len(page.messages)
    page.set("camera", "0,10")
    page.set("Save a video", True)
    said = page.until(lambda m: m["type"].startswith("Notification"), after=before)
    assert "'0,10' is not azimuth,elevation,distance" in str(said)
    page.set("camera", "0,0,2 0,0,4")
    name, content = page.file("Save a video")
    assert name == "stage2-colour.mp4"
    assert "of 12 frames" in str(page.messages)
    (tmp_path / name).write_bytes(content)
    reader = imageio_ffmpeg.read_frames(str(tmp_path / name))
    assert next(reader)["size"] == (SIZE, SIZE)
    frames = [np.frombuffer(f, np.uint8).reshape(SIZE, SIZE, 3) for f in reader]
    assert len(frames) == 2 * 6  # time runs twice, 24 frames a second
    near, far = ((frame.min(axis=2) < 200).sum() for frame in (frames[0], frames[-1]))
    assert far < 0.5 * near


def test_a_video_that_cant_be_written_is_told(run, serve, monkeypatch):
    def full(path, pictures, fps):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    _, page = serve(run)
    page.picture(tall(SIZE))
    monkeypatch.setattr("animate124.viewer.server.write_video", full)
    before = len(page.messages)
    page.set("Save a video", True)
    page.until(lambda m: "No space left" in str(m), after=before)
    kinds = [m["type"] for m in page.messages[before:]]
    assert "RemoveNotificationMessage" in kinds  # of the one that says that it is being rendered


def test_nobody_waits_for_the_video_of_a_person_who_has_gone(run, serve):
    viewer, page = serve(run, seconds=20.0)
    page.picture(tall(SIZE))
    page.set("Save a video", True)
    page.until(lambda m: "of 960 frames" in str(m))
    page.socket.close()
    another = Page(viewer.server.get_port())
    another.stand()
    another.picture(tall(SIZE))


def test_a_stage_that_has_just_begun_is_followed(tmp_path, serve):
    viewer, page = serve(tmp_path / "not yet")
    page.until(lambda m: m.get("props", {}).get("label") == "stage")
    for name, rise in (("stage1", 0.0), ("stage2", 0.15)):
        before = len(page.messages)
        trial = write_trial(tmp_path / "not yet" / name, begun=True)
        write_checkpoint(trial / SNAPSHOT, rise)
        page.picture(tall(SIZE), after=before)
        page.until(lambda m, name=name: m.get("updates", {}).get("value") == name)
    (trial / SNAPSHOT).write_bytes(b"cut off")  # what can't be read is said, and it goes on
    before = len(page.messages)
    page.until(lambda m: "This can't be shown" in str(m), after=before)
    write_checkpoint(trial / SNAPSHOT, 0.2)
    page.picture(tall(SIZE), after=before)
    assert viewer.people


def test_it_listens_to_this_machine_alone_and_is_never_made_public(run, serve):
    viewer, page = serve(run)
    assert viewer.address.startswith("http://127.0.0.1:")
    with socket.socket() as other, pytest.raises(OSError):
        other.settimeout(2)
        other.connect((socket.gethostbyname(socket.gethostname()), viewer.server.get_port()))
        raise OSError if other.getpeername()[0] == "127.0.0.1" else AssertionError
    page.send("ShareUrlRequest")
    page.picture()
    assert viewer.server.request_share_url() is None
    themes = [m for m in page.messages if m["type"] == "ThemeConfigurationMessage"]
    assert themes and not themes[-1]["show_share_button"]
