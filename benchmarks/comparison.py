"""One table: ways to steer, side by side on the same questions, models and styles.

    python benchmarks/comparison.py --config benchmarks/comparison.yaml
    python benchmarks/comparison.py --limit 8 --model SmolLM2-135M --source ARC=arc.jsonl

Each row is kept in the store as soon as it is done, and the table is written anew behind it: a run that
was interrupted goes on where it stopped, and a table from which rows are missing says so. ``--limit``
bounds questions and items, for a look in minutes; without it the table takes a night on two cores.

  unsteered, prompted, few-shot  the model as it is, the style's instruction, four examples as turns;
  cache-steering                 the few-shot difference at the last prompt token, values alone, all layers from 1,
                                 one position, at the strength of its authors' settings for ARC (arXiv 2507.08799);
  mean                           our mean difference, at the best setting of its sweep;
  learned                        our learned vector at its own strength;
  residual                       steering-vectors: mean difference of the residual stream, added at every token, at
                                 the best layer and multiplier of its sweep.

Both sweeps are judged on the same choice questions by the same rule: most answers in the style among
settings that hardly loop.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean

import torch
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from factory import Recipe, SteeringVector, Target, build_vector, load_pairs, load_style, load_target
from factory.benchmark.condition import BARE, Condition, baselines
from factory.benchmark.item import LETTER_TOKENS, Task
from factory.benchmark.outcome import Share
from factory.benchmark.paired import compare, share_of
from factory.benchmark.run import Bench, Budget
from factory.benchmark.sources import load_task
from factory.errors import FactoryError
from factory.evaluation.answers import Questioning, ask
from factory.evaluation.relevance import relevance
from factory.files import hash_of, shipped_file
from factory.frozen import Frozen
from factory.learning.learn import learn_vector
from factory.learning.spec import Learning
from factory.pairs.dataset import load_questions
from factory.pairs.fluency import is_looping
from factory.pairs.pair import ContrastivePair, hash_pairs
from factory.pairs.styles import Style
from factory.steps.learn import LEARNING_VERSION
from factory.store import Store
from factory.vector.steer import Steering, generate_batch

TABLE = Path(__file__).parents[1] / "docs" / "comparison.md"
COST_QUESTIONS, COST_TOKENS, COST_ROUNDS = 4, 24, 4
SIGNIFICANT = 0.05
WAYS = {  # settings that decide one row alone: other rows stay when they change
    "cache-steering": "cache_steering",
    "mean": "mean",
    "learned": "learning",
    "residual": "residual",
}


HEAD = """
# Comparison

Ways to steer a small model, side by side: the same pairs, questions and items for all. Written by

```bash
{command}
```

on {date}, with {held_out} held-out questions, {items} items per task and {choice} questions on which settings were
chosen. What is done is kept in the folder `comparison-runs`, so an interrupted run goes on where it stopped. With
`--limit 8` a row of SmolLM2-135M took one to twelve minutes of a core, and one of Qwen2.5-Coder-0.5B two to fifteen;
without a limit the table takes a night or more. With few questions the intervals are wide: rows whose intervals overlap
are not told apart.

The rows:

- **unsteered**, **prompted**, **few-shot**: the model as it is; the style's instruction as the system message; four
  examples as turns before the question.
- **cache-steering**: the recipe of KV cache steering (arXiv 2507.08799) as its authors configure it for ARC and the
  models nearest to these: the difference at the last prompt token of texts with up to {cache_steering[n_shots]}
  examples, values alone, all layers from 1, one position, one fixed strength. Made by this project's code.
- **mean**: our mean difference of few-shot texts, all layers, at the best of the strengths {mean[strengths]} with
  {mean[positions]} positions.
- **learned**: our learned vector, from the same pairs, begun at the mean, at its own strength.
- **residual**: steering-vectors, the mean difference of the residual stream at the response's last token, added at
  every token, at the best of the depths {residual[depths]} and the multipliers {residual[multipliers]}.

The columns:

- **in the style**: share of answers that show the style's markers, with Wilson's 95 % interval; **loops**: share of
  answers that loop.
- **relevance**: by how many nats per token the bare model finds an answer likelier after its own question than
  after others. About 0: the answers are about nothing.
- **tasks**: share of right answers, with Wilson's interval; `*` where McNemar's test tells the row from the unsteered
  one (p < 0.05, uncorrected). An answer that names a choice has {letter_tokens} tokens, one that is worked out
  {worked_tokens}.
