"""Planning a run: from settings to a frozen specification and its batches, before anything starts.

Reads styles, questions and datasets, and refuses what cannot work. This module contacts neither
the teacher nor the broker, and loads no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from factory.config import Settings
from factory.errors import ConfigError, LayerError
from factory.files import today
from factory.pairs.pair import ContrastivePair, cut_batches, number_batches
from factory.pairs.styles import Style
from factory.planning.notices import describe_gaps, describe_starter, describe_successor
from factory.planning.specify import plan_evaluation, plan_extraction, plan_learning, plan_tasks, plan_teacher
from factory.planning.supply import (
    StyleRequest,
    Supply,
    asked_questions,
    find_supply,
    has_teacher,
    questions_of,
    request_style,
)
from factory.queues import model_queue
from factory.run.spec import BatchSpec, RunSpec, StyleRun, new_run_id
from factory.store import Store
from factory.target.download import count_layers
from factory.target.layers import check_layers
from factory.target.support import check_support
from factory.teacher.endpoint import OPENAI_KEY
from factory.teacher.judge import judge_spec
from factory.teacher.spec import TeacherSpec
from factory.teacher.spending import require_price


@dataclass(frozen=True)
class Plan:
    """A run that can start: its specification and the batches of each style.

    ``notes``: what its pairs are; ``warnings``: what a person must know before it starts. One line each.
    """

    spec: RunSpec
    batches: dict[str, list[BatchSpec]]
    notes: list[str]
    warnings: list[str]

    @property
    def needs_teacher(self) -> bool:
        """Whether any pair is still to be written."""
        return any(style_run.from_teacher for style_run in self.spec.styles)


def plan_run(
    settings: Settings,
    store: Store,
    output: Path,
    *,
    limit: int | None = None,
    questions: dict[str, list[str]] | None = None,
) -> Plan:
    """Freeze what a run will do. Pairs that exist are put into the store here.

    ``questions`` gives single styles their own; ``limit`` bounds the pairs per style.

    Raises:
        ConfigError: unknown style, no questions, a damaged dataset, a style that has neither
            a dataset nor a key to write one, or layers that the model does not have.
        TargetError: the target model's configuration rules out a vector.
    """
    check_support(settings.target_model)
    _check_layers(settings)
    own = questions or {}
    requests = [request_style(settings, name, limit, own.get(name, ())) for name in settings.styles]
    supplies = [find_supply(settings, request, output) for request in requests]  # refuses before anything is written
    teacher = _plan_teacher(settings, requests, supplies)
    asked = asked_questions(settings, supplies)
    evaluation = plan_evaluation(settings, asked) if settings.output_config.generate_analysis_reports else None
    if evaluation and evaluation.judge_model:
        _require_judge(settings, judge_spec(teacher, evaluation.judge_model))
    tasks = plan_tasks(settings, questions_of(supplies)) if evaluation else ()
    styles = [request.style for request in requests]
    batches = {
        style.name: _batch_specs(supply.pairs, supply.missing, store, settings)
        for style, supply in zip(styles, supplies, strict=True)
    }
    style_runs = [
        _style_run(style, supply, batches[style.name], replaces=settings.regenerate_datasets)
        for style, supply in zip(styles, supplies, strict=True)
    ]
    spec = RunSpec(
        run_id=new_run_id(),
        styles=tuple(style_runs),
        extraction=plan_extraction(settings),
        teacher=teacher,
        learning=plan_learning(settings),
        evaluation=evaluation,
        tasks=tasks,
        max_failed_fraction=settings.max_failed_fraction,
        min_pairs=settings.min_pairs,
        max_cost_usd=settings.max_cost_usd,
        keep_differences=settings.output_config.save_intermediate_files,
        gpu_queue=model_queue(settings.target_model) if settings.gpu_queue == "model" else "gpu",
        date=today(),
    )
    successor = describe_successor(teacher) if any(supply.missing for supply in supplies) else []
    warnings = [*successor, *describe_gaps(settings, supplies, asked)]
    return Plan(spec, batches, describe_starter(settings, supplies), warnings)


def _plan_teacher(settings: Settings, requests: Sequence[StyleRequest], supplies: Sequence[Supply]) -> TeacherSpec:
    """Who writes the pairs that are missing; there must be somebody, at a price that is known if there is a cap."""
    teacher = plan_teacher(settings)
    for request, supply in zip(requests, supplies, strict=True):
        if supply.missing:
            _require_key(settings, request.style.name)
            require_price(teacher, settings.max_cost_usd)
    return teacher


def _style_run(style: Style, supply: Supply, batches: Sequence[BatchSpec], *, replaces: bool) -> StyleRun:
    """What the run will do about one style; ``replaces``: its dataset is written anew."""
    return StyleRun(
        style=style,
        n_pairs=sum(batch.n_pairs for batch in batches),
        n_batches=len(batches),
        from_teacher=bool(supply.missing),
        replaces_dataset=replaces,
        dataset_metadata=supply.metadata,
    )


def _check_layers(settings: Settings) -> None:
    """Refuse layers that the model does not have, as far as its files on this machine tell."""
    n_layers = count_layers(settings.target_model)
    check_layers(settings.extraction_config.target_layers, n_layers)
    if not settings.output_config.generate_analysis_reports:
        return
    for layers in settings.evaluation.layer_sets:
        try:
            check_layers(layers, n_layers)
        except LayerError as error:
            raise LayerError(f"evaluation.layer_sets: {error}; name layers of this model, or 'all'") from None


def _batch_specs(
    pairs: Sequence[ContrastivePair], questions: Sequence[str], store: Store, settings: Settings
) -> list[BatchSpec]:
    size = settings.extraction_config.batch_size
    specs: list[BatchSpec] = []
    for batch in cut_batches(pairs, size):
        numbered = number_batches(batch, len(batch), start=len(specs))
        key = store.put_json("pairs", {"pairs": [pair.to_json() for pair in numbered], "rejected": []})
        specs.append(BatchSpec(number=len(specs), pairs_key=key, n_pairs=len(batch)))
    for start in range(0, len(questions), size):
        some = tuple(questions[start : start + size])
        specs.append(BatchSpec(number=len(specs), questions=some, n_pairs=len(some)))
    return specs


def _require_key(settings: Settings, style: str) -> None:
    if not has_teacher(settings):
        variable = settings.api_key_env or OPENAI_KEY
        raise ConfigError(
            f"style {style!r} has no dataset, and there is no API key to write one. Either set {variable} (or "
            f"--api-key, or base_url for a server of your own), or put {style}_pairs.jsonl into the datasets folder"
        )


def _require_judge(settings: Settings, judge: TeacherSpec) -> None:
    """Refuse an evaluation by a judge whom this machine could not ask, or whose price nobody knows."""
    if not has_teacher(settings):
        variable = settings.api_key_env or OPENAI_KEY
        raise ConfigError(
            f"evaluation.judge_model is {judge.model!r}, and there is no API key to ask it: set {variable} (or "
            "--api-key, or base_url for a server of your own), or remove evaluation.judge_model"
        )
    require_price(judge, settings.max_cost_usd)
