"""A hub in a thread: repositories with the files of folders."""

from __future__ import annotations

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

REPO = "tiny/dialogue"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub(ThreadingHTTPServer):
    """Answers as the hub does, as far as loading a model asks."""

    daemon_threads = True

    def __init__(self, repos: dict[str, dict[str, bytes]]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos = repos
        self.requests: list[str] = []
        self.status: int | None = None
        self.stall = threading.Event()
        self.stalls = False

    def handle_error(self, *_args: object) -> None:
        """A client may hang up."""

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
        path = self.path.split("?")[0]
        repo, _, rest = path.removeprefix("/api/models").partition("/resolve/")
        repo, _, revision = repo.partition("/revision/")
        files = self.server.repos.get(repo.removeprefix("/"))
        if self.server.status is not None:
            self.reply(self.server.status, b"", {})
        elif files is None:
            self.reply(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif path.startswith("/api/"):
            if revision not in {"", "main", "v1", COMMIT}:
                self.reply(404, b"", {"X-Error-Code": "RevisionNotFound"})
                return
            siblings = [{"rfilename": name} for name in files]
            description = {"id": repo, "sha": COMMIT, "siblings": siblings}
            self.reply(200, json.dumps(description).encode(), {"Content-Type": "application/json"})
        else:
            name = rest.partition("/")[2]
            content = files.get(name)
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
def serve(folders: Mapping[str, Path]) -> Iterator[FakeHub]:
    """A running hub: folders by the names of their repositories."""
    repos = {
        name: {path.name: path.read_bytes() for path in folder.iterdir()}
        for name, folder in folders.items()
    }
    with FakeHub(repos) as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        yield hub
        hub.stall.set()
        hub.shutdown()
        thread.join()
