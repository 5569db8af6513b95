"""The rounds of learning within a run, from store to store.

A round is a chord: its parts give gradient sums on queue ``gpu``, its body takes the step on queue
``reduce``. A sum lies under the hash of all that decides it, a state under the hash of the state
before and of the sums that made it; so a part that comes again costs nothing, and a resumed run
goes on from its last state. torch is imported where it is used.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from factory.config import Settings
from factory.errors import StoreError, StyleFailed
from factory.files import hash_of, sha256_of
from factory.learning.schedule import Part, Schedule
from factory.learning.spec import PLACES, Learning
from factory.log import log
from factory.pairs.pair import ContrastivePair, hash_pairs
from factory.run.artifacts import batch_of
from factory.run.entries import Ended, Extracted, Gradient, Learned, NotLearned, Reduced, Round
from factory.run.page import Page
from factory.steps.resident import prompts_of, target_of
from factory.store import Store

if TYPE_CHECKING:
    from factory.learning.state import PartSum, State
    from factory.target.model import Target
    from factory.vector.vector import SteeringVector

LEARNING_VERSION = 2  # of the code that reads: raised where a change of it may change a number


def begin_learning(page: Page, mean: bytes, extracted: Sequence[Extracted], repeated: Mapping[str, str]) -> None:
    """Keep what learning begins with: the ``mean``, and the pairs that can be learned from.

    ``repeated`` pairs teach nothing, nor do those of batches that were given up.
    """
    left_out = {*repeated, *(pair_id for entry in extracted for pair_id in entry.unlearnable)}
    read = [batch_of(page, number)[0] for number, entry in enumerate(extracted) if entry.key is not None]
    lessons = [pair.to_json() for pairs in read for pair in pairs if pair.pair_id not in left_out]
    page.store.write_json(page.lessons_key, {"pairs": lessons})
    page.store.write(page.mean_key, mean)


def parts_of(page: Page, number: int) -> list[Part]:
    """What round ``number`` reads, part by part."""
    return _schedule_of(page).parts(number)


def _schedule_of(page: Page) -> Schedule:
    return _schedule(page.store.url, page.lessons_key, _learning(page))


def next_round(page: Page) -> int | None:
    """The round that is to be taken next; None if the run does not learn, or the vector is learned.

    The last round comes again until its vector is made.
    """
    if page.ledger.spec.learning is None or page.learned():
        return None
    taken = page.all_rounds()
    return len(taken) - 1 if taken and taken[-1].is_last else len(taken)


def missing_places(page: Page, number: int) -> list[int]:
    """Where the parts of round ``number`` that are not read yet will be written down."""
    if page.round(number):
        return []
    entries = ((place, page.gradient(place)) for place in _places(page, number))
    return [place for place, entry in entries if entry is None or not page.store.exists(entry.key)]


def _places(page: Page, number: int) -> list[int]:
    """Where the parts of round ``number`` are written down: part 2 of round 5 as 5002."""
    return [number * PLACES + at for at in range(len(parts_of(page, number)))]


def learn_part_step(page: Page, place: int, settings: Settings) -> None:
    """Read one part of a round, and note where its sum lies. ``place``: see :func:`_places`.

    Raises:
        ConfigError, TargetError: the model cannot be used here.
        StoreError: the state before this round, or the part itself, is missing.
    """
    number = place // PLACES
    if place not in missing_places(page, number):
        return
    from factory.learning.learn import read_part
    from factory.learning.reading import ResponseReader

    learning, mean, vector = _learning(page), mean_of(page), _state_before(page, number).vector
    part = parts_of(page, number)[place % PLACES]
    target = target_of(page.ledger.spec, settings)
    part = _with_targets(part, page, target)
    key = _sum_key(part, sha256_of(vector.numpy().tobytes()), learning, target, mean.layer_indices)
    seconds = None  # it had been read before
    if not page.store.exists(key):
        started = time.monotonic()
        reader = ResponseReader(prompts_of(target), mean.layer_indices, learning.response_tokens)
        _put_sum(page, key, read_part(part, vector, reader, learning))
        seconds = round(time.monotonic() - started, 3)
    memory = round(target.peak_memory_mib())
    page.record("gradient", place, Gradient(key=key, n_pairs=len(part.pairs), seconds=seconds, peak_memory_mib=memory))


def _with_targets(part: Part, page: Page, target: Target) -> Part:
    """``part``, with the model's own answers where the run learns from them.

    Whoever needs them first makes and keeps them; two that begin at once make the same.
    """
    if _learning(page).targets == "written":
        return part
    from factory.learning.targets import on_policy

    lessons = _lessons(page.store.url, page.lessons_key)
    made_of = [LEARNING_VERSION, hash_pairs(lessons), page.style.model_dump(mode="json"), *_model_of(target)]
    key = f"targets/{hash_of(made_of)}.json"
    own = page.store.read_json(key)
    if own is None:
        own = {pair.pair_id: pair.positive_response for pair in on_policy(lessons, target, page.style)}
        page.store.write_json(key, own)
    pairs = tuple(replace(pair, positive_response=own[pair.pair_id]) for pair in part.pairs)
    return replace(part, pairs=pairs)


def _model_of(target: Target) -> list[str]:
    return [target.name, target.revision, target.dtype]


def take_round_step(page: Page, number: int) -> None:
    """Take the step of round ``number``; after the last, the learned vector is the style's.

    Without an evaluation to come, the style ends then.

    Raises:
        StoreError: a part is missing; the style can be resumed.
    """
    if page.result:
        return
    try:
        taken = page.round(number) or _take(page, number)
    except StyleFailed as error:
        give_up_learning(page, str(error))
        return
    if taken.is_last:
        _conclude(page, number)


def give_up_learning(page: Page, reason: str) -> None:
    """End a style from whose mean nothing could be learned: the mean is its vector."""
    reduced, mean = page.reduced(), page.store.read(page.mean_key)
    if reduced and mean and not page.result:
        log.error("learning failed: %s", reason)
        page.store.write(page.vector_key, mean)
        message = f"made, but not learned: {reason}. The vector is the mean, not evaluated; 'svf resume' tries again"
        page.finish(Ended.after(reduced, NotLearned(learning="failed", message=message)))


def _take(page: Page, number: int) -> Round:
    from factory.learning.state import take_step

    if not _schedule_of(page).taught:
        raise StyleFailed("no pair can be learned from (their responses cannot be read, or repeat others)")
    learning, entries = _learning(page), [page.gradient(place) for place in _places(page, number)]
    keys = [entry.key for entry in entries if entry]
    if len(keys) < len(entries):
        raise StoreError(f"style {page.name!r}: parts of round {number} are not read yet; 'svf resume' reads them")
    state = take_step(_state_before(page, number), [_require_sum(page, key) for key in keys], learning)
    key = _state_key(page, number, keys)
    page.store.write_sealed(key, state.to_bytes())
    last = state.curve[-1]
    taken = Round(key=key, is_last=state.is_done(learning), loss=last["loss"], validation=last["validation"])
    page.record("round", number, taken)
    log.info("round %d: loss %s, validation %s", number, taken.loss, taken.validation)
    return taken


def _conclude(page: Page, number: int) -> None:
    """Make the vector of the state after round ``number``, the last."""
    if page.learned() is None:
        from factory.learning.learn import learned_vector

        state = _state_before(page, number + 1)
        content = learned_vector(mean_of(page), state, _learning(page)).to_pt()
        page.store.write(page.vector_key, content)
        entry = Learned(vector_sha256=sha256_of(content), rounds=len(state.curve), best_round=state.best_round)
        page.record("learned", 0, entry)
        log.info("learned in %d rounds, the best was %d", entry.rounds, entry.best_round)
    if page.ledger.spec.evaluation is None:
        page.finish(Ended.after(*made_of(page)))


def made_of(page: Page) -> tuple[Reduced, Learned] | tuple[Reduced]:
    """What a style whose vector is made says of it: its mean, and what was learned from there.

    Raises:
        StoreError: the vector is not made.
    """
    reduced, learned = page.reduced(), page.learned()
    if reduced is None:
        raise StoreError(f"the vector of style {page.name!r} is not made yet; 'svf resume' makes it")
    return (reduced, learned) if learned else (reduced,)


def _learning(page: Page) -> Learning:
    learning = page.ledger.spec.learning
    if learning is None:
        raise StoreError(f"run {page.ledger.run_id} learns nothing")
    return learning


def mean_of(page: Page) -> SteeringVector:
    """The mean from which a style's learning begins.

    Raises:
        StoreError: it is gone.
    """
    from factory.vector.vector import SteeringVector

    content = page.store.read(page.mean_key)
    if content is None:
        raise StoreError(f"the mean of style {page.name!r} is gone from the store; a new run makes it")
    return SteeringVector.from_bytes(content, source=f"{page.name}.pt")


@lru_cache(maxsize=64)  # it never changes once it is made
def _mean_sha256(url: str, key: str) -> str:
    return sha256_of(Store(url).read(key) or b"")


@lru_cache(maxsize=8)  # nor does what is learned from
def _schedule(url: str, lessons_key: str, learning: Learning) -> Schedule:
    return Schedule.of(_lessons(url, lessons_key), learning)


def _lessons(url: str, lessons_key: str) -> list[ContrastivePair]:
    return [ContrastivePair.from_json(line) for line in Store(url).require_json(lessons_key)["pairs"]]


def _state_before(page: Page, number: int) -> State:
    """The state before round ``number``."""
    from factory.learning.state import State, start_tensor

    if number == 0:
        return State.start(start_tensor(mean_of(page), _learning(page)))
    entry = page.round(number - 1)
    raw = page.store.read_sealed(entry.key) if entry else None
    if raw is None:
        raise StoreError(
            f"style {page.name!r}: the state before round {number} is gone from the store; a new run takes the "
            "rounds again, from the sums that are still there"
        )
    return State.from_bytes(raw)


def _sum_key(part: Part, vector_sha256: str, learning: Learning, target: Target, layers: Sequence[int]) -> str:
    """Where a part's sum lies: a hash of everything that decides it."""
    read = {
        "version": LEARNING_VERSION,
        "pairs": hash_pairs(part.pairs),
        "validates": part.validates,
        "vector": vector_sha256,
        "learning": [learning.objective, learning.penalty, learning.loop_penalty, learning.response_tokens],
        "prompts": [target.prompt_ids([{"role": "user", "content": pair.question}]) for pair in part.pairs],
        "model": _model_of(target),
        "layers": list(layers),
    }
    return f"gradients/{hash_of(read)}.safetensors"


