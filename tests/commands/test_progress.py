"""Progress where there is no terminal: plain lines, as the run moves."""

import io
import re

import pytest
from rich.console import Console

from factory.commands.progress import watch
from factory.run.progress import progress_of
from factory.steps.evaluate import give_up_evaluation
from factory.steps.learn import next_round
from factory.store import Store
from tests.evaluated import make_run, take_rounds
from tests.run.test_learning import QUICK, STYLE


def test_without_a_terminal_a_run_is_told_in_plain_lines_as_it_moves(target_folder, tmp_path, store):
    ledger, _ = make_run(target_folder, tmp_path, store, ["step_by_step_reasoning"])
    said = io.StringIO()

    def end_it_once_something_was_said():
        if said.getvalue():
            give_up_evaluation(ledger.of("step_by_step_reasoning"), "not wanted")

    watch(ledger, Console(file=said, markup=False), end_it_once_something_was_said)
    first, last = said.getvalue().splitlines()
    assert re.fullmatch(r"\[ +\d+ s\] step_by_step_reasoning: evaluating, .*", first)
    assert re.fullmatch(r"\[ +\d+ s\] step_by_step_reasoning: done, 6/6 pairs extracted", last)
    assert "\x1b" not in said.getvalue()


@pytest.mark.parametrize("columns", [80, 120])
def test_what_is_learned_is_told_in_full_on_a_narrow_terminal(target_folder, tmp_path, store, columns):
    ledger, settings = make_run(target_folder, tmp_path, store, [STYLE], {"learning": QUICK.model_dump()})
    page, said = ledger.of(STYLE), io.StringIO()

    def learn_on():
        if next_round(page) is not None:
            take_rounds(page, settings, at_most=2)
        elif "learning" in said.getvalue() and not page.result:
            give_up_evaluation(page, "not wanted")

    watch(ledger, Console(file=said, force_terminal=True, width=columns, color_system=None), learn_on)
    assert re.search(r"~ step_by_step_reasoning .* learning 2/3, loss \d+\.\d\d, val \d+\.\d\d +0:00:", said.getvalue())


def test_a_look_at_a_run_lists_the_folder_of_each_style_once(target_folder, tmp_path, store, monkeypatch):
    ledger, _ = make_run(target_folder, tmp_path, store, ["step_by_step_reasoning"])
    listed = []
    names = Store.names
    monkeypatch.setattr(Store, "names", lambda store, folder=None: listed.append(folder) or names(store, folder))
    state = progress_of(ledger.of("step_by_step_reasoning"))
    assert (state.written, state.extracted, state.evaluated) == (6, 6, 0)
    assert listed == [f"{ledger.run_id}/step_by_step_reasoning"]
