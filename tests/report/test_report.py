"""The report: every figure is there, nothing is fetched, and a browser runs it without complaint."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from factory.commands.report import show_measured
from factory.errors import StoreError
from factory.evaluation.cell import Cell
from factory.evaluation.figures import CellFigures, StateFigures
from factory.pairs.styles import load_style
from factory.report import figures, shown
from factory.report.page import render_report, write_report, write_summary
from factory.report.shown import examples, highlight, side_by_side
from factory.report.timing import time_phases, time_workers, timeline
from factory.run.entries import Ended
from factory.run.ledger import Ledger
from factory.store import Store
from factory.vector.vector import SteeringVector
from tests.endpoint import running_endpoint
from tests.evaluated import SWEEP, finish_run, make_run

STYLES = ["step_by_step_reasoning", "creative_explorer"]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def ledger(target_folder, tmp_path_factory) -> Ledger:
    """A finished run of two styles on the tiny model."""
    folder = tmp_path_factory.mktemp("report")
    ledger, settings = make_run(target_folder, folder, Store(str(folder / "runs")), STYLES)
    finish_run(ledger, settings)
    return ledger


@pytest.fixture(scope="module")
def page(ledger) -> str:
    """Its report."""
    return render_report(ledger)


def test_a_page_reads_and_marks_only_the_pairs_that_it_shows_and_says_of_how_many(ledger, page, monkeypatch):
    batches = {style: len(ledger.of(style).batches) for style in STYLES}
    marked, read = [], []
    monkeypatch.setattr("factory.report.shown.MOST_PAIRS", 4)
    monkeypatch.setattr(
        "factory.report.shown.highlight", lambda text, style: marked.append(text) or highlight(text, style)
    )
    of = shown.batch_of
    monkeypatch.setattr("factory.report.shown.batch_of", lambda *which: read.append(which[1]) or of(*which))
    short = render_report(ledger)
    answers = 3 * sum(len(side_by_side(ledger.of(style))) for style in STYLES)
    assert len(marked) == answers + answers + 2 * 4 * len(STYLES)  # side_by_side is asked for once more, here
    assert short.count("Here are 4 of 6 pairs") == len(STYLES)
    assert "Here are" not in page
    assert len(read) <= sum(batches.values())


def test_a_page_stops_reading_batches_where_it_has_enough_pairs(target_folder, tmp_path, store, monkeypatch):
    changes = {"extraction_config": {"target_layers": "all", "recipe": "response_last", "batch_size": 1}}
    few, _ = make_run(target_folder, tmp_path, store, STYLES[:1], changes)
    vector = SteeringVector.from_bytes(store.read(few.of(STYLES[0]).vector_key), "v.pt")
    batches, read, of = few.of(STYLES[0]).batches, [], shown.batch_of
    outliers = {entry["pair_id"] for entry in vector.metadata["quality"]["outliers"]}
    monkeypatch.setattr("factory.report.shown.MOST_PAIRS", 1)
    monkeypatch.setattr("factory.report.shown.batch_of", lambda *which: read.append(which[1]) or of(*which))
    render_report(few)
    ids = [of(few.of(STYLES[0]), batch.number)[0][0].pair_id for batch in batches]
    needed = max((at for at, pair_id in enumerate(ids) if pair_id in outliers), default=0)
    assert read == list(range(needed + 1))


class Elements(HTMLParser):
    """Every element's name and attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def ids(self) -> list[str]:
        return [attributes["id"] for _, attributes in self.found if attributes.get("id")]


def test_every_figure_of_every_style_is_in_the_page(page):
    ids = Elements(page).ids()
    for style in STYLES:
        for name in ("compared", "sweep", "topic", "probe", "layers", "convergence", "agreement"):
            assert f"{style}-{name}" in ids
    assert {"matrix-cosines", "matrix-specificity"} <= set(ids)


def test_ids_are_unique_and_every_label_and_link_finds_its_own(page):
    elements = Elements(page)
    ids = elements.ids()
    assert len(ids) == len(set(ids))
    for _, attributes in elements.found:
        named = (attributes.get("aria-labelledby") or "").split() + [attributes.get("for") or ""]
        link = attributes.get("href") or ""
        for wanted in [*named, link[1:] if link.startswith("#") else ""]:
            assert not wanted or wanted in ids, wanted
    for clip in re.findall(r"url\(#([^)]+)\)", page):
        assert clip in ids


