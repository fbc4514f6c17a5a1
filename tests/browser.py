"""Chromium without a window, driven over a pipe by the DevTools protocol."""

import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import time

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page:
    """A page, with the URLs that it requested and the messages that it logged."""

    def __init__(self, reader, writer):
        self._reader, self._writer, self._numbers = reader, writer, itertools.count(1)
        self.requests, self.messages, self._session = [], [], None
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self._call(f"{domain}.enable")

    def _call(self, method, **parameters):
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        self._writer.write(json.dumps(message).encode() + b"\0")
        self._writer.flush()
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            event, content = answer.get("method"), answer.get("params", {})
            if event in ("Network.requestWillBeSent", "Network.webSocketCreated"):
                self.requests.append(content.get("url") or content["request"]["url"])
            elif event in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"):
                self.messages.append(json.dumps(content))

    def _receive(self):
        data = bytearray()
        while (letter := self._reader.read(1)) != b"\0":
            assert letter, "the browser has ended"
            data += letter
        return json.loads(data)

    def open(self, url):
        self._call("Page.navigate", url=url)

    def run(self, script):
        """The value of a script, which may be a promise."""
        result = self._call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, condition, seconds=60):
        end = time.monotonic() + seconds
        while not self.run(condition):
            assert time.monotonic() < end, (condition, self.messages, self.run("document.body.innerText"))
            time.sleep(0.05)

    def box(self, name):
        """Left, top, width and height of an element, which is scrolled into view."""
        return self.run(
            f"(() => {{ const e = document.getElementById({name!r}); e.scrollIntoView({{block: 'center'}}); "
            "const b = e.getBoundingClientRect(); return [b.left, b.top, b.width, b.height]; })()"
        )

    def drop(self, path, x, y):
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self._call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def drag(self, start, end):
        for kind, (x, y) in (("mousePressed", start), ("mouseMoved", end), ("mouseReleased", end)):
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def screenshot(self, path, scheme="light", width=1280, height=1500):
        """Writes a screenshot in a colour scheme."""
        self._call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.run("new Promise((done) => setTimeout(done, 300))")
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot")["data"]))


@contextlib.contextmanager
def page(folder):
    """A page of a browser whose profile lies in a folder."""
    (commands, writer), (reader, answers) = os.pipe(), os.pipe()
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}", "--remote-debugging-pipe",
             "--disable-background-networking", "--no-first-run", "--mute-audio"]  # fmt: skip
    # The browser reads commands from descriptor 3 and writes to 4.
    program = ["bash", "-c", f'exec "$0" "$@" 3<&{commands} 4>&{answers}', CHROMIUM, *flags]
    process = subprocess.Popen(
        program, pass_fds=(commands, answers), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    os.close(commands)
    os.close(answers)
    try:
        with open(reader, "rb") as read, open(writer, "wb") as write:
            yield Page(read, write)
    finally:
        process.kill()
        process.wait()