def _state_key(page: Page, number: int, sums: Sequence[str]) -> str:
    """Where the state after round ``number`` lies: a hash of the state before, and of the sums that were added."""
    before = page.round(number - 1) if number else None
    made_of = {
        "version": LEARNING_VERSION,
        "before": before.key if before else _mean_sha256(page.store.url, page.mean_key),
        "sums": list(sums),
        "learning": _learning(page).model_dump(mode="json"),
    }
    return f"states/{hash_of(made_of)}.safetensors"


def _put_sum(page: Page, key: str, found: PartSum) -> None:
    from safetensors.torch import save

    header = json.dumps({"loss": found.loss, "n_pairs": found.n_pairs})
    tensors = {} if found.gradient is None else {"gradient": found.gradient.contiguous()}
    page.store.write_sealed(key, save(tensors, metadata={"sum": header}))


def _require_sum(page: Page, key: str) -> PartSum:
    """The sum of a part that was read.

    Raises:
        StoreError: it is gone, or damaged.
    """
    from safetensors.torch import load

    from factory.learning.state import PartSum

    raw = page.store.read_sealed(key)
    if raw is None:
        raise StoreError(f"{page.store.path(key)} is missing: a part that was read is gone; 'svf resume' reads it")
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(json.loads(raw[8 : 8 + length])["__metadata__"]["sum"])
    return PartSum(header["loss"], header["n_pairs"], load(raw).get("gradient"))