def test_nothing_is_fetched(page):
    assert not re.search(r"https?://", page)
    for tag, attributes in Elements(page).found:
        assert tag not in ("link", "iframe", "object")
        address = attributes.get("src") or attributes.get("href") or ""
        assert not address or address.startswith(("#", "data:"))
    assert "@import" not in page


def test_every_figure_speaks_to_screen_readers_and_takes_the_pages_colour(page):
    svgs = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(svgs) == 16
    for svg in svgs:
        assert 'role="img"' in svg
        assert re.search(r"<title[^>]*>.+?</title>", svg)
        assert re.search(r"<desc[^>]*>.+?</desc>", svg)
        assert figures.INK not in svg
        assert "<text" in svg  # text stays text


def test_the_verdict_and_the_measured_shares_stand_in_the_summary(ledger, page):
    summary = page[page.index('id="summary"') : page.index(f'<section id="{STYLES[0]}"')]
    for style in STYLES:
        assert ledger.of(style).result.verdict in summary


def table_of(page, style):
    """The rows of what was measured, as texts of their cells."""
    table = page[page.index(f'aria-label="Measured on held-out questions, {style}"') :].partition("</table>")[0]
    rows = re.findall(r"<tr.*?</tr>", table, flags=re.DOTALL)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]


def test_a_judge_s_scores_stand_beside_the_markers(target_folder, tmp_path, page):
    with running_endpoint() as endpoint:
        endpoint.answer = lambda prompt: "better: A" if "Text B" in prompt else "style: 70\ncoherence: 30"
        judged = {"base_url": endpoint.base_url, "evaluation": SWEEP.model_copy(update={"judge_model": "a judge"})}
        ledger, settings = make_run(target_folder, tmp_path, Store(str(tmp_path / "runs")), STYLES[:1], judged)
        finish_run(ledger, settings)
    shown = render_report(ledger)
    names, *rows = table_of(shown, STYLES[0])
    at = names.index("markers") + 1
    assert names[at : at + 2] == ["judge: style", "coherence"]
    scores = {row[0]: row[at : at + 2] for row in rows}
    assert set(scores) == {"unsteered", "prompted", "steered", "random", "negated"}
    assert ["70", "30"] in scores.values()
    assert all(pair in (["70", "30"], ["–", "–"]) for pair in scores.values())  # an empty answer has none
    assert "The judge, a judge, scores" in shown
    for text in (shown, Path(write_summary(ledger)).read_text()):
        assert "in both orders, the judge prefers the steered one on" in text
        assert "kappa of judge and markers" in text
    assert "judge" not in "".join(table_of(page, STYLES[0])[0])
    assert "The judge" not in page


def test_settings_that_differ_in_their_keys_alone_are_two_curves_side_by_side():
    half = StateFigures(n=9, share=0.5, interval=(0.2, 0.8), markers=1, words=9, distinct_4grams=1, loops=0)
    read = {"layers": [0], "figures": half, "answers": "answers/0.json", "openings": -1, "moved": 1}
    cells = [
        CellFigures.model_validate({"setting": Cell(strength, key_strength=keys), **read})
        for strength in (2.0, 4.0)
        for keys in (0.0, 0.5)
    ]
    svg = figures.sweep_figure("sweep", cells, 0.1)
    texts = re.findall(r"<text[^>]*>([^<]*)", svg)
    assert {"layers all, 1 pos.", "layers all, 1 pos., keys 0.5"} <= set(texts)
    strokes = [path.split() for path in re.findall(r'd="(M \S+ \S+ \nL \S+ \S+) \n"', svg)]
    tall = [(x, float(y) - float(top)) for _, x, y, _, same, top in strokes if x == same and float(y) - float(top) > 50]
    axis = max(height for _, height in tall)
    assert len({x for x, height in tall if height < axis}) == 4, "an interval hides another"


def test_a_text_with_markup_in_it_is_shown_and_not_obeyed():
    style = load_style("step_by_step_reasoning")
    shown = str(highlight('Step 1: <script>alert("x")</script> & so on', style))
    assert shown == "<mark>Step 1</mark>: &lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt; &amp; so on"


def test_answers_are_side_by_side_for_every_held_out_question(ledger, page):
    for question in ledger.spec.evaluation.questions:
        assert page.count(f"<b>{question}</b>".replace("'", "&#39;")) == len(STYLES)
    rows = examples(ledger.of(STYLES[0]))
    assert len(rows) == 3
    assert set(rows[0].answers) == {"unsteered", "prompted", "steered"}


def test_a_run_whose_styles_are_not_evaluated_has_a_report_that_says_so(target_folder, tmp_path):
    ledger, _ = make_run(target_folder, tmp_path, Store(str(tmp_path / "runs")), STYLES[:1])
    page = render_report(ledger)
    assert "not evaluated" in page
    assert f'id="{STYLES[0]}-layers"' in page


