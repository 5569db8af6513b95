"""A target model is loaded as asked or refused in words; its texts become the right tokens."""

from __future__ import annotations

import logging
import sys

import pytest
import torch

from factory import build_vector, load_target
from factory.errors import PairRejected, TargetError
from factory.steps.resident import load_resident_target
from factory.target.loading import choose_device, choose_dtype


def test_a_model_that_is_nowhere_is_refused_with_what_would_do(tmp_path):
    with pytest.raises(TargetError, match="Expected a hub id, a folder"):
        load_target(str(tmp_path / "nothing"), "cpu")
    with pytest.raises(TargetError, match="does not exist"):
        load_target(str(tmp_path / "nothing.gguf"), "cpu")


def test_a_device_that_is_not_there_is_refused_and_auto_finds_one_that_is():
    with pytest.raises(TargetError, match="device: auto"):
        choose_device("abacus")
    assert choose_device("auto") in ("cuda", "mps", "cpu")


@pytest.mark.parametrize(
    ("dtype", "device", "chosen"),
    [
        ("auto", "cpu", torch.float32),
        ("auto", "cuda:1", torch.bfloat16),
        ("auto", "mps", torch.float32),
        ("bfloat16", "cpu", torch.bfloat16),
    ],
)
def test_the_dtype_fits_the_device_unless_one_is_named(dtype, device, chosen):
    assert choose_dtype(dtype, device) is chosen


def test_float16_is_refused_because_attention_overflows_in_it():
    with pytest.raises(TargetError, match="float16"):
        choose_dtype("float16", "cuda")


def test_eight_bits_without_cuda_are_a_warning_and_the_plain_model(target_folder, caplog):
    with caplog.at_level(logging.WARNING, logger="factory"):
        plain = load_target(str(target_folder), "cpu", quantize="8bit")

    assert "needs CUDA" in caplog.text
    assert plain.dtype == "float32"


def test_the_same_weights_have_the_same_revision_and_others_another(target_folder, qwen_folder):
    first, again, other = (load_target(str(folder), "cpu") for folder in (target_folder, target_folder, qwen_folder))

    assert first.revision == again.revision != other.revision


def test_bfloat16_reads_nearly_the_same_direction(target_folder, starter_pairs):
    from factory import build_vector

    exact, rough = (
        build_vector(starter_pairs[:8], load_target(str(target_folder), "cpu", dtype=dtype))
        for dtype in ("float32", "bfloat16")
    )

    assert exact.cosine(rough) > 0.99
    assert rough.extraction_config["dtype"] == "bfloat16"


def test_a_prompt_is_tokenised_as_its_template_says_with_no_token_doubled(target):
    messages = [{"role": "user", "content": "Why?"}]

    ids = target.prompt_ids(messages)

    assert target.tokenizer.decode(ids) == "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"


def test_the_tokens_of_a_response_are_its_own_and_not_the_templates(target):
    messages = [{"role": "user", "content": "Because?"}, {"role": "assistant", "content": "Because of light."}]

    ids, span = target.response_ids(messages)

    assert target.tokenizer.decode([ids[at] for at in span]) == "Because of light."


def test_a_template_that_drops_part_of_a_response_gets_the_pair_rejected(target_folder):
    own = load_target(str(target_folder), "cpu")
    own.tokenizer.chat_template = "{% for m in messages %}{{ m['content'].split('|')[-1] }}{% endfor %}"

    with pytest.raises(PairRejected, match="alters the response") as refusal:
        own.response_ids([{"role": "assistant", "content": "thought|answer"}])

    assert refusal.value.reason == "template"


def test_the_neutral_token_is_one_id_that_decodes_to_a_line_break(target):
    assert target.tokenizer.decode([target.neutral_id]) == "\n"


def test_only_the_layers_that_are_read_are_loaded_and_they_read_the_same(target_folder, starter_pairs, caplog):
    whole, shallow = load_target(str(target_folder), "cpu"), load_target(str(target_folder), "cpu", depth=2)

    assert (whole.n_layers, shallow.n_layers) == (4, 2)
    assert sum(p.numel() for p in shallow.model.parameters()) < sum(p.numel() for p in whole.model.parameters())
    first, same = (build_vector(starter_pairs[:4], target, layers=[0, 1]) for target in (whole, shallow))
    assert torch.equal(first.value_vector, same.value_vector)
    assert "UNEXPECTED" not in caplog.text


def test_a_worker_keeps_one_model_and_loads_more_of_it_only_when_asked(target_folder, qwen_folder):
    def load(folder, depth):
        return load_resident_target(str(folder), "cpu", "float32", None, False, depth)

    shallow = load(target_folder, 2)
    assert load(target_folder, 1) is shallow
    whole = load(target_folder, None)
    assert whole.n_layers == 4
    assert load(target_folder, 2) is whole
    assert load(qwen_folder, 1) is not whole
    assert load(target_folder, 2).n_layers == 2


def test_where_the_system_does_not_tell_its_memory_a_model_works_all_the_same(target, monkeypatch):
    assert target.peak_memory_mib() > 0
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows, which has no such module
    assert target.peak_memory_mib() == 0
