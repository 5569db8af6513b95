"""Text that people and models wrote comes out as it is: brackets, line breaks, paths, in a narrow terminal too."""

from __future__ import annotations

import pytest
import yaml

from tests.commands.test_cli import save_vector, write

ODD = "[red]odd[/red] [/nope] [link=x]text"
FOLDER = "a [red] b"
STYLE = {"description": f"{ODD}\nand a second line", "positive_prompt": "{question}", "negative_prompt": "{question}"}
TWICE = [f"Why is {ODD} so?", f"why is {ODD} so"]

# What is typed, and what must stand in what is said.
SHOWN = {
    "styles": ("styles", [ODD, "and a second line"]),
    "config": ("config", [ODD, FOLDER]),
    "estimate": ("estimate --styles creative_explorer", [TWICE[0], TWICE[1]]),
    "estimate with few columns": ("estimate", ["creative_expl", "tokens in", "USD", "cached"]),
    "show": ("show FOLDER/v.pt", [f"{FOLDER}/v.pt", ODD]),
    "show two": ("show FOLDER/v.pt w.safetensors", [f"cosine {ODD} ~ w"]),
    "steer": ("steer FOLDER/v.pt --max-new-tokens 2 -p ODD", [ODD]),
    "steer in a pipe, one answer under the other": (
        "steer FOLDER/v.pt --max-new-tokens 2 -p Why?",
        ["Why?", "unsteered:", "steered:"],
    ),
    "export": ("export FOLDER/v.pt --output FOLDER/out", [f"{FOLDER}/out/v/"]),
    "init": ("init FOLDER/mine", [f"wrote {FOLDER}/mine/config.yaml", f"cd '{FOLDER}/mine'", "svf generate"]),
    "doctor": ("doctor --output FOLDER", [f"{FOLDER}/runs is written and read"]),
    "a missing vector": ("show FOLDER/none.pt", [f"{FOLDER}/none.pt"]),
    "a missing run": ("status ODD --output FOLDER", [ODD, f"{FOLDER}/runs"]),
    "an unknown style": ("generate --styles [bold]x[/bold]", ["[bold]x[/bold]"]),
    "a foreign file": ("import FOLDER/none.pt --model m --style s", [f"{FOLDER}/none.pt"]),
    "a missing question file": ("estimate --questions FOLDER/q.txt", [f"{FOLDER}/q.txt"]),
    "a missing configuration": ("styles --config FOLDER/c.yaml", [f"{FOLDER}/c.yaml"]),
    "a missing batch": ("enqueue --batch FOLDER/b.yaml", [f"{FOLDER}/b.yaml"]),
}


def squeezed(text):
    """Text without what a narrow terminal adds."""
    return "".join(text.split())


@pytest.fixture
def home(here, target, monkeypatch):
    (here / FOLDER / "styles").mkdir(parents=True)
    (here / FOLDER / "styles" / "odd.yaml").write_text(yaml.safe_dump(STYLE))
    settings = {
        "styles_dir": f"{FOLDER}/styles",
        "judge_model": ODD,
        "device": "cpu",
        "base_url": "http://127.0.0.1:9/v1",
        "additional_questions": TWICE,
    }
    write(here, "config.yaml", yaml.safe_dump(settings))
    save_vector(here / FOLDER, target, style_name=ODD)
    save_vector(here, target, "w.safetensors", style_name="w")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("FACTORY_BROKER_URL", "redis://127.0.0.1:9/0")
    return here


@pytest.mark.parametrize("name", SHOWN)
def test_odd_text_is_shown_as_it_is(home, said, name):
    line, expected = SHOWN[name]
    words = [word.replace("FOLDER", FOLDER).replace("ODD", ODD) for word in line.split()]
    ended = said(*words)
    shown = ended.out + ended.err
    for text in expected:
        assert squeezed(text) in squeezed(shown), shown
    assert "error: unexpected" not in shown
    assert "…" not in shown
    assert "\x1b" not in shown
