"""The page in a headless Chromium, with the model in the box: all four modes by clicking."""

import re
import shutil

import pytest

from tests.helpers.serving import started

playwright = pytest.importorskip("playwright.sync_api")
pytest.importorskip("gradio")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with started(tmp_path_factory.mktemp("server")) as server, playwright.sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 900, "height": 1400})
        page.goto(f"http://127.0.0.1:{server.port}/")
        yield page
        browser.close()


def go(page, name, *, prompt=None, picture=None):
    """Clicks through one mode with seed 3; gives its part of the page."""
    page.get_by_role("tab", name=name, exact=True).click()
    shown = page.locator("[role=tabpanel]:visible")
    if picture is not None:
        shown.locator("input[type=file]").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": picture})
        shown.locator("img").first.wait_for()
    if prompt is not None:
        shown.get_by_label("Prompt").fill(prompt)
    shown.get_by_label("Seed").first.fill("3")
    shown.get_by_role("button", name="Go").click()
    return shown


def test_four_modes(page):
    import base64

    shown = go(page, "Draw")
    steps = set()
    while not shown.locator(".drawn img").count():  # the bar moves
        steps |= set(re.findall(r"(\d+)/20", shown.inner_text()))
        page.wait_for_timeout(10)
    assert len(steps) > 2
    source = shown.locator(".drawn img").get_attribute("src")
    picture = base64.b64decode(source.partition(",")[2])
    shown = go(page, "Edit", picture=picture)
    shown.locator(".drawn img").wait_for()
    assert shown.locator(".drawn img").get_attribute("src") != source
    shown = go(page, "Ask", picture=picture)
    shown.get_by_text("seed 3", exact=True).wait_for()
    assert shown.get_by_label("Answer").input_value() == "2"
    shown = go(page, "Reason and draw")
    shown.locator(".drawn img").wait_for()
    assert "four triangles" in shown.get_by_label("Reasoning").input_value()
    assert page.locator(".history figure").count() == 3
    assert "seed 3" in page.locator(".history figure").first.inner_text()


def test_errors_are_sentences(page):
    go(page, "Draw", prompt="a <image> cat")
    page.get_by_text("The prompt has 1 <image> marks but 0 image(s)").first.wait_for()
    go(page, "Draw", prompt=" ")
    page.get_by_text("The prompt is empty; write what you want.").first.wait_for()
