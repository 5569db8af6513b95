"""The page at ``/`` in a real browser: asked by mouse and by keyboard, narrow and wide, light and dark."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from factory.vector.steer import Steering, generate
from factory.vector.vector import SteeringVector
from tests.serving.running import KEY, served
from tests.serving.test_server import named_vector

playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium"),
]
MAX_TOKENS = 160  # what the page asks for
SCREENS = {
    "phone": {"viewport": {"width": 390, "height": 844}, "color_scheme": "light"},
    "phone, dark": {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"},
    "desk": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "desk, dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, target):
    folder = tmp_path_factory.mktemp("vectors")
    named_vector(target, "calm", 1, recommended_strength=2.0).save(folder / "calm.safetensors")
    named_vector(target, "step_by_step_reasoning", 2).save(folder / "steps.safetensors")
    return folder


@pytest.fixture(scope="module")
def url(folder, target):
    with served(folder, "--target", target.name) as (url, _):
        yield url


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as programs:
        browser = programs.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, url):
    """Open the page on a screen; what it asks of the network and says on its console is kept."""
    contexts = []

    def open_on(screen="desk", key=KEY):
        context = browser.new_context(**SCREENS[screen])
        contexts.append(context)
        page = context.new_page()
        page.asked, page.complaints = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("console", lambda line: page.complaints.append(line.text) if line.type == "error" else None)
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.goto(url)
        page.get_by_label("Key of this server").wait_for()
        page.complaints.clear()  # the browser tells of the 401
        if key:
            page.get_by_label("Key of this server").fill(key)
            page.get_by_label("Key of this server").press("Tab")
            page.get_by_label("calm").wait_for()
        return page

    yield open_on
    for context in contexts:
        context.close()


def set_slider(page, name, value):
    page.get_by_label(name).evaluate(
        "(range, value) => { range.value = value; range.dispatchEvent(new Event('input')); }", value
    )


def ask(page, question):
    page.get_by_label("Question").fill(question)
    page.get_by_role("button", name="Ask").click()
    wait_for_answers(page)


def wait_for_answers(page):
    playwright.expect(page.get_by_role("button", name="Ask")).to_be_enabled(timeout=120_000)
    assert page.locator("#said").inner_text() == ""


def answers(page):
    return [page.locator(place).evaluate("place => place.textContent") for place in ("#plain", "#steered")]


@pytest.mark.parametrize("screen", SCREENS)
def test_the_page_fits_its_screen_and_has_both_answers_of_generate(opened, url, folder, target, screen):
    page = opened(screen)
    set_slider(page, "calm", 3)
    ask(page, "Why?")
    calm = SteeringVector.load(folder / "calm.safetensors")
    plain, steered = (
        generate(target, "Why?", vector=vector, max_new_tokens=MAX_TOKENS) for vector in (None, Steering(calm, 3))
    )
    assert answers(page) == [plain, steered]
    assert plain != steered
    width = SCREENS[screen]["viewport"]["width"]
    assert page.evaluate("document.documentElement.scrollWidth") == width, "the page scrolls sideways"
    left, right = (page.locator(place).bounding_box() for place in ("#plain", "#steered"))
    assert (left["y"] == right["y"]) == (width > 700), "side by side where there is room"
    for button in page.get_by_role("button").all():
        assert button.bounding_box()["height"] >= 44, "too small for a finger"
    assert all(asked.startswith((f"{url}/", "data:")) for asked in page.asked), page.asked
    assert page.complaints == []


def test_a_dark_screen_gets_dark_ground_and_light_ink(opened):
    def brightness(page, what):
        colour = page.evaluate(f"getComputedStyle(document.body).{what}")
        return sum(map(int, colour.removeprefix("rgb(").removesuffix(")").split(","))) / 3

    light, dark = opened("phone"), opened("phone, dark")
    assert brightness(light, "backgroundColor") - brightness(light, "color") > 150
    assert brightness(dark, "color") - brightness(dark, "backgroundColor") > 150


def test_everything_is_done_by_keyboard(opened, target, folder):
    page = opened()
    page.get_by_label("Question").focus()
    page.keyboard.press("Control+A")
    page.keyboard.type("How?")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "vector-0"
    page.keyboard.press("Home")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    strength = float(page.get_by_label("calm").input_value())
    assert strength == pytest.approx(-4 + 3 * 0.1)
    assert page.locator("output").first.inner_text() == f"{strength:.1f}"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    for _ in range(3):  # the other slider, the key, the button
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "ask"
    page.keyboard.press("Enter")
    wait_for_answers(page)
    calm = SteeringVector.load(folder / "calm.safetensors")
    expected = generate(target, "How?", vector=Steering(calm, strength), max_new_tokens=MAX_TOKENS)
    assert answers(page)[1] == expected


def test_answers_grow_together_as_they_are_made(opened):
    page = opened()
    page.evaluate(
        """() => { window.seen = [];
        for (const name of ["plain", "steered"]) {
            const place = document.getElementById(name);
            new MutationObserver(() => seen.push([name, place.textContent])).observe(place, {childList: true});
        } }"""
    )
    ask(page, "Why is the sky blue?")
    seen = page.evaluate("window.seen")
    for place, whole in zip(("plain", "steered"), answers(page), strict=True):
        texts = [text for at, text in seen if at == place]
        assert len(set(texts)) > 3, "it came in one piece"
        assert all(whole.startswith(text) for text in texts)
    first_of = {place: [at for at, _ in seen].index(place) for place in ("plain", "steered")}
    last_of_plain = max(at for at, (place, text) in enumerate(seen) if place == "plain" and text)
    assert first_of["steered"] < last_of_plain, "one after the other"


def test_words_of_a_style_are_marked(opened):
    page = opened()
    page.evaluate("marked(document.getElementById('steered'), 'Step 1: look.\\nStep 2: <b>leap</b>.')")
    set_slider(page, "step by step reasoning", 1)
    count = page.evaluate("marked(document.getElementById('steered'), 'Step 1: look.\\nStep 2: <b>leap</b>.')")
    assert count == page.locator("#steered mark").count() >= 2
    assert all(mark == mark.strip() for mark in page.locator("#steered mark").all_text_contents())
    assert page.locator("#steered").inner_text() == "Step 1: look.\nStep 2: <b>leap</b>.", "text, not markup"


def test_what_is_shown_as_curl_and_python_gives_the_steered_answer(opened, tmp_path):
    page = opened()
    set_slider(page, "calm", -2.5)
    ask(page, "What's a \"sky\" — and 'why'?\nSay $HOME.")
    expected = answers(page)[1]
    known = os.environ | {"SVF_SERVER_KEY": KEY}
    shown = page.locator("#curl").inner_text()
    said = subprocess.run(["bash", "-c", shown], capture_output=True, text=True, check=True, env=known, timeout=60)
    assert json.loads(said.stdout)["choices"][0]["message"]["content"] == expected
    (tmp_path / "shown.py").write_text(page.locator("#python").inner_text())
    program = [sys.executable, "shown.py"]
    said = subprocess.run(program, capture_output=True, text=True, check=True, env=known, cwd=tmp_path, timeout=60)
    assert said.stdout.strip() == expected


def test_a_wrong_key_and_a_refusal_are_said_in_words(opened):
    page = opened(key=None)
    page.get_by_role("button", name="Ask").click()
    playwright.expect(page.locator("#said")).to_have_text("Give the key of this server.")
    assert page.evaluate("document.activeElement.id") == "key"
    page = opened()
    page.get_by_label("Question").fill("")
    page.get_by_role("button", name="Ask").click()
    playwright.expect(page.locator("#said")).to_have_text("Ask something first.")
    page.get_by_label("Question").fill("why " * 2000)
    page.evaluate("document.getElementById('question').value = 'why '.repeat(5000)")
    page.get_by_role("button", name="Ask").click()
    playwright.expect(page.locator("#said")).to_contain_text("exceed the 4096 tokens")
