"""Planning: what a run will do is settled, and refused if it cannot work, before anything starts."""

import json
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.config import EvaluationSettings, ExtractionSettings, Settings
from factory.errors import ConfigError, DatasetError, LayerError, TargetError, UnknownStyle
from factory.files import shipped_file
from factory.pairs.dataset import format_dataset, load_pairs
from factory.pairs.pair import ContrastivePair, number_batches
from factory.planning.estimate import estimate_run
from factory.planning.plan import plan_run
from factory.planning.specify import resolve_model
from factory.planning.supply import run_questions
from factory.run.artifacts import get_pairs
from factory.store import Store
from factory.target.download import count_layers
from tests.conftest import MEANS, STYLES

STYLE = "step_by_step_reasoning"


def settings(**given):
    return Settings(**({"styles": [STYLE]} | given))


def own_dataset(folder, n=20, style=STYLE):
    pairs = [ContrastivePair(f"own question {i}", f"Step 1: {i}", f"plain {i}", style=style) for i in range(n)]
    path = folder / "datasets" / f"{style}_pairs.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text(format_dataset(number_batches(pairs, 8), {"style_name": style, "model_used": "me"}))
    return pairs


def pairs_of(plan, store, style=STYLE):
    return [pair for batch in plan.batches[style] for pair in get_pairs(store, batch.pairs_key)[0]]


def test_the_starter_data_need_no_key_and_no_teacher(store, tmp_path):
    plan = plan_run(Settings(), store, tmp_path)
    assert not plan.needs_teacher
    assert {part.style.name: part.n_pairs for part in plan.spec.styles} == dict.fromkeys(STYLES, 48)


def test_a_dataset_in_the_output_folder_wins_over_the_one_that_was_shipped(store, tmp_path):
    pairs = own_dataset(tmp_path)
    plan = plan_run(settings(), store, tmp_path)
    assert [pair.question for pair in pairs_of(plan, store)] == [pair.question for pair in pairs]
    assert [batch.n_pairs for batch in plan.batches[STYLE]] == [8, 8, 4]
    assert plan.spec.styles[0].dataset_metadata["model_used"] == "me"


@pytest.mark.parametrize("size", [1, 4, 5])
def test_batches_too_small_for_the_examples_that_are_asked_for_are_a_warning(store, tmp_path, size):
    (tmp_path / "datasets").mkdir()
    pairs = [ContrastivePair(f"question {i}", f"Step 1: {i}", f"plain {i}", style=STYLE) for i in range(10)]
    (tmp_path / "datasets" / f"{STYLE}_pairs.jsonl").write_text(format_dataset(pairs, {"style_name": STYLE}))

    def told(**extraction):
        return plan_run(settings(extraction_config={"batch_size": size} | extraction), store, tmp_path).warnings

    assert [f"{size} pairs at most, and 5 are needed: raise batch_size" in line for line in told()] == [True] * (
        size < 5
    )
    assert len(told(n_shots=3)) == (size < 4)
    assert told(recipe="response_last") == []


def test_batches_too_small_are_a_warning_also_where_a_teacher_writes_the_pairs(store, tmp_path):
    given = settings(base_url="http://127.0.0.1:1/v1", regenerate_datasets=True, extraction_config={"batch_size": 1})

    (warning,) = plan_run(given, store, tmp_path).warnings

    assert "1 pairs at most, and 5 are needed" in warning


@given(limit=st.integers(1, 60))
def test_a_limit_takes_the_first_pairs_and_leaves_their_batches_alone(tmp_path_factory, limit):
    folder = tmp_path_factory.mktemp("plan")
    store = Store(str(folder / "store"))
    whole = plan_run(settings(), store, folder)
    part = plan_run(settings(), store, folder, limit=limit)
    assert pairs_of(part, store) == pairs_of(whole, store)[:limit]
    full = limit // 16
    assert [b.pairs_key for b in part.batches[STYLE][:full]] == [b.pairs_key for b in whole.batches[STYLE][:full]]


def test_a_style_without_dataset_and_key_is_refused_with_both_ways_out(store, tmp_path):
    with pytest.raises(ConfigError) as caught:
        plan_run(settings(regenerate_datasets=True), store, tmp_path)
    assert "OPENAI_API_KEY" in str(caught.value)
    assert f"{STYLE}_pairs.jsonl" in str(caught.value)


