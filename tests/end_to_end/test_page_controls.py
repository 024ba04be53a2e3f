"""What the page can set and change, in a real headless Chromium: dials, reasons, code to copy.

The service is a real one over a trained bundle that keeps its training queries, and takes writes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

HOSTILE = '<img src=x onerror="document.title=1">'
NASTY = "it's \"both\" $HOME `id` \\ and\na line & 名前 🎉 ' '' %s !! \u2028 '\\''"


def chances(page) -> list[str]:
    return page.locator(".chance .value").all_inner_texts()


def names(page) -> list[str]:
    return [text.removesuffix(" why") for text in page.locator(".answer .name").all_inner_texts()]


def test_temperature_is_previewed_here_and_then_exact(open_page, url: str, ask):
    page = open_page(url)
    page.fill("#k", "3")  # seven labels of ten are not on the page
    ask(page, "sorting of arrays")
    before, order, held = chances(page), names(page), []
    page.route("**/v1/search", lambda route: held.append(route))
    for _ in range(12):
        page.locator("#temperature").press("ArrowRight")
    assert page.locator("#footnote").inner_text().endswith("until the service has answered.")
    preview = [float(text.rstrip("%")) for text in chances(page)]
    assert preview[0] < float(before[0].rstrip("%"))
    page.wait_for_timeout(300)
    asked = json.loads(held[-1].request.post_data)
    own = page.evaluate("fetch('/v1/info').then((reply) => reply.json()).then((info) => info.bundle.temperature)")
    assert asked["temperature"] == pytest.approx(own * 2**1.2, rel=0.01) and asked["normalize"] == "all"
    assert page.inner_text("#temperature-value") == str(asked["temperature"])
    with page.expect_response("**/v1/search"):
        held[-1].continue_()
    page.unroute("**/v1/search")
    page.wait_for_function("!document.getElementById('footnote').textContent.includes('until')")
    exact = [float(text.rstrip("%")) for text in chances(page)]
    assert preview == pytest.approx(exact, rel=0.1) and names(page) == order
    page.click("#reset")
    page.wait_for_function("(was) => document.querySelector('.chance .value').textContent === was", arg=before[0])
    assert "t=" not in page.url


def test_a_preview_is_exact_where_all_labels_are_on_the_page(open_page, url: str):
    page = open_page(url)
    found = page.evaluate(
        """async () => {
          const { renormalized } = await import('/static/draw.js');
          const ask = async (more) => (await (await fetch('/v1/search', { method: 'POST',
            headers: { 'Content-Type': 'application/json' },
            body: JSON.stringify({ queries: ['images of a matrix'], top_k: 10, ...more }) })).json()).results[0];
          const warm = await ask({ temperature: 0.3 });
          return [renormalized(await ask({ temperature: 0.05 }), 0.05, 0.3), warm.labels.map((label) => label.probability)];
        }"""
    )
    assert found[0] == pytest.approx(found[1], abs=1e-6) and sum(found[0]) == pytest.approx(1, abs=1e-6)


def test_the_normaliser_is_chosen_and_told(open_page, url: str, ask):
    page = open_page(url)
    ask(page, "sorting of arrays")
    assert "all 10 labels" in page.inner_text("#footnote")
    with page.expect_response("**/v1/search") as reply:
        page.click("input[value=topk]")
    assert reply.value.json()["results"][0]["normalizer"]["kind"] == "topk"
    page.wait_for_selector("#footnote >> text=that were rescored")
    assert "n=topk" in page.url and page.locator("#why-not-all").is_hidden()


def test_calibrated_probabilities_are_offered_where_there_are_some(open_page, url: str, stand_in: str, ask):
    page = open_page(url)
    ask(page, "sorting of arrays")
    order = names(page)
    with page.expect_response("**/v1/search") as reply:
        page.click("input[value=calibrated]")
    found = reply.value.json()["results"][0]
    assert found["normalizer"]["kind"] == "calibrated" and sum(label["probability"] for label in found["labels"]) != 1
    page.wait_for_selector("#footnote >> text=labels that scored so were right")
    assert names(page) == order and page.locator("#temperature").is_disabled() and "n=calibrated" in page.url
    again = open_page(page.url)
    again.wait_for_selector("#footnote >> text=labels that scored so were right")
    page.click("#reset")
    page.wait_for_selector("#footnote >> text=all 10 labels")
    assert page.locator("#temperature").is_enabled()
    without = open_page(stand_in)
    without.wait_for_selector("input[value=topk] + span")
    assert without.locator("input[value=calibrated]").is_hidden() and without.locator("text=each label").is_hidden()


def test_all_labels_are_not_offered_where_there_are_too_many(open_page, url: str, ask):
    page = open_page(url)

    def many(route):  # a bundle of a quarter of a million labels is no matter of seconds
        reply = route.fetch()
        route.fulfill(response=reply, json={**reply.json(), "labels": 250_000})

    page.route("**/v1/info", many)
    page.reload()
    page.wait_for_selector("#why-not-all:not([hidden])")
    assert "200,000" in page.inner_text("#why-not-all")
    assert page.locator("input[value=all]").is_disabled() and page.locator("input[value=topk]").is_checked()
    with page.expect_response("**/v1/search") as reply:
        page.fill("#query", "sorting")
    assert reply.value.json()["results"][0]["normalizer"]["kind"] == "topk"


def test_diversity_reorders_and_shows_what_it_took(open_page, url: str, ask):
    page = open_page(url)
    page.fill("#k", "10")
    ask(page, "sparse matrices and images")
    plain, kept = names(page), dict(zip(names(page), chances(page), strict=True))
    assert page.inner_text("#diversity-value") == "off"
    with page.expect_response(lambda reply: '"diversity"' in (reply.request.post_data or "")) as reply:
        page.locator("#diversity").fill("24")
    assert json.loads(reply.value.request.post_data)["diversity"] == 0.02
    page.wait_for_selector("#footnote >> text=Paler is")
    assert names(page) != plain and dict(zip(names(page), chances(page), strict=True)) == kept
    lost = page.evaluate("[...document.querySelectorAll('.score .lost')].map((bar) => parseFloat(bar.style.width))")
    assert lost[0] == 0 and max(lost) > 1
    page.locator("#diversity").fill("0")
    page.wait_for_function("(was) => document.querySelectorAll('.answer .name')[1].textContent.startsWith(was)", arg=plain[1])


def test_a_link_brings_the_dials_back(open_page, url: str):
    page = open_page(f"{url}#q=sorting+of+arrays&k=4&t=0.2&n=topk&d=0.5")
    page.wait_for_selector(".answer:nth-child(4)")
    assert page.inner_text("#temperature-value") == "0.2" and page.inner_text("#diversity-value") == "σ 0.5"
    assert page.locator("input[value=topk]").is_checked() and int(page.input_value("#temperature")) > 0
    page.click("#share > summary")
    assert page.inner_text("#link") == page.url
    page = open_page(f"{url}#q=sorting&t=-3&n=evil&d=1e99")
    page.wait_for_selector(".answer")
    assert page.locator("#reset").is_hidden(), "what makes no sense is left at its default"


def test_a_label_says_why_and_stays_open_while_one_types(open_page, url: str, ask):
    page = open_page(url)
    ask(page, "how to do sorting and ordering of arrays")
    why = page.locator(".why").first
    assert why.get_attribute("aria-expanded") == "false" and page.locator("#reasons-0").is_hidden()
    why.focus()
    page.keyboard.press("Enter")
    assert why.get_attribute("aria-expanded") == "true"
    reasons = page.locator("#reasons-0 li")
    assert "sorting and ordering of arrays" in reasons.first.inner_text()
    shown = [float(text) for text in page.locator("#reasons-0 .value").all_inner_texts()]
    assert shown == sorted(shown, reverse=True) and 0.9 < shown[0] <= 1
    ask(page, "how to do sorting and ordering of arrays please")
    assert page.locator("#reasons-0").is_visible()


def test_hostile_reasons_stay_text(open_page, url: str):
    page = open_page(url)

    def hostile(route):  # no training query of the bundle is
        reply = route.fetch()
        found = reply.json()
        found["results"][0]["labels"][0]["why"] = [{"text": HOSTILE, "similarity": 0.5}]
        route.fulfill(response=reply, json=found)

    page.route("**/v1/search", hostile)
    page.fill("#query", "sorting")
    page.locator(".why").first.click()
    assert HOSTILE in page.locator("#reasons-0").inner_text()
    assert page.locator("main img").count() == 0 and page.title() == "dexml"


def test_without_kept_queries_there_is_no_why(open_page, stand_in: str, ask):
    page = open_page(stand_in)
    ask(page, "sort an array")
    assert page.locator(".why").count() == 0 and page.locator("#labels").is_hidden()


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")
def test_the_copied_curl_asks_the_same(open_page, url: str):
    page = open_page(f"{url}#q=it%27s+%22both%22+%24HOME+%F0%9F%8E%89+sorting&k=4&t=0.1&d=0.1")
    page.wait_for_selector(".answer")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.click("#share > summary")
    page.click("[data-copies=curl]")
    page.wait_for_selector("[data-copies=curl] >> text=Copied")
    copied = page.evaluate("navigator.clipboard.readText()")
    done = subprocess.run(["sh", "-c", copied], capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
    labels = json.loads(done.stdout)["results"][0]["labels"]
    assert [label["id"] for label in labels] == names(page) and len(labels) == 4


@pytest.mark.parametrize("program", ["sh", "bash"])
def test_no_text_breaks_out_of_the_copied_command(open_page, url: str, program: str):
    page = open_page(url)
    make = "async (text) => (await import('/static/share.js')).curl({ queries: [text] }, 'http://a', true)"
    command = page.evaluate(make, NASTY)
    printed = 'curl() { for word in "$@"; do printf \'%s\\0\' "$word"; done; }\n'
    environment = {"PATH": os.environ["PATH"], "DEXML_API_KEY": "k 1"}
    said = subprocess.run([program, "-c", printed + command], capture_output=True, env=environment).stdout.decode().split("\0")
    assert json.loads(said[-2]) == {"queries": [NASTY]} and said[1] == "http://a/v1/search"
    assert "Authorization: Bearer k 1" in said


def test_the_copied_python_is_python(open_page, url: str):
    page = open_page(url)
    make = "async ([text, more]) => (await import('/static/share.js')).python({ queries: [text], ...more }, 'http://a')"
    code = page.evaluate(make, [NASTY, {"top_k": 4, "temperature": 0.1, "normalize": "all"}])
    stub = """
