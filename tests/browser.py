"""A real browser for tests: headless Chromium driven over its DevTools protocol."""

import asyncio
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from tornado.websocket import websocket_connect

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --disable-dev-shm-usage "
    "--remote-debugging-port=0"
).split()
NAMES = ("chromium", "chromium-browser", "google-chrome")


def find_browser():
    """Path of a Chromium; under CI it is installed first. None where there is none."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None and os.environ.get("CI") and shutil.which("apt-get"):
        for command in (["update"], ["install", "-y", "--no-install-recommends", "chromium"]):
            done = subprocess.run(["apt-get", "-q", *command], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-2000:]
        found = shutil.which("chromium")
    return found


class Page:
    """One tab: sends commands, keeps what the browser reported."""

    def __init__(self, socket, loop):
        self.socket, self.loop = socket, loop
        self.sent, self.events = 0, []

    async def _read(self, wanted):
        while True:
            text = await asyncio.wait_for(self.socket.read_message(), 30)
            assert text is not None, "the browser closed the page"
            message = json.loads(text)
            if "method" in message:
                self.events.append(message)
            if wanted(message):
                return message

    def send(self, method, **params):
        """Result of one command."""
        self.sent += 1
        number, text = self.sent, {"id": self.sent, "method": method, "params": params}

        async def exchange():
            await self.socket.write_message(json.dumps(text))
            return await self._read(lambda message: message.get("id") == number)

        answer = self.loop.run_until_complete(exchange())
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def open(self, url):
        """Load a page whole."""
        self.send("Page.navigate", url=url)
        self.loop.run_until_complete(self._read(lambda m: m.get("method") == "Page.loadEventFired"))

    def run(self, script):
        """Value of a JavaScript expression; a promise is awaited."""
        answer = self.send(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def screen(self, width, height=900, dark=False):
        """Size of the screen in CSS pixels, and which colours the reader prefers."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        preferred = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[preferred])

    def press(self, key, code):
        """Press and release a key."""
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.send(
                "Input.dispatchKeyEvent",
                type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text,
            )  # fmt: skip

    def requests(self):
        """Addresses that the page asked for."""
        sent = [e for e in self.events if e["method"] == "Network.requestWillBeSent"]
        return [e["params"]["request"]["url"] for e in sent]

    def faults(self):
        """Errors and warnings on the console, exceptions, and requests that failed."""
        found = []
        for event in self.events:
            method, params = event["method"], event["params"]
            if method == "Runtime.exceptionThrown":
                found.append(params["exceptionDetails"]["text"])
            elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
                found.append(params["entry"]["text"])
            elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
                found.append(str(params["args"]))
            elif method == "Network.loadingFailed":
                found.append(params["errorText"])
        return found


def _address(profile, process):
    """Where the browser listens: it writes the port into its profile."""
    port = Path(profile) / "DevToolsActivePort"
    for _ in range(300):
        if port.is_file() and port.read_text().strip():
            return f"http://127.0.0.1:{port.read_text().split()[0]}"
        assert process.poll() is None, "the browser ended at once"
        time.sleep(0.1)
    raise AssertionError("the browser did not start in 30 s")


@contextmanager
def browser(path):
    """An open page of a fresh browser that keeps nothing."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [path, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(command, stdout=quiet, stderr=quiet, start_new_session=True)
        loop = asyncio.new_event_loop()
        try:
            with urllib.request.urlopen(f"{_address(profile, process)}/json/list") as answer:
                tabs = [t for t in json.load(answer) if t["type"] == "page"]
            url = tabs[0]["webSocketDebuggerUrl"]

            async def connect():
                return await websocket_connect(url, max_message_size=2**28)

            page = Page(loop.run_until_complete(connect()), loop)
            for domain in ("Page", "Runtime", "Log", "Network"):
                page.send(f"{domain}.enable")
            yield page
            page.socket.close()
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            loop.close()
