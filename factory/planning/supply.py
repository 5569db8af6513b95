"""What a style is made from: pairs that exist, and questions that are still to be answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from factory.config import Settings
from factory.files import shipped_file
from factory.log import log
from factory.pairs.dataset import dataset_path, load_dataset, load_questions
from factory.pairs.heldout import find_asked
from factory.pairs.pair import ContrastivePair
from factory.pairs.repeats import SAME_QUESTION, find_repeats
from factory.pairs.styles import Style, load_style
from factory.planning.specify import held_out_file
from factory.teacher.endpoint import find_key

BUILT_IN_QUESTIONS = "default.txt"


@dataclass(frozen=True)
class StyleRequest:
    """One style that is asked for, and the questions its pairs are written from.

    ``named``: those of them that a person gave, which are never passed over in silence.
    ``alone``: they belong to this style alone, so the starter pairs are set aside.
    """

    style: Style
    questions: tuple[str, ...]
    named: tuple[str, ...]
    alone: bool
    limit: int | None


@dataclass(frozen=True)
class Supply:
    """What a style is made from: pairs that exist, and questions that are still to be answered.

    ``repeated``: questions that are not, each with the one that it nearly repeats. ``unasked``:
    questions that have no pair and get none in this run. ``is_starter``: the pairs came with the factory.
    """

    metadata: dict[str, object]
    pairs: list[ContrastivePair]
    missing: list[str]
    repeated: dict[str, str]
    unasked: list[str]
    is_starter: bool


def request_style(settings: Settings, name: str, limit: int | None, own: Sequence[str] = ()) -> StyleRequest:
    """The request for the style ``name``, with its ``own`` questions or those of the settings.

    Raises:
        UnknownStyle: there is no such style.
        ConfigError: a question file is missing or empty.
    """
    return StyleRequest(
        style=load_style(name, settings.styles_dir),
        questions=tuple(own or run_questions(settings)),
        named=tuple(own or named_questions(settings)),
        alone=bool(own),
        limit=limit,
    )


def run_questions(settings: Settings) -> list[str]:
    """The questions that pairs are written from: the file's, then the additional ones."""
    file = settings.custom_questions_file or shipped_file("questions", BUILT_IN_QUESTIONS)
    return list(dict.fromkeys([*load_questions(file), *settings.additional_questions]))


def named_questions(settings: Settings) -> list[str]:
    """The questions that a person named: all but those that come with the factory, unless ``extend`` wants them too."""
    if settings.custom_questions_file or settings.extend:
        return run_questions(settings)
    return list(dict.fromkeys(settings.additional_questions))


def find_supply(settings: Settings, request: StyleRequest, output: Path) -> Supply:
    """Which pairs of a dataset are used, and which questions are still to be answered.

    Raises:
        DatasetError: the style's dataset is damaged.
    """
    path = _dataset_of(settings, request, output)
    if path is None:
        missing, repeated = _new_questions(request.questions, ())
        return Supply({}, [], missing[: request.limit], repeated, [], is_starter=False)
    metadata, pairs = load_dataset(path)
    log.info("style %s: using the dataset %s", request.style.name, path)
    chosen = pairs[: request.limit]
    missing, repeated = _new_questions(request.named, tuple(dict.fromkeys(pair.question for pair in pairs)))
    room = len(missing) if request.limit is None else request.limit - len(chosen)
    if not has_teacher(settings):
        room = 0
    is_starter = path != dataset_path(output, request.style.name)
    return Supply(metadata, chosen, missing[:room], repeated, missing[room:], is_starter)


def has_teacher(settings: Settings) -> bool:
    """Whether somebody can be asked to write pairs: there is a key, or a server of one's own."""
    return find_key(settings.base_url, settings.api_key_env) is not None


def _dataset_of(settings: Settings, request: StyleRequest, output: Path) -> Path | None:
    """The style's dataset: the one in the output folder, else the one that comes with the factory."""
    own = dataset_path(output, request.style.name)
    shipped = [] if request.alone else [shipped_file("datasets", own.name)]
    present = [path for path in (own, *shipped) if path.is_file()]
    return present[0] if present and not settings.regenerate_datasets else None


def _new_questions(questions: Sequence[str], answered: tuple[str, ...]) -> tuple[list[str], dict[str, str]]:
    """Those that have no pair yet; and those that are left out, each with the one that it nearly repeats."""
    missing = [question for question in questions if question not in set(answered)]
    repeated = _repeated_questions((*answered, *missing), len(answered))
    return [question for question in missing if question not in repeated], repeated


@lru_cache(maxsize=8)  # most often all styles have the same questions
def _repeated_questions(questions: tuple[str, ...], n_answered: int) -> dict[str, str]:
    """Questions that nearly repeat earlier ones; the first ``n_answered`` have their pairs and stay."""
    repeats = find_repeats(questions, SAME_QUESTION, numbers_tell=True)
    return {questions[at]: questions[twin] for at, twin in repeats.items() if at >= n_answered}


def asked_questions(settings: Settings, supplies: Sequence[Supply]) -> dict[str, str]:
    """Questions of the held-out file that a pair of the run asks, exactly or nearly: each with the pair's question."""
    if not settings.output_config.generate_analysis_reports:
        return {}
    return find_asked(load_questions(held_out_file(settings)), questions_of(supplies))


def questions_of(supplies: Sequence[Supply]) -> list[str]:
    """The questions that the pairs of the supplies ask, or will ask; each once."""
    given = ((*(pair.question for pair in supply.pairs), *supply.missing) for supply in supplies)
    return list(dict.fromkeys(question for questions in given for question in questions))
