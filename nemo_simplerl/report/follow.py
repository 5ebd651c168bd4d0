"""Serves the page to this machine during a run, and rebuilds it when metrics.jsonl grows."""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

LOOPBACK = "127.0.0.1"
_LOOK_S = 2.0


class Follower:
    """An HTTP server of the page that `build(version)` returns; it runs from construction until `close`.

    `build` is called once at first, then by `refresh` whenever a watched file has changed.
    """

    def __init__(self, watched: Sequence[Path], build: Callable[[str], str], port: int = 0):
        self._watched, self._build = watched, build
        self._seen = self._state()
        self._page = build(self._seen).encode()
        self._server = ThreadingHTTPServer((LOOPBACK, port), _handler(lambda: (self._page, self._seen)))
        self.url = f"http://{LOOPBACK}:{self._server.server_port}/"
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="report-page", daemon=True)
        self._thread.start()

    def refresh(self) -> bool:
        """Rebuild the page if a watched file has changed, and return whether it was. On an error the old page stays."""
        state = self._state()
        if state == self._seen:
            return False
        self._page = self._build(state).encode()
        self._seen = state
        return True

    def watch(self, show_error: Callable[[str], None]) -> None:
        """Refresh until Ctrl-C, then close. The pauses are at least as long as the last rebuild took."""
        pause = _LOOK_S
        with closing(self), suppress(KeyboardInterrupt):  # Ctrl-C is how it ends
            while True:
                time.sleep(pause)
                started = time.monotonic()
                try:
                    self.refresh()
                except (OSError, ValueError) as error:
                    show_error(str(error))
                pause = max(_LOOK_S, time.monotonic() - started)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _state(self) -> str:
        stats = [path.stat() if path.is_file() else None for path in self._watched]
        return "-".join("0" if stat is None else f"{stat.st_size}.{stat.st_mtime_ns}" for stat in stats)


def _handler(current: Callable[[], tuple[bytes, str]]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # A page elsewhere could point a name of its own at this address and read the samples.
            port = self.connection.getsockname()[1]
            if self.headers.get("Host") not in (f"{LOOPBACK}:{port}", f"localhost:{port}"):
                self.send_error(403)
                return
            page, version = current()
            if self.path in ("/", "/index.html"):
                self._answer(page, "text/html; charset=utf-8")
            elif self.path == "/version":
                self._answer(version.encode(), "text/plain; charset=utf-8")
            else:
                self.send_error(404)

        def _answer(self, body: bytes, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Log nothing: the page asks every few seconds."""

    return Handler
