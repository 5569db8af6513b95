"""Flower beside a cluster that fails: it shows what happens, to those who may see it, and no secret."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from factory.cluster.embedded import free_port
from tests.endpoint import running_endpoint
from tests.teacher.test_teacher_cluster import SECRET, Cluster, running_cluster, until

USER = "factory:secret-of-flower"


@dataclass
class Flower:
    """A running Flower."""

    url: str

    def page(self, path: str) -> str:
        login = base64.b64encode(USER.encode()).decode()
        request = urllib.request.Request(self.url + path, headers={"Authorization": f"Basic {login}"})
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.read().decode()

    def pages(self) -> dict[str, str]:
        """All pages about tasks, workers and broker, by path."""
        found = {path: self.page(path) for path in ("/tasks", "/workers", "/broker", "/api/tasks", "/api/workers")}
        tasks = set(re.findall(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", found["/api/tasks"]))
        workers = set(re.findall(r"teacher-\d+@[\w.-]+", found["/workers"]))
        assert tasks
        assert workers
        each = [*(f"/task/{name}" for name in tasks), *(f"/worker/{name}" for name in workers)]
        return found | {path: self.page(path) for path in each}


@contextlib.contextmanager
def running_flower(cluster: Cluster) -> Iterator[Flower]:
    """Flower for the cluster, from when it knows a worker."""
    port = free_port()
    with (cluster.folder / "flower.log").open("wb") as sink:
        words = ["flower", "--address=127.0.0.1", f"--port={port}", "--read_only=True"]
        program = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "factory", *words],
            cwd=cluster.folder,
            env=os.environ | cluster.environment | {"FLOWER_BASIC_AUTH": USER},
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
        )
    flower = Flower(f"http://127.0.0.1:{port}")

    def knows_a_worker() -> bool:
        with contextlib.suppress(OSError):
            return "teacher-" in flower.page("/workers")
        return False

    try:
        until(knows_a_worker)
        yield flower
    finally:
        program.terminate()
        program.wait(30)


@pytest.mark.slow
def test_flower_shows_a_run_whose_key_is_refused_without_the_key(tmp_path):
    with (
        running_cluster(tmp_path / "cluster") as cluster,
        running_endpoint() as endpoint,
        running_flower(cluster) as flower,
    ):
        endpoint.status, endpoint.code = 401, "invalid_api_key"  # its error message repeats the key
        ledger = cluster.enqueue(endpoint.base_url, 12)
        until(ledger.paused)
        assert endpoint.keys == {f"Bearer {SECRET}"}
        until(lambda: "write_pairs" in flower.page("/api/tasks"))
        shown = flower.pages()
        password = cluster.broker.split(":")[2].split("@")[0]
        assert [path for path, page in shown.items() if SECRET[8:] in page or password in page] == []
        tasks = [page for path, page in shown.items() if path.startswith("/task/")]
        assert any("workers.teacher.write_pairs" in page and ledger.run_id in page for page in tasks)
        for path in ("/tasks", "/workers", "/broker", "/api/tasks"):
            with pytest.raises(urllib.error.HTTPError, match="401"):
                urllib.request.urlopen(flower.url + path, timeout=20)
