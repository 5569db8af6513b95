"""The teacher's address: one name, no secret, and words that help where it cannot be reached."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler

import pytest

from factory.commands.options import without_key
from factory.config import load_configuration
from factory.errors import ConfigError, TeacherBusy, TeacherRefused
from factory.teacher.client import Teacher
from factory.teacher.connection import describe_way, open_client
from factory.teacher.replies import Payer
from factory.teacher.request import build_request, request_key
from factory.teacher.spec import TeacherSpec
from tests.endpoint import running_endpoint
from tests.scripted import LOCAL


@pytest.mark.parametrize("spelling", ["http://Host.test:80/v1/", " http://host.test/v1 ", "HTTP://host.test/v1//"])
def test_one_server_has_one_name_however_it_is_spelled(spelling):
    plain, spelled = (
        TeacherSpec(model="m", requested_model="m", base_url=url) for url in ("http://host.test/v1", spelling)
    )
    assert request_key(plain, build_request(plain, "a")) == request_key(spelled, build_request(spelled, "a"))
    assert load_configuration(environment={"FACTORY_BASE_URL": spelling}).settings.base_url == plain.base_url


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("https://bob:s3cret@proxy.test/v1", "api_key_env"),
        ("bob:s3cret@proxy.test/v1", "api_key_env"),
        ("https://proxy.test/v1?api_key=s3cret", "api_key_env"),
        ("https://proxy.test/v1#s3cret", "api_key_env"),
        ("localhost:11434/v1", "http://localhost:11434/v1"),
        ("127.0.0.1:8080", "http://127.0.0.1:8080/v1"),
        ("http:///v1", "names no host"),
        ("http://host.test:port/v1", "no address"),
        ("http://host.test/v1/chat/completions", "should end before"),
    ],
)
def test_an_address_that_is_none_or_holds_a_secret_is_refused_while_planning_and_not_repeated(url, says):
    with pytest.raises(ConfigError, match="base_url") as refused:
        load_configuration(environment={"FACTORY_BASE_URL": url})
    with pytest.raises(TeacherRefused, match="base_url") as paused:
        open_client(url, None, 1.0)
    for error in (refused, paused):
        assert says in str(error.value)
        assert "s3cret" not in str(error.value)


def test_a_socks_proxy_is_named_where_it_is_in_the_way_and_not_needed_on_loopback(monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "socks5://me:s3cret@127.0.0.1:1080")
    open_client("http://127.0.0.1:9/v1", None, 4.5)
    with pytest.raises(TeacherRefused, match="ALL_PROXY.*SOCKS.*NO_PROXY=far.test") as refused:
        open_client("http://far.test/v1", None, 4.5)
    assert refused.value.reason == "proxy"
    assert "s3cret" not in str(refused.value)


def test_what_cannot_be_reached_is_named_with_its_address_and_proxy(store, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://me:s3cret@127.0.0.1:9")
    spec = LOCAL.model_copy(update={"base_url": "http://far.test/v1"})
    with pytest.raises(TeacherBusy, match="http://far.test/v1 through the proxy at 127.0.0.1") as busy:
        Teacher(spec, open_client(spec.base_url, None, 4.25), store, Payer("run", "steps", 0)).ask("hello")
    assert "s3cret" not in str(busy.value)
    assert describe_way("http://127.0.0.1:9/v1") == "http://127.0.0.1:9/v1"


def test_an_answer_has_one_deadline_also_where_its_server_is_never_silent(store):
    class Trickle(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()
            try:
                while not self.server.ended.wait(0.02):
                    self.wfile.write(b" ")
            except OSError:
                return

        def log_message(self, *_: object) -> None:
            pass

    with running_endpoint() as server:
        server.RequestHandlerClass = Trickle
        server.ended = threading.Event()
        spec = LOCAL.model_copy(update={"base_url": server.base_url})
        try:
            with pytest.raises(TeacherBusy, match="ReadTimeout") as busy:
                Teacher(spec, open_client(spec.base_url, None, 0.3), store, Payer("run", "steps", 0)).ask("hello")
        finally:
            server.ended.set()
    assert busy.value.may_be_paid


def test_a_key_given_as_a_flag_leaves_the_process_list():
    program = (
        "import os, sys\n"
        "from factory.commands.options import _begin_without_key, _keep_key\n"
        "from factory.config import Settings\n"
        "if '--api-key' in sys.argv:\n"
        "    _keep_key('sk-SECRET', Settings()); _begin_without_key()\n"
        "print(open('/proc/self/cmdline').read().split(chr(0))[-3:-1], os.environ['OPENAI_API_KEY'])"
    )
    words = [sys.executable, "-c", program, "generate", "--api-key", "sk-SECRET", "--here"]
    ended = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60, env=dict(os.environ))
    assert ended.stdout.strip() == "['generate', '--here'] sk-SECRET"
    assert without_key(["svf", "--api-key=sk", "x", "--api-key", "sk"]) == ["svf", "x"]