- **cost per token**: CPU time for a fixed number of tokens, prefill included, over the unsteered model's in the same
  minute; by how much the unsteered row misses 1 is the noise. **tokens read**: of the prompt, per question.
"""


class Model(Frozen):
    """A model to steer: where it is loaded from, its numbers, and the authors' strength for the model nearest it."""

    source: str
    dtype: str
    cache_steering_strength: float


class CacheSteering(Frozen):
    n_shots: int
    max_sequence_length: int


class Mean(Frozen):
    strengths: list[float]
    positions: list[int]


class ResidualSweep(Frozen):
    depths: list[float]
    multipliers: list[float]


class Config(Frozen):
    """The file of settings."""

    models: dict[str, Model]
    styles: list[str]
    tasks: dict[str, str]
    items: int
    seed: int
    held_out: int
    choice: int
    answer_tokens: int
    worked_tokens: int
    max_loops: float
    cache_steering: CacheSteering
    mean: Mean
    learning: Learning
    residual: ResidualSweep

    def limited(self, limit: int | None) -> Config:
        """The same with at most ``limit`` questions and items."""
        if limit is None:
            return self
        counts = {name: min(limit, getattr(self, name)) for name in ("items", "held_out", "choice")}
        return self.model_copy(update=counts)


class Measured(Frozen):
    """A row's figures. ``cost``: CPU time per generated token, as a multiple of the bare model's."""

    setting: str
    style: Share
    loops: float
    relevance: float | None
    tasks: dict[str, Share]
    right: dict[str, tuple[int, ...]]
    cost: float
    prompt_tokens: float


@dataclass(frozen=True)
class Residual:
    """A vector of steering-vectors at one layer, added at every token."""

    vector: object
    layer: int
    multiplier: float

    @contextmanager
    def applied(self, target: Target) -> Iterator[None]:
        with self.vector.apply(target.model, multiplier=self.multiplier):
            yield


@dataclass(frozen=True)
class Contestant:
    """A way to steer: a condition that the factory knows, or hooks of another library around the bare model."""

    setting: str
    condition: Condition = BARE
    residual: Residual | None = None

    def applied(self, target: Target):
        return self.residual.applied(target) if self.residual else nullcontext()

    def store(self, store: Store) -> Store:
        """Where its answers lie: the key of an answer does not know of another library's hooks."""
        if self.residual is None:
            return store
        numbers = self.residual.vector.layer_activations[self.residual.layer]
        return Store(f"{store.url}/hooked-{hash_of([numbers.tolist(), self.residual.layer, self.residual.multiplier])}")


