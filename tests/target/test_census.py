"""Every causal language model class of the installed transformers is right or refused: no row says "wrong"."""

from __future__ import annotations

import pytest

from tests.target import census

rows: dict[str, census.Row] = {}


@pytest.mark.slow
@pytest.mark.parametrize("model_type", census.model_types())
def test_a_tiny_model_of_the_class_is_read_and_steered_rightly_or_refused(model_type, tmp_path):
    rows[model_type] = census.examine(model_type, tmp_path)

    assert not rows[model_type].is_wrong, rows[model_type]


@pytest.mark.slow
def test_the_table_of_model_families_is_what_the_checks_found():
    if set(rows) != set(census.model_types()):
        pytest.skip("only some model types were examined")
    found = census.table(rows.values())
    print(found)

    assert census.document() == found, "refresh it: python -m tests.target.census"
