"""EleutherAI's lm-evaluation-harness measures a steered model through the server, on a task that reads a file here."""

import json
import os
import subprocess
import sys

import pytest

from factory.vector.steer import generate
from factory.vector.vector import SteeringVector
from tests.serving.running import KEY, served
from tests.serving.test_server import named_vector

HARNESS = "lm-eval[api]==0.4.13"
TASK = """
task: answers_of_generate
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{questions}"}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: [], max_gen_toks: {tokens}, temperature: 0}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1}}
"""
TOKENS = 8


@pytest.fixture(scope="module")
def harness(tmp_path_factory):
    """The harness's program, in an environment of its own; ``LM_EVAL`` names one that is installed already."""
    if os.environ.get("LM_EVAL"):
        return os.environ["LM_EVAL"]
    folder = tmp_path_factory.mktemp("harness")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    subprocess.run([folder / "bin" / "pip", "install", "-q", HARNESS], check=True)
    return folder / "bin" / "lm_eval"


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(900)
def test_the_harness_scores_a_steered_model_by_its_name(harness, tmp_path, target):
    named_vector(target, "calm", 1).save(tmp_path / "calm.safetensors")
    calm = SteeringVector.load(tmp_path / "calm.safetensors")
    questions = [f"What comes after {number}?" for number in range(6)]
    lines = [
        {"question": one, "answer": generate(target, one, vector=calm, max_new_tokens=TOKENS)} for one in questions
    ]
    (tmp_path / "questions.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (tmp_path / "tasks").mkdir()
    task = TASK.format(questions=tmp_path / "questions.jsonl", tokens=TOKENS)
    (tmp_path / "tasks" / "answers_of_generate.yaml").write_text(task)
    with served(tmp_path, "--target", target.name) as (url, _):
        steered, unsteered = (score_of(harness, tmp_path, url, model) for model in (f"{target.name}:calm", target.name))
    plain = [generate(target, one, max_new_tokens=TOKENS) for one in questions]
    same = sum(answer == line["answer"] for answer, line in zip(plain, lines, strict=True))
    assert steered == 1.0
    assert unsteered == pytest.approx(same / len(lines))
    assert unsteered < 1.0


def score_of(harness, folder, url, model):
    """The exact matches of ``model`` in the task."""
    output = folder / f"results-{len(model)}.json"
    words = [harness, "run", "--model", "local-chat-completions", "--tasks", "answers_of_generate"]
    words += ["--model_args", f"model={model},base_url={url}/v1/chat/completions,num_concurrent=4,max_retries=1"]
    words += ["--include_path", folder / "tasks", "--apply_chat_template", "--output_path", output]
    known = {"OPENAI_API_KEY": KEY, "HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    said = subprocess.run(
        list(map(str, words)), env=os.environ | known, capture_output=True, text=True, cwd=folder, check=False
    )
    assert said.returncode == 0, said.stderr[-3000:]
    found = next(folder.glob(f"{output.stem}*.json"))
    return json.loads(found.read_text())["results"]["answers_of_generate"]["exact_match,none"]
