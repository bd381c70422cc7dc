"""The viewer: a server of viser, and one thread that draws for all who look."""

import contextlib
import queue
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from threestudio.utils.config import load_yaml

from ..data.cameras import camera_position
from ..data.config import parse_data_config
from ..data.frame_times import played
from ..files.pictures import Picture, png
from ..files.videos import write_video
from ..pipeline.rendering import cameras_on, chosen
from ..system.trained import Scene
from .looking import Eye, cameras_of, draw
from .panel import Panel
from .scenes import Scenes
from .session import Pace, Session, Wish

NEWS_EVERY = 1.0  # seconds between two looks for newer checkpoints
MOST = 30  # pictures a second
FPS = 24  # of a video
QUALITY = 85  # of JPEG


class Person:
    """Who looks: a browser's page."""

    def __init__(self, client: Any, session: Session, azimuth_deg: float) -> None:
        self.client, self.session = client, session
        self.jobs: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.panel = Panel(client, session, azimuth_deg, self.jobs.put)
        self.said = 0.0  # when the status was written
        self.stand(client.camera)
        client.camera.on_update(self.stand)

    def stand(self, camera: Any) -> None:
        """Where its camera is."""
        position, target, up = (
            tuple(float(v) for v in values)
            for values in (camera.position, camera.look_at, camera.up_direction)
        )
        self.session.eye = Eye(position, target, up, float(camera.fov))
        self.session.aspect = min(max(float(camera.aspect), 0.1), 10.0)


@contextlib.contextmanager
def telling(person: Person) -> Iterator[None]:
    """What can't be read, a checkpoint that is cut off or has just gone, is told to who looks."""
    try:
        yield
    except (ValueError, OSError) as error:
        person.panel.say("This can't be shown", str(error))


