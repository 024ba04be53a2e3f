"""The search page in a real headless Chromium, over real sockets.

`DEXML_SCREENSHOTS=docs/img` makes the tests write page.png, page-dark.png, page-phone.png and page-why.png there; with
`DEXML_SCREENSHOT_BUNDLE=demo/run` they show that bundle, asked its first example.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_answers_appear_as_one_types(open_page, stand_in):
    page = open_page(stand_in)
    assert page.inner_text("#headline") == "Nothing asked yet."
    page.keyboard.type("sort an array", delay=20)  # the box has the focus from the start
    page.wait_for_selector(".answer.first >> text=numpy.sort")
    assert page.locator(".answer").count() == 5
    first = page.locator(".answer").first
    assert first.locator(".text").inner_text() == "Return a sorted copy of an array."
    assert re.fullmatch(r"0\.\d{3}", first.locator(".score .value").inner_text())
    assert re.fullmatch(r"\d+(\.\d+)?%", first.locator(".chance .value").inner_text())
    page.wait_for_timeout(400)  # the bars grow
    widths = [bar.bounding_box()["width"] for bar in page.locator(".score .fill:not(.lost)").all()]
    assert widths == sorted(widths, reverse=True) and widths[0] > 20
    stages = page.locator("#stages li").all_inner_texts()
    assert [stage.split()[0] for stage in stages] == ["queue", "encode", "retrieve", "rescore"]
    assert all(stage.endswith(" ms") for stage in stages)
    assert "of 10 labels in" in page.inner_text("#status")
    assert page.locator("#message").is_hidden()


def test_a_trained_bundle_answers_within_100_ms(open_page, tiny_bundle, ask, served):
    with served("-m", "dexml", "serve", str(tiny_bundle), "--port", "0", "--admin-port", "0") as url:
        page = open_page(url)
        ask(page, "how to warm up")
        totals = []
        for text in ("how to sort an array", "numbers from a distribution", "frequencies of a signal"):
            with page.expect_response("**/v1/search") as reply:
                page.fill("#query", text)
            totals.append(reply.value.json()["timing_ms"]["total"])
        assert max(totals) < 100, totals
        page.context.close()  # its kept-alive connection would hold up the drain


def test_hostile_label_text_stays_text(open_page, stand_in, ask):
    page = open_page(stand_in)
    page.fill("#k", "10")
    ask(page, "hostile img src onerror")
    assert page.locator(".answer .name").first.inner_text() == "hostile"
    assert page.locator(".answer .text").first.inner_text() == '<img src=x onerror="document.title=1">'
    assert page.locator("main img").count() == 0 and page.title() == "dexml"
    ask(page, "<script>document.title=2</script>")
    assert page.title() == "dexml" and page.locator("main script").count() == 0


def test_a_text_of_unknown_words_is_told_in_words(open_page, stand_in, ask):
    page = open_page(stand_in)
    ask(page, "sort an array")
    page.fill("#query", "gibberish")
    page.wait_for_selector("text=No word of this text is known.")
    assert page.locator(".answer").count() == 0 and page.locator("#footnote").is_hidden()
    assert page.inner_text("#status").startswith("0 of 10 labels")
    ask(page, "sort an array")
    assert page.locator("#message").is_hidden()


@pytest.mark.parametrize(("variables", "code", "words"), [({"CI": "true"}, 1, "error"), ({}, 0, "skipped")])
def test_without_a_browser_it_fails_where_nobody_reads_what_was_skipped(tmp_path, variables: dict, code: int, words: str):
    kept = {name: value for name, value in os.environ.items() if name not in ("CI", "PATH")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", __file__, "-p", "no:cacheprovider", "-k", "phone"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**kept, "PATH": str(tmp_path), **variables},
    )
    assert done.returncode == code and words in done.stdout.splitlines()[-1], done.stdout
    assert "CI" not in variables or "no chromium on this machine" in done.stdout


def test_answers_that_come_too_late_are_dropped(open_page, stand_in, ask):
    from playwright.sync_api import Error

    page = open_page(stand_in)
    held = []

    def hold(route):
        if "cluster" in route.request.post_data:
            held.append(route)
        else:
            route.continue_()

    page.route("**/v1/search", hold)
    page.fill("#query", "cluster points")
    page.wait_for_timeout(300)
    page.fill("#query", "sort an array")
    page.wait_for_selector("text=numpy.sort")
    assert len(held) == 1
    page.unroute("**/v1/search")
    page.wait_for_timeout(200)
    assert page.locator(".answer .name").first.inner_text() == "numpy.sort"
    ask(page, "cluster points again")
    page.wait_for_selector(".answer.first >> text=sklearn.cluster.KMeans")
    with contextlib.suppress(Error):  # the page has long cancelled it
        held[0].abort()


def test_the_keyboard_is_enough(open_page, stand_in):
    page = open_page(stand_in)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "k"
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Tab")
    chip = page.evaluate("document.activeElement.textContent")
    assert page.locator("#chips button").first.inner_text() == chip
    page.keyboard.press("Enter")
    page.wait_for_selector(".answer:nth-child(6)")
    assert page.input_value("#query") == chip
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "query"
    page.keyboard.press("Escape")
    page.wait_for_selector("text=Nothing asked yet.")
    assert page.locator(".answer").count() == 0


def test_a_link_brings_the_question_back(open_page, stand_in, ask):
    page = open_page(stand_in)
    page.fill("#k", "3")
    ask(page, "sort & order")
    page.reload()
    page.wait_for_selector(".answer")
    assert page.input_value("#query") == "sort & order" and page.locator(".answer").count() == 3
    assert "?" not in page.url


def test_mistakes_and_trouble_are_told_in_words(open_page, stand_in, ask):
    page = open_page(stand_in)
    ask(page, "sort an array")
    page.fill("#k", "0")
    page.wait_for_selector("text=How many labels?")
    page.fill("#k", "4")
    page.wait_for_selector("#message", state="hidden")
    page.fill("#query", "broken")
    page.wait_for_selector("text=Something went wrong on our side.")
    page.route("**/v1/search", lambda route: route.abort())
    page.fill("#query", "nobody home")
    page.wait_for_selector("text=The service does not answer.")
    page.unroute("**/v1/search")
    ask(page, "sort an array")
    assert page.locator("#message").is_hidden()
    expected = [line for line in open_page.complaints if "500" in line or "ERR_FAILED" in line]
    assert len(expected) == 2
    for line in expected:
        open_page.complaints.remove(line)


def test_a_phone_scrolls_one_way_only(open_page, stand_in, ask):
    for width in (320, 375):
        page = open_page(stand_in, width=width, height=700, is_mobile=True, has_touch=True)
        page.fill("#k", "10")
        ask(page, "largest elements of a tensor along a dimension")
        page.click("#about > summary")
        assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_the_contrast_of_wcag_aa(open_page, stand_in, scheme: str, ask, poor_contrasts):
    page = open_page(stand_in, scheme=scheme)
    ask(page, "sort an array")
    page.click("#about > summary")
    page.fill("#k", "0")
    page.wait_for_selector("text=How many labels?")
    assert poor_contrasts(page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_of_a_training_fetches_nothing_and_reads_well_on_a_phone(browser, tiny_bundle, scheme: str, poor_contrasts):
    report = tiny_bundle.parent / "report.html"
    for width in (320, 1200):
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        page, asked, complaints = context.new_page(), [], []
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.on("console", lambda message, complaints=complaints: complaints.append(message.text))
        page.goto(report.as_uri())
        assert page.locator("svg").count() == 4 and page.locator("h1").inner_text() == "tiny"
        for heading in page.locator("summary").all():
            heading.click()
        assert page.locator("text=training.weight_decay").is_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert poor_contrasts(page) == []
        smallest = "Math.min(...[...document.querySelectorAll('svg text')].map((e) => e.getBoundingClientRect().height))"
        assert page.evaluate(smallest) >= 9, "numbers on an axis can be read"
        assert [url for url in asked if not url.startswith(("file:", "data:"))] == [] and complaints == []
        if folder := os.environ.get("DEXML_SCREENSHOTS"):
            page.screenshot(path=Path(folder) / f"report-{scheme}-{width}.png", full_page=True)
        context.close()


@pytest.mark.skipif("DEXML_SCREENSHOTS" not in os.environ, reason="DEXML_SCREENSHOTS names no folder")
def test_screenshots(open_page, stand_in, served):
    folder = Path(os.environ["DEXML_SCREENSHOTS"])
    folder.mkdir(parents=True, exist_ok=True)
    bundle = os.environ.get("DEXML_SCREENSHOT_BUNDLE")

    def shoot(url: str) -> None:
        for name, scheme, width in (("page", "light", 1200), ("page-dark", "dark", 1200), ("page-phone", "light", 390)):
            page = open_page(url, width=width, height=960, scheme=scheme, device_scale_factor=2 if width < 500 else 1)
            if page.locator("#chips button").count():
                page.locator("#chips button").first.click()
            else:
                page.fill("#query", "sort an array")
            page.wait_for_selector(".answer")
            page.fill("#query", page.input_value("#query") + " ")  # warm now
            page.wait_for_timeout(700)
            page.screenshot(path=folder / f"{name}.png", full_page=True)
        page = open_page(url, height=960, scheme="light")
        page.locator("#chips button").first.click()
        page.locator("#diversity").fill("10")
        page.wait_for_selector("#footnote >> text=Paler is")
        if page.locator(".why").count():
            page.locator(".why").first.click()
        page.wait_for_timeout(700)
        page.screenshot(path=folder / "page-why.png", full_page=True)

    if bundle:
        with served("-m", "dexml", "serve", bundle, "--port", "0", "--admin-port", "0") as url:
            shoot(url)
    else:
        shoot(stand_in)
