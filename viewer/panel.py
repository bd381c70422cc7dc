"""What stands beside the picture: the stage, the time, the mode, the buttons. Made of viser."""

import argparse
import time
from collections.abc import Callable, Iterable
from typing import Any

from ..pipeline.request import REST, TURN, camera_path
from .looking import MODES, place
from .session import Session, Wish

HELP = "Drag to turn, scroll to come closer, drag with the right button to move."
PATH = 'turn, rest, or "azimuth,elevation,distance ..."'


class Panel:
    """One person's. What a button asks for goes to `ask`, to be done between two pictures."""

    def __init__(
        self, client: Any, session: Session, azimuth_deg: float, ask: Callable[[str], None]
    ) -> None:
        self.client, self.session, self.azimuth_deg = client, session, azimuth_deg
        self.chose = False  # whether the person chose a stage: else it is the newest
        gui = client.gui
        gui.add_markdown(HELP)
        self.stage = gui.add_dropdown("stage", ("none yet",))
        self.mode = gui.add_dropdown("shows", MODES)
        self.tau = gui.add_slider("time", min=0.0, max=1.0, step=0.001, initial_value=0.0)
        self.plays = gui.add_checkbox("play", False)
        self.seconds = gui.add_slider(
            "seconds", min=0.1, max=20.0, step=0.1, initial_value=session.seconds
        )
        self.status = gui.add_markdown("Waiting for the first checkpoint.")
        self.picture = gui.add_button("Save a picture")
        self.path = gui.add_text("camera", TURN, hint=PATH)
        self.here = gui.add_button("Add this view", hint="to the places that the camera passes")
        self.video = gui.add_button("Save a video", hint="along the camera's way")
        self.stage.on_update(lambda event: self.by_hand(event, self.choose_stage))
        self.mode.on_update(lambda event: self.choose_mode())
        self.tau.on_update(lambda event: self.by_hand(event, self.go))
        self.plays.on_update(lambda event: self.play())
        self.seconds.on_update(lambda event: self.play())
        self.picture.on_click(lambda event: ask("picture"))
        self.here.on_click(lambda event: self.add_place())
        self.video.on_click(lambda event: self.ask_for_video(ask))

    def by_hand(self, event: Any, act: Callable[[], None]) -> None:
        """What we set ourselves calls back too."""
        if event.client_id is not None:
            act()

    def choose_stage(self) -> None:
        self.chose, self.session.stage = True, self.stage.value

    def choose_mode(self) -> None:
        self.session.mode = self.mode.value

    def go(self) -> None:
        self.session.tau = self.tau.value
        self.play()

    def play(self) -> None:
        self.session.seconds = self.seconds.value
        if self.plays.value:
            self.session.play(time.monotonic())
        elif self.session.began is not None:
            self.session.pause()
            self.show_time(self.session.tau)

    def offer(self, stages: Iterable[str], static: bool) -> None:
        """The stages that there are; time is of no use where nothing moves."""
        self.stage.options = tuple(stages)
        self.stage.value = self.session.stage
        self.tau.disabled = self.plays.disabled = static

    def add_place(self) -> None:
        """Where the person stands, at the end of the camera's way."""
        before = "" if self.path.value in (TURN, REST) else f"{self.path.value} "
        self.path.value = before + place(self.session.eye, self.azimuth_deg)

    def ask_for_video(self, ask: Callable[[str], None]) -> None:
        try:
            camera_path(self.path.value)
        except argparse.ArgumentTypeError as error:
            self.say("No such way", str(error))
        else:
            ask("video")

    def tell(self, wish: Wish, seconds: float) -> None:
        """What is shown, and how long it took."""
        self.status.content = (
            f"{wish.stage}, time {wish.tau:.2f}, {wish.width} x {wish.height} pixels in "
            f"{1000 * seconds:.0f} ms"
        )
        if self.session.began is not None:
            self.show_time(wish.tau)

    def show_time(self, tau: float) -> None:
        self.tau.value = round(tau, 3)

    def say(self, title: str, text: str) -> None:
        self.client.add_notification(title, text, auto_close_seconds=15.0)
