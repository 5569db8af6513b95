"""The three steps of a run on one batch or style, from store to store.

Each may run twice, on any machine, and gives the same result: it looks first whether its work is
done. Workers put a queue between them. Only broken infrastructure raises; what is wrong with a
pair or a style is written down. torch is imported where it is used: a teacher worker has none.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from factory.artifacts import (
    differences_key,
    get_differences,
    put_differences,
    put_pairs,
    require_differences,
)
from factory.cluster import open_teacher, pause_run, require_calls_that_succeed, require_unpaused
from factory.config import Settings
from factory.dataset import batch_of, repeated_pairs, teacher_model, write_dataset
from factory.errors import ConfigError, StoreError, StyleFailed, TeacherBusy, TeacherRefused
from factory.ledger import Ledger
from factory.log import log
from factory.pairs import sha256_of
from factory.run import ExtractionSpec, RunSpec, StyleRun
from factory.teacher import Payer
from factory.writing import PATIENCE, draw_bill, write_batch

if TYPE_CHECKING:
    from factory.extract import Differences, Rejection
    from factory.pipeline import Origin
    from factory.recipe import Recipe
    from factory.target import Target


def write_step(ledger: Ledger, style: str, number: int, settings: Settings, broker_url: str) -> None:
    """Have the teacher write the pairs of one batch, and note where they lie and what they cost.

    ``broker_url``: where workers count calls and money together.

    Raises:
        TeacherBusy: the step must be tried again; replies that arrived are kept.
        RunPaused: the run waits for a person, as its ledger says from now on.
    """
    if ledger.entry(style, "written", number):
        return
    require_unpaused(ledger)
    part, spec = ledger.spec.style_run(style), ledger.spec.teacher
    questions = ledger.batches(style)[number].questions
    payer = Payer(ledger.run_id, style, number)
    try:
        teacher = open_teacher(ledger, payer, settings, broker_url)
        made = write_batch(
            teacher,
            part.style,
            questions,
            max_concurrent=settings.max_concurrent_calls,
            may_go_on=lambda: require_unpaused(ledger),
            patience=min(PATIENCE, settings.visibility_timeout / 5),
        )
    except TeacherRefused as error:
        raise pause_run(ledger, error.reason, str(error)) from None
    except TeacherBusy:
        require_calls_that_succeed(ledger, broker_url)
        raise
    key = put_pairs(ledger.store, made.pairs, made.rejected)
    bill = draw_bill(ledger.store, spec, part.style, questions, payer)
    entry = {"key": key, "n_pairs": len(made.pairs), "reasons": made.reasons, "cost_usd": bill.spent_usd}
    calls = {"saved_usd": bill.saved_usd, "paid_calls": bill.paid_calls, "cached_calls": bill.cached_calls}
    ledger.record(style, "written", number, entry | calls | {"paid_tokens": bill.paid_tokens})
    log.info(
        "batch %d: %d pairs written, %d rejected, $%.4f", number, len(made.pairs), len(made.rejected), bill.spent_usd
    )
    require_calls_that_succeed(ledger, broker_url)


def recipe_of(spec: ExtractionSpec) -> Recipe:
    """The recipe that a run asks for."""
    from factory.recipe import Recipe

    return Recipe(spec.recipe, spec.n_shots, spec.n_tokens, spec.max_sequence_length)


_resident: dict[tuple[Any, ...], tuple[int | None, Target]] = {}  # this worker's model, and how deep it was loaded


def load_resident_target(
    name: str, device: str, dtype: str, quantize: str | None, trust_remote_code: bool, depth: int | None
) -> Target:
    """The target model of this worker, loaded with its first task and kept between tasks.

    Another model, or more of its layers, takes the place of the one before, which goes first: two
    may not fit.
    """
    asked = name, device, dtype, quantize, trust_remote_code
    loaded, target = _resident.get(asked, (0, None))
    if target is not None and (loaded is None or (depth is not None and depth <= loaded)):
        return target
    from factory.target import load_target

    log.info("loading target model %s%s", name, f", its first {depth} layers" if depth else "")
    target = None
    _resident.clear()
    target = load_target(name, device, dtype=dtype, quantize=quantize, trust_remote_code=trust_remote_code, depth=depth)
    _resident[asked] = depth, target
    return target


def target_of(run: RunSpec, settings: Settings) -> Target:
    """The run's target model, if this worker may load it; only as deep as it is read if it need not answer.

    Raises:
        ConfigError: the model is not in this worker's ``allowed_models``.
        TargetError: it cannot be loaded.
    """
    import torch

    from factory.layers import depth_of

    spec = run.extraction
    if spec.target_model not in settings.models_allowed:
        raise ConfigError(
            f"target model {spec.target_model!r} is not allowed on this worker: add it to allowed_models "
            f"(now {', '.join(settings.models_allowed)})"
        )
    if settings.threads:
        torch.set_num_threads(settings.threads)
    depth = depth_of(spec.target_layers) if run.evaluation is None else None
    return load_resident_target(
        spec.target_model, settings.device, spec.dtype, spec.quantize, settings.trust_remote_code, depth
    )


def extract_step(ledger: Ledger, style: str, number: int, settings: Settings) -> None:
    """Read one batch with the target model, and note where its differences lie.

    Raises:
        ConfigError, TargetError: the model or its layers cannot be used here.
    """
    entry = ledger.entry(style, "extracted", number)
    if entry and ledger.store.exists(entry["key"]):
        return
    from factory.extract import extract_rendered, render_batch
    from factory.layers import parse_layers
    from factory.pipeline import describe_extraction

    spec = ledger.spec.extraction
    target = target_of(ledger.spec, settings)
    layers = parse_layers(spec.target_layers, target.n_layers)
    batch = render_batch(batch_of(ledger, style, number)[0], target, recipe_of(spec))
    key = differences_key(batch, target, layers)
    differences, seconds = get_differences(ledger.store, key), None
    if differences is None:
        started = time.monotonic()
        differences = extract_rendered(batch, target, layers, batch_tokens=spec.batch_tokens)
        seconds = round(time.monotonic() - started, 3)
        put_differences(ledger.store, key, differences)
    facts = {
        "seconds": seconds,  # None: it had been read before
        "config": describe_extraction(target, recipe_of(spec), layers),
        "peak_memory_mib": round(target.peak_memory_mib()),
    }
    ledger.record(style, "extracted", number, _extraction_entry(key, differences) | facts)
    log.info("batch %d: %d pairs extracted, %d rejected", number, len(differences.pair_ids), len(differences.rejected))


def _extraction_entry(key: str, differences: Differences) -> dict[str, Any]:
    reasons: dict[str, int] = {}
    for rejection in differences.rejected:
        reasons[rejection.reason] = reasons.get(rejection.reason, 0) + 1
    return {"key": key, "n_pairs": len(differences.pair_ids), "reasons": reasons}


def reduce_step(ledger: Ledger, style: str) -> None:
    """Average a style's differences into its vector; without an evaluation to come, the style ends.

    Raises:
        StoreError: a batch is missing; the style can be resumed.
    """
    if ledger.result(style):
        return
    missing = ledger.missing_numbers(style)
    if missing:
        raise StoreError(f"style {style!r}: batches {missing[:10]} are not extracted yet; 'svf resume' makes them")
    result = ledger.entry(style, "reduced", 0)
    try:
        result = result or _reduce(ledger, style)
    except StyleFailed as error:
        log.error("%s", error)
        ledger.finish(style, {"state": "failed", "message": str(error)})
        return
    ledger.record(style, "reduced", 0, result)
    if ledger.spec.evaluation is None:
        ledger.finish(style, result)


def _reduce(ledger: Ledger, style: str) -> dict[str, Any]:
    from factory.pipeline import reduce_differences, without_repeats

    part = ledger.spec.style_run(style)
    repeated = repeated_pairs(ledger, style)
    dataset = write_dataset(ledger, style, repeated)
    _check_failures(ledger, part, len(repeated))
    origin = _origin(ledger, part, dataset)
    vector = reduce_differences(
        lambda: (without_repeats(batch, repeated) for batch in _differences(ledger, style)), origin
    )
    content = vector.to_pt()
    ledger.store.write(ledger.vector_key(style), content)
    log.info("vector of %d pairs made", vector.metadata["pairs_used"])
    facts = {"vector_sha256": sha256_of(content), "pairs_used": vector.metadata["pairs_used"]}
    return {"state": "done", **facts, **({"reasons": {"duplicate": len(repeated)}} if repeated else {})}


def _check_failures(ledger: Ledger, part: StyleRun, n_repeated: int) -> None:
    name = part.style.name
    progress = ledger.progress(name)
    spec = ledger.spec
    counts = Counter(progress.reasons) + Counter({"duplicate": n_repeated})
    reasons = ", ".join(f"{count} x {reason}" for reason, count in sorted(counts.items()))
    failed, usable = counts.total(), progress.extracted - n_repeated
    if failed > spec.max_failed_fraction * part.n_pairs:
        raise StyleFailed(
            f"style {name!r}: {failed} of {part.n_pairs} pairs failed ({reasons}), more than "
            f"max_failed_fraction {spec.max_failed_fraction}. Mend the pairs or raise it, then 'svf resume'"
        )
    if usable < spec.min_pairs:
        raise StyleFailed(
            f"style {name!r}: {usable} pairs could be used, min_pairs is {spec.min_pairs}"
            + (f" ({reasons})" if reasons else "")
        )


def _differences(ledger: Ledger, style: str) -> Iterator[Differences]:
    """A style's batches in their fixed order, one in memory at a time."""
    lost: list[Rejection] = []
    differences: Differences | None = None
    for batch in ledger.batches(style):
        entry = ledger.entry(style, "extracted", batch.number)
        if entry is None:
            raise StoreError(f"batch {batch.number} of style {style!r} is missing; 'svf resume' makes it")
        if entry["key"] is None:
            lost += _given_up(ledger, style, batch.number, entry)
            continue
        differences = require_differences(ledger.store, entry["key"])
        yield replace(differences, rejected=[*lost, *differences.rejected])
        lost = []
    if lost and differences:
        yield replace(differences, pair_ids=[], keys=differences.keys[:0], values=differences.values[:0], rejected=lost)


