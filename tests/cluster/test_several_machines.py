"""One run on several machines: working directories of their own, a store on S3, a broker behind TLS.

Each worker is a process with nothing in common with the others but the broker and the store. The
vector's file must be the same, byte for byte, as with one folder on one machine.
"""

import asyncio
import ssl
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager

import pytest
import redis

from factory.cluster.embedded import free_port
from tests.conftest import MEANS_BY_VARIABLE
from tests.programs import running_program

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
STYLE = "step_by_step_reasoning"
SECRET = "secret-of-the-factory"


@contextmanager
def machine(folder, queues, environment):
    """A worker in a folder of its own."""
    command = [sys.executable, "-m", "celery", "-A", "factory", "worker", "-Q", queues, "-n", f"{folder.name}@%h"]
    with running_program(command, folder, environment) as worker:
        yield
    assert worker.returncode == 0, (folder / "log").read_text()[-2000:]


def make_vector(folder, environment, target, say, *, cut=None) -> bytes:
    """Enqueue on one machine, work on four others, fetch the vector; its bytes."""
    environment = {
        "FACTORY_TARGET_MODEL": str(target),
        "FACTORY_DEVICE": "cpu",
        "FACTORY_LOAD_IN_8BIT": "false",
        "FACTORY_THREADS": "1",
        "FACTORY_EXTRACTION_CONFIG__TARGET_LAYERS": "all",
        "FACTORY_EXTRACTION_CONFIG__RECIPE": "response_mean",
        "FACTORY_OUTPUT_CONFIG__GENERATE_ANALYSIS_REPORTS": "false",
        **MEANS_BY_VARIABLE,
        "FACTORY_GUARD_SECONDS": "4",
        "OMP_NUM_THREADS": "1",
        **environment,
    }
    with ExitStack() as machines:
        for name, queues in (("teacher", "teacher"), ("gpu1", "gpu"), ("gpu2", "gpu"), ("reduce", "reduce")):
            machines.enter_context(machine(folder / name, queues, environment))
        own = folder / "mine"
        own.mkdir()
        enqueued = say("enqueue", "--styles", STYLE, cwd=own, **environment)
        assert enqueued.status == 0, enqueued.err
        if cut:
            cut()
        watched = say("watch", enqueued.out.strip(), cwd=own, **environment)
        assert watched.status == 0, watched.err
    return (own / "steering_vectors" / f"{STYLE}.pt").read_bytes()


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The bytes that one folder on one machine gives; made by the first test that asks."""
    return {}


def local_vector(plain, tmp_path, broker, target, say):
    if "bytes" not in plain:
        store = {"FACTORY_BROKER_URL": broker, "FACTORY_STORE": str(tmp_path / "shared")}
        plain["bytes"] = make_vector(tmp_path / "plain", store, target, say)
    return plain["bytes"]


def test_a_store_on_s3_gives_the_bytes_of_a_folder(tmp_path, plain, broker, target_folder, svf, s3):
    expected = local_vector(plain, tmp_path, broker, target_folder, svf)
    place = {"FACTORY_BROKER_URL": broker, "FACTORY_STORE": "s3://factory/runs"}
    assert make_vector(tmp_path / "s3", place | s3, target_folder, svf) == expected
    assert not list(tmp_path.glob("s3/*/runs"))  # nothing was kept on the machines


class Link:
    """TLS in front of a broker that has none, as a proxy beside it would be; can be cut."""

    def __init__(self, folder, port: int) -> None:
        self.behind, self.port, self.folder = port, free_port(), folder
        self.open = True
        self.streams: set[asyncio.StreamWriter] = set()
        self.certificate = folder / "certificate.pem"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
            + ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", folder / "key.pem", "-out", self.certificate],
            check=True,
            capture_output=True,
        )
        self.loop = asyncio.new_event_loop()
        self.ready = threading.Event()
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()
        assert self.ready.wait(10)

    def _serve(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.folder / "key.pem")
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(asyncio.start_server(self._connect, "127.0.0.1", self.port, ssl=context))
        self.ready.set()
        self.loop.run_forever()

    async def _connect(self, reader, writer) -> None:
        if not self.open:
            writer.close()
            return
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self.behind)
        self.streams |= {writer, inner_writer}
        await asyncio.gather(self._copy(reader, inner_writer), self._copy(inner_reader, writer))

    async def _copy(self, reader, writer) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except (OSError, ssl.SSLError):
            pass
        finally:
            writer.close()

    def cut_for(self, seconds: float) -> None:
        self.open = False
        for stream in list(self.streams):
            self.loop.call_soon_threadsafe(stream.close)
        time.sleep(seconds)
        self.open = True

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)


@pytest.fixture
def link(broker, tmp_path):
    """The broker behind TLS, for a user who may not administer it."""
    admin = redis.Redis.from_url(broker)
    admin.flushall()
    admin.execute_command(
        *f"ACL SETUSER factory reset on >{SECRET} ~* &* +@all -@admin -@dangerous +info +config|get +keys".split()
    )
    port = int(broker.rsplit(":", 1)[1].split("/")[0])
    link = Link(tmp_path, port)
    yield link
    link.stop()
    admin.execute_command("ACL", "DELUSER", "factory")


def test_a_run_through_tls_as_a_user_without_rights_of_an_administrator_gives_the_same_bytes(
    tmp_path, plain, broker, target_folder, svf, link
):
    expected = local_vector(plain, tmp_path, broker, target_folder, svf)
    url = f"rediss://factory:{SECRET}@127.0.0.1:{link.port}/0?ssl_cert_reqs=required&ssl_ca_certs={link.certificate}"
    place = {"FACTORY_BROKER_URL": url, "FACTORY_STORE": str(tmp_path / "tls-store")}

    def cut() -> None:
        time.sleep(1)
        link.cut_for(10)

    assert make_vector(tmp_path / "tls", place, target_folder, svf, cut=cut) == expected
    user = redis.Redis.from_url(url)
    with pytest.raises(redis.exceptions.NoPermissionError):
        user.flushall()
    logs = "".join((tmp_path / "tls" / name / "log").read_text() for name in ("teacher", "gpu1", "gpu2", "reduce"))
    assert SECRET not in logs
    unverified = url.replace(f"&ssl_ca_certs={link.certificate}", "")
    with pytest.raises(redis.ConnectionError, match="certificate verify failed"):
        redis.Redis.from_url(unverified).ping()
