"""Headless Chromium, driven by the DevTools protocol over two pipes: https://chromedevtools.github.io/devtools-protocol/"""

import base64
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path


class Browser:
    """One page of Chromium."""

    def __init__(self, program: str):
        reads, self.out = os.pipe()
        self.inp, writes = os.pipe()
        self.folder = tempfile.TemporaryDirectory()

        def connect() -> None:  # Chromium reads from 3 and writes to 4
            ends = os.dup(reads), os.dup(writes)
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe"]
        self.process = subprocess.Popen(
            [program, *options, f"--user-data-dir={self.folder.name}", "about:blank"],
            preexec_fn=connect,
            pass_fds=(3, 4),
            stderr=subprocess.DEVNULL,
        )
        os.close(reads), os.close(writes)
        self.number, self.rest, self.session = 0, b"", None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def call(self, method: str, **parameters) -> dict:
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.rest:
                self.rest += os.read(self.inp, 1 << 20)
            answer, _, self.rest = self.rest.partition(b"\0")
            answer = json.loads(answer)
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]

    def run(self, code: str):
        result = self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, code: str, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while not self.run(code):
            assert time.monotonic() < end, self.run("document.body.innerText")
            time.sleep(0.05)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()
        self.folder.cleanup()
