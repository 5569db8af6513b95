"""Loading a target as the settings say, in every command that loads one itself."""

import ast
from pathlib import Path

import torch

from factory.config import Settings
from factory.configured import load_configured_target

COMMANDS = Path(__file__).parents[1] / "factory" / "commands"


def test_the_target_has_the_threads_and_numbers_of_the_settings(target_folder):
    usual = torch.get_num_threads()
    try:
        target = load_configured_target(str(target_folder), Settings(threads=1, dtype="bfloat16", device="cpu"))
        assert torch.get_num_threads() == 1
        assert target.model.dtype == torch.bfloat16
    finally:
        torch.set_num_threads(usual)


def test_no_command_loads_a_target_past_the_settings():
    for path in COMMANDS.glob("*.py"):
        names = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
        assert "load_target" not in names, path.name
