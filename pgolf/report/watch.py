"""The page of a running job, on this machine only: made anew when the folder's files have changed."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from pgolf.errors import PgolfError
from pgolf.report.files import ODD, read_run
from pgolf.report.page import page

HOST = "127.0.0.1"
WATCHED = (
    "config.toml", "train.jsonl", "summary.json", "quantisation.json", "score.jsonl", "weights.jsonl", "top_predictions.json",
    "plan.json", "audit.json",
)  # fmt: skip
STATE = "/state"


class WatchError(PgolfError):
    """The page cannot be served, in one line."""


class Watcher:
    """The folder's page, and a word that changes with its files."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._lock = threading.Lock()
        self._state, self._page = "", b""

    def state(self) -> str:
        files = []
        for name in WATCHED:
            try:
                about = (self.folder / name).stat()
                files.append(f"{name} {about.st_mtime_ns} {about.st_size}")
            except OSError:
                continue
        return ";".join(files)

    def page(self) -> bytes:
        with self._lock:
            state = self.state()
            if state != self._state or not self._page:
                self._page = page(read_run(self.folder), refresh=STATE).encode()
                self._state = state
            return self._page


def server_of(folder: Path, port: int) -> ThreadingHTTPServer:
    """A server of that folder's page; port 0 takes any that is free."""
    watcher = Watcher(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            # a name that only leads here by a trick of the network is refused
            host = (self.headers.get("Host") or "").rsplit(":", 1)[0]
            if host not in (HOST, "localhost"):
                return self.send_error(403)
            if self.path == STATE:
                return self._send(watcher.state().encode(), "text/plain; charset=utf-8")
            if self.path == "/":
                try:
                    return self._send(watcher.page(), "text/html; charset=utf-8")
                except (OSError, ArithmeticError, *ODD) as error:
                    # a file that is just being written, or an odd one: the next look may find it well
                    return self.send_error(503, "the page cannot be drawn", f"{type(error).__name__}: {error}")
            return self.send_error(404)

        def _send(self, content: bytes, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *words) -> None:
            """A page that refreshes itself would fill the terminal."""

    try:
        return ThreadingHTTPServer((HOST, port), Handler)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise WatchError(f"port {port} cannot be served: {reason}; give another --port") from None


def watch(folder: Path, port: int) -> None:
    """Until Ctrl-C."""
    with server_of(folder, port) as server:
        print(f"{folder} at http://{HOST}:{server.server_address[1]}/ (Ctrl-C ends it)", flush=True)
        server.serve_forever()
