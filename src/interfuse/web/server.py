"""A page's server: this machine only, one reader with the right address, nothing but reading.

It listens on the loopback address, answers only under a random path, only to GET, and only when the Host (and Origin, if there
is one) are its own, so that no other page in the browser can reach it, DNS rebinding included.
"""

from __future__ import annotations

import hmac
import json
import secrets
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from interfuse.core.errors import InterfuseError
from interfuse.web.explorer import Explorer, page

_LONGEST = 8_192


def routes(explorer: Explorer) -> dict[str, Callable[[dict[str, str]], Any]]:
    """What the page may ask."""

    def hops(query: dict[str, str]) -> int:
        return int(query["hops"]) if query.get("hops", "").isdigit() and len(query["hops"]) == 1 else 1

    return {
        "stats": lambda query: explorer.stats(),
        "search": lambda query: explorer.search(query.get("q", "")),
        "around": lambda query: explorer.around(query.get("id", ""), hops(query)),
        "statement": lambda query: explorer.statement(query.get("id", "")),
        "failures": lambda query: explorer.failures(),
    }


def make_server(explorer: Explorer, port: int = 0) -> tuple[ThreadingHTTPServer, str]:
    """A server that is ready to serve, and the address to open.

    Args:
        port: 0 takes a free one.

    Raises:
        InterfuseError: ``output.busy`` when the port is taken.
    """
    token = secrets.token_urlsafe(24)
    body, policy = page()
    table = routes(explorer)
    serving = [0]

    class Handler(BaseHTTPRequestHandler):
        server_version, sys_version, protocol_version = "interfuse", "", "HTTP/1.0"
        timeout = 30

        def do_GET(self) -> None:
            own = f"127.0.0.1:{serving[0]}"
            hosts = (own, own.replace("127.0.0.1", "localhost"))
            origin = self.headers.get("Origin")
            if self.headers.get("Host", "") not in hosts or (
                origin is not None and origin not in [f"http://{h}" for h in hosts]
            ):
                self._send(421, "text/plain", b"not here\n")
                return
            if len(self.path) > _LONGEST:
                self._send(414, "text/plain", b"too long\n")
                return
            address = urlsplit(self.path)
            given, _, rest = address.path.lstrip("/").partition("/")
            if not hmac.compare_digest(given.encode(), token.encode()):
                self._send(404, "text/plain", b"nothing\n")
                return
            if rest == "":
                self._send(200, "text/html; charset=utf-8", body.encode())
                return
            query = {k: v[0] for k, v in parse_qs(address.query).items()}
            action = table.get(rest)
            if action is None:
                self._send(404, "text/plain", b"nothing\n")
                return
            try:
                answer, status = action(query), 200
            except InterfuseError as error:
                answer, status = {"error": error.as_dict()}, 404
            self._send(status, "application/json", json.dumps(answer).encode())

        def _send(self, status: int, kind: str, data: bytes) -> None:
            self.send_response(status)
            for name, value in {
                "Content-Type": kind, "Content-Length": str(len(data)), "Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff",
                "Referrer-Policy": "no-referrer", "Cache-Control": "no-store", "Cross-Origin-Resource-Policy": "same-origin",
                "Cross-Origin-Opener-Policy": "same-origin", "X-Frame-Options": "DENY",
            }.items():  # fmt: skip
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        def _refuse(self) -> None:
            self._send(405, "text/plain", b"")

        do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_HEAD = do_TRACE = do_CONNECT = _refuse

        def log_message(self, format: str, *args: Any) -> None:
            """Addresses hold the token: nothing is written."""

    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError as error:
        raise InterfuseError(
            "output.busy", f"port {port} cannot be used: {error.strerror}", fix="Choose another with --port."
        ) from error
    server.daemon_threads = True
    serving[0] = server.socket.getsockname()[1]
    return server, f"http://127.0.0.1:{serving[0]}/{token}/"