@dataclass(frozen=True)
class Arena:
    """A model, a style and the questions: what all rows of one part of the table share."""

    target: Target
    style: Style
    pairs: Sequence[ContrastivePair]
    config: Config
    authors_strength: float
    tasks: dict[str, Task]
    held_out: tuple[str, ...]
    choice: tuple[str, ...]
    store: Store

    # ---- the rows

    def rows(self) -> dict[str, Callable[[], Contestant]]:
        bare, prompted, shown = baselines(self.style, self.pairs)
        return {
            "unsteered": lambda: Contestant("", bare),
            "prompted": lambda: Contestant("", prompted),
            "few-shot": lambda: Contestant("", shown),
            "cache-steering": self.cache_steering,
            "mean": self.mean,
            "learned": self.learned,
            "residual": self.residual,
        }

    def cache_steering(self) -> Contestant:
        recipe = Recipe("fewshot", **self.config.cache_steering.model_dump())
        vector = self.kept([recipe], lambda: self.build(recipe, range(1, self.target.n_layers)))
        return self.vector(vector, f"strength {self.authors_strength:g}", strength=self.authors_strength)

    def mean(self) -> Contestant:
        vector, sweep = self.mean_vector(), self.config.mean
        return self.best(
            self.vector(
                vector,
                f"strength {strength:g}, {n} position{'s' * (n > 1)}",
                strength=strength,
                n_positions=n,
            )
            for n in sweep.positions
            for strength in sweep.strengths
        )

    def learned(self) -> Contestant:
        mean, how = self.mean_vector(), self.config.learning
        vector = self.kept(
            [how, LEARNING_VERSION], lambda: learn_vector(self.pairs, self.target, start=mean, learning=how)
        )
        steering = Steering.recommended(vector)
        return Contestant("its own", Condition("learned", "steered", steering=steering))

    def residual(self) -> Contestant:
        if find_spec("steering_vectors") is None:
            raise FactoryError("steering-vectors is not installed: 'make install' brings it")
        from steering_vectors import SteeringVectorTrainingSample, train_steering_vector

        samples = [SteeringVectorTrainingSample(*self.texts(pair)) for pair in self.pairs]
        sweep = self.config.residual
        layers = [round(depth * (self.target.n_layers - 1)) for depth in sweep.depths]
        found = train_steering_vector(self.target.model, self.target.tokenizer, samples, layers=layers)
        alone = {layer: type(found)({layer: found.layer_activations[layer]}, found.layer_type) for layer in layers}
        return self.best(
            Contestant(f"layer {layer}, times {times:g}", residual=Residual(alone[layer], layer, times))
            for layer in layers
            for times in sweep.multipliers
        )

    # ---- what they are made of

    def build(self, recipe: Recipe, layers: range | str = "all") -> SteeringVector:
        return build_vector(self.pairs, self.target, style=self.style.name, recipe=recipe, layers=layers)

    def mean_vector(self) -> SteeringVector:
        return self.kept(["mean"], lambda: self.build(Recipe("fewshot")))

    def kept(self, settings: list[object], make: Callable[[], SteeringVector]) -> SteeringVector:
        """A vector of this model and these pairs, made once with its ``settings``."""
        key = f"vectors/{hash_of([*map(repr, settings), *self.subject()])}.pt"
        content = self.store.read(key)
        if content is None:
            content = make().to_pt()
            self.store.write(key, content)
        return SteeringVector.from_bytes(content, source=key)

    def vector(self, vector: SteeringVector, setting: str, **how) -> Contestant:
        return Contestant(setting, Condition("vector", "steered", steering=Steering(vector, **how)))

    def texts(self, pair: ContrastivePair) -> tuple[str, str]:
        """A pair as steering-vectors reads it: the prompt and a response, whose last token is taken."""
        prompt = self.target.tokenizer.decode(self.target.prompt_ids([{"role": "user", "content": pair.question}]))
        return prompt + pair.positive_response, prompt + pair.negative_response

    def subject(self) -> list[object]:
        """The model and the style's pairs."""
        model = [self.target.name, self.target.revision, self.target.dtype]
        return [model, self.style.model_dump(mode="json"), hash_pairs(self.pairs)]

    def identity(self, row: str) -> list[object]:
        """Everything that decides a row."""
        others = {settings for way, settings in WAYS.items() if way != row}
        config = self.config.model_dump(exclude={"models", "styles", "tasks"} | others)
        tasks = {name: task.sha256 for name, task in self.tasks.items()}
        own = {"cache-steering": self.authors_strength, "learned": LEARNING_VERSION}.get(row)
        return [row, own, self.subject(), config, self.held_out, self.choice, tasks]

    # ---- measuring

    def best(self, contestants: Iterator[Contestant]) -> Contestant:
        """The one with most answers in the style among those that hardly loop; of equals the one that loops least."""
        tried = [(contestant, *self.style_of(contestant, self.choice)) for contestant in contestants]
        fluent = [one for one in tried if one[2] <= self.config.max_loops]
        return max(fluent or tried, key=lambda one: (one[1].share, -one[2]) if fluent else (-one[2], one[1].share))[0]

    def style_of(self, contestant: Contestant, questions: Sequence[str]) -> tuple[Share, float]:
        said = self.said(contestant, questions)
        return share_of([self.style.is_shown_in(text) for text in said]), fmean(map(is_looping, said))

    def said(self, contestant: Contestant, questions: Sequence[str]) -> list[str]:
        one = contestant.condition
        asked = Questioning(tuple(questions), self.config.answer_tokens, one.steering, one.system, one.examples)
        with contestant.applied(self.target):
            return ask(self.target, asked, contestant.store(self.store))

    def measure(self, contestant: Contestant) -> Measured:
        style, loops = self.style_of(contestant, self.held_out)
        near = [one for one in relevance(self.target, self.held_out, self.said(contestant, self.held_out)) if one]
        outcomes = {}
        for name, task in self.tasks.items():
            budget = Budget(LETTER_TOKENS if task.has_choices else self.config.worked_tokens)
            with contestant.applied(self.target):
                bench = Bench(self.target, contestant.store(self.store), budget)
                outcomes[name] = bench.examine(task, contestant.condition)
        return Measured(
            setting=contestant.setting,
            style=style,
            loops=round(loops, 4),
            relevance=round(fmean(near), 3) if near else None,
            tasks={name: outcome.accuracy for name, outcome in outcomes.items()},
            right={name: outcome.right for name, outcome in outcomes.items()},
            cost=round(self.cost(contestant), 3),
            prompt_tokens=self.prompt_tokens(contestant),
        )

    def prompt_tokens(self, contestant: Contestant) -> float:
        one = contestant.condition
        asked = Questioning(self.held_out, 1, system=one.system, examples=one.examples).conversations()
        return round(fmean(len(self.target.prompt_ids(messages)) for messages in asked), 1)

    def cost(self, contestant: Contestant) -> float:
        """CPU seconds for a fixed number of tokens, prefill included, over the bare model's in the same minute."""
        best = {True: float("inf"), False: float("inf")}
        for _ in range(COST_ROUNDS):
            for bare, one in ((True, Contestant("")), (False, contestant)):
                best[bare] = min(best[bare], self.seconds(one))
        return best[False] / best[True]

    def seconds(self, contestant: Contestant) -> float:
        one = contestant.condition
        asked = Questioning(self.held_out[:COST_QUESTIONS], COST_TOKENS, one.steering, one.system, one.examples)
        exactly = {"max_new_tokens": COST_TOKENS, "min_new_tokens": COST_TOKENS}
        with contestant.applied(self.target):
            start = time.process_time()
            generate_batch(self.target, asked.conversations(), steering=one.steering, **exactly)
        return time.process_time() - start


