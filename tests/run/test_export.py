"""What a run leaves under the output folder beyond vectors and datasets."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open

from factory.errors import StoreError
from factory.run.export import export_style
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
    give_up_evaluation(ledger, STYLE, "not wanted here")
    return ledger, settings


def test_differences_of_single_pairs_are_written_when_wanted_and_average_to_the_vector(target_folder, tmp_path, store):
    ledger, settings = made(target_folder, tmp_path, store, keep=True)
    path = export_style(ledger, ledger.spec.style_run(STYLE).style, tmp_path / "out", settings.output_config)
    files = sorted((tmp_path / "out" / "intermediate" / STYLE).iterdir())
    assert [file.name for file in files] == [f"batch-{n:05d}.safetensors" for n in range(len(ledger.batches(STYLE)))]
    pair_ids, values = [], []
    for file in files:
        with safe_open(file, "pt") as content:
            pair_ids += json.loads(content.metadata()["pair_ids"])
            values.append(content.get_tensor("values"))
    dataset = (tmp_path / "out" / "datasets" / f"{STYLE}_pairs.jsonl").read_text().splitlines()[1:]
    assert pair_ids == [json.loads(line)["pair_id"] for line in dataset]
    vector = SteeringVector.load(path)
    assert torch.allclose(torch.cat(values).double().mean(dim=0).float(), vector.value_vector, atol=1e-6)


def test_nothing_of_single_pairs_is_written_by_default(target_folder, tmp_path, store):
    ledger, settings = made(target_folder, tmp_path, store, keep=False)
    export_style(ledger, ledger.spec.style_run(STYLE).style, tmp_path / "out", settings.output_config)
    assert not (tmp_path / "out" / "intermediate").exists()


def test_differences_that_are_gone_are_named(target_folder, tmp_path, store):
    ledger, settings = made(target_folder, tmp_path, store, keep=True)
    store.delete(ledger.entry(STYLE, "extracted", 0)["key"])
    with pytest.raises(StoreError, match="batch 0"):
        export_style(ledger, ledger.spec.style_run(STYLE).style, tmp_path / "out", settings.output_config)