class Client:
    def __init__(self, url): assert url == "http://a"
    def search(self, queries, **options): import json; return json.dumps([queries, options])
"""
    head, rest = code.split("\n", 1)
    assert head.startswith("from dexml.client import Client")
    done = subprocess.run([sys.executable, "-c", stub + rest], capture_output=True, text=True)
    assert json.loads(done.stdout) == [[NASTY], {"top_k": 4, "temperature": 0.1, "normalize": "all"}], done.stderr


def test_without_the_clipboard_the_code_is_selected(open_page, url: str, ask):
    page = open_page(url)
    ask(page, "sorting")
    page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")  # as over plain HTTP
    page.click("#share > summary")
    page.click("[data-copies=python]")
    page.wait_for_selector("text=Selected")
    assert page.evaluate("getSelection().toString()").startswith("from dexml.client import Client")


def test_every_control_is_reached_by_the_keyboard_and_shows_it(open_page, url: str, ask):
    page = open_page(url)
    ask(page, "sorting of arrays")
    for fold in page.locator(".fold > summary").all():
        fold.press("Enter")
    page.wait_for_selector("#label-rows li")
    page.focus("#query")
    seen, bare = [], []
    for _ in range(80):
        page.keyboard.press("Tab")
        focus = page.evaluate(
            """() => {
              const e = document.activeElement, mark = e.matches('.choice input') ? e.nextElementSibling : e;
              const style = getComputedStyle(mark), plain = style.outlineStyle === 'none' && !e.closest('.box');
              return [e.id || e.className || e.tagName, plain];
            }"""
        )
        seen.append(focus[0])
        bare += [focus[0]] if focus[1] else []
    wanted = {"k", "temperature", "diversity", "why", "curl", "python", "label-id", "label-save", "label-find"}
    assert wanted <= set(seen), wanted - set(seen)
    assert {name for name in bare if name != "BODY"} == set(), "the focus is seen everywhere"
    page.focus("input[value=all]")
    page.keyboard.press("ArrowRight")
    assert page.locator("input[value=topk]").is_checked()
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "query"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_that_unfolds_has_contrast_and_fits_a_phone(open_page, url: str, ask, poor_contrasts, scheme: str, forgive):
    page = open_page(f"{url}#q=sorting+of+arrays&k=10&t=0.2&d=0.1", width=390, scheme=scheme, is_mobile=True, has_touch=True)
    page.wait_for_selector(".answer")
    page.locator(".why").first.tap()
    for fold in page.locator(".fold > summary").all():
        fold.tap()
    page.wait_for_selector("#label-rows li")
    page.wait_for_selector("#version-rows li")
    page.fill("#label-id", "sorting")
    page.click("#label-save")
    page.wait_for_selector("text=There is a label sorting already.")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert poor_contrasts(page) == []
    forgive(409)


def test_reduced_motion_is_respected(open_page, url: str, ask):
    page = open_page(url, reduced_motion="reduce")
    ask(page, "sorting of arrays")
    moving = "[...document.querySelectorAll('*')].filter((e) => parseFloat(getComputedStyle(e).transitionDuration) > 0).length"
    assert page.evaluate(moving) == 0
