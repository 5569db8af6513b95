"""Planning a run: from settings to a frozen specification and its batches, before anything starts.

Reads styles, questions and datasets, and refuses what cannot work. This module contacts neither
the teacher nor the broker, and loads no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from factory.config import Settings
from factory.errors import ConfigError, LayerError
from factory.files import shipped_file, today
from factory.log import log
from factory.pairs.dataset import dataset_path, load_dataset, load_questions
from factory.pairs.heldout import find_asked
from factory.pairs.pair import ContrastivePair, cut_batches, number_batches
from factory.pairs.repeats import SAME_QUESTION, find_repeats
from factory.pairs.styles import Style, load_style
from factory.planning.specify import held_out_file, plan_evaluation, plan_extraction, plan_teacher
from factory.queues import model_queue
from factory.run.spec import BatchSpec, RunSpec, StyleRun, new_run_id
from factory.store import Store
from factory.target.download import count_layers
from factory.target.layers import check_layers
from factory.teacher.endpoint import OPENAI_KEY, find_key
from factory.teacher.judge import judge_spec
from factory.teacher.spec import TeacherSpec
from factory.teacher.spending import require_price

BUILT_IN_QUESTIONS = "default.txt"


@dataclass(frozen=True)
class Plan:
    """A run that can start: its specification and the batches of each style.

    ``repeated``: questions that are not asked, each with the one that it nearly repeats. ``asked``:
    questions of the held-out file that do not measure, as a pair asks them, each with the pair's question.
    """

    spec: RunSpec
    batches: dict[str, list[BatchSpec]]
    repeated: dict[str, str]
    asked: dict[str, str]

    @property
    def needs_teacher(self) -> bool:
        """Whether any pair is still to be written."""
        return any(style_run.from_teacher for style_run in self.spec.styles)

    @property
    def warnings(self) -> list[str]:
        """What a person must know before the run starts."""
        if not self.needs_teacher:
            return describe_asked(self.asked)
        asked, resolved = self.spec.teacher.requested_model, self.spec.teacher.model
        retired = (
            f"teacher_model {asked!r} is retired at OpenAI: {resolved!r} takes its place (strict_model forbids it)"
        )
        told = [retired] if asked != resolved else []
        return [*told, *describe_repeats(self.repeated), *describe_asked(self.asked)]


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


@dataclass(frozen=True)
class StyleRequest:
    """One style that is asked for: with its own questions, or those of the run."""

    style: Style
    questions: tuple[str, ...]
    own_questions: bool
    limit: int | None


@dataclass(frozen=True)
class Supply:
    """What a style is made from: pairs that exist, and questions that are still to be answered.

    ``repeated``: questions that are not, each with the one that it nearly repeats.
    """

    metadata: dict[str, object]
    pairs: list[ContrastivePair]
    missing: list[str]
    repeated: dict[str, str]


def plan_run(
    settings: Settings,
    store: Store,
    output: Path,
    *,
    limit: int | None = None,
    questions: dict[str, list[str]] | None = None,
) -> Plan:
    """Freeze what a run will do. Pairs that exist are put into the store here.

    ``questions`` gives single styles their own; ``limit`` bounds the pairs a style.

    Raises:
        ConfigError: unknown style, no questions, a damaged dataset, a style that has neither
            a dataset nor a key to write one, or layers that the model does not have.
    """
    _check_layers(settings)
    requests = [_request(settings, name, limit, (questions or {}).get(name)) for name in settings.styles]
    supplies = [_supply_of(settings, request, output) for request in requests]  # refuses before anything is written
    teacher = plan_teacher(settings)
    for request, supply in zip(requests, supplies, strict=True):
        if supply.missing:
            _require_key(settings, request.style.name)
            require_price(teacher, settings.max_cost_usd)
    asked = asked_questions(settings, supplies)
    evaluation = plan_evaluation(settings, asked) if settings.output_config.generate_analysis_reports else None
    if evaluation and evaluation.judge_model:
        _require_judge(settings, judge_spec(teacher, evaluation.judge_model))
    style_runs: list[StyleRun] = []
    batches: dict[str, list[BatchSpec]] = {}
    for request, supply in zip(requests, supplies, strict=True):
        specs = _batch_specs(supply.pairs, supply.missing, store, settings)
        batches[request.style.name] = specs
        style_runs.append(
            StyleRun(
                style=request.style,
                n_pairs=sum(spec.n_pairs for spec in specs),
                n_batches=len(specs),
                from_teacher=bool(supply.missing),
                replaces_dataset=settings.regenerate_datasets,
                dataset_metadata=supply.metadata,
            )
        )
    spec = RunSpec(
        run_id=new_run_id(),
        styles=tuple(style_runs),
        extraction=plan_extraction(settings),
        teacher=teacher,
        evaluation=evaluation,
        max_failed_fraction=settings.max_failed_fraction,
        min_pairs=settings.min_pairs,
        max_cost_usd=settings.max_cost_usd,
        keep_differences=settings.output_config.save_intermediate_files,
        gpu_queue=model_queue(settings.target_model) if settings.gpu_queue == "model" else "gpu",
        date=today(),
    )
    return Plan(spec, batches, merge_repeats(supplies), asked)


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


def merge_repeats(supplies: Sequence[Supply]) -> dict[str, str]:
    """The repeated questions of all styles: most often they are the same."""
    return {question: earlier for supply in supplies for question, earlier in supply.repeated.items()}


def asked_questions(settings: Settings, supplies: Sequence[Supply]) -> dict[str, str]:
    """Questions of the held-out file that a pair of the run asks, exactly or nearly: each with the pair's question."""
    if not settings.output_config.generate_analysis_reports:
        return {}
    asked = dict.fromkeys(
        question for supply in supplies for question in (*(pair.question for pair in supply.pairs), *supply.missing)
    )
    return find_asked(load_questions(held_out_file(settings)), asked)


