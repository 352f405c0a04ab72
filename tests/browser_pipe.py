"""A real Chromium that is told what to do by the pipe of its DevTools: mouse and keys as a person's, no further package."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


class Page:
    """One page of the browser. ``says``: errors of its scripts."""

    def __init__(self, write: int, read: int) -> None:
        self.write, self.read = write, read
        self.rest, self.number, self.session = b"", 0, ""
        self.says: list[str] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """One command and its answer."""
        self.number += 1
        row = {
            "id": self.number,
            "method": method,
            "params": params,
            **({"sessionId": self.session} if self.session else {}),
        }
        os.write(self.write, json.dumps(row).encode() + b"\0")
        end = time.monotonic() + 60
        while time.monotonic() < end:
            head, found, self.rest = self.rest.partition(b"\0")
            if not found:
                self.rest = head
                if select.select([self.read], [], [], 1)[0]:
                    more = os.read(self.read, 2**16)
                    assert more, "the browser has ended"
                    self.rest += more
                continue
            answer = json.loads(head)
            if answer.get("method") == "Runtime.exceptionThrown":
                self.says.append(str(answer["params"]["exceptionDetails"]))
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return dict(answer["result"])
        raise AssertionError(f"no answer to {method}")

    def value(self, script: str) -> Any:
        """What a piece of script gives."""
        found = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, script: str, seconds: float = 30.0) -> Any:
        """Waits until a piece of script gives something that is true."""
        end = time.monotonic() + seconds
        while not (found := self.value(script)):
            assert time.monotonic() < end, f"never true: {script}"
            time.sleep(0.05)
        return found

    def click(self, x: float, y: float) -> None:
        """A click of the mouse."""
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def click_on(self, element: str) -> None:
        """A click on the element that a piece of script gives."""
        self.value(f"({element}).scrollIntoView({{block: 'center'}})")
        box = self.value(
            f"(() => {{ const b = ({element}).getBoundingClientRect(); return [b.left + b.width / 2, b.top + b.height / 2]; }})()"
        )
        self.click(*box)

    def type(self, text: str) -> None:
        """Letters from the keyboard, where the focus is."""
        self.send("Input.insertText", text=text)


@contextlib.contextmanager
def opened(chromium: str, flags: Sequence[str], profile: Path) -> Iterator[Page]:
    """A browser with one empty page; ended afterwards."""
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    command = 'exec "$@" 3<&%d 4>&%d' % (theirs_in, theirs_out)  # noqa: UP031
    words = [chromium, *flags, "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(
        ["bash", "-c", command, "bash", *words],
        pass_fds=(theirs_in, theirs_out),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        yield Page(ours_out, ours_in)
    finally:
        os.close(ours_out)
        os.close(ours_in)
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
