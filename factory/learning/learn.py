"""Learn a style's vector here, in this process. Workers take the same steps with a queue between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from factory.errors import StyleFailed
from factory.extraction.recipe import Recipe, usable_pairs
from factory.files import sha256_of
from factory.learning.objectives import OBJECTIVES, loop_unlikelihood
from factory.learning.prompts import Prompts
from factory.learning.reading import ResponseReader
from factory.learning.schedule import Part, Schedule
from factory.learning.spec import Learning
from factory.learning.state import PartSum, State, start_tensor, take_step
from factory.learning.targets import on_policy
from factory.pairs.heldout import QUESTION_HASHES, asked_hashes, hash_questions
from factory.pairs.pair import REPEATS, ContrastivePair
from factory.pairs.styles import load_style
from factory.target.layers import parse_layers
from factory.target.model import Target
from factory.vector.fit import check_fits
from factory.vector.recommendation import AS_LEARNED
from factory.vector.vector import SteeringVector

MEASURED = ("effect", "interval", "verdict", "evaluation", "certificate")  # of the start: untrue of what is learned
READS_ONE_TURN = Recipe("response_mean")  # for what makes a pair unusable: no few-shot text is read here


def learn_vector(
    pairs: Sequence[ContrastivePair],
    target: Target,
    *,
    start: SteeringVector | None = None,
    learning: Learning | None = None,
    layers: str | int | Sequence[int] | range = "all",
    after: Callable[[State], None] = lambda state: None,
) -> SteeringVector:
    """Learn a style's vector from its pairs, in this process.

        pairs = load_pairs("datasets/researcher_style_pairs.jsonl")
        target = load_target("smollm2-135m-instruct", device="cpu")
        mean = build_vector(pairs, target, layers="all")
        learned = learn_vector(pairs, target, start=mean, learning=Learning(rounds=60))
        print(generate(target, "Why is the sky blue?", vector=learned))
        print(learned.metadata["learning"]["curve"][-1])

    ``start`` is where learning begins, most often the mean difference of the same pairs; its layers
    are then those that learn, and its style is the vector's. None begins at zero, at ``layers``, for the
    pairs' style. Targets ``on_policy`` know a style's markers by the built-in style of that name; for another
    style, learn from what :func:`factory.learning.targets.on_policy` gives. ``after`` is told each state. The
    vector's own strength is 1, for keys and values alike.

    Raises:
        LayerError: the model does not have a layer.
        StyleFailed: no pair can be read, or a loss is not finite.
        UnknownStyle: targets are ``on_policy``, and the style is not built in.
        VectorError: ``start`` is for another model.
    """
    learning = learning or Learning()
    begun = start or zero_vector(target, pairs[0].style if pairs else "", layers)
    check_fits(begun, target)
    if learning.rounds == 0:
        return begun
    lessons = learnable_pairs(pairs, target)
    if learning.targets == "on_policy":
        lessons = on_policy(lessons, target, load_style(begun.style_name))
    schedule = Schedule.of(lessons, learning)
    if not schedule.taught:
        raise StyleFailed(f"style {begun.style_name!r}: no pair can be learned from")
    reader = ResponseReader(Prompts(target), begun.layer_indices, learning.response_tokens)
    state = State.start(start_tensor(begun, learning))
    while not state.is_done(learning):
        sums = [read_part(part, state.vector, reader, learning) for part in schedule.parts(state.round)]
        state = take_step(state, sums, learning)
        after(state)
    learned = learned_vector(begun, state, learning)
    return replace(learned, metadata=learned.metadata | _questions_asked(start, pairs))


def _questions_asked(start: SteeringVector | None, pairs: Sequence[ContrastivePair]) -> dict[str, list[str]]:
    """What a vector says of the questions that it was made from; nothing where ``start`` does not say its own."""
    before = asked_hashes(start.metadata) if start else []
    now = hash_questions(pair.question for pair in pairs)
    return {} if before is None else {QUESTION_HASHES: sorted({*before, *now})}


def zero_vector(target: Target, style: str, layers: str | int | Sequence[int] | range) -> SteeringVector:
    """A vector that does nothing, to begin from."""
    chosen = parse_layers(layers, target.n_layers)
    nothing = torch.zeros(len(chosen), *target.shape)
    return SteeringVector(style, nothing, nothing.clone(), chosen, target.name)


def learnable_pairs(pairs: Sequence[ContrastivePair], target: Target) -> list[ContrastivePair]:
    """The pairs that can be read, without those that nearly repeat others."""
    return [pair for pair in usable_pairs(pairs, target, READS_ONE_TURN)[0] if REPEATS not in pair.extra]


def read_part(part: Part, vector: Tensor, reader: ResponseReader, learning: Learning) -> PartSum:
    """The loss of a part's pairs at ``vector``, and its gradient unless the part only validates.

    The gradient is computed for the vector alone: the model's weights and the prompts have none.
    """
    objective = OBJECTIVES[learning.objective]
    learned = vector.to(reader.target.device).clone().requires_grad_(not part.validates)
    with torch.set_grad_enabled(not part.validates):
        loss = objective(reader, part.pairs, learned, learning)
        if learning.loop_penalty:
            loss = loss + learning.loop_penalty * loop_unlikelihood(reader, part.pairs, learned)
    if part.validates:
        return PartSum(float(loss.detach()), len(part.pairs))
    (gradient,) = torch.autograd.grad(loss, learned)
    return PartSum(float(loss.detach()), len(part.pairs), gradient.cpu())


def learned_vector(start: SteeringVector, state: State, learning: Learning) -> SteeringVector:
    """The best vector of a learning that is done, with all that decided it."""
    keys, values = state.best.clone()
    config = learning.model_dump(mode="json") | {"start_sha256": sha256_of(start.to_pt())}
    curve = {"curve": list(state.curve), "best_round": state.best_round, "rounds_taken": len(state.curve)}
    lasting = {name: value for name, value in start.metadata.items() if name not in MEASURED}
    return replace(
        start,
        key_vector=keys,
        value_vector=values,
        metadata={**AS_LEARNED.written_into(lasting), "learning": curve},
        extraction_config={**start.extraction_config, "learning": config},
    )
