"""A hub in a thread: one repository with the files of a folder."""

from __future__ import annotations

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REPO = "tiny/dialogue"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub(ThreadingHTTPServer):
    """Answers as the hub does, as far as loading a model asks."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = files
        self.requests: list[str] = []
        self.status: int | None = None
        self.stall = threading.Event()
        self.stalls = False

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        prefix = f"/{REPO}/resolve/"
        if self.server.status is not None:
            self.reply(self.server.status, b"", {})
        elif self.path.split("?")[0] in {
            f"/api/models/{REPO}",
            *(f"/api/models/{REPO}/revision/{revision}" for revision in ("main", "v1", COMMIT)),
        }:
            siblings = [{"rfilename": name} for name in self.server.files]
            description = {"id": REPO, "sha": COMMIT, "siblings": siblings}
            self.reply(200, json.dumps(description).encode(), {"Content-Type": "application/json"})
        elif self.path.startswith("/api/"):
            code = "RevisionNotFound" if REPO in self.path else "RepoNotFound"
            self.reply(404, b"", {"X-Error-Code": code})
        elif not self.path.startswith(prefix):
            self.reply(404, b"", {"X-Error-Code": "RepoNotFound"})
        else:
            name = self.path.removeprefix(prefix).split("/", 1)[1]
            content = self.server.files.get(name)
            if content is None:
                self.reply(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            else:
                self.reply_file(name, content, with_body=with_body)

    def reply_file(self, name: str, content: bytes, *, with_body: bool) -> None:
        large = name.endswith(".safetensors")
        digest = hashlib.sha256(content) if large else hashlib.sha1(b"blob %d\0" % len(content))
        if not large:
            digest.update(content)
        headers = {"ETag": f'"{digest.hexdigest()}"', "X-Repo-Commit": COMMIT}
        if large:
            headers["X-Linked-Etag"] = headers["ETag"]
            headers["X-Linked-Size"] = str(len(content))
        self.reply(200, content, headers, with_body=with_body)

    def reply(
        self, status: int, body: bytes, headers: dict[str, str], *, with_body: bool = True
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if not with_body:
            return
        if self.server.stalls and len(body) > 10_000:
            self.wfile.write(body[:5000])
            self.wfile.flush()
            self.server.stall.wait()
        else:
            self.wfile.write(body)

    def log_message(self, *_args: object) -> None:
        """Quiet."""


@contextmanager
def serve(folder: Path) -> Iterator[FakeHub]:
    """A running hub with the files of a folder."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    with FakeHub(files) as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        yield hub
        hub.stall.set()
        hub.shutdown()
        thread.join()
