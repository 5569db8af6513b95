"""A configuration, a dataset and commands as other builders of steering vectors have them work here as they are."""

import json

import pytest

from factory.pairs.dataset import load_pairs
from factory.pairs.styles import load_style
from factory.vector.vector import SteeringVector
from tests.conftest import save_tiny_model
from tests.endpoint import answer_to, running_endpoint

CONFIG = """
teacher_model: "gpt-4"  # or gpt-3.5-turbo, claude-3-sonnet
target_model: "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"
device: "auto"
load_in_8bit: true
api_delay: 1.0
regenerate_datasets: false
# custom_questions_file: "custom_questions.txt"
additional_questions:
  - "How would you lay out a town for cyclists?"
  - "What keeps a promise worth keeping?"
extraction_config:
  target_layers: [8, 9, 10, 11, 12, 13, 14, 15]
  max_sequence_length: 2048
  batch_size: 1
output_config:
  save_intermediate_files: true
  generate_analysis_reports: true
  copy_to_sam_assets: true
"""
STYLES = ["researcher_style", "step_by_step_reasoning"]


def dataset(style: str, n: int = 6) -> str:
    """A dataset whose pairs are numbered by integers, with what a teacher was asked and nothing more."""
    head = {
        "type": "metadata",
        "style_name": style,
        "description": "d",
        "total_pairs": n,
        "model_used": "gpt-4",
    }
    pairs = [
        {
            "question": f"Why does thing number {i} fall?",
            "positive_prompt": f"Explain step by step.\n\nQuestion: Why does thing number {i} fall?",
            "positive_response": f"Step 1: Look at {i}.\nStep 2: It is heavy.",
            "negative_prompt": f"Be brief.\n\nQuestion: Why does thing number {i} fall?",
            "negative_response": f"Thing {i} is heavy.",
            "style": style,
            "pair_id": i,
        }
        for i in range(n)
    ]
    return "".join(json.dumps(line) + "\n" for line in [head, *pairs])


@pytest.fixture
def home(tmp_path):
    """A folder as such a builder leaves it."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / "datasets").mkdir()
    for style in STYLES:
        (tmp_path / "datasets" / f"{style}_pairs.jsonl").write_text(dataset(style))
    return tmp_path


def test_the_configuration_and_the_dataset_are_read_as_they_are(home, svf):
    said = svf("estimate", "--styles", *STYLES, "--json")
    assert said.status == 0, said.err
    found = json.loads(said.out)
    assert [(part["style"], part["pairs"], part["to_write"]) for part in found["styles"]] == [(s, 6, 0) for s in STYLES]
    assert found["requested_model"] == "gpt-4"
    assert any("2 questions of additional_questions" in note for note in found["notes"])
    assert [pair.pair_id for pair in load_pairs(home / "datasets" / f"{STYLES[0]}_pairs.jsonl")] == list("012345")


ADDED = ["How would you lay out a town for cyclists?", "What keeps a promise worth keeping?"]


def written():
    """What a teacher answers who keeps to the instructions of both styles, on either side."""
    sides = {}
    for style, sentence in zip(STYLES, ("The evidence suggests a hypothesis", "Step {n}: do it"), strict=True):
        for question in ADDED:
            in_style, plain = load_style(style).prompts_for(question)
            sides[plain] = answer_to(question)
            texts = answer_to(question + "!").split(".")[:4]
            sides[in_style] = "\n".join(f"{sentence.format(n=n)}: {text}." for n, text in enumerate(texts, start=1))
    return sides.__getitem__


@pytest.mark.slow
def test_the_commands_make_vectors_and_have_the_additional_questions_answered(home, svf, tmp_path_factory):
    texts = [pair.positive_response for pair in load_pairs(home / "datasets" / f"{STYLES[1]}_pairs.jsonl")]
    model = save_tiny_model(tmp_path_factory.mktemp("model") / "eighteen-layers", texts, n_layers=18)
    machine = {
        "FACTORY_TARGET_MODEL": str(model),
        "FACTORY_EVALUATION__LIMIT": "2",
        "FACTORY_EVALUATION__CHOICE_LIMIT": "1",
        "FACTORY_EVALUATION__MAX_NEW_TOKENS": "8",
        "FACTORY_API_DELAY": "0",
    }
    words = ("generate", "--styles", *STYLES)
    said = svf(*words, **machine)
    assert said.status == 0, said.out + said.err
    assert "without them" in said.out
    for style in STYLES:
        vector = SteeringVector.load(home / "steering_vectors" / f"{style}.pt")
        assert vector.layer_indices == list(range(8, 16))
        assert vector.metadata["pairs_used"] == 6
        assert (home / "sam" / "assets" / "steering_vectors" / f"{style}_template.json").is_file()
    assert (home / "steering_vector_generation.log").is_file()
    with running_endpoint() as endpoint:
        endpoint.answer = written()
        said = svf(*words, "--api-key", "sk-own", FACTORY_BASE_URL=endpoint.base_url, **machine)
        keys = endpoint.keys
    assert said.status == 0, said.out + said.err
    assert keys == {"Bearer sk-own"}
    pairs = load_pairs(home / "datasets" / f"{STYLES[1]}_pairs.jsonl")
    assert [pair.question for pair in pairs[6:]] == ADDED
    assert SteeringVector.load(home / "steering_vectors" / f"{STYLES[1]}.pt").metadata["pairs_used"] == 8
