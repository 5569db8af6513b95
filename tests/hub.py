"""A model hub on loopback: as much of its protocol as fetching a repository takes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def running_hub(name: str, folder: Path) -> Iterator[str]:
    """Serve ``folder`` as the repository ``name``; yields the hub's address."""

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(with_body=True)

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def log_message(self, *_: object) -> None:
            pass

        def _answer(self, *, with_body: bool) -> None:
            path = self.path.split("?")[0]
            file = folder / path.rsplit("/", 1)[-1]
            if path.startswith(f"/api/models/{name}/tree/"):
                content = json.dumps(files_of(folder)).encode()
            elif path.startswith(f"/api/models/{name}/"):
                content = json.dumps({"id": name, "sha": COMMIT, "siblings": []}).encode()
            elif path.startswith(f"/{name}/resolve/") and file.is_file():
                content = file.read_bytes()
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{tag_of(content)}"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if with_body:
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def files_of(folder: Path) -> list[dict[str, object]]:
    """What the hub says of a repository's files."""
    return [
        {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": tag_of(file.read_bytes())}
        for file in sorted(folder.iterdir())
    ]


def tag_of(content: bytes) -> str:
    """A name for the content of a file."""
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()