class Viewer:
    """Serves a run's scenes from `host`:`port` on, or the next port that is free."""

    def __init__(
        self,
        scenes: Scenes,
        *,
        stage: str | None = None,
        host: str = "127.0.0.1",
        port: int = 8080,
        size: int = 512,
        seconds: float = 2.0,
    ) -> None:
        import viser

        self.scenes, self.stage = scenes, stage
        self.size, self.seconds = size, seconds
        self.pace, self.people = Pace(), {}
        self.over = threading.Event()
        self.looked = 0.0
        self.version = 0
        self.azimuth_deg = 0.0
        self.server = viser.ViserServer(host, port, label="animate124", verbose=False)
        # viser would make the page public through a server of its makers, at a press of a button
        self.server.gui.configure_theme(show_share_button=False)
        self.server.request_share_url = lambda verbose=True: None
        self.server.on_client_connect(self.come)
        self.server.on_client_disconnect(lambda client: self.people.pop(client.client_id, None))

    @property
    def address(self) -> str:
        return f"http://{self.server.get_host()}:{self.server.get_port()}"

    def come(self, client: Any) -> None:
        session = Session(Eye((2.5, 0.0, 0.0)), largest=self.size, seconds=self.seconds)
        self.people[client.client_id] = Person(client, session, self.azimuth_deg)

    def run(self) -> None:
        """Until `over`."""
        while not self.over.is_set():
            began = time.monotonic()
            self.look_for_news()
            busy = [self.serve(person) for person in list(self.people.values())]
            pause = 1 / MOST - (time.monotonic() - began) if any(busy) else 0.03
            self.over.wait(max(pause, 0.0))

    def stop(self) -> None:
        self.over.set()
        self.server.stop()

    def look_for_news(self) -> None:
        """Newer checkpoints and further stages are shown as they come."""
        if time.monotonic() - self.looked < NEWS_EVERY:
            return
        self.looked = time.monotonic()
        if not self.scenes.look():
            return
        if self.version == 0:
            self.stand_at_the_reference()
        self.version += 1

    def stand_at_the_reference(self) -> None:
        """Whoever comes stands where the photo was taken from."""
        config = self.scenes.stages[self.scenes.newest].config
        image = parse_data_config(load_yaml(str(config)).get("data")).image
        angles = (image.default_elevation_deg, image.default_azimuth_deg)
        place = camera_position(
            *map(torch.tensor, map(float, (*angles, image.default_camera_distance)))
        )
        camera = self.server.initial_camera
        camera.position = tuple(place.tolist())
        camera.look_at, camera.up = (0.0, 0.0, 0.0), (0.0, 0.0, 1.0)
        camera.fov = float(torch.deg2rad(torch.tensor(float(image.default_fovy_deg))))
        self.azimuth_deg = float(image.default_azimuth_deg)

    def follow(self, person: Person) -> None:
        """Shows a person what there is now: the stage that it chose, or else the newest."""
        session, there = person.session, self.scenes.stages
        session.version = self.version
        if session.stage not in there or not person.panel.chose:
            session.stage = self.stage if self.stage in there else self.scenes.newest
        if session.stage:
            person.panel.offer(there, self.scenes.of(session.stage).static)

    def serve(self, person: Person) -> bool:
        """Draws what is due; whether anything was."""
        session = person.session
        with telling(person):
            if session.version != self.version:
                self.follow(person)
            if not session.stage:
                return False
            if not person.jobs.empty():
                {"picture": self.save_picture, "video": self.save_video}[person.jobs.get()](person)
            wish = session.due(time.monotonic(), self.pace)
            if wish is None:
                return False
            self.show(person, wish)
        return True

    def scene(self, wish: Wish) -> Scene:
        return self.scenes.of(wish.stage, wish.mode == "normal")

    def drawn(self, wish: Wish) -> Picture:
        tau = torch.tensor([wish.tau])
        scene, cameras = self.scene(wish), cameras_of(wish.eye)
        (picture,) = draw(scene, cameras, tau, wish.mode, wish.height, wish.width)
        return picture

    def show(self, person: Person, wish: Wish) -> None:
        began = time.monotonic()
        picture = self.drawn(wish)
        took = time.monotonic() - began
        self.pace.took(wish.mode, wish.height * wish.width, took)
        person.client.scene.set_background_image(picture, "jpeg", jpeg_quality=QUALITY)
        if began - person.said > 0.5 or wish.height == self.size:  # which may be the last
            person.said = began
            person.panel.tell(wish, took)

    def save_picture(self, person: Person) -> None:
        wish = person.session.whole()
        name = f"{wish.stage}-{wish.mode}.png"
        person.client.send_file_download(name, png(self.drawn(wish)), save_immediately=True)

    def save_video(self, person: Person) -> None:
        """Along the camera's way, in the mode that is shown."""
        wish = person.session.whole()
        note = person.client.add_notification("Video", "It is being rendered.", loading=True)
        try:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "video.mp4"
                write_video(path, self.frames(person, wish, note), FPS)
                content = path.read_bytes()
        finally:
            note.remove()
        name = f"{wish.stage}-{wish.mode}.mp4"
        person.client.send_file_download(name, content, save_immediately=True)

    def frames(self, person: Person, wish: Wish, note: Any) -> Iterator[Picture]:
        """Of the video; `note` says how many there are, and nobody waits for those of a person who
        has gone."""
        scene = self.scene(wish)
        tau = torch.zeros(round(person.session.seconds * FPS))
        if not scene.static:
            tau = played(len(tau), self.scenes.loop)
        path = chosen(person.panel.path.value, tau, scene)
        cameras = cameras_on(path, scene)
        for i in range(len(cameras)):
            if self.over.is_set() or person.client.client_id not in self.people:
                return
            few = cameras.map(lambda v, i=i: v[i : i + 1])
            yield from draw(scene, few, path.tau[i : i + 1], wish.mode, self.size, self.size)
            note.body = f"{i + 1} of {len(cameras)} frames."
