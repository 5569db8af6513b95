"""docker-compose.yml and Dockerfile: what they promise, and every command run as a process.

There may be no Docker engine: so the file's own commands run here, on a real Valkey, with only
folders and published ports changed. What an image holds is not tested by this. Where Compose is
installed, it reads the file too; that needs no engine.
"""

import base64
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request

import openai
import pytest
import redis
import yaml

from factory.cluster.embedded import find_server, free_port
from factory.config import Settings
from factory.vector.steer import generate
from factory.vllm.launch import Place, command
from tests.conftest import ROOT
from tests.serving.test_server import named_vector

COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
OURS = [name for name, service in SERVICES.items() if "build" in service]


def test_every_service_of_ours_is_a_stage_of_one_dockerfile():
    stages = set(re.findall(r"^FROM \S+ AS (\w+)$", DOCKERFILE, re.MULTILINE))
    assert stages == {"base", "teacher", "cpu", "gpu", "vllm"}
    for name in OURS:
        assert SERVICES[name]["build"]["target"] in stages
        assert SERVICES[name]["image"].endswith(":" + SERVICES[name]["build"]["target"])


def test_no_image_runs_as_root_and_the_teacher_has_no_torch():
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[2:]
    assert all("\nUSER factory\n" in stage for stage in stages)
    teacher = next(stage for stage in stages if "AS teacher" in stage)
    assert "torch" not in re.sub("#.*", "", teacher)
    assert "target]" not in teacher


def test_nothing_is_published_beyond_this_machine_and_the_broker_not_at_all():
    assert "ports" not in SERVICES["valkey"]
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_workers_get_as_long_to_stop_as_a_task_may_take():
    longest = Settings().visibility_timeout
    for name in ("teacher", "gpu", "gpu-cpu", "reduce"):
        minutes = re.fullmatch(r"(\d+)m", SERVICES[name]["stop_grace_period"])
        assert int(minutes[1]) * 60 >= longest
        assert SERVICES[name]["stop_signal"] == "SIGTERM"


def test_secrets_come_from_the_environment_and_stand_in_no_command():
    for service in SERVICES.values():
        assert "PASSWORD}" not in str(service.get("command"))
    text = (ROOT / "docker-compose.yml").read_text()
    assert "${BROKER_PASSWORD:?" in text
    assert "${FLOWER_PASSWORD:?" in text


def test_what_the_command_line_writes_lies_in_a_volume_that_its_user_may_write_to():
    folder = SERVICES["svf"]["working_dir"]
    mounts = dict(mount.split(":")[:2][::-1] for mount in SERVICES["svf"]["volumes"])
    (volume,) = [mounts[inside] for inside in mounts if folder.startswith(inside + "/")]
    assert volume in COMPOSE["volumes"]
    assert all(volume in str(SERVICES[name]["volumes"]) for name in ("reduce", "gpu"))  # who copies it out
    made = re.search("install -d -o factory -g factory (.*)", DOCKERFILE)
    assert folder in made[1].split()  # a new volume takes its folders and their owner from the image


def test_a_gpu_worker_knows_the_key_of_a_judge_alone():
    keys = {name: SERVICES[name].get("environment", {}).get("OPENAI_API_KEY") for name in OURS}
    assert {name for name, key in keys.items() if key == "${OPENAI_API_KEY:-}"} == {"teacher", "svf"}
    assert {name for name, key in keys.items() if key == "${JUDGE_API_KEY:-}"} == {"gpu", "gpu-cpu"}
    assert keys["reduce"] is keys["flower"] is keys["metrics"] is None


def test_each_long_running_service_says_how_it_is_checked():
    for name, service in SERVICES.items():
        if name != "svf":
            assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL"), name


def test_vllm_is_started_as_svf_serve_starts_it():
    words = SERVICES["serve-vllm"]["command"]
    model = words[words.index("--model") + 1]
    expected = command("python", model, model, ["/data/out/steering_vectors"], Place("0.0.0.0", 8000))
    assert [" ".join(word.split()) for word in words] == expected
    assert "/data" in [mount.split(":")[1] for mount in SERVICES["serve-vllm"]["volumes"]]


def compose_command() -> list[str] | None:
    """Compose as Docker's plugin or as a program of its own, if one of them is here."""
    if shutil.which("docker"):
        asked = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
        if asked.returncode == 0:
            return ["docker", "compose"]
    return ["docker-compose"] if shutil.which("docker-compose") else None


