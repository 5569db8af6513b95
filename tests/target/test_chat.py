"""A conversation becomes the same tokens on any day, as the model's own template would have it."""

from __future__ import annotations

import json

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig

from factory import ContrastivePair, build_vector, load_target
from factory.errors import PairRejected
from factory.target.chat import Chat
from tests.families import SIZES, TEMPLATE, save_tiny_model, tiny_tokenizer

ASKED = [{"role": "user", "content": "Why?"}]
DATED = "{% if strftime_now is defined %}{% set day = strftime_now('%d %b %Y') %}{% endif %}Today: {{ day }}\n"
REFUSES_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
FORGETS_SYSTEM = "{% set messages = messages | rejectattr('role', 'equalto', 'system') | list %}"


def chat_of(template: str | None, date: str = "2026-11-26") -> Chat:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return Chat(tokenizer, date)


def read(chat: Chat, messages) -> str:
    return chat.tokenizer.decode(chat.prompt_ids(messages))


def with_bos(tokenizer):
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    bos = tokenizer.convert_tokens_to_ids("<s>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    return tokenizer


def test_a_template_that_writes_the_date_writes_the_days_own_and_not_the_clocks():
    assert read(chat_of(DATED + TEMPLATE), ASKED).startswith("Today: 26 Nov 2026\n<|start|>user\nWhy?")
    assert read(chat_of(DATED + TEMPLATE, "2030-01-02"), ASKED).startswith("Today: 02 Jan 2030\n")
    assert chat_of(DATED + TEMPLATE).is_dated
    assert not chat_of(TEMPLATE).is_dated


def test_a_target_on_another_day_is_the_same_model_with_other_texts(tmp_path):
    folder = save_tiny_model(tmp_path, LlamaConfig(**SIZES))
    target = load_target(str(folder), "cpu")
    target.tokenizer.chat_template = DATED + TEMPLATE

    later = target.on("2031-05-06")

    assert later.model is target.model
    assert later.lock is target.lock
    assert "06 May 2031" in later.tokenizer.decode(later.prompt_ids(ASKED))


@pytest.mark.parametrize("head", [REFUSES_SYSTEM, FORGETS_SYSTEM], ids=["refused", "forgotten"])
def test_a_system_message_that_a_template_does_not_take_stands_before_the_question(head):
    asked = [{"role": "system", "content": "Be brief."}, *ASKED]

    assert "<|start|>user\nBe brief.\n\nWhy?<|end|>" in read(chat_of(head + TEMPLATE), asked)
    assert "<|start|>system\nBe brief.<|end|>" in read(chat_of(TEMPLATE), asked)


def test_instructions_make_a_vector_where_the_template_refuses_system_messages(tmp_path):
    target = load_target(str(save_tiny_model(tmp_path, LlamaConfig(**SIZES))), "cpu")
    target.tokenizer.chat_template = REFUSES_SYSTEM + TEMPLATE
    words = {"positive_prompt": "Answer in steps.", "negative_prompt": "Answer plainly.", "style": "steps"}
    pairs = [
        ContrastivePair(question=f"What is {n}?", positive_response="One.", negative_response="Two.", **words)
        for n in range(3)
    ]

    assert build_vector(pairs, target, recipe="system_prompt").metadata["pairs_used"] == 3


def test_a_conversation_that_the_template_refuses_rejects_its_pair():
    chat = chat_of("{{ raise_exception('roles must alternate') }}")

    with pytest.raises(PairRejected, match="roles must alternate"):
        chat.prompt_ids(ASKED)


@pytest.mark.parametrize("answer", ["A", "d", "e", "end", "<", "|", "user", "  padded ", "Why?", "theresponse"])
def test_the_tokens_of_a_short_answer_are_never_those_of_the_template(answer):
    chat = chat_of(TEMPLATE)

    ids, span = chat.response_ids([*ASKED, {"role": "assistant", "content": answer}])

    assert chat.tokenizer.decode([ids[at] for at in span]) == answer.strip()
    assert chat.tokenizer.decode(ids[: span[0]]).endswith("<|start|>assistant\n")


def test_without_a_template_a_text_begins_as_the_tokenizer_begins_it():
    chat = Chat(with_bos(tiny_tokenizer()), "2026-11-26")
    chat.tokenizer.chat_template = None

    ids, span = chat.response_ids([*ASKED, {"role": "assistant", "content": "So."}])

    assert read(chat, ASKED) == "<s>user: Why?\nassistant:"
    assert chat.tokenizer.decode(ids) == "<s>user: Why?\nassistant: So.\n"
    assert chat.tokenizer.decode([ids[at] for at in span]) == "So."


@pytest.mark.parametrize("name", ["chat_template.json", "chat_template.jinja"])
def test_a_template_in_a_file_of_its_own_is_used(tmp_path, name):
    folder = save_tiny_model(tmp_path, LlamaConfig(**SIZES))
    tokenizer = with_bos(tiny_tokenizer())
    tokenizer.chat_template = None
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(folder)
    own = "{{ bos_token }}" + TEMPLATE
    (folder / name).write_text(json.dumps({"chat_template": own}) if name.endswith("json") else own)

    chat = load_target(str(folder), "cpu").chat

    assert read(chat, ASKED) == "<s><|start|>user\nWhy?<|end|>\n<|start|>assistant\n"
