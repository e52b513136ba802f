"""A headless Chromium spoken to over a pipe, without a driver: enough to open a page, click and look."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, Self

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_browser() -> str | None:
    """The program, where one is installed."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page of a headless Chromium with its own profile in `folder`."""

    def __init__(self, program: str, folder: Path, *, width: int, height: int) -> None:
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()

        def take_ends() -> None:  # the protocol's descriptors are 3 and 4
            ends = os.dup(to_read), os.dup(to_write)
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
        flags += [f"--user-data-dir={folder}", f"--window-size={width},{height}"]
        self._process = subprocess.Popen(
            [program, *flags], preexec_fn=take_ends, pass_fds=(3, 4), stderr=subprocess.DEVNULL
        )
        os.close(to_read)
        os.close(to_write)
        self._id, self._rest, self.requested = 0, b"", list[str]()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Network.enable", of_page=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._write)
        os.close(self._read)

    def call(self, method: str, *, of_page: bool = False, **params: Any) -> Any:
        """Call a method of the protocol and wait for its result."""
        self._id += 1
        session = {"sessionId": self._session} if of_page else {}
        os.write(
            self._write,
            json.dumps({"id": self._id, "method": method, "params": params, **session}).encode() + b"\0",
        )
        while (message := self._next()).get("id") != self._id:
            if message.get("method") == "Network.requestWillBeSent":
                self.requested.append(message["params"]["request"]["url"])
        return message["result"]

    def _next(self) -> Any:
        while b"\0" not in self._rest:
            more = os.read(self._read, 1 << 20)
            assert more, "the browser has ended"
            self._rest += more
        first, _, self._rest = self._rest.partition(b"\0")
        return json.loads(first)

    def open(self, url: str) -> None:
        """Go to a page."""
        self.call("Page.navigate", of_page=True, url=url)

    def run(self, script: str) -> Any:
        """The value of a script, awaited."""
        done = self.call(
            "Runtime.evaluate", of_page=True, expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def wait_for(self, condition: str, seconds: float = 60) -> Any:
        """The value of an expression once it is true."""
        script = (
            f"new Promise((done, fail) => {{ const end = Date.now() + {1000 * seconds}; (function look() {{"
            f" let found = null; try {{ found = {condition} }} catch {{}} if (found) done(found); else if"
            f' (Date.now() > end) fail(new Error("waited in vain")); else setTimeout(look, 50) }})() }})'
        )
        return self.run(script)
