"""``svf serve --engine vllm`` before vLLM starts: what it refuses, and what it would run."""

import json
import sys

import pytest
from click.testing import CliRunner

from factory.commands.serve import serve
from factory.errors import ConfigError
from factory.vllm.launch import Place, check_python, command


def refusal(*words, environment=None):
    result = CliRunner().invoke(serve, [*words], env={"SVF_SERVER_KEY": "", **(environment or {})})
    assert isinstance(result.exception, ConfigError), result.exception
    return str(result.exception)


def test_a_python_without_vllm_is_told_how_to_get_one():
    with pytest.raises(ConfigError, match="vLLM is not installed") as told:
        check_python(sys.executable)
    assert "pip install 'vllm==0.32.*'" in str(told.value)
    with pytest.raises(ConfigError, match="cannot be run as vLLM's Python"):
        check_python("/no/such/python")


def test_what_vllm_cannot_do_is_refused_before_it_starts(tmp_path):
    vllm = (str(tmp_path), "--target", "a/model", "--engine", "vllm")
    assert "--max-queue" in refusal(*vllm, "--max-queue", "3")
    assert "SVF_SERVER_KEY" in refusal(*vllm, "--host", "0.0.0.0")
    assert "vLLM is not installed" in refusal(*vllm)
    assert "/no/such/python" in refusal(*vllm, environment={"SVF_VLLM_PYTHON": "/no/such/python"})


def test_the_command_line_names_connector_vectors_and_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    words = command("python", "/models/m", "m", ["out", "s3://bucket/vectors"], Place("127.0.0.1", 8000, 4, 512))
    options = dict(zip(words[3::2], words[4::2], strict=True))
    assert (options["--model"], options["--served-model-name"]) == ("/models/m", "m")
    assert (options["--max-num-seqs"], options["--max-model-len"]) == ("4", "512")
    vectors = json.loads(options["--kv-transfer-config"])["kv_connector_extra_config"]["vectors"]
    assert vectors == [str(tmp_path / "out"), "s3://bucket/vectors"]
    assert "--max-num-seqs" not in command("python", "m", "m", ["out"], Place("127.0.0.1", 8000))
