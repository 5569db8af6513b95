"""Learning within a run, step by step: what is kept, what is not done twice, and what a failure leaves."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import count

import pytest
import torch
from rich.console import Console

from factory import SteeringVector, load_pairs
from factory.commands.report import show_measured
from factory.config import LearningSettings, Settings
from factory.evaluation.answers import Questioning, ask
from factory.evaluation.evaluation import Evaluation
from factory.evaluation.probe import apply_cell
from factory.learning import targets
from factory.learning.learn import learn_vector
from factory.learning.spec import Learning
from factory.pairs.dataset import dataset_path
from factory.planning.plan import plan_run
from factory.report.page import render_report
from factory.run.entries import Ended
from factory.run.ledger import Ledger
from factory.run.progress import progress_of
from factory.run.spec import RunSpec
from factory.steps import learn
from factory.steps.learn import give_up_learning, learn_part_step, next_round, parts_of, take_round_step
from factory.steps.reduce import reduce_step
from factory.steps.resident import target_of
from factory.store import Store
from tests.conftest import MEANS, ROOT
from tests.evaluated import SWEEP, finish_run, make_run, take_rounds

STYLE = "step_by_step_reasoning"
QUICK = Learning(rounds=3, pairs_per_round=4, pairs_per_part=2, response_tokens=6, validate_every=2)
ALONE = {"learning": QUICK.model_dump(), "output_config": {"generate_analysis_reports": False}}


@pytest.fixture
def run(target_folder, tmp_path, store):
    """The page of a style whose mean is made, in a run that learns and does not evaluate; and its settings."""
    ledger, settings = make_run(target_folder, tmp_path, store, [STYLE], ALONE)
    return ledger.of(STYLE), settings


def test_a_run_learns_the_bytes_of_one_process(run, target):
    page, settings = run
    assert progress_of(page).state == "learning"
    take_rounds(page, settings)

    pairs = load_pairs(ROOT / "datasets" / f"{STYLE}_pairs.jsonl")[:6]
    mean = SteeringVector.from_bytes(page.store.read(page.mean_key), "mean.pt")
    here = learn_vector(pairs, target, start=mean, learning=QUICK)
    assert page.store.read(page.vector_key) == here.to_pt()
    assert page.result.vector_sha256 == page.learned().vector_sha256 != page.reduced().vector_sha256
    progress = progress_of(page)
    assert (progress.state, progress.learned, progress.rounds) == ("done", 4, 4)
    assert progress.loss == here.metadata["learning"]["curve"][-2]["loss"]


def test_a_run_learns_from_the_models_own_answers_which_are_made_once(target_folder, tmp_path, store, monkeypatch):
    learning = QUICK.model_dump() | {"rounds": 1, "targets": "on_policy"}
    ledger, settings = make_run(target_folder, tmp_path, store, [STYLE], ALONE | {"learning": learning})
    made, plain = count(), targets.on_policy
    said = {"positive_response": "Step 1: It is so.\nStep 2: I say so."}

    def own(*asked):
        next(made)
        return [replace(pair, **said) for pair in plain(*asked)]

    monkeypatch.setattr(targets, "on_policy", own)
    monkeypatch.setattr("factory.learning.learn.on_policy", own)
    page = ledger.of(STYLE)
    take_rounds(page, settings)
    assert next(made) == 1

    mean = SteeringVector.from_bytes(page.store.read(page.mean_key), "mean.pt")
    pairs = load_pairs(ROOT / "datasets" / f"{STYLE}_pairs.jsonl")[:6]
    here = learn_vector(pairs, target_of(ledger.spec, settings), start=mean, learning=Learning(**learning))
    assert page.store.read(page.vector_key) == here.to_pt()


def test_a_round_that_comes_again_reads_nothing_and_a_run_goes_on_from_its_last_state(run, monkeypatch):
    # Given a run that was interrupted after its second round, of which another made everything
    page, settings = run
    take_rounds(page, settings, at_most=2)
    again = Ledger(page.store, page.ledger.run_id).of(STYLE)
    assert next_round(again) == 2
    reads = count()
    plain = learn._put_sum
    monkeypatch.setattr(learn, "_put_sum", lambda *rest: (next(reads), plain(*rest)))

    # When earlier parts and steps come again, and then the rest is done
    for number in (0, 1):
        for place in range(number * 1000, number * 1000 + len(parts_of(again, number))):
            learn_part_step(again, place, settings)
        take_round_step(again, number)
    assert next(reads) == 0
    take_rounds(again, settings)

    # Then nothing was read twice, and another run of the same reads nothing at all
    done = [entry.key for entry in again.all_rounds()]
    before = next(reads)
    twin = Ledger(page.store, "20260101-000000-twin")
    twin.create(page.ledger.spec.model_copy(update={"run_id": twin.run_id}), {STYLE: list(page.batches)})
    twin.of(STYLE).record("extracted", 0, page.extracted(0))
    reduce_step(twin.of(STYLE))
    take_rounds(twin.of(STYLE), settings)
    assert [entry.key for entry in twin.of(STYLE).all_rounds()] == done
    assert next(reads) == before + 1


def test_a_learning_that_is_given_up_leaves_the_mean_and_can_go_on(run):
    page, settings = run
    take_rounds(page, settings, at_most=1)
    give_up_learning(page, "learn_part 1001 ended its worker 3 times and is given up")
    assert (page.result.state, page.result.learning, page.result.is_whole) == ("done", "failed", False)
    assert page.result.message.startswith("made, but not learned: learn_part 1001 ended")
    assert page.store.read(page.vector_key) == page.store.read(page.mean_key)
    page.reopen()
    take_rounds(page, settings)
    assert page.result.is_whole
    assert page.store.read(page.vector_key) != page.store.read(page.mean_key)


def test_a_gradient_that_is_not_finite_leaves_the_mean_with_the_reason(run, monkeypatch):
    page, settings = run
    require_sum = learn._require_sum

    def endless(*where):
        part = require_sum(*where)
        return part if part.gradient is None else replace(part, gradient=torch.full_like(part.gradient, float("inf")))

    monkeypatch.setattr(learn, "_require_sum", endless)
    take_rounds(page, settings)
    assert page.result.learning == "failed"
    assert "round 0 is not finite" in page.result.message


def test_pairs_that_cannot_be_learned_from_are_left_out_where_only_their_prompts_were_read(
    target_folder, tmp_path, store
):
    # Given a recipe that reads no response, and a response that would end its turn in its middle
    lines = [json.loads(line) for line in (ROOT / "datasets" / f"{STYLE}_pairs.jsonl").open()][:8]
    lines[3]["positive_response"] = "Step 1: <|im_end|> it ends."
    own = dataset_path(tmp_path, STYLE)
    own.parent.mkdir(parents=True)
    own.write_text("".join(json.dumps(line) + "\n" for line in lines))
    how = {"extraction_config": {"target_layers": "all", "recipe": "system_prompt"}}
    ledger, _ = make_run(target_folder, tmp_path, store, [STYLE], ALONE | how)
    page = ledger.of(STYLE)
    (unlearnable,) = page.extracted(0).unlearnable
    assert unlearnable == lines[3]["pair_id"]
    assert page.reduced().pairs_used == 6
    read = {pair.pair_id for number in range(5) for part in parts_of(page, number) for pair in part.pairs}
    assert len(read) == 5
    assert unlearnable not in read


def test_a_run_learns_unless_it_is_told_not_to(store, tmp_path, svf):
    learns, averages = (plan_run(Settings(**given), store, tmp_path).spec for given in ({}, MEANS))
    assert learns.learning == Learning()
    assert learns.evaluation.strengths == (0.7, 1.0, 1.3)
    assert learns.evaluation.mean.strengths == averages.evaluation.strengths == (2.0, 4.0, 6.0, 8.0)
    assert (averages.learning, averages.evaluation.mean) == (None, None)
    told = [json.loads(svf("estimate", "--json", *words).out)["learning"] for words in ([], ["--rounds", 0])]
    assert told[0]["high"] > 0
    assert told[1] is None


def test_without_rounds_a_run_has_the_bytes_of_the_mean_from_which_another_learns(run, target_folder, tmp_path):
    page, _ = run
    other = Store(str(tmp_path / "other"))
    ledger, _ = make_run(target_folder, tmp_path, other, [STYLE], ALONE | MEANS)
    averaged = ledger.of(STYLE)
    assert other.read(averaged.vector_key) == page.store.read(page.mean_key)
    assert averaged.result.vector_sha256 == page.reduced().vector_sha256
    assert not other.exists(averaged.mean_key)


def test_a_run_that_was_frozen_without_learning_learns_nothing_whatever_the_settings_say_now(
    target_folder, tmp_path, store
):
    ledger, settings = make_run(target_folder, tmp_path, store, [STYLE], MEANS)
    mean = store.read(ledger.of(STYLE).vector_key)
    now = settings.model_copy(update={"learning": LearningSettings(**QUICK.model_dump())})
    page = Ledger(store, ledger.run_id).of(STYLE)
    assert next_round(page) is None
    finish_run(page.ledger, now)
    vector = SteeringVector.from_bytes(store.read(page.vector_key), "v.pt")
    assert vector.value_vector.equal(SteeringVector.from_bytes(mean, "mean.pt").value_vector)
    assert "learning" not in vector.extraction_config
    assert page.result.mean is None


def test_a_style_none_of_whose_pairs_can_be_learned_from_keeps_its_mean_and_says_so(target_folder, tmp_path, store):
    # Given a recipe that reads no response, and responses that would all end their turn in their middle
    lines = [json.loads(line) for line in (ROOT / "datasets" / f"{STYLE}_pairs.jsonl").open()][:4]
    own = dataset_path(tmp_path, STYLE)
    own.parent.mkdir(parents=True)
    own.write_text(
        "".join(json.dumps(line | {"positive_response": "Step 1: <|im_end|>."}) + "\n" for line in lines[1:])
    )
    how = {"extraction_config": {"target_layers": "all", "recipe": "system_prompt"}}
    ledger, settings = make_run(target_folder, tmp_path, store, [STYLE], ALONE | how)
    page = ledger.of(STYLE)
    take_rounds(page, settings)
    assert page.result.message.startswith("made, but not learned: no pair can be learned from")
    assert "'svf resume' tries again" in page.result.message
    assert store.read(page.vector_key) == store.read(page.mean_key)
    assert page.all_rounds() == []


def test_specifications_and_ends_of_older_versions_are_read_as_they_were_meant(run):
    page, _ = run
    old = page.ledger.spec.model_dump(mode="json")
    del old["learning"]
    assert RunSpec.model_validate(old).learning is None
    assert Ended.model_validate({"state": "done", "vector_sha256": "0", "pairs_used": 3}).is_whole
    assert next_round(Ledger(Store(page.store.url), page.ledger.run_id).of(STYLE)) == 0


def test_a_learned_vector_is_tried_around_its_own_strength(target_folder, tmp_path, store):
    ledger, _ = make_run(target_folder, tmp_path, store, [STYLE], {"learning": QUICK.model_dump()})
    spec = ledger.spec.evaluation
    assert spec.strengths == (0.7, 1.0, 1.3)
    assert (spec.key_strengths, spec.positions, spec.layer_sets) == ((1.0,), (1,), ("all",))


def test_the_report_shows_the_mean_beside_what_was_learned_from_it(target_folder, tmp_path, store, capsys):
    ledger, settings = make_run(target_folder, tmp_path, store, [STYLE], {"learning": QUICK.model_dump()})
    finish_run(ledger, settings)
    page = ledger.of(STYLE)
    vector = SteeringVector.from_bytes(store.read(page.vector_key), "x.pt")
    evaluation = Evaluation.read(vector.metadata)
    assert evaluation.setting.strength in (0.7, 1.0, 1.3)
    assert (evaluation.mean_setting.strength in SWEEP.strengths, evaluation.mean_setting.key_strength) == (True, 0.0)
    mean = SteeringVector.from_bytes(store.read(page.mean_key), "mean.pt")
    target = target_of(ledger.spec, settings)
    steering = apply_cell(mean, evaluation.mean_setting)
    spec = ledger.spec.evaluation
    said = ask(target, Questioning(spec.questions, spec.max_new_tokens, steering), Store("memory://mean"))
    assert store.read_json(page.evaluated().mean.answers) == said
    assert page.result.mean == evaluation.measured["mean"].share
    show_measured(ledger, Console(width=200))
    assert "with the mean that it was learned from" in capsys.readouterr().out
    html = render_report(ledger)
    assert f'id="{STYLE}-learning-figure"' in html
    assert '<th scope="row">mean</th>' in html
    assert "3 rounds of likelihood, best after" in html
    assert "with the mean that this vector was learned from" in html
