"""A real Chromium without a window, which draws WebGL in software, and what it says."""

import contextlib
import shutil

import cv2
import numpy as np
import pytest


@contextlib.contextmanager
def chromium():
    """Launches a browser of Playwright's, with further flags; the test is skipped where there is
    none."""
    playwright = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no chromium on this machine (apt-get install chromium)")
    software = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    with contextlib.ExitStack() as stack:
        p = stack.enter_context(playwright.sync_playwright())

        def launch(*words):
            browser = p.chromium.launch(executable_path=path, args=[*software, *words])
            stack.callback(browser.close)
            return browser

        yield launch


class Tab:
    """A page from the disk, in a context of its own; `said` is what the console and errors say, and
    `asked` what was asked for beyond the page itself."""

    def __init__(self, browser, path, size=(420, 760), **context):
        context = browser.new_context(viewport={"width": size[0], "height": size[1]}, **context)
        self.page = context.new_page()
        self.said, asked = [], []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: asked.append(request.url))
        self.page.goto(path.as_uri())
        inside = ("data:", "blob:", path.as_uri())
        self.asked = lambda: [url for url in asked if not url.startswith(inside)]

    def picture(self, selector):
        """What an element looks like once two frames were drawn: [H W 3], BGR."""
        self.page.evaluate(
            "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )
        png = self.page.locator(selector).screenshot(animations="disabled")
        return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
