"""Loading a target as the settings say, in every command that loads one itself."""

import ast
from pathlib import Path

import pytest
import torch

from factory.config import Settings
from factory.configured import load_configured_target
from factory.errors import ConfigError

COMMANDS = Path(__file__).parents[1] / "factory" / "commands"


def test_the_target_has_the_threads_and_numbers_of_the_settings(target_folder):
    usual = torch.get_num_threads()
    try:
        target = load_configured_target(str(target_folder), Settings(threads=1, dtype="bfloat16", device="cpu"))
        assert torch.get_num_threads() == 1
        assert target.model.dtype == torch.bfloat16
    finally:
        torch.set_num_threads(usual)


def test_only_models_that_are_allowed_are_loaded_whatever_a_vector_is_for(target_folder):
    with pytest.raises(ConfigError, match=r"add it to allowed_models \(now mine, yours\)"):
        load_configured_target(str(target_folder), Settings(allowed_models=["mine", "yours"]))

    assert load_configured_target(str(target_folder), Settings(allowed_models=[str(target_folder)], device="cpu"))
    assert load_configured_target(str(target_folder), Settings(target_model="mine", device="cpu"))
    with pytest.raises(ConfigError, match=r"now mine"):  # a worker's message comes from another machine
        Settings(target_model="mine").require_allowed(str(target_folder), for_others=True)


def test_no_command_loads_a_target_past_the_settings():
    for path in COMMANDS.glob("*.py"):
        names = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
        assert "load_target" not in names, path.name
