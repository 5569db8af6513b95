"""How long one worker's target model will read, before it starts: measured if it can be, else computed.

A run's ledger says how long each batch took. Runs of the same model, layers and recipe in the
store give a rate for what is to come. Without one, arithmetic is counted (2 operations a
parameter and token) and set against what devices are known to do: a wide range, said to be one.
Loads no model, and needs neither torch nor a network.
"""

from __future__ import annotations

import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import mean

from factory.config import Settings
from factory.errors import FactoryError, LayerError
from factory.extraction.spec import ExtractionSpec
from factory.pairs.pair import CIRCLE, ContrastivePair
from factory.run.ledger import Ledger, list_runs
from factory.store import Store
from factory.target.download import LanguageConfig, read_config
from factory.target.layers import parse_layers
from factory.teacher.spending import likely_tokens

MOST_RUNS, MOST_BATCHES = 50, 200  # that are looked at, the newest runs first
FEW = 8  # measured batches below which their spread says little
TEMPLATE = 8  # tokens of a chat template around a message
# Useful operations a second: from a slow device of a kind to a fast one.
THROUGHPUT = {"cuda": (2e13, 4e14), "mps": (1e12, 1e13), "cpu": (3e10, 1e12)}


@dataclass(frozen=True)
class ReadingTime:
    """Seconds of one worker, low and high (None: nothing is known of the model), and where they come from."""

    low: float | None
    high: float | None
    basis: str


def tokens_a_pair(spec: ExtractionSpec, question: float, answer: float) -> float:
    """About how many tokens are read for one pair, with shared beginnings read once.

    ``question``, ``answer``: tokens of the usual ones.
    """
    asked, turn = question + TEMPLATE, question + answer + 2 * TEMPLATE
    if spec.recipe == "fewshot":
        return 2 * ((spec.n_shots - 1) * turn / CIRCLE + turn + asked)
    if spec.recipe == "system_prompt":
        return 2 * (asked + answer)  # an instruction is about as long as an answer
    read = answer if spec.n_tokens is None or spec.recipe == "response_last" else min(answer, spec.n_tokens)
    return asked + 2 * read


def usual_lengths(pairs: Sequence[ContrastivePair], answer: float) -> tuple[float, float]:
    """Tokens of a question and of an answer: of ``pairs`` if there are some, else ``answer`` as expected."""
    if not pairs:
        return 16.0, answer
    texts = [text for pair in pairs for text in (pair.positive_response, pair.negative_response)]
    return mean(likely_tokens(pair.question) for pair in pairs), mean(map(likely_tokens, texts))


def estimate_reading(
    settings: Settings, spec: ExtractionSpec, store: Store, *, n_pairs: int, tokens: float
) -> ReadingTime:
    """How long one worker reads ``n_pairs`` of ``tokens`` in all, from the best knowledge at hand."""
    if not n_pairs:
        return ReadingTime(0.0, 0.0, "there is nothing to read")
    rates = sorted(measured_rates(store, lambda ledger: _seconds(ledger, spec)))
    if rates:
        return at_rates(rates, n_pairs, "batches in this store with the same model, layers and recipe")
    return computed(settings, spec, tokens)


def at_rates(rates: Sequence[float], n_pairs: int, what: str) -> ReadingTime:
    """The time of ``n_pairs`` at ``rates``, seconds per pair in order; ``what`` was measured."""
    low, high = rates[len(rates) // 10], rates[-1 - len(rates) // 10]
    basis = f"measured: {len(rates)} {what}"
    if len(rates) < FEW:
        low, high = low / 2, high * 2
        basis += "; they are few, so half and twice that"
    return ReadingTime(low * n_pairs, high * n_pairs, basis)


def measured_rates(store: Store, rates_of: Callable[[Ledger], Iterator[float]]) -> Iterator[float]:
    """Seconds per pair, as ``rates_of`` finds them in the newest runs."""
    left = MOST_BATCHES
    for run in list_runs(store)[: -MOST_RUNS - 1 : -1]:
        try:
            for rate in rates_of(Ledger(store, run)):
                yield rate
                left -= 1
        except (FactoryError, ValueError):
            continue  # a damaged run, or one of another version: others may know
        if left <= 0:
            return


def _seconds(ledger: Ledger, spec: ExtractionSpec) -> Iterator[float]:
    """Seconds per pair of the batches of a run, if it read as this one will."""
    if ledger.spec.extraction == spec:
        for page in ledger.pages:
            yield from (e.seconds / e.n_pairs for e in page.all_extracted() if e.seconds and e.n_pairs)


def computed(settings: Settings, spec: ExtractionSpec, tokens: float) -> ReadingTime:
    """The time that arithmetic alone takes, on a slow and on a fast device of the kind that is here."""
    found = count_parameters(spec)
    device = settings.device if settings.device in THROUGHPUT else device_here()
    if found is None:
        return ReadingTime(None, None, f"unknown: nothing is known of the size of {spec.target_model}")
    parameters, source = found
    slow, fast = THROUGHPUT[device]
    work = 2 * parameters * tokens
    basis = (
        f"computed, not measured: 2 x {parameters / 1e9:.2g} billion parameters ({source}) x {tokens:,.0f} tokens, at "
        f"{slow / 1e9:,.0f} to {fast / 1e9:,.0f} GFLOP/s ({device})"
    )
    return ReadingTime(work / fast, work / slow, basis)


def device_here() -> str:
    """The kind of device that ``auto`` would find here, as far as that is seen without torch."""
    if shutil.which("nvidia-smi"):
        return "cuda"
    return "mps" if sys.platform == "darwin" and platform.machine() == "arm64" else "cpu"


def count_parameters(spec: ExtractionSpec) -> tuple[float, str] | None:
    """Parameters that each token meets, up to the last layer needed, and how that is known."""
    config = read_config(spec.target_model)
    if config:
        try:
            layers = parse_layers(spec.target_layers, config.num_hidden_layers or 0)
            a_layer = _parameters_a_layer(config)
        except LayerError:
            a_layer = None  # no configuration as we know them
        if a_layer is not None:
            return a_layer * (layers[-1] + 1), f"layers 0 to {layers[-1]}"
    named = re.search(r"(\d+(?:\.\d+)?)\s*([bm])(?![a-z])", spec.target_model.lower().rsplit("/", 1)[-1])
    if named is None:
        return None
    return float(named[1]) * (1e9 if named[2] == "b" else 1e6), "all of them, by its name"


def _parameters_a_layer(config: LanguageConfig) -> float | None:
    """Of attention and of a gated feed-forward part; None where the configuration does not say."""
    hidden, heads, shape = config.hidden_size, config.num_attention_heads, config.cache_shape
    if hidden is None or heads is None or shape is None or config.intermediate_size is None:
        return None
    n_kv_heads, head_dim = shape
    attention = 2 * hidden * heads * head_dim + 2 * hidden * n_kv_heads * head_dim
    return attention + 3 * hidden * config.intermediate_size
