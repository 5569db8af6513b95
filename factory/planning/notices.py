"""What a person is told of a run's pairs and questions before it starts, one line each."""

from __future__ import annotations

from collections.abc import Sequence

from factory.benchmark.item import Task
from factory.benchmark.outcome import BASES, WITH_MEAN
from factory.config import Settings
from factory.evaluation.spec import EvaluationSpec
from factory.learning.schedule import FEWEST
from factory.pairs.pair import cut_batches
from factory.planning.supply import Supply, has_teacher
from factory.teacher.endpoint import OPENAI_KEY
from factory.teacher.spec import TeacherSpec


def describe_tasks(tasks: Sequence[Task], n_styles: int, evaluation: EvaluationSpec | None) -> list[str]:
    """How many answers of the target model the tasks of an evaluation take; nothing without tasks."""
    told = []
    n_conditions = len(WITH_MEAN if evaluation and evaluation.mean else BASES)
    for task in tasks:
        answers = n_styles * n_conditions * len(task.items)
        left_out = f"; {task.left_out} more are left out, which pairs ask" if task.left_out else ""
        told.append(
            f"task {task.name}: {answers} answers of the target model of up to {task.answer_tokens} tokens "
            f"({len(task.items)} items, {n_conditions} conditions per style{left_out})"
        )
    return told


def describe_gaps(settings: Settings, supplies: Sequence[Supply], asked: dict[str, str]) -> list[str]:
    """Questions that are not asked, or not held out, and examples that texts will lack, and why."""
    return [
        *describe_unasked(settings, supplies),
        *describe_repeats(merge_repeats(supplies)),
        *describe_asked(asked),
        *describe_small_batches(settings, supplies),
        *describe_few_lessons(settings, supplies),
    ]


def describe_small_batches(settings: Settings, supplies: Sequence[Supply]) -> list[str]:
    """Styles whose every batch has too few pairs for the examples of a fewshot text, one line each."""
    extraction = settings.extraction_config
    needed = extraction.n_shots + 1  # the last question is another pair's
    lines = []
    for style, supply in zip(settings.styles, supplies, strict=True):
        sizes = [len(batch) for batch in cut_batches(supply.pairs, extraction.batch_size)]
        starts = range(0, len(supply.missing), extraction.batch_size)
        sizes += [len(supply.missing[start : start + extraction.batch_size]) for start in starts]
        if extraction.recipe == "fewshot" and len(sizes) > 1 and max(sizes) < needed:
            lines.append(
                f"style {style!r}: texts will have fewer than {extraction.n_shots} examples, as their batches have "
                f"{max(sizes)} pairs at most, and {needed} are needed: raise batch_size (extraction_config), or lower "
                "n_shots"
            )
    return lines


def describe_few_lessons(settings: Settings, supplies: Sequence[Supply]) -> list[str]:
    """Styles that will be learned from so few pairs that nothing tells when to stop, one line each."""
    if not settings.learning.rounds:
        return []
    counts = {
        name: len(supply.pairs) + len(supply.missing) for name, supply in zip(settings.styles, supplies, strict=True)
    }
    return [
        f"style {name!r}: with fewer than {FEWEST} pairs none is left to validate, so what is learned may suit these "
        f"{count} alone: add pairs, or give --rounds 0 for the mean"
        for name, count in counts.items()
        if count < FEWEST
    ]


def describe_successor(teacher: TeacherSpec) -> list[str]:
    """That another model answers than the one that was asked for; nothing where it is the same."""
    if teacher.requested_model == teacher.model:
        return []
    return [
        f"teacher_model {teacher.requested_model!r} is retired at OpenAI: {teacher.model!r} takes its place "
        "(strict_model forbids it)"
    ]


def describe_starter(settings: Settings, supplies: Sequence[Supply]) -> list[str]:
    """That starter pairs are used, and how to have one's own written; nothing where none are."""
    starters = [supply for supply in supplies if supply.is_starter]
    if not starters:
        return []
    used = "pairs: the starter pairs that come with svf"
    if any(supply.missing for supply in starters):
        return [f"{used}, and new ones of your questions; regenerate_datasets: true leaves the starter pairs out"]
    key = "" if has_teacher(settings) else f" and a teacher ({settings.api_key_env or OPENAI_KEY} or base_url)"
    return [f"{used}. To add pairs for questions of your own: --questions FILE{key}"]


def describe_unasked(settings: Settings, supplies: Sequence[Supply]) -> list[str]:
    """How many questions that a person named get no pair in this run, why, and what to do; nothing without any."""
    n_unasked = len({question for supply in supplies for question in supply.unasked})
    if not n_unasked:
        return []
    many = f"{n_unasked} question{'s' * (n_unasked != 1)} of {_source(settings)}"
    if has_teacher(settings):
        return [f"the pairs that exist reach the limit before {many}: a higher --limit has them written"]
    variable = settings.api_key_env or OPENAI_KEY
    return [
        f"{many} have no pair, and there is no API key to have one written: this run goes on without them. "
        f"Set {variable} (or base_url for a server of your own), and the teacher writes their pairs"
    ]


def _source(settings: Settings) -> str:
    named = [
        "custom_questions_file" if settings.custom_questions_file else "",
        "additional_questions" if settings.additional_questions else "",
        "--extend" if settings.extend and not settings.custom_questions_file else "",
    ]
    return " and ".join(filter(None, named)) or "a style's own"


def describe_repeats(repeated: dict[str, str]) -> list[str]:
    """Questions that are not asked because they nearly repeat others, in one line; none without any."""
    if not repeated:
        return []
    return [f"questions that nearly repeat others are not asked, {len(repeated)} here: {_first_of(repeated)}"]


def describe_asked(asked: dict[str, str]) -> list[str]:
    """Questions that are not held out, as pairs ask them, in one line; none without any."""
    if not asked:
        return []
    return [f"held-out questions that pairs ask are left out of the evaluation, {len(asked)} here: {_first_of(asked)}"]


def _first_of(repeated: dict[str, str]) -> str:
    question, earlier = next(iter(repeated.items()))
    return f"{question!r} after {earlier!r}{', ...' if len(repeated) > 1 else ''}"


def merge_repeats(supplies: Sequence[Supply]) -> dict[str, str]:
    """The repeated questions of all styles: most often they are the same."""
    return {question: earlier for supply in supplies for question, earlier in supply.repeated.items()}
