"""A teacher whose server gives the answers that a test wrote down, in turn."""

from __future__ import annotations

import json

import httpx2
import openai

from factory.pairs.styles import parse_style
from factory.store import Store
from factory.teacher.client import Teacher
from factory.teacher.replies import Payer
from factory.teacher.spec import TeacherSpec
from tests.endpoint import answer_to, completion

OPENAI = TeacherSpec(model="gpt-6-luna", requested_model="gpt-4", temperature=0.7)
LOCAL = OPENAI.model_copy(update={"base_url": "http://teacher.test/v1", "pricing": {"input": 1.0, "output": 4.0}})
STYLE = parse_style(
    r"""
description: Numbered steps.
positive_prompt: "{question} Answer in numbered steps."
negative_prompt: "{question} Answer in one plain paragraph."
markers: ['^step\s+\d+']
""",
    "steps.yaml",
)


class Scripted(httpx2.MockTransport):
    """A server that gives its answers in turn, the last one for ever, and counts."""

    def __init__(self, *answers: httpx2.Response) -> None:
        super().__init__(self.answer)
        self.answers = list(answers)
        self.bodies: list[dict] = []

    def answer(self, request: httpx2.Request) -> httpx2.Response:
        self.bodies.append(json.loads(request.content) if request.content else {})
        if not self.answers:
            return said(answer_to(self.bodies[-1]["messages"][0]["content"]))
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def said(text, **options) -> httpx2.Response:
    return httpx2.Response(200, json=completion(text, **options))


def teacher_at(transport: httpx2.MockTransport, store: Store, spec: TeacherSpec = LOCAL) -> Teacher:
    client = openai.OpenAI(
        api_key="sk-test", base_url=spec.base_url, max_retries=0, http_client=httpx2.Client(transport=transport)
    )
    return Teacher(spec, client, store, Payer("run", "steps", 0))