def plan_pairs(settings: Settings, output: Path, *, limit: int | None = None) -> list[tuple[Style, Supply]]:
    """For each style the pairs that exist already, and the questions that the teacher would be asked.

    Raises:
        ConfigError: unknown style, no questions, or a damaged dataset.
    """
    requests = [_request(settings, name, limit, None) for name in settings.styles]
    return [(request.style, _supply_of(settings, request, output)) for request in requests]


def _request(settings: Settings, name: str, limit: int | None, own: list[str] | None) -> StyleRequest:
    style = load_style(name, settings.styles_dir)
    return StyleRequest(
        style=style,
        questions=tuple(own or run_questions(settings)),
        own_questions=bool(own or settings.custom_questions_file),
        limit=limit,
    )


def run_questions(settings: Settings) -> list[str]:
    """The questions that pairs are written from: the file's, then the additional ones."""
    file = settings.custom_questions_file or shipped_file("questions", BUILT_IN_QUESTIONS)
    return list(dict.fromkeys([*load_questions(file), *settings.additional_questions]))


def _existing_pairs(
    settings: Settings, request: StyleRequest, output: Path
) -> tuple[dict[str, object], list[ContrastivePair]]:
    """The style's dataset: the one in the output folder, else the one that comes with the factory."""
    if settings.regenerate_datasets:
        return {}, []
    name = request.style.name
    own = dataset_path(output, name)
    shipped = shipped_file("datasets", own.name)
    candidates = [own] if request.own_questions else [own, shipped]
    for path in candidates:
        if path.is_file():
            metadata, pairs = load_dataset(path)
            log.info("style %s: using the dataset %s", name, path)
            return metadata, pairs
    return {}, []


def _supply_of(settings: Settings, request: StyleRequest, output: Path) -> Supply:
    """Which pairs of a dataset are used, and which questions are still to be answered."""
    metadata, pairs = _existing_pairs(settings, request, output)
    chosen = list(pairs[: request.limit])
    if pairs and not settings.extend:
        return Supply(metadata, chosen, [], {})
    answered = dict.fromkeys(pair.question for pair in pairs)
    missing = [question for question in request.questions if question not in answered]
    repeated = _repeated_questions((*answered, *missing), len(answered))
    room = None if request.limit is None else max(0, request.limit - len(chosen))
    return Supply(metadata, chosen, [question for question in missing if question not in repeated][:room], repeated)


@lru_cache(maxsize=8)  # most often all styles have the same questions
def _repeated_questions(questions: tuple[str, ...], n_answered: int) -> dict[str, str]:
    """Questions that nearly repeat earlier ones; the first ``n_answered`` have their pairs and stay."""
    repeats = find_repeats(questions, SAME_QUESTION, numbers_tell=True)
    return {questions[at]: questions[twin] for at, twin in repeats.items() if at >= n_answered}


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
    if find_key(settings.base_url, settings.api_key_env) is None:
        variable = settings.api_key_env or OPENAI_KEY
        raise ConfigError(
            f"style {style!r} has no dataset, and there is no API key to write one. Either set {variable} (or "
            f"--api-key, or base_url for a server of your own), or put {style}_pairs.jsonl into the datasets folder"
        )


def _require_judge(settings: Settings, judge: TeacherSpec) -> None:
    """Refuse an evaluation by a judge whom this machine could not ask, or whose price nobody knows."""
    if find_key(settings.base_url, settings.api_key_env) is None:
        variable = settings.api_key_env or OPENAI_KEY
        raise ConfigError(
            f"evaluation.judge_model is {judge.model!r}, and there is no API key to ask it: set {variable} (or "
            "--api-key, or base_url for a server of your own), or remove evaluation.judge_model"
        )
    require_price(judge, settings.max_cost_usd)
