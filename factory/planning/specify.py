"""From settings to specifications: what of a configuration is frozen with a run."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from factory.benchmark.item import Task
from factory.benchmark.sources import load_task
from factory.config import Settings
from factory.errors import ConfigError
from factory.evaluation.spec import EvaluationSpec, MeanSweep
from factory.extraction.spec import ExtractionSpec
from factory.files import shipped_file
from factory.learning.spec import Learning
from factory.pairs.dataset import load_questions
from factory.pairs.heldout import hash_questions
from factory.teacher.spec import TeacherSpec
from factory.vector.recommendation import AS_LEARNED

HELD_OUT_QUESTIONS = "heldout.txt"
TASK_SEED = 0  # of items that are made or drawn: as of svf benchmark


def plan_extraction(settings: Settings) -> ExtractionSpec:
    """What the target model will read of a pair, and which states are taken."""
    from_file = settings.extraction_config.model_dump(exclude={"batch_size"})
    return ExtractionSpec(
        target_model=settings.target_model, dtype=settings.dtype, quantize=settings.quantize, **from_file
    )


def plan_teacher(settings: Settings) -> TeacherSpec:
    """Who will write the pairs, and how they will be asked.

    Raises:
        ConfigError: the model is retired and ``strict_model`` is set.
    """
    return TeacherSpec(
        model=resolve_model(settings),
        requested_model=settings.teacher_model,
        base_url=settings.base_url,
        temperature=settings.temperature,
        max_response_tokens=settings.max_response_tokens,
        reasoning_effort=settings.reasoning_effort,
        judge_model=resolve_judge(settings, "judge_model", settings.judge_model),
        seed=settings.seed,
        pricing=settings.pricing.model_dump() if settings.pricing else None,
        calls_per_minute=settings.calls_per_minute,
        tokens_per_minute=settings.tokens_per_minute,
    )


def resolve_model(settings: Settings) -> str:
    """The teacher model that will answer: a retired OpenAI model's successor, else what was asked for.

    Raises:
        ConfigError: the model is retired and ``strict_model`` is set.
    """
    return _resolve(settings, "teacher_model", settings.teacher_model)


def resolve_judge(settings: Settings, key: str, asked: str | None) -> str | None:
    """The same for a judge, asked for by ``key``; None without one."""
    return None if asked is None else _resolve(settings, key, asked)


def _resolve(settings: Settings, key: str, asked: str) -> str:
    successor = settings.retired_models.get(asked) if settings.base_url is None else None
    if successor is None:
        return asked
    if settings.strict_model:
        raise ConfigError(f"{key} {asked!r} is retired at OpenAI, and strict_model is set: use {successor!r}")
    return successor


def held_out_file(settings: Settings) -> str:
    """Where the held-out questions stand."""
    return settings.evaluation.questions_file or str(shipped_file("questions", HELD_OUT_QUESTIONS))


def plan_learning(settings: Settings) -> Learning | None:
    """Freeze how vectors are learned from their means; None where the means are the vectors."""
    wanted = settings.learning
    return Learning(**wanted.model_dump(include=set(Learning.model_fields))) if wanted.rounds else None


def plan_tasks(settings: Settings, asked: Iterable[str] = ()) -> tuple[Task, ...]:
    """Freeze the items of ``evaluation.tasks``; those that ``asked`` questions of pairs ask are left out.

    Raises:
        BenchmarkError: an unknown task, or too few items are left.
        MissingExtra: the package with a task is not installed.
    """
    wanted = settings.evaluation
    if not wanted.tasks:
        return ()
    hashes = hash_questions(asked)
    return tuple(load_task(name, limit=wanted.task_limit, seed=TASK_SEED).without(hashes) for name in wanted.tasks)


def plan_evaluation(settings: Settings, asked: Collection[str] = ()) -> EvaluationSpec:
    """Freeze how vectors are evaluated: which held-out questions choose a setting, and which measure it.

    With learning the sweep that was asked for is the mean's, and the learned vector has its own.
    ``asked``: questions of the file that pairs ask, and so are not held out; they are left out.

    Raises:
        ConfigError: the question file is missing, or fewer than three questions are left of it.
    """
    wanted = settings.evaluation
    source = held_out_file(settings)
    questions = [question for question in load_questions(source) if question not in asked]
    if len(questions) < 3:
        left_out = f" that no pair asks ({len(asked)} are asked by pairs)" if asked else ""
        raise ConfigError(
            f"question file {source!r} holds {len(questions)} questions{left_out}; evaluation needs 3 or more: "
            "add some, or set evaluation.questions_file to another file"
        )
    n_choice = min(wanted.choice_limit, len(questions) // 3)
    choice = tuple(questions[-n_choice:])
    spec = EvaluationSpec(
        questions=tuple(questions[:-n_choice][: wanted.limit]),
        choice_questions=choice,
        probe_questions=choice[: wanted.probe_limit],
        cells=wanted.cells,
        max_loops=wanted.max_loops,
        key_strengths=tuple(wanted.key_strengths),
        strengths=tuple(wanted.strengths),
        positions=tuple(wanted.positions),
        layer_sets=tuple(wanted.layer_sets),
        max_new_tokens=wanted.max_new_tokens,
        thinking_tokens=wanted.thinking_tokens,
        judge_model=resolve_judge(settings, "evaluation.judge_model", wanted.judge_model),
    )
    if settings.learning.rounds == 0:
        return spec
    of_mean = MeanSweep.model_validate({name: getattr(spec, name) for name in MeanSweep.model_fields})
    return as_learned(spec, settings.learning.strengths).model_copy(update={"mean": of_mean})


def as_learned(spec: EvaluationSpec, strengths: Sequence[float]) -> EvaluationSpec:
    """The same for a learned vector, added as it was learned: keys too, at one position. No mean is measured."""
    sweep = MeanSweep(
        strengths=tuple(strengths),
        key_strengths=(AS_LEARNED.key_strength,),
        positions=(AS_LEARNED.positions,),
        layer_sets=("all",),
    )
    return spec.model_copy(update={**dict(sweep), "mean": None})
