"""Three hosts, each a network of its own: teacher; two gpu workers; broker, store and reduction.

Hosts are network namespaces joined by virtual cables, so that a cable can be pulled: packets are
lost and nobody is told, as with a switch that dies. Needs root and ``ip`` of iproute2.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager

import pytest

from factory.cluster.embedded import find_server, free_port
from tests.conftest import MEANS_BY_VARIABLE
from tests.endpoint import running_endpoint
from tests.programs import running_program
from tests.teacher.test_teacher_cluster import STYLE as STYLE_FILE

IP = shutil.which("ip", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
HUB = "10.99.0.1"  # the broker's host, as the others know it
PASSWORD = "secret-of-hosts"
BROKER_PORT, STORE_PORT = 6390, 5000
STYLE, N_PAIRS, N_BATCHES = "steps", 24, 12
CUT = 30  # s


def ip(*words: str) -> None:
    subprocess.run([IP, *words], check=True, capture_output=True, text=True)


def why_not() -> str:
    """Why there can be no hosts here; empty if there can."""
    if os.geteuid() != 0:
        return "only root makes network namespaces"
    if IP is None:
        return "there is no 'ip': install iproute2"
    name = f"svf-try-{os.getpid()}"
    try:
        ip("netns", "add", name)
        ip("-n", name, "link", "add", "name", "one", "type", "veth", "peer", "name", "two")
        ip("netns", "exec", name, "true")
    except subprocess.CalledProcessError as error:
        return f"'ip netns' does not work here: {error.stderr.strip()}"
    finally:
        subprocess.run([IP, "netns", "del", name], check=False, capture_output=True)
    return ""


class Hosts:
    """Network namespaces ``hub``, ``teacher`` and ``gpu``; the latter two have a cable to the hub."""

    def __init__(self, folder) -> None:
        self.folder = folder
        self.names = {name: f"svf-{os.getpid()}-{name}" for name in ("hub", "teacher", "gpu")}

    def make(self) -> None:
        for name in self.names.values():
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        hub = self.names["hub"]
        ip("-n", hub, "address", "add", f"{HUB}/32", "dev", "lo")
        for number, name in enumerate(("teacher", "gpu"), start=1):
            own = self.names[name]
            ip("-n", hub, "link", "add", "name", f"to-{name}", "type", "veth", "peer", "name", "to-hub", "netns", own)
            ip("-n", hub, "address", "add", f"10.99.{number}.1/24", "dev", f"to-{name}")
            ip("-n", own, "address", "add", f"10.99.{number}.2/24", "dev", "to-hub")
            ip("-n", hub, "link", "set", f"to-{name}", "up")
            ip("-n", own, "link", "set", "to-hub", "up")
            ip("-n", own, "route", "add", f"{HUB}/32", "via", f"10.99.{number}.1")

    def remove(self) -> None:
        for name in self.names.values():
            subprocess.run([IP, "netns", "del", name], check=False, capture_output=True)

    def pull_cable(self, name: str) -> None:
        ip("-n", self.names["hub"], "link", "set", f"to-{name}", "down")

    def plug_cable(self, name: str) -> None:
        ip("-n", self.names["hub"], "link", "set", f"to-{name}", "up")

    def command(self, host: str, *words: object) -> list[str]:
        return [IP, "netns", "exec", self.names[host], *map(str, words)]

    def running(self, host: str, name: str, *words: object, **environment: str):
        """A program on a host, in a folder of its own, until the block ends."""
        return running_program(self.command(host, *words), self.folder / name, environment)

    def say(self, host: str, *words: object, **environment: str) -> str:
        """What ``svf`` prints on a host."""
        own = self.folder / "mine"
        own.mkdir(exist_ok=True)
        ended = subprocess.run(
            self.command(host, sys.executable, "-c", "from factory.cli import main; main()", *words),
            cwd=own,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout.strip()

    def extracted(self) -> int:
        """Batches that the gpu host has extracted, as its logs say; the store cannot be seen from here."""
        return sum((self.folder / name / "log").read_text().count(" pairs extracted") for name in ("gpu1", "gpu2"))


@pytest.fixture
def hosts(tmp_path):
    reason = why_not()
    if reason:
        pytest.skip(reason)
    hosts = Hosts(tmp_path)
    try:
        hosts.make()
        yield hosts
    finally:
        hosts.remove()


def until(condition, patience: float) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, "did not happen"
        time.sleep(0.1)


def settings(target, teacher_port: int) -> dict[str, str]:
    """What all machines have in common; the teacher's endpoint is on the host that asks it."""
    return {
        "FACTORY_TARGET_MODEL": str(target),
        "FACTORY_DEVICE": "cpu",
        "FACTORY_LOAD_IN_8BIT": "false",
        "FACTORY_THREADS": "1",
        "FACTORY_BASE_URL": f"http://127.0.0.1:{teacher_port}/v1",
        "FACTORY_API_KEY_ENV": "TEACHER_KEY",
        "FACTORY_API_DELAY": "null",
        "FACTORY_MAX_CONCURRENT_CALLS": "2",
        "FACTORY_EXTRACTION_CONFIG__TARGET_LAYERS": "all",
        "FACTORY_EXTRACTION_CONFIG__RECIPE": "response_mean",
        "FACTORY_EXTRACTION_CONFIG__BATCH_SIZE": str(N_PAIRS // N_BATCHES),
        "FACTORY_OUTPUT_CONFIG__GENERATE_ANALYSIS_REPORTS": "false",
        **MEANS_BY_VARIABLE,
        "FACTORY_VISIBILITY_TIMEOUT": "60",
        "FACTORY_GUARD_SECONDS": "5",
        "TEACHER_KEY": "sk-of-hosts",
        "OMP_NUM_THREADS": "1",
    }


@contextmanager
def services(hosts: Hosts, environment: dict[str, str], teacher_port: int):
    """Broker, store, teacher's endpoint and four workers, each on its host."""
    celery = (sys.executable, "-m", "celery", "-A", "factory", "worker", "-Q")
    broker = hosts.folder / "broker.conf"
    broker.write_text(f"bind 0.0.0.0\nport {BROKER_PORT}\nrequirepass {PASSWORD}\nappendonly yes\n")
    s3 = (sys.executable, "-m", "moto.server", "-H", "0.0.0.0", "-p", STORE_PORT)
    teacher = (sys.executable, "-m", "tests.endpoint", "--delay", "1", "--port", teacher_port)
    path = {"PYTHONPATH": os.getcwd()}
    with ExitStack() as running:
        running.enter_context(hosts.running("hub", "broker", find_server(), broker))
        running.enter_context(hosts.running("hub", "store", *s3))
        running.enter_context(hosts.running("teacher", "endpoint", *teacher, **path))
        ask = f"import urllib.request as u; u.urlopen(u.Request('http://{HUB}:{STORE_PORT}/factory', method='PUT'))"
        ready = hosts.command("gpu", sys.executable, "-c", ask)  # through the cable
        until(lambda: subprocess.run(ready, capture_output=True, check=False).returncode == 0, 60)
        for host, name in (("teacher", "teacher"), ("gpu", "gpu1"), ("gpu", "gpu2"), ("hub", "reduce")):
            queue = name.rstrip("12")
            running.enter_context(hosts.running(host, name, *celery, queue, "-n", f"{name}@%h", **environment))
        yield


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_three_hosts_give_the_bytes_of_one_also_when_the_gpu_hosts_cable_is_out_for_half_a_minute(
    hosts, svf, target_folder, tmp_path
):
    port = free_port()
    (tmp_path / "styles").mkdir()
    (tmp_path / "styles" / f"{STYLE}.yaml").write_text(STYLE_FILE)
    common = settings(target_folder, port) | {"FACTORY_STYLES_DIR": str(tmp_path / "styles")}
    order = ("--styles", STYLE, "--limit", str(N_PAIRS))
    with running_endpoint(port=port):
        local = svf("generate", *order, "--output", "local", **common)
        assert local.status == 0, local.out + local.err
    expected = (tmp_path / "local" / "steering_vectors" / f"{STYLE}.pt").read_bytes()
    place = {
        "FACTORY_BROKER_URL": f"redis://:{PASSWORD}@{HUB}:{BROKER_PORT}/0",
        "FACTORY_STORE": "s3://factory/runs",
        "AWS_ENDPOINT_URL": f"http://{HUB}:{STORE_PORT}",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
    }
    with services(hosts, common | place, port):
        run = hosts.say("hub", "enqueue", *order, **common, **place)
        until(lambda: hosts.extracted() >= 3, 120)
        hosts.pull_cable("gpu")
        time.sleep(CUT)
        so_far = hosts.extracted()
        hosts.plug_cable("gpu")
        assert 3 <= so_far < N_BATCHES  # it was out in the middle
        hosts.say("hub", "watch", run, **common, **place)
        shot = json.loads(hosts.say("hub", "status", run, "--json", **common, **place))
    assert shot["styles"][0]["extracted"] == N_PAIRS
    assert (tmp_path / "mine" / "steering_vectors" / f"{STYLE}.pt").read_bytes() == expected
