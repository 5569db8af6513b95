"""The engine: whatever shares the batch, an answer is what ``generate`` gives."""

import threading

import pytest
import torch

from factory.serving.engine import Busy, Engine, Failed, Generation
from factory.serving.row import Sampling, Text, _overlap
from factory.vector.steer import Steering, add_vector, generate, steered_cache
from factory.vector.vector import SteeringVector


def random_vector(target, seed, layers=None):
    torch.manual_seed(seed)
    layers = layers or list(range(target.n_layers))
    shape = (len(layers), *target.shape)
    return SteeringVector(f"random_{seed}", torch.randn(shape), torch.randn(shape), layers, target.name)


def mixed_steerings(target):
    first, second = random_vector(target, 1), random_vector(target, 2, [1, 3])
    return [
        None,
        Steering(first, 2.0),
        Steering(second, 3.0, 0.8),
        Steering(first, -1.0, 0.5, 3),
        Steering(first.at_layers([0, 2]), 4.0, 0.0, 2),
    ]


class Heard:
    """What a job's listener hears."""

    def __init__(self):
        self.pieces, self.done = [], threading.Event()

    def __call__(self, piece):
        self.pieces.append(piece)
        if isinstance(piece, Failed) or piece.reason:
            self.done.set()

    def text(self):
        assert self.done.wait(60)
        return "".join(piece.text for piece in self.pieces)


def ask(engine, question, steering=(), max_tokens=24, **sampling):
    heard = Heard()
    prompt = [*engine.target.prompt_ids([{"role": "user", "content": question}]), engine.target.neutral_id]
    job = Generation(prompt, tuple(steering), Sampling(max_tokens, **sampling), heard)
    engine.submit(job)
    return heard, job


@pytest.fixture
def engine(target):
    with Engine(target, max_batch=6, max_queue=64) as engine:
        yield engine


def test_answers_in_a_mixed_batch_are_those_of_generate(engine, target):
    asked = []
    for number in range(20):  # more than rows: they join as others leave
        steering = mixed_steerings(target)[number % 5]
        question, length = "Why is the sky blue? " * (1 + number % 7), 5 + 9 * (number % 4)
        asked.append((question, steering, length, ask(engine, question, [steering] if steering else [], length)[0]))
    for question, steering, length, heard in asked:
        assert heard.text() == generate(target, question, vector=steering, max_new_tokens=length)


def test_a_row_keeps_its_text_when_longer_ones_join_and_the_cache_grows(engine, target):
    short, _ = ask(engine, "Hi", max_tokens=400)
    long, _ = ask(engine, "tell me more " * 200, max_tokens=300)
    assert short.text() == generate(target, "Hi", max_new_tokens=400)
    assert long.text() == generate(target, "tell me more " * 200, max_new_tokens=300)


def test_several_vectors_add_up(engine, target):
    steerings = [s for s in mixed_steerings(target) if s]
    heard, _ = ask(engine, "Why?", steerings)
    ids = target.tensor([[*target.prompt_ids([{"role": "user", "content": "Why?"}]), target.neutral_id]])
    mask = torch.ones_like(ids)
    with torch.inference_mode():
        cache = steered_cache(target, ids, mask, None)
        for steering in reversed(steerings):
            add_vector(target, cache, torch.arange(ids.shape[1] - 1)[None], steering)
        output = target.model.generate(
            input_ids=ids, attention_mask=mask, past_key_values=cache, max_new_tokens=24, do_sample=False
        )
    expected = target.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True).strip()
    assert heard.text() == expected


def test_a_job_that_is_cancelled_frees_its_row_and_the_others_go_on(engine, target):
    endless = [ask(engine, "Hi", max_tokens=5000)[1] for _ in range(6)]
    waiting, _ = ask(engine, "Why?", max_tokens=8)
    endless[2].cancel()
    assert waiting.text() == generate(target, "Why?", max_new_tokens=8)
    for job in endless:
        job.cancel()


def test_the_same_seed_gives_the_same_answer_in_any_company(engine):
    alone = ask(engine, "Why?", temperature=1.0, seed=3)[0].text()
    among = [ask(engine, "Why?", temperature=1.0, top_p=1.0, seed=seed)[0] for seed in (1, 2, 3)]
    texts = [heard.text() for heard in among]
    assert texts[2] == alone
    assert len(set(texts)) == 3


def test_a_full_queue_refuses_and_a_closed_engine_finishes_what_it_has(target):
    engine = Engine(target, max_batch=1, max_queue=2)
    heard = [ask(engine, "Hi")[0] for _ in range(2)]
    with pytest.raises(Busy, match="2 requests wait"):
        ask(engine, "Hi")
    engine.start()
    engine.close()
    assert [h.text() for h in heard] == [generate(target, "Hi", max_new_tokens=24)] * 2
    with pytest.raises(Busy, match="about to end"):
        ask(engine, "Hi")


def test_a_stop_string_ends_the_answer_before_it_and_never_shows(engine, target):
    whole = generate(target, "Why?", max_new_tokens=24)
    stop = whole[10:13]
    heard, _ = ask(engine, "Why?", stop=(stop,))
    assert heard.text() == whole[: whole.find(stop)].rstrip()
    assert heard.pieces[-1].reason == "stop"


def test_pieces_of_text_join_to_the_whole(target):
    for words in ("Grüße, 世界 🌍! Well\n\n  then", "  a b ", "é" * 9):
        ids = target.text_ids(words)
        text = Text(target, ())
        pieces = [text.add(token) for token in ids]
        assert "".join([*pieces, text.finish()]) == words.strip()
        assert not any("\ufffd" in piece for piece in pieces)


def test_text_that_may_begin_a_stop_string_is_held_back():
    assert [_overlap("one\nQ", "\nQ:"), _overlap("one", "\nQ:"), _overlap("\n", "\nQ:")] == [2, 0, 1]