def test_markup_in_what_a_run_says_is_shown_on_its_page_and_not_obeyed(target_folder, tmp_path):
    ledger, _ = make_run(target_folder, tmp_path, Store(str(tmp_path / "runs")), STYLES[:1])
    ledger.of(STYLES[0]).finish(Ended(state="failed", message="<script>alert(1)</script> was answered"))
    page = render_report(ledger)
    assert "&lt;script&gt;alert(1)&lt;/script&gt; was answered" in page
    assert "<script>alert(1)" not in page


def test_a_summary_has_every_verdict_and_rule_and_fetches_nothing(ledger):
    path = Path(write_summary(ledger))
    text = path.read_text()
    assert path.name == "summary.html"
    for style in STYLES:
        vector = SteeringVector.from_bytes(ledger.store.read(ledger.of(style).vector_key), "v.pt")
        assert f"{style}: {vector.metadata['verdict']}" in text
        assert vector.metadata["certificate"]["vector_sha256"][:16] in text
        for check in vector.metadata["evaluation"]["checks"]:
            assert check["said"] in text
    assert not re.search(r"https?://|src=|<script", text)


def test_the_report_lies_in_the_runs_folder(ledger):
    path = write_report(ledger)
    assert path.endswith(f"{ledger.run_id}/report.html")


def test_every_part_of_the_run_is_in_the_timing_of_its_phase_and_its_worker(ledger, page):
    parts = timeline(ledger)
    by_style, by_worker = time_phases(parts), time_workers(parts)

    evaluated = len(ledger.spec.evaluation.parts) * len(STYLES)
    assert sum(span.n for span in by_style if span.phase == "evaluated") == evaluated
    assert sum(span.n for span in by_worker) == sum(span.n for span in by_style) == len(parts) > evaluated
    assert all(span.first <= span.last for span in by_style)
    assert {span.who for span in by_worker} == {f"{platform.node()}:{os.getpid()}"}
    assert f"{platform.node()}:{os.getpid()}" in page


def test_a_damaged_answer_is_named_rather_than_shown(ledger):
    key = ledger.of(STYLES[0]).part(0).answers
    kept = ledger.store.read(key)
    try:
        ledger.store.write(key, b"{}")
        with pytest.raises(StoreError, match="damaged"):
            render_report(ledger)
    finally:
        ledger.store.write(key, kept)


CHECK = """<script>
const complaints = [];
addEventListener("error", event => complaints.push(event.message));
</script>"""
USE = """<script>
const style = "%s";
const find = document.getElementById(style + "-find");
find.value = "no pair says this"; find.dispatchEvent(new Event("input"));
const none = document.getElementById(style + "-count").textContent;
find.value = ""; find.dispatchEvent(new Event("input"));
const only = document.getElementById(style + "-only");
only.value = "outlier"; only.dispatchEvent(new Event("input"));
const outliers = document.getElementById(style + "-count").textContent;
const small = [...document.querySelectorAll("figure svg")].filter(s => s.getBoundingClientRect().height < 50).length;
const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
document.title = JSON.stringify({complaints, none, outliers, small, wide});
</script>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_every_figure_and_its_filters_work(page, tmp_path, width):
    import html
    import json

    tried = page.replace("<head>", "<head>" + CHECK).replace("</body>", USE % STYLES[0] + "</body>")
    file = tmp_path / "report.html"
    file.write_text(tried)
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900", "--dump-dom"]
    told = subprocess.run(
        [str(CHROMIUM), *options, f"--user-data-dir={tmp_path / 'profile'}", file.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    seen = json.loads(html.unescape(re.search(r"<title>(.*?)</title>", told)[1]))
    assert seen == {"complaints": [], "none": "0 of 6 pairs", "outliers": "5 of 6 pairs", "small": 0, "wide": 0}


def test_what_models_and_people_wrote_is_shown_as_it_is_on_a_terminal(ledger, monkeypatch, capsys):
    odd = "bold with [/b], arr[i] and [red]"
    answer = shown.ShownAnswer(odd, odd, 1)
    row = shown.AnsweredQuestion(odd, dict.fromkeys(("unsteered", "steered"), answer))
    monkeypatch.setattr("factory.report.shown.examples", lambda *_, **__: [row])
    show_measured(ledger, Console(width=400, highlight=False))
    assert capsys.readouterr().out.count(odd) == 3 * len(STYLES)