def _given_up(ledger: Ledger, style: str, number: int, entry: dict[str, Any]) -> list[Rejection]:
    """The pairs of a batch that was given up, as pairs that could not be read."""
    from factory.extract import Rejection

    (reason,) = entry["reasons"]
    return [Rejection(pair.pair_id, reason, "its batch was given up") for pair in batch_of(ledger, style, number)[0]]


def _origin(ledger: Ledger, part: StyleRun, dataset_sha256: str) -> Origin:
    from factory.pipeline import Origin

    style = part.style.name
    entries = [ledger.entry(style, "extracted", batch.number) or {} for batch in ledger.batches(style)]
    entries = [entry for entry in entries if entry["key"] is not None]  # the others were given up
    config: dict[str, Any] = entries[0]["config"]
    for entry in entries:
        if entry["config"] != config:
            differing = [key for key, value in config.items() if entry["config"].get(key) != value]
            raise StyleFailed(
                f"style {style!r}: its batches were read with different {', '.join(differing)}; one vector needs "
                "one. Give every gpu worker the same device and dtype, then run again"
            )
    metadata = {
        "description": part.style.description,
        "teacher_model": teacher_model(ledger, part),
        "dataset_sha256": dataset_sha256,
    }
    return Origin(style, ledger.spec.extraction.target_model, config["target_layers"], config, metadata)
