"""A real model behind the server: what clients get is what ``generate`` gives, token for token."""

import asyncio

import openai
import pytest
import torch

from factory.target.download import BUILT_IN
from factory.target.loading import load_target
from factory.vector.steer import Steering, generate
from factory.vector.vector import SteeringVector
from tests.serving.running import KEY, served

pytestmark = pytest.mark.slow
TOKENS = 24
QUESTIONS = (
    "Why is the sky blue?",
    "How can I learn to play the guitar?",
    "Write down three things that a good teacher does, and say why each of them matters to the pupils of a school.",
)


@pytest.fixture(scope="module")
def smollm():
    return load_target(BUILT_IN, "cpu")


@pytest.fixture(scope="module")
def vectors(smollm):
    """Two vectors that change answers and leave them language: small, in random directions."""
    shape, found = (smollm.n_layers, *smollm.shape), {}
    for seed, name in enumerate(("calm", "bold")):
        torch.manual_seed(seed)
        keys, values = 0.1 * torch.randn(shape), 0.1 * torch.randn(shape)
        found[name] = SteeringVector(name, keys, values, list(range(smollm.n_layers)), smollm.name)
    return found


@pytest.fixture(scope="module")
def url(tmp_path_factory, smollm, vectors):
    folder = tmp_path_factory.mktemp("vectors")
    for name, vector in vectors.items():
        vector.save(folder / f"{name}.safetensors")
    with served(folder, "--target", smollm.name) as (url, _):
        yield url


def settings_of(smollm, vectors):
    calm, bold = vectors["calm"], vectors["bold"]
    late = list(range(14, smollm.n_layers))
    return [
        ([], None),
        ([{"vector": "calm", "strength": 2}], Steering(calm, 2)),
        ([{"vector": "bold", "strength": 3, "key_strength": 0.8}], Steering(bold, 3, 0.8)),
        (
            [{"vector": "bold", "strength": -2, "positions": 4, "layers": f"14-{late[-1]}"}],
            Steering(bold.at_layers(late), -2, 0.0, 4),
        ),
    ]


def test_a_mixed_batch_of_smollm2_is_what_generate_gives_token_for_token(url, smollm, vectors):
    asked = [(question, *setting) for question in QUESTIONS for setting in settings_of(smollm, vectors)]

    async def ask(client, question, entries):
        reply = await client.chat.completions.create(
            model=smollm.name,
            messages=[{"role": "user", "content": question}],
            max_tokens=TOKENS,
            extra_body={"steering": entries},
        )
        return reply.choices[0].message.content

    async def all_at_once():
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=300) as client:
            return await asyncio.gather(*(ask(client, question, entries) for question, entries, _ in asked))

    got = asyncio.run(all_at_once())
    expected = [generate(smollm, question, vector=setting, max_new_tokens=TOKENS) for question, _, setting in asked]
    assert got == expected
    assert len(set(got)) > len(QUESTIONS), "no setting changed anything"
