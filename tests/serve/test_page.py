"""The page in a real browser: type, draw, see, cancel, reload; chat, code, models; a phone's width; both languages."""

import os
import shutil
from collections.abc import Iterator

import pytest

pytestmark = pytest.mark.browser
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]
QUIET += ["--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    from playwright.sync_api import sync_playwright

    assert CHROMIUM, "no chromium is on the path; install it, or name it in CHROMIUM"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, live) -> Iterator[object]:
    """The page, in a fresh profile; whatever the browser complains about is a failure."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, locale="en-GB")
    page = context.new_page()
    complaints: list[str] = []
    ours = (live.address, "data:")
    page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda asked: complaints.append(asked.url) if not asked.url.startswith(ours) else None)
    page.goto(live.address)
    page.wait_for_selector("#draw-form [name=model] option[value=tiny]", state="attached")
    yield page
    context.close()
    assert [text for text in complaints if "status of 400" not in text] == []


def draw(page, prompt: str, steps: int) -> None:
    page.fill("#draw-form [name=prompt]", prompt)
    page.fill("#draw-form [name=num_inference_steps]", str(steps))
    page.fill("#draw-form [name=seed]", "7")
    page.check("#draw-form [name=lock]")
    page.press("#draw-form [name=seed]", "Enter")


def test_a_picture_appears_and_stays(page) -> None:
    draw(page, "a dog", 4)
    page.wait_for_selector("#gallery li")
    assert page.get_attribute("#drawing img", "alt") == "a dog"
    assert page.inner_text("figcaption") == "a dog · 32x32 · 7"
    assert "Done" in page.inner_text("#notice")
    first = page.get_attribute("#gallery img", "src")
    page.reload()
    assert page.wait_for_selector("#gallery img").get_attribute("src") == first
    page.click("#gallery button:has-text('Draw again')")
    page.wait_for_selector("#gallery li:nth-child(2)")
    assert page.get_attribute("#gallery li:nth-child(1) img", "src") == first
    page.click("#gallery li:nth-child(1) button:has-text('Delete')")
    page.wait_for_selector("#gallery li:nth-child(2)", state="detached")


def test_stopping(page, live) -> None:
    draw(page, "a dog", 150)
    page.wait_for_selector("#draw-stop:not([disabled])")
    page.click("#draw-stop")
    page.wait_for_selector("#notice:has-text('Stopped')")
    page.wait_for_timeout(1500)
    assert live.rooms.busy["pictures"] == 0
    assert page.locator("#gallery li").count() == 0


def test_what_cannot_be_is_said(page) -> None:
    page.fill("#draw-form [name=size]", "7x7")
    draw(page, "a dog", 2)
    page.wait_for_selector("#notice.bad:has-text('not a multiple of 8')")


def test_a_talk(page) -> None:
    page.click("#tab-chat")
    page.fill("#chat-form [name=message]", "what is the name?")
    page.keyboard.press("Enter")
    page.wait_for_selector("#talk li.assistant")
    page.wait_for_selector("#chat-stop[disabled]", state="attached")
    said = page.inner_text("#talk li.assistant")
    assert said
    page.reload()
    assert page.inner_text("#talk li.assistant") == said
    page.click("#talk button:has-text('Edit')")
    assert page.input_value("#chat-form [name=message]") == "what is the name?"
    assert page.locator("#talk li").count() == 0


def test_code_goes_on_at_the_cursor(page) -> None:
    page.click("#tab-code")
    page.fill("#editor", "return the ")
    page.press("#editor", "Control+Space")
    page.wait_for_selector("#code-stop[disabled]", state="attached")
    page.wait_for_timeout(500)
    assert page.input_value("#editor").startswith("return the ")
    assert len(page.input_value("#editor")) > len("return the ")


def test_models_and_the_request_as_code(page) -> None:
    draw(page, "a dog", 2)
    page.wait_for_selector("#gallery li")
    page.click("#tab-models")
    page.click("[aria-label='Unload tiny']")
    page.wait_for_selector("[aria-label='Load tiny']")
    page.click("#tab-api")
    assert '"prompt": "a dog"' in page.inner_text("#as-curl")
    assert "images.generate" in page.inner_text("#as-python")
    assert "invoke_endpoint" in page.inner_text("#as-boto3")


def test_by_keyboard_and_in_chinese_on_a_phone(page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.focus("#tab-draw")
    page.keyboard.press("ArrowRight")
    assert page.get_attribute("#tab-chat", "aria-selected") == "true"
    page.click("#language")
    assert page.inner_text("#tab-draw") == "繪圖"
    assert page.get_attribute("html", "lang") == "zh-Hant"
    for tab in ("draw", "chat", "code", "translate", "models", "api"):
        page.click(f"#tab-{tab}")
        widths = page.evaluate("() => [document.documentElement.scrollWidth, window.innerWidth]")
        assert widths[0] <= widths[1], tab


def test_every_field_has_a_name_for_those_who_hear_it(page) -> None:
    unnamed = page.evaluate(
        "() => [...document.querySelectorAll('input, select, textarea, button, progress')].filter("
        "(e) => !(e.labels?.length || e.textContent.trim() || e.getAttribute('aria-label'))).map((e) => e.outerHTML)"
    )
    assert unnamed == []
