"""A model hub on loopback: as much of its protocol as fetching and pushing a repository takes."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def running_hub(name: str, folder: Path, *, key: str | None = None) -> Iterator[str]:
    """Serve ``folder`` as the repository ``name``; yields the hub's address.

    Files that are pushed land in ``folder``, those of a branch in ``folder@branch``. With a ``key``
    only who has it may push.
    """

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(with_body=True)

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            if key is not None and self.headers.get("Authorization") != f"Bearer {key}":
                self._send(json.dumps({"error": "Invalid credentials"}).encode(), status=401)
                return
            self._send(json.dumps(push(self.path.split("?")[0], body, self.headers["Host"])).encode())

        def log_message(self, *_: object) -> None:
            pass

        def _answer(self, *, with_body: bool) -> None:
            path = self.path.split("?")[0]
            content = fetch(path)
            if content is None:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self._send(content, with_body=with_body)

        def _send(self, content: bytes, *, status: int = 200, with_body: bool = True) -> None:
            self.send_response(status)
            self.send_header("X-Repo-Commit", commit_of(revision_in(self.path)))
            self.send_header("ETag", f'"{tag_of(content)}"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if with_body:
                self.wfile.write(content)

    def place_of(revision: str) -> Path:
        """The folder of a branch, named by itself or by its commit."""
        branches = [path for path in folder.parent.glob(f"{folder.name}@*") if path.is_dir()]
        for path in branches:
            branch = path.name.partition("@")[2]
            if revision in (branch, commit_of(branch)):
                return path
        return folder if revision in ("main", COMMIT) else folder / "no such revision"

    def fetch(path: str) -> bytes | None:
        place = place_of(revision_in(path))
        file = place / path.rsplit("/", 1)[-1]
        if not place.is_dir():
            return None
        if path.startswith(f"/api/models/{name}/tree/"):
            return json.dumps(files_of(place)).encode()
        if path == f"/api/models/{name}" or path.startswith(f"/api/models/{name}/"):
            return json.dumps({"id": name, "sha": commit_of(revision_in(path)), "siblings": []}).encode()
        if path.startswith(f"/{name}/resolve/") and file.is_file():
            return file.read_bytes()
        return None

    def push(path: str, body: bytes, host: str) -> dict[str, object]:
        revision = revision_in(path)
        place = folder if revision == "main" else folder.with_name(f"{folder.name}@{revision}")
        if "/preupload/" in path:
            files = json.loads(body)["files"]
            return {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
        if "/commit/" in path:
            place.mkdir(parents=True, exist_ok=True)
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    (place / line["value"]["path"]).write_bytes(base64.b64decode(line["value"]["content"]))
            commit = commit_of(revision)
            return {"commitUrl": f"http://{host}/{name}/commit/{commit}", "commitOid": commit, "success": True}
        if "/branch/" in path:
            place.mkdir(parents=True, exist_ok=True)
        return {"url": f"http://{host}/{name}", "errors": [], "warnings": []}

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def revision_in(path: str) -> str:
    """The branch or commit that an address names; main without one."""
    found = re.search(r"/(?:revision|tree|resolve|preupload|commit|branch)/([^/?]+)", path)
    return found[1] if found else "main"


def commit_of(revision: str) -> str:
    """The commit at the head of a branch; a commit is its own."""
    if revision in ("main", COMMIT):
        return COMMIT
    return revision if len(revision) == len(COMMIT) else tag_of(revision.encode())


def files_of(folder: Path) -> list[dict[str, object]]:
    """What the hub says of a repository's files."""
    return [
        {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": tag_of(file.read_bytes())}
        for file in sorted(folder.iterdir())
    ]


def tag_of(content: bytes) -> str:
    """A name for the content of a file."""
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()
