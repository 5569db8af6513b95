"""Dataset files of pairs, and files of questions: read, checked and written."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from factory.errors import ConfigError, DatasetError
from factory.files import read_written
from factory.pairs.pair import ContrastivePair


def load_dataset(path: str | Path) -> tuple[dict[str, object], list[ContrastivePair]]:
    """Read a dataset's metadata and pairs.

    Raises:
        DatasetError: missing file; a line that is not JSON, lacks a field or repeats a pair (named
            by file and line); no pairs.
    """
    path = Path(path)
    # Not splitlines: JSON leaves line separators such as U+2028 unescaped inside a text.
    lines = read_written(path, "dataset", DatasetError).split("\n")
    metadata: dict[str, object] = {}
    pairs: dict[str, ContrastivePair] = {}
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        line = _parse_line(text, where=f"{path}, line {number}")
        if line.get("type") == "metadata":
            metadata = line
            continue
        try:
            pair = ContrastivePair.from_json(line)
        except ValueError as error:
            raise DatasetError(f"{path}, line {number}: {error}") from None
        if pair.pair_id in pairs:
            raise DatasetError(f"{path}, line {number}: pair_id {pair.pair_id!r} appears twice")
        pairs[pair.pair_id] = pair
    if not pairs:
        raise DatasetError(f"dataset {str(path)!r} holds no pairs")
    return metadata, list(pairs.values())


def _parse_line(text: str, where: str) -> dict[str, object]:
    try:
        line = json.loads(text)
    except json.JSONDecodeError as error:
        raise DatasetError(f"{where}: not JSON ({error.msg})") from None
    if not isinstance(line, dict):
        raise DatasetError(f"{where}: expected a JSON object, found {type(line).__name__}")
    return line


def load_pairs(path: str | Path) -> list[ContrastivePair]:
    """Read a dataset's pairs, in the order of the file.

    Raises:
        DatasetError: see :func:`load_dataset`.
    """
    return load_dataset(path)[1]


def format_dataset(pairs: Iterable[ContrastivePair], metadata: Mapping[str, object]) -> str:
    """The text of a dataset file: the metadata line, then one line per pair."""
    pairs = list(pairs)
    head = {"type": "metadata", **metadata, "total_pairs": len(pairs)}
    lines = [head, *(pair.to_json() for pair in pairs)]
    return "".join(_dump(line) + "\n" for line in lines)


def extend_dataset(known: str, made: str) -> str:
    """The text of a dataset file that has every line of ``known``, then the pairs that only ``made`` has.

    A dataset is a person's file: it never loses a pair, whatever part of it a run used. The metadata
    are those of ``made``, with the count of what the file then holds. New pairs stay in batches of
    their own: where the file has their numbers already, they get those behind its last.
    """
    lines = [line for line in known.removeprefix("\ufeff").split("\n") if line.strip()]
    kept = [line for line in lines if json.loads(line).get("type") != "metadata"]
    there = [json.loads(line) for line in kept]
    present = {str(pair["pair_id"]) for pair in there}
    head, *new = (json.loads(line) for line in made.split("\n") if line.strip())
    added = _numbered_behind(there, [pair for pair in new if str(pair["pair_id"]) not in present])
    metadata = head | {"total_pairs": len(kept) + len(added)}
    return "".join(line + "\n" for line in [_dump(metadata), *kept, *map(_dump, added)])


def _dump(line: Mapping[str, object]) -> str:
    return json.dumps(line, ensure_ascii=False)


def _numbered_behind(
    known: Sequence[Mapping[str, object]], added: Sequence[Mapping[str, object]]
) -> Sequence[Mapping[str, object]]:
    """``added`` lines with batch numbers that no line of ``known`` has; those that share a batch still do."""
    taken, theirs = set(_batches_of(known)), list(dict.fromkeys(_batches_of(added)))
    if taken.isdisjoint(theirs):
        return added
    numbers: dict[object, int] = {batch: max(taken) + 1 + at for at, batch in enumerate(theirs)}
    return [{**line, "batch": numbers[line["batch"]]} if line.get("batch") in numbers else line for line in added]


def _batches_of(lines: Iterable[Mapping[str, object]]) -> Iterable[int]:
    return (batch for line in lines if isinstance(batch := line.get("batch"), int))


def load_questions(path: str | Path) -> list[str]:
    """Read a question file: one a line, ``#`` starts a comment, repeats are dropped.

    Raises:
        ConfigError: missing or unreadable file, or no question in it.
    """
    lines = read_written(path, "question file").splitlines()
    questions = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not questions:
        raise ConfigError(f"question file {str(path)!r} holds no question: write one a line")
    return list(dict.fromkeys(questions))


def dataset_path(output: Path, style: str) -> Path:
    """Where a style's dataset lies under the output folder."""
    return output / "datasets" / f"{style}_pairs.jsonl"