def test_a_key_lets_the_teacher_write_every_question(store, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-x")
    plan = plan_run(settings(regenerate_datasets=True, additional_questions=["One more?"]), store, tmp_path)
    asked = [question for batch in plan.batches[STYLE] for question in batch.questions]
    assert plan.needs_teacher
    assert asked == run_questions(settings(additional_questions=["One more?"]))
    assert asked[-1] == "One more?"
    assert all(batch.pairs_key is None for batch in plan.batches[STYLE])


def test_a_server_of_ones_own_needs_no_key(store, tmp_path):
    plan = plan_run(settings(regenerate_datasets=True, base_url="http://127.0.0.1:1/v1"), store, tmp_path, limit=3)
    assert plan.needs_teacher
    assert plan.spec.styles[0].n_pairs == 3


def test_extending_keeps_every_old_batch_and_adds_the_missing_questions(store, tmp_path):
    own_dataset(tmp_path)
    local = {"base_url": "http://127.0.0.1:1/v1"}
    before = plan_run(settings(**local), store, tmp_path)
    after = plan_run(settings(extend=True, **local), store, tmp_path)
    n_old = len(before.batches[STYLE])
    assert [b.pairs_key for b in after.batches[STYLE][:n_old]] == [b.pairs_key for b in before.batches[STYLE]]
    added = [question for batch in after.batches[STYLE][n_old:] for question in batch.questions]
    assert added == run_questions(settings())


def questions_file(folder, *questions):
    file = folder / "mine.txt"
    file.write_text("\n".join(questions) + "\n")
    return str(file)


@pytest.mark.parametrize("source", ["additional_questions", "custom_questions_file"])
def test_questions_that_a_person_names_get_pairs_beside_the_starter_pairs(store, tmp_path, source):
    questions = ["Mine?", "And mine?"]
    given = {source: questions_file(tmp_path, *questions) if source == "custom_questions_file" else questions}
    plan = plan_run(settings(base_url="http://127.0.0.1:1/v1", **given), store, tmp_path)
    assert sum(batch.n_pairs for batch in plan.batches[STYLE]) == 50
    assert plan.batches[STYLE][-1].questions == tuple(questions)
    assert "regenerate_datasets: true" in plan.notes[0]
    alone = plan_run(
        settings(base_url="http://127.0.0.1:1/v1", regenerate_datasets=True, **given), store, tmp_path, limit=2
    )
    assert alone.notes == []
    assert alone.batches[STYLE][0].pairs_key is None


@pytest.mark.parametrize("has_own_dataset", [False, True])
@pytest.mark.parametrize("source", ["additional_questions", "custom_questions_file", "--extend"])
def test_without_a_key_a_run_says_how_many_named_questions_it_leaves_out(store, tmp_path, source, has_own_dataset):
    if has_own_dataset:
        own_dataset(tmp_path)
    given = {
        "additional_questions": {"additional_questions": ["Mine?", "And mine?"]},
        "custom_questions_file": {"custom_questions_file": questions_file(tmp_path, "Mine?", "And mine?")},
        "--extend": {"extend": True},
    }[source]
    plan = plan_run(settings(**given), store, tmp_path)
    assert not plan.needs_teacher
    assert sum(batch.n_pairs for batch in plan.batches[STYLE]) == (20 if has_own_dataset else 48)
    n_lacking = 2 if source != "--extend" else len(run_questions(settings())) - 48 * (not has_own_dataset)
    told = [line for line in plan.warnings if "OPENAI_API_KEY" in line]
    assert [line.split(" of ")[0] for line in told] == ([f"{n_lacking} questions"] if n_lacking else [])
    found = estimate_run(settings(**given), store, tmp_path)
    assert found.styles[0].to_write == 0
    assert found.notes == [*plan.notes, *plan.warnings]


def test_a_limit_that_leaves_no_room_for_named_questions_is_said(store, tmp_path):
    given = settings(base_url="http://127.0.0.1:1/v1", additional_questions=["Mine?"])
    assert plan_run(given, store, tmp_path, limit=49).warnings == []
    (warning,) = plan_run(given, store, tmp_path, limit=8).warnings
    assert "limit before 1 question of additional_questions" in warning


def test_a_style_with_too_few_pairs_to_validate_is_named_unless_nothing_is_learned(store, tmp_path):
    assert plan_run(settings(), store, tmp_path, limit=6).warnings == []
    (warning,) = plan_run(settings(), store, tmp_path, limit=5).warnings
    assert warning.startswith(f"style {STYLE!r}: with fewer than 6 pairs none is left to validate")
    assert plan_run(settings(**MEANS), store, tmp_path, limit=5).warnings == []


def test_a_run_on_starter_pairs_says_so_in_one_line_and_how_to_have_ones_own(store, tmp_path):
    (note,) = plan_run(settings(), store, tmp_path).notes
    assert "starter pairs" in note
    assert "--questions" in note
    assert "OPENAI_API_KEY" in note
    own_dataset(tmp_path)
    assert plan_run(settings(), store, tmp_path).notes == []


def test_questions_of_one_style_alone_set_the_starter_pairs_aside(store, tmp_path):
    plan = plan_run(settings(base_url="http://127.0.0.1:1/v1"), store, tmp_path, questions={STYLE: ["Only here?"]})
    assert plan.batches[STYLE][0].questions == ("Only here?",)


def test_an_unknown_style_is_refused_before_anything_is_written(store, tmp_path):
    with pytest.raises(UnknownStyle):
        plan_run(settings(styles=["step_by_step"]), store, tmp_path)
    assert not (tmp_path / "store").exists()


def test_a_damaged_dataset_is_refused_by_file_and_line(store, tmp_path):
    own_dataset(tmp_path)
    path = tmp_path / "datasets" / f"{STYLE}_pairs.jsonl"
    path.write_text(path.read_text() + "{broken\n")
    with pytest.raises(DatasetError, match="line 22: not JSON"):
        plan_run(settings(), store, tmp_path)


def test_a_bad_second_style_leaves_nothing_of_the_first(store, tmp_path):
    path = tmp_path / "datasets" / "researcher_style_pairs.jsonl"
    path.parent.mkdir()
    path.write_text("{broken\n")
    with pytest.raises(DatasetError):
        plan_run(settings(styles=[STYLE, "researcher_style"]), store, tmp_path)
    assert not (tmp_path / "store").exists()


def test_layers_that_the_model_does_not_have_are_refused_without_loading_it(store, tmp_path, target_folder):
    for layers in ("2-9", [3, 4], 4, "three", [-1], []):
        wanted = settings(target_model=str(target_folder), extraction_config={"target_layers": layers})
        with pytest.raises(LayerError):
            plan_run(wanted, store, tmp_path)
    with pytest.raises(LayerError):  # nothing is known of this model, but the text makes no sense for any
        plan_run(settings(extraction_config={"target_layers": "three"}), store, tmp_path)
    assert not (tmp_path / "store").exists()


def test_every_recipe_can_be_configured_and_no_other():
    from factory.extraction.recipe import RECIPES

    assert get_args(ExtractionSettings.model_fields["recipe"].annotation) == tuple(RECIPES)


def test_a_retired_model_is_replaced_at_openai_alone():
    assert resolve_model(Settings()) == "gpt-6-luna"
    assert resolve_model(Settings(base_url="http://127.0.0.1:1/v1")) == "gpt-4"
    assert resolve_model(Settings(teacher_model="gpt-6-luna")) == "gpt-6-luna"
    with pytest.raises(ConfigError, match="strict_model"):
        resolve_model(Settings(strict_model=True))


def test_what_decides_a_run_is_frozen_from_the_settings(store, tmp_path):
    given = settings(
        target_model="m", extraction_config={"recipe": "response_mean", "n_tokens": 4, "target_layers": "1-2"}
    )
    spec = plan_run(given, store, tmp_path).spec
    assert spec.extraction.target_model == "m"
    assert (spec.extraction.recipe, spec.extraction.n_tokens, spec.extraction.target_layers) == (
        "response_mean",
        4,
        "1-2",
    )
    assert spec.teacher.requested_model == "gpt-4"
    assert (
        spec.evaluation.questions
        == tuple(
            line
            for line in shipped_file("questions", "heldout.txt").read_text().splitlines()
            if line and not line.startswith("#")
        )[: given.evaluation.limit]
    )


def test_the_shipped_pairs_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for style in STYLES:
        assert len(load_pairs(shipped_file("datasets", f"{style}_pairs.jsonl"))) == 48


@pytest.mark.parametrize(("layer_set", "said"), [("2-9", "the model has layers 0 to 3"), ("late", "expected 'all'")])
def test_layer_sets_of_the_sweep_that_the_model_lacks_are_refused(store, tmp_path, target_folder, layer_set, said):
    assert count_layers(str(target_folder)) == 4
    given = settings(target_model=str(target_folder), extraction_config={"target_layers": "all"})
    fitting = given.model_copy(update={"evaluation": EvaluationSettings(layer_sets=["all", "1-3"])})
    assert plan_run(fitting, store, tmp_path).spec.evaluation.mean.layer_sets == ("all", "1-3")
    lacking = given.model_copy(update={"evaluation": EvaluationSettings(layer_sets=["all", layer_set])})
    with pytest.raises(LayerError, match=rf"evaluation\.layer_sets: .*{said}"):
        plan_run(lacking, store, tmp_path)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128}, "latent attention"),
        ({"text_config": {"head_dim": 256, "global_head_dim": 512}}, "different widths"),
        ({"layer_types": ["linear_attention", "full_attention"]}, "keep no keys and values"),
        ({"num_kv_shared_layers": 4}, "share their KV cache"),
    ],
)
def test_a_model_whose_cache_cannot_be_read_is_refused_before_a_teacher_is_paid(store, tmp_path, config, said):
    (tmp_path / "config.json").write_text(json.dumps(config))
    asked = settings(target_model=str(tmp_path), base_url="http://127.0.0.1:1/v1", styles=[STYLES[0]])
    with pytest.raises(TargetError, match=said):
        plan_run(asked, store, tmp_path, questions={STYLES[0]: ["Why is it so?"]})
    (tmp_path / "config.json").write_text(json.dumps(dict.fromkeys(config, None)))
    assert plan_run(asked, store, tmp_path, questions={STYLES[0]: ["Why is it so?"]}).needs_teacher
