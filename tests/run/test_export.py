"""What a run leaves under the output folder beyond vectors and datasets."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open

from factory.config import Settings
from factory.errors import StoreError
from factory.pairs.dataset import dataset_path, extend_dataset, format_dataset, load_pairs
from factory.pairs.pair import ContrastivePair
from factory.planning.plan import plan_run
from factory.run.artifacts import put_pairs
from factory.run.dataset import teacher_model, write_dataset
from factory.run.entries import Written
from factory.run.export import export_style, write_dataset_file
from factory.run.ledger import Ledger
from factory.steps.evaluate import give_up_evaluation
from factory.vector.vector import SteeringVector
from tests.evaluated import make_run

STYLE = "step_by_step_reasoning"


def made(target_folder, tmp_path, store, *, keep: bool) -> tuple[Ledger, object]:
    """A finished run of six pairs in batches of four."""
    changes = {
        "output_config": {"save_intermediate_files": keep},
        "extraction_config": {"target_layers": "all", "recipe": "response_last", "batch_size": 4},
    }
    ledger, settings = make_run(target_folder, tmp_path, store, [STYLE], changes)
    give_up_evaluation(ledger.of(STYLE), "not wanted here")
    return ledger, settings


def test_differences_of_single_pairs_are_written_when_wanted_and_average_to_the_vector(target_folder, tmp_path, store):
    ledger, settings = made(target_folder, tmp_path, store, keep=True)
    path = export_style(ledger.of(STYLE), tmp_path / "out", settings.output_config)
    files = sorted((tmp_path / "out" / "intermediate" / STYLE).iterdir())
    assert [file.name for file in files] == [f"batch-{n:05d}.safetensors" for n in range(len(ledger.of(STYLE).batches))]
    pair_ids, values = [], []
    for file in files:
        with safe_open(file, "pt") as content:
            pair_ids += json.loads(content.metadata()["pair_ids"])
            values.append(content.get_tensor("values"))
    dataset = store.read(ledger.of(STYLE).dataset_key).decode().splitlines()[1:]
    assert pair_ids == [json.loads(line)["pair_id"] for line in dataset]
    vector = SteeringVector.load(path)
    assert torch.allclose(torch.cat(values).double().mean(dim=0).float(), vector.value_vector, atol=1e-6)


def test_nothing_of_single_pairs_is_written_by_default(target_folder, tmp_path, store):
    ledger, settings = made(target_folder, tmp_path, store, keep=False)
    export_style(ledger.of(STYLE), tmp_path / "out", settings.output_config)
    assert not (tmp_path / "out" / "intermediate").exists()


def test_differences_that_are_gone_are_named(target_folder, tmp_path, store):
    ledger, settings = made(target_folder, tmp_path, store, keep=True)
    store.delete(ledger.of(STYLE).extracted(0).key)
    with pytest.raises(StoreError, match="batch 0"):
        export_style(ledger.of(STYLE), tmp_path / "out", settings.output_config)


def dataset_of(count, start=0):
    pairs = [ContrastivePair(f"Why {n}?", f"Step 1: {n}", f"It is {n}.", STYLE) for n in range(start, start + count)]
    return format_dataset(pairs, {"style_name": STYLE, "model_used": "me"})


def test_a_dataset_that_a_run_did_not_extend_is_left_to_the_byte(target_folder, tmp_path, store):
    ledger, settings = made(target_folder, tmp_path, store, keep=False)
    mine = tmp_path / "out" / "datasets" / f"{STYLE}_pairs.jsonl"
    mine.parent.mkdir(parents=True)
    mine.write_text(dataset_of(40))
    export_style(ledger.of(STYLE), tmp_path / "out", settings.output_config)
    assert mine.read_text() == dataset_of(40), "the run used six pairs of another dataset"


@pytest.mark.parametrize(("known", "made", "expected"), [(40, 4, 40), (4, 40, 40), (6, 6, 6), (0, 5, 5)])
def test_a_dataset_never_becomes_smaller(tmp_path, known, made, expected):
    path = tmp_path / "pairs.jsonl"
    if known:
        path.write_text(dataset_of(known))
    write_dataset_file(path, dataset_of(made), made_anew=False)
    questions = [pair.question for pair in load_pairs(path)]
    assert questions == [f"Why {n}?" for n in range(expected)]
    assert json.loads(path.read_text().splitlines()[0])["total_pairs"] == expected


def test_new_pairs_come_behind_all_old_ones_whose_lines_stay_as_they_were():
    known, made = dataset_of(5), dataset_of(8, start=3)
    lines = extend_dataset(known, made).splitlines()
    assert lines[1:6] == known.splitlines()[1:]
    assert lines[6:] == made.splitlines()[3:]


def test_a_dataset_that_is_made_anew_keeps_the_old_file_beside_it(tmp_path):
    path = tmp_path / "steps_pairs.jsonl"
    path.write_text(dataset_of(9))
    write_dataset_file(path, dataset_of(2), made_anew=True)
    assert len(load_pairs(path)) == 2
    assert (tmp_path / "steps_pairs_before.jsonl").read_text() == dataset_of(9)


def test_no_copy_of_an_old_dataset_takes_the_place_of_an_earlier_one(tmp_path):
    path = tmp_path / "steps_pairs.jsonl"
    for pairs in (9, 7, 5, 2):
        write_dataset_file(path, dataset_of(pairs), made_anew=True)
        write_dataset_file(path, dataset_of(pairs), made_anew=True)  # exported again: nothing is replaced
    files = {file.name: len(load_pairs(file)) for file in tmp_path.iterdir()}
    backups = {f"steps_pairs_before{end}.jsonl": pairs for end, pairs in (("", 9), ("-2", 7), ("-3", 5))}
    assert files == {"steps_pairs.jsonl": 2} | backups


@pytest.mark.parametrize("regenerate", [False, True])
def test_a_dataset_that_came_after_the_plan_is_replaced_only_where_that_was_asked(tmp_path, store, regenerate):
    given = Settings(styles=[STYLE], base_url="http://127.0.0.1:1/v1", regenerate_datasets=regenerate)
    plan = plan_run(given, store, tmp_path, questions={STYLE: ["Why is it so?", "What is new?"]})
    ledger = Ledger(store, plan.spec.run_id)
    ledger.create(plan.spec, plan.batches)
    (batch,) = ledger.of(STYLE).batches
    new = [ContrastivePair(question, "Step 1: yes", "no", STYLE, batch=0) for question in batch.questions]
    ledger.of(STYLE).record("written", 0, Written(key=put_pairs(store, new, []), n_pairs=2))
    write_dataset(ledger.of(STYLE), {})
    nothing = torch.zeros(1, 1, 2)
    store.write(ledger.of(STYLE).vector_key, SteeringVector(STYLE, nothing, nothing, [0], "m").to_pt())
    mine = dataset_path(tmp_path, STYLE)
    mine.parent.mkdir()
    mine.write_text(dataset_of(4))
    export_style(ledger.of(STYLE), tmp_path, Settings().output_config)
    old = [] if regenerate else [f"Why {n}?" for n in range(4)]
    assert [pair.question for pair in load_pairs(mine)] == [*old, *(pair.question for pair in new)]
    assert mine.with_name(f"{STYLE}_pairs_before.jsonl").exists() is regenerate


def test_pairs_of_two_runs_share_no_batch_in_one_dataset():
    def numbered(questions, first):
        pairs = [ContrastivePair(q, "Step 1", "No", STYLE, batch=first + at // 2) for at, q in enumerate(questions)]
        return format_dataset(pairs, {"style_name": STYLE})

    def batches(text):
        return [json.loads(line)["batch"] for line in text.splitlines()[1:]]

    known = numbered("abcd", 0)
    assert batches(extend_dataset(known, numbered("defgh", 0))) == [0, 0, 1, 1, 2, 3, 3, 4]
    assert batches(extend_dataset(known, numbered("efg", 5))) == [0, 0, 1, 1, 5, 5, 6], "numbers of their own stay"
    assert batches(extend_dataset(known, known)) == batches(known)


@pytest.mark.parametrize(("given", "told"), [({}, "unknown"), ({"model_used": "me"}, "me")])
def test_a_dataset_that_does_not_say_who_wrote_it_is_of_an_unknown_writer_and_not_of_the_teacher(
    tmp_path, store, given, told
):
    mine = dataset_path(tmp_path, STYLE)
    mine.parent.mkdir()
    pairs = [ContrastivePair(f"Why {n}?", f"Step 1: {n}", f"It is {n}.", STYLE) for n in range(4)]
    mine.write_text(format_dataset(pairs, {"style_name": STYLE} | given))
    plan = plan_run(Settings(styles=[STYLE]), store, tmp_path)
    ledger = Ledger(store, plan.spec.run_id)
    ledger.create(plan.spec, plan.batches)
    assert teacher_model(ledger.of(STYLE)) == told