# ---- the table


@dataclass(frozen=True)
class Place:
    """Where a row stands."""

    model: str
    style: str
    row: str

    @property
    def words(self) -> tuple[str, str, str]:
        return self.model, self.style, self.row


ROWS = ("unsteered", "prompted", "few-shot", "cache-steering", "mean", "learned", "residual")


def write_table(config: Config, found: dict[Place, Measured], command: str, path: Path) -> None:
    """The document, from the rows that are done; those that are not are named."""
    lines = [*_head(config, command), ""]
    for name, model in config.models.items():
        for style in config.styles:
            done = {row: found[Place(name, style, row)] for row in ROWS if Place(name, style, row) in found}
            lines += [f"## {name} ({model.dtype}), {style}", "", *_part(config, done), ""]
    path.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def _head(config: Config, command: str) -> list[str]:
    made = {"command": command, "date": date.today().isoformat(), "letter_tokens": LETTER_TOKENS}
    return HEAD.format(**made, **config.model_dump()).strip().split("\n")


def _part(config: Config, done: dict[str, Measured]) -> list[str]:
    missing = [row for row in ROWS if row not in done]
    if not done:
        return ["Not measured yet: the command above makes it."]
    tasks = list(config.tasks)
    heads = ["", "setting", "in the style", "loops", "relevance", *tasks, "cost per token", "tokens read"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    lines += ["| " + " | ".join(_cells(row, one, tasks, done.get("unsteered"))) + " |" for row, one in done.items()]
    return lines + (["", f"Not measured yet: {', '.join(missing)}."] if missing else [])


def _cells(row: str, one: Measured, tasks: Sequence[str], bare: Measured | None) -> list[str]:
    return [
        row,
        one.setting,
        _share(one.style),
        f"{one.loops:.0%}",
        "" if one.relevance is None else f"{one.relevance:.2f}",
        *(_share(one.tasks[name]) + _mark(one, bare, name) if name in one.tasks else "" for name in tasks),
        f"{one.cost:.2f}",
        f"{one.prompt_tokens:.0f}",
    ]


def _share(share: Share) -> str:
    return f"{share.share:.0%} ({share.low:.0%} to {share.high:.0%})"


def _mark(one: Measured, bare: Measured | None, task: str) -> str:
    """A star where McNemar's test tells a row from the unsteered one."""
    if bare is None or task not in bare.right:
        return ""
    found = compare("unsteered", [bool(r) for r in one.right[task]], [bool(r) for r in bare.right[task]])
    return " *" if found.p < SIGNIFICANT else ""


# ---- the command


def main(words: Sequence[str] | None = None) -> None:
    given = parse(words)
    config = Config.model_validate(yaml.safe_load(given.config.read_text(encoding="utf-8"))).limited(given.limit)
    console = Console(stderr=True, highlight=False)
    torch.set_num_threads(given.threads)
    session = Session(given, config, dict(pair.split("=", 1) for pair in given.source), console)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    found: dict[Place, Measured] = {}
    with Progress(*columns, console=console, transient=True) as bar:
        at = bar.add_task("rows", total=len(config.models) * len(config.styles) * len(ROWS))
        for place, measured in session.measure_all(lambda place: bar.update(at, description=" ".join(place.words))):
            bar.advance(at)
            if measured:
                found[place] = measured
                write_table(config, found, command_of(given), given.table)
    console.print(f"{len(found)} rows -> {given.table}")


@dataclass(frozen=True)
class Session:
    """One run of the command: what it was given, and where it says what it leaves out."""

    given: argparse.Namespace
    config: Config
    sources: dict[str, str]
    console: Console

    def measure_all(self, before: Callable[[Place], None]) -> Iterator[tuple[Place, Measured | None]]:
        """Every row of the table in its order, or None where it cannot be measured or was not asked for."""
        store = Store(str(self.given.store.resolve()))
        tasks = self.tasks()
        for name, model in self.config.models.items():
            asked = not self.given.model or name in self.given.model
            target = self.load(self.sources.get(name, model.source), model.dtype) if asked else None
            for style in self.config.styles:
                arena = open_arena(target, style, (self.config, model), tasks, store) if target else None
                for row in ROWS:
                    place = Place(name, style, row)
                    before(place)
                    yield place, self.row(arena, row) if arena else None

    def row(self, arena: Arena, row: str) -> Measured | None:
        """The row from the store, else measured now if it is to be made; None where it cannot be."""
        key = f"rows/{hash_of(arena.identity(row))}.json"
        known = arena.store.read_json(key)
        if known is None and row in (self.given.row or ROWS):
            try:
                known = arena.measure(arena.rows()[row]()).model_dump(mode="json")
            except FactoryError as error:
                return self.left_out(row, error)
            arena.store.write_json(key, known)
        return None if known is None else Measured.model_validate(known)

    def tasks(self) -> dict[str, Task]:
        """The tasks that are there; a task that is not leaves its column empty."""
        tasks = {}
        for name, source in self.config.tasks.items():
            try:
                tasks[name] = load_task(self.sources.get(name, source), limit=self.config.items, seed=self.config.seed)
            except FactoryError as error:
                self.left_out(name, error)
        return tasks

    def load(self, source: str, dtype: str) -> Target | None:
        try:
            return load_target(source, "cuda" if torch.cuda.is_available() else "cpu", dtype=dtype)
        except FactoryError as error:
            return self.left_out(source, error)

    def left_out(self, name: str, error: FactoryError) -> None:
        self.console.print(f"{name} is left out: {error}", markup=False, soft_wrap=True)


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--config", type=Path, default=Path(__file__).with_suffix(".yaml"))
    parser.add_argument("--limit", type=int, help="most questions and items per row")
    parser.add_argument("--store", type=Path, default=Path("comparison-runs"), help="folder of what is done")
    parser.add_argument("--table", type=Path, default=TABLE, help="the document to write")
    parser.add_argument("--model", action="append", help="only this model; repeatable")
    parser.add_argument("--row", action="append", choices=ROWS, help="make only this row; repeatable")
    parser.add_argument("--source", action="append", default=[], metavar="NAME=PATH", help="where a model or task lies")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    return parser.parse_args(words)


def command_of(given: argparse.Namespace) -> str:
    limit = f" --limit {given.limit}" if given.limit else ""
    return f"python benchmarks/comparison.py --config benchmarks/comparison.yaml{limit}"


def open_arena(target: Target, style: str, plan: tuple[Config, Model], tasks: dict[str, Task], store: Store) -> Arena:
    config, model = plan
    questions = load_questions(shipped_file("questions", "heldout.txt"))
    return Arena(
        target=target,
        style=load_style(style),
        pairs=load_pairs(shipped_file("datasets", f"{style}_pairs.jsonl")),
        config=config,
        authors_strength=model.cache_steering_strength,
        tasks=tasks,
        held_out=tuple(questions[: config.held_out]),
        choice=tuple(questions[-config.choice :]),
        store=store,
    )


if __name__ == "__main__":
    main()