def config_of(environment: dict[str, str]) -> subprocess.CompletedProcess:
    compose = compose_command()
    if compose is None:
        pytest.skip("neither 'docker compose' nor docker-compose is installed")
    profiles = sorted({profile for service in SERVICES.values() for profile in service.get("profiles", [])})
    options = [word for profile in profiles for word in ("--profile", profile)]
    known = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"} | environment
    words = [*compose, *options, "config"]
    return subprocess.run(words, cwd=ROOT, env=known, capture_output=True, text=True, timeout=60, check=False)


def test_compose_itself_reads_the_file_and_finds_every_service():
    read = config_of({"BROKER_PASSWORD": "of-broker", "FLOWER_PASSWORD": "of-flower"})
    assert read.returncode == 0, read.stderr
    assert "WARN" not in read.stderr
    found = yaml.safe_load(read.stdout)["services"]
    assert set(found) == set(SERVICES)
    for name, service in SERVICES.items():
        assert found[name]["image"] == service["image"]
    assert found["teacher"]["environment"]["FACTORY_BROKER_URL"] == "redis://:of-broker@valkey:6379/0"
    (device,) = found["gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])


def test_compose_refuses_to_start_without_a_password():
    read = config_of({"FLOWER_PASSWORD": "of-flower"})
    assert read.returncode != 0
    assert "set BROKER_PASSWORD" in read.stderr


SECRETS = ("BROKER_PASSWORD", "FLOWER_PASSWORD", "SVF_SERVER_KEY")


class Composed:
    """The services as processes."""

    def __init__(self, folder) -> None:
        self.folder = folder
        self.ports = {"6379": free_port(), "5555": free_port(), "9808": free_port(), "8000": free_port()}
        programs = folder / "bin"
        programs.mkdir()
        (programs / "valkey-server").symlink_to(find_server())
        self.path = f"{programs}:{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
        (folder / "data").mkdir()
        self.running = {}

    def start(self, name: str) -> None:
        service = SERVICES[name]
        known = {name: f"secret-of-{name.split('_')[0].lower()}" for name in SECRETS}
        environment = {key: self._fill(str(value), known) for key, value in service.get("environment", {}).items()}
        environment["FACTORY_CONFIG"] = str(ROOT / "config.yaml")
        # tini is in the image alone; without an entrypoint of its own a service has the image's, which is tini.
        entrypoint = shlex.join(word for word in service.get("entrypoint", []) if word not in ("tini", "--"))
        command = self._fill(f"{entrypoint} {service['command']}", known).replace("$$", "$")
        if name == "valkey":  # here the port is chosen, as others may run a broker on this machine
            command = command.replace("--dir /data", f"--dir {self.folder}/data --port {self.ports['6379']}")
            command = command.replace("/tmp/broker.conf", f"{self.folder}/broker.conf")
        for inside, ours in self.ports.items():
            command = command.replace(f"--port={inside}", f"--port={ours}").replace(
                f"--port {inside}", f"--port {ours}"
            )
        with (self.folder / f"{name}.log").open("wb") as sink:
            self.running[name] = subprocess.Popen(
                shlex.split(command),
                cwd=self.folder,
                env={"PATH": self.path, "HOME": str(self.folder), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
                | environment,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
            )

    def _fill(self, text: str, known: dict[str, str]) -> str:
        filled = re.sub(r"\$\{(\w+)(?::[-?]([^}]*))?\}", lambda m: known.get(m[1], m[2] or ""), text)
        filled = filled.replace("/data/runs", f"{self.folder}/data/runs")
        return filled.replace("@valkey:6379", f"@127.0.0.1:{self.ports['6379']}")

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def stop(self) -> dict[str, int]:
        others = [process for name, process in self.running.items() if name != "valkey"]
        for process in [*others, self.running["valkey"]]:
            process.terminate()
        return {name: process.wait(60) for name, process in self.running.items()}

    def get(self, port: str, path: str, user: str | None = None, data: bytes | None = None) -> tuple[int, str]:
        request = urllib.request.Request(f"http://127.0.0.1:{self.ports[port]}{path}", data=data)
        if user:
            request.add_header("Authorization", "Basic " + base64.b64encode(user.encode()).decode())
        try:
            with urllib.request.urlopen(request, timeout=10) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, ""


def until(condition, seconds=90.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if found := condition():
                return found
        except (OSError, redis.RedisError):
            pass
        time.sleep(0.3)
    return None


@pytest.fixture(scope="module")
def composed(tmp_path_factory):
    cluster = Composed(tmp_path_factory.mktemp("compose"))
    cluster.start("valkey")
    client = redis.Redis(port=cluster.ports["6379"], password="secret-of-broker")
    assert until(client.ping), cluster.log("valkey")
    for name in ("teacher", "gpu-cpu", "reduce", "flower", "metrics"):
        cluster.start(name)
    yield cluster
    ended = cluster.stop()
    assert ended == dict.fromkeys(ended, 0) | {"metrics": -15}  # it only waits for scrapes


def test_the_broker_keeps_what_it_is_given_and_wants_its_password(composed):
    client = redis.Redis(port=composed.ports["6379"], password="secret-of-broker")
    assert client.info("persistence")["aof_enabled"] == 1
    assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(port=composed.ports["6379"]).ping()
    shown = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert "secret-of-broker" not in shown


def test_each_worker_of_the_file_starts_and_says_how_it_fits_its_queue(composed):
    for name, words in {
        "teacher": "queues teacher: 32 at a time",
        "gpu-cpu": "queues gpu: 1 at a time",
        "reduce": "queues reduce: 2 at a time",
    }.items():
        assert until(lambda name=name, words=words: words in composed.log(name)), composed.log(name)
        assert until(lambda name=name: "(thread)" in composed.log(name)), composed.log(name)


@pytest.mark.slow
def test_a_gpu_worker_and_the_command_line_of_the_file_start_too(composed):
    composed.start("gpu")  # here it finds no CUDA, and would take the CPU
    assert until(lambda: "(thread)" in composed.log("gpu")), composed.log("gpu")
    assert "queues gpu: 1 at a time" in composed.log("gpu")
    composed.running["gpu"].terminate()
    assert composed.running.pop("gpu").wait(60) == 0
    composed.start("svf")
    assert composed.running.pop("svf").wait(90) in (0, 1)  # 1: no key in this environment; 3 would be the broker
    said = composed.log("svf")
    for words in ("queue gpu", "queue reduce", "queue teacher", "persistence"):
        assert words in said, said


def test_flower_shows_the_workers_to_those_who_may_and_runs_nothing(composed):
    user = "factory:secret-of-flower"
    assert until(lambda: composed.get("5555", "/workers", user)[0] == 200), composed.log("flower")
    assert composed.get("5555", "/workers")[0] == 401
    assert until(lambda: "gpu@" in composed.get("5555", "/workers", user)[1])
    status, _ = composed.get("5555", "/api/task/async-apply/workers.gpu.extract_batch", user, data=b'{"args": []}')
    assert status in (403, 405)


def test_metrics_say_that_broker_and_store_are_up(composed):
    assert until(lambda: composed.get("9808", "/metrics")[0] == 200), composed.log("metrics")
    text = composed.get("9808", "/metrics")[1]
    assert "svf_broker_up 1.0" in text
    assert "svf_store_up 1.0" in text
    assert 'svf_queue_messages{queue="gpu"} 0.0' in text


@pytest.mark.slow
def test_the_server_of_the_file_offers_what_a_run_left_in_the_store(composed, target):
    made = composed.folder / "data" / "runs" / "20261123-155231-abbd" / "calm" / "vector.pt"
    made.parent.mkdir(parents=True)
    vector = named_vector(target, "calm", 1)
    vector.save(made)
    composed.start("serve")
    check = SERVICES["serve"]["healthcheck"]["test"]
    words = [sys.executable, *(word.replace(":8000", f":{composed.ports['8000']}") for word in check[2:])]
    well = until(lambda: subprocess.run(words, capture_output=True, check=False).returncode == 0, 240)
    assert well, composed.log("serve")
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{composed.ports['8000']}/v1", api_key="secret-of-svf")
    question = [{"role": "user", "content": "Why is the sky blue?"}]
    reply = client.chat.completions.create(model=f"{target.name}:calm", messages=question, max_tokens=12)
    assert reply.choices[0].message.content == generate(target, question, vector=vector, max_new_tokens=12)
    assert composed.get("8000", "/v1/models")[0] == 401
    composed.running["serve"].terminate()
    assert composed.running.pop("serve").wait(60) == 0


@pytest.mark.slow
def test_the_server_of_the_file_refuses_to_start_without_a_key(svf):
    words = SERVICES["serve"]["command"].replace("${SVF_VECTORS:-/data/runs}", "anywhere").split()
    said = svf(
        *words[1:], SVF_SERVER_KEY=SERVICES["serve"]["environment"]["SVF_SERVER_KEY"].partition(":-")[2].strip("}")
    )
    assert said.status == 2
    assert "set SVF_SERVER_KEY to a key" in said.err
