"""Hostile inputs given to ``interfuse build`` as a command: what became of each, its time and its memory.

Run: ``python -m benchmarks.build_faults [KILLS]``. Every folder holds one good page beside the hostile file. A row is kept when the command
wrote the good page's statements (or refused with a code), printed no traceback, wrote nothing beside its output, and took less than two
minutes. The last rows kill a build at random moments (30 by default) and compare what the resumed one wrote, and remove a document. All
builds of a run share one cache: what they find there was read before, so kills are tried on how outputs are written and taken up again, not
on half a cache (``tests/fault/test_build_sizes.py`` does that), and memory and time of rows whose file is skipped are those without a parser.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from benchmarks.record import save
from tests.fault import test_build_sizes as sizes
from tests.fault import test_hostile_documents as files

LIMIT = 120.0
GOOD = "Marie Curie was born in Warsaw. She won the Nobel Prize."


@dataclass(frozen=True)
class Ran:
    """One command: its exit code, what it printed, seconds, and the largest resident MB of it and of the processes it waited for."""

    code: int
    text: str
    seconds: float
    mb: float

    @property
    def value(self) -> dict[str, Any]:
        start = self.text.find("\n{")
        try:
            found = json.JSONDecoder().raw_decode(
                self.text[start + 1 :] if not self.text.startswith("{") else self.text
            )
        except json.JSONDecodeError:
            return {}
        return dict(found[0])


def command(words: list[str], kill_after: float | None = None) -> Ran:
    """Runs ``interfuse build WORDS``; with ``kill_after`` its whole group is killed that many seconds later."""
    with tempfile.TemporaryFile("w+") as printed:
        began = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "interfuse", "build", *words, "--json"],
            stdout=printed,
            stderr=printed,
            start_new_session=True,
        )
        timer = threading.Timer(kill_after or LIMIT, os.killpg, (process.pid, signal.SIGKILL))
        timer.start()
        _, status, used = os.wait4(process.pid, 0)
        timer.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        printed.seek(0)
        unit = 2**20 if sys.platform == "darwin" else 2**10
        return Ran(process.returncode, printed.read(), time.monotonic() - began, used.ru_maxrss / unit)


HOSTILE: dict[str, tuple[int, bytes]] = {
    "labels.md": (
        30,
        b"\x1b[31mRed\x1b[0m Corp bought =cmd|'/C calc'!A0. <script>alert(1)</script> is @SUM(A1).\n",
    ),
    "tags.html": (12, b"<div>" * 1_000_000 + b"Deep words."),
    "charset.html": (12, b'<meta charset="utf-7"><p>' + b"\xff\xfe\x81 words" * 100),
    "laughs.xml": (12, files.LAUGHS.encode()),
    "outside.svg": (12, b'<!DOCTYPE s [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg><text>&x;</text></svg>'),
    "line.txt": (14, b"word " * 4_000_000),
    "nul.txt": (14, b"Ada\0 Lovelace\0 was born in London.\0" * 1000),
    "mixed.txt": (14, "Größe ".encode() * 50 + "Größe ".encode("latin-1") * 50),
    "right.txt": (14, "\u202eevil\u202c مرحبا بالعالم. e\u0301\u0301\u0301 ".encode() * 200),
}


def hostile() -> dict[str, tuple[int, bytes]]:
    """Name -> (row, bytes): the files above, and the ones the tests give to the reader alone."""
    found = dict(HOSTILE)
    for name in files.HOSTILE:
        row = 13 if name.endswith("pdf") else 11 if name.endswith(("zip", "gz")) else 12 if "laugh" in name else 14
        found[name] = (row, files.HOSTILE[name][0]())
    found["gigabyte.zip"] = (11, sizes.zip_of_a_gigabyte())
    found["wide.zip"] = (11, sizes.wide_nest())
    found["objects.pdf"] = (13, sizes.many_objects())
    found["stream.pdf"] = (13, sizes.stream_of_a_gigabyte())
    found["program.pdf"] = (13, sizes.with_program())
    return found


MODES = ("429", "500", "half", "wrong json", "empty", "large", "bytes", "drip")


class Endpoint(BaseHTTPRequestHandler):
    mode = "500"
    calls = 0

    def do_POST(self) -> None:
        type(self).calls += 1
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        said = {"empty": "", "large": "x" * 10_000_000}.get(self.mode, "no JSON here")
        body = json.dumps(
            {
                "id": "a",
                "object": "chat.completion",
                "created": 0,
                "model": "m",
                "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": said}}],
                "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
            }
        ).encode()
        body = {"wrong json": b'{"choices": [', "bytes": b"\xff\xfe\x81" * 100}.get(self.mode, body)
        self.send_response(int(self.mode) if self.mode.isdigit() else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            if self.mode == "drip":
                for i in range(len(body)):
                    self.wfile.write(body[i : i + 1])
                    self.wfile.flush()
                    time.sleep(0.05)
            else:
                self.wfile.write(body[: len(body) // 2] if self.mode == "half" else body)
        except OSError:
            pass  # the other side has heard enough

    def log_message(self, *_: Any) -> None:
        pass


def digest(out: Path) -> str:
    return str(json.loads((out / "interfuse.json").read_text())["digest"]) if (out / "interfuse.json").exists() else ""


def main() -> None:
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    rows: list[dict[str, Any]] = []

    def row(number: int, tried: str, ran: Ran, good: bool, outcome: str) -> None:
        kept = good and "Traceback" not in ran.text and ran.seconds < LIMIT
        rows.append(
            {"row": number, "tried": tried, "kept": kept, "outcome": outcome, "seconds": ran.seconds, "mb": ran.mb}
        )
        print(
            f"{number:3} {tried:16} {'kept' if kept else 'BROKEN':7} {outcome:40.40} {ran.seconds:6.1f} s {ran.mb:6.0f} MB",
            flush=True,
        )

    with tempfile.TemporaryDirectory() as place:
        top = Path(place)
        for name, (number, body) in hostile().items():
            folder, out = top / "in", top / "out"
            folder.mkdir()
            (folder / "good.md").write_text(GOOD)
            (folder / name).write_bytes(body)
            ran = command(["offline", str(folder), "-o", str(out)])
            facts = ran.value.get("facts", {})
            skipped = sorted(
                {str(s.get("code")) if isinstance(s, dict) else str(s)[:40] for s in facts.get("skipped", [])}
            )
            clean = sorted(p.name for p in folder.iterdir()) == sorted(["good.md", name])
            held = ran.code == 0 and facts.get("statements", 0) >= 8 and clean and "\x1b[31m" not in ran.text
            row(number, name, ran, held, ", ".join(skipped) or f"read, {facts.get('statements')} statements")
            shutil.rmtree(folder)
            shutil.rmtree(out, ignore_errors=True)

        folder = top / "few"
        folder.mkdir()
        (folder / "good.md").write_text(GOOD)
        server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        lm = json.dumps({"endpoint": f"http://127.0.0.1:{server.server_port}/v1", "model": "m"})
        for mode in MODES:
            Endpoint.mode, Endpoint.calls = mode, 0
            (folder / "good.md").write_text(
                f"{GOOD} It was told {mode}."
            )  # a text of its own: the cache knows no reply to it
            ran = command(["lm-extract", str(folder), "--lm", lm, "-o", str(top / f"lm {mode}")])
            code = str(ran.value.get("error", ran.value).get("code", "")) if ran.code else "built"
            row(
                24, f"endpoint: {mode}", ran, bool(code) and 1 <= Endpoint.calls <= 6, f"{code}, {Endpoint.calls} calls"
            )
        server.shutdown()

        folder = top / "many"
        folder.mkdir()
        for i in range(200):
            (folder / f"{i:03}.md").write_text(f"Person{i} Berg was born in Oslo. Person{i} Berg founded Company{i}.")
        whole = command(["offline", str(folder), "-o", str(top / "whole")])
        rng, worst, equal, done = random.Random(7), whole, 0, 0
        for i in range(kills):
            out = top / f"killed{i}"
            first = command(["offline", str(folder), "-o", str(out)], kill_after=rng.uniform(0.1, whole.seconds))
            done += first.code == 0
            again = command(["offline", str(folder), "-o", str(out), *(["--force"] if first.code == 0 else [])])
            worst = max(worst, again, key=lambda r: r.seconds)
            equal += again.code == 0 and digest(out) == digest(top / "whole") != ""
            shutil.rmtree(out, ignore_errors=True)
        outcome = f"{equal} of {kills} equal, {done} had ended before"
        row(19, "SIGKILL, resumed", worst, equal == kills, outcome)
        (folder / "extra.md").write_text(GOOD)
        command(["offline", str(folder), "-o", str(top / "extra")])
        (folder / "extra.md").unlink()
        ran = command(["offline", str(folder), "-o", str(top / "extra"), "--force"])
        row(19, "document deleted", ran, digest(top / "extra") == digest(top / "whole") != "", "as if never there")
    save("build-faults", {"limit_seconds": LIMIT, "kills": kills, "rows": rows})
    raise SystemExit(0 if all(r["kept"] for r in rows) else 1)


if __name__ == "__main__":
    main()
