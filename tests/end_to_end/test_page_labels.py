"""Labels changed on the page, keys and versions, in a real headless Chromium, by real services over trained bundles."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

HOSTILE = '<img src=x onerror="document.title=1">'


@pytest.fixture(scope="module")
def keyed(served, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory):
    """The address of a service that asks for keys, and its keys by role."""
    from serve import keys

    root = tmp_path_factory.mktemp("keyed")
    shutil.copytree(tiny_bundle, root / "bundle")
    made = {role: keys.add(root / "keys.json", f"{role}er", role) for role in keys.ROLES}
    options = ("--port", "0", "--admin-port", "0", "--writable", "--keys", str(root / "keys.json"))
    with served("-m", "dexml", "serve", str(root / "bundle"), *options) as url:
        yield url, made


def test_labels_are_added_found_replaced_and_deleted(open_page, url: str, ask, forgive):
    page = open_page(url)
    ask(page, "filtering matrices by regression")
    page.click("#labels > summary")
    page.wait_for_selector("#label-rows li:nth-child(10)")
    page.fill("#label-id", "both")
    page.fill("#label-text", "filtering matrices by regression")
    page.keyboard.press("Enter")
    page.wait_for_selector("#label-status >> text=both was added")
    page.wait_for_selector(".answer.first >> text=both")
    assert "11 labels" in page.inner_text("#model") and "11 labels" in page.inner_text("#lead")

    page.fill("#label-id", "both")
    page.fill("#label-text", HOSTILE + " regression")
    page.click("#label-save")
    page.wait_for_selector("text=There is a label both already.")
    forgive(409)
    page.click("#label-replace")
    page.wait_for_selector("#label-status >> text=both was replaced")
    page.fill("#label-find", "IMG src")
    page.wait_for_selector("#label-status >> text=1 label found in the 11 of 11.")
    row = page.locator("#label-rows li")
    assert HOSTILE in row.inner_text() and page.locator("main img").count() == 0

    row.get_by_text("Edit").click()
    assert page.input_value("#label-id") == "both" and page.input_value("#label-text").startswith(HOSTILE)
    page.fill("#label-text", "filtering of matrices")
    page.click("text=Save")
    page.wait_for_selector("#label-status >> text=both was replaced")
    page.fill("#label-find", "both")
    page.wait_for_selector("#label-status >> text=1 label found")
    remove = page.get_by_label("delete both")
    remove.click()
    assert remove.inner_text() == "Really?"
    remove.click()
    page.wait_for_selector("#label-status >> text=both was deleted")
    page.wait_for_selector("#label-rows li", state="detached")
    assert "10 labels" in page.inner_text("#lead") and not page.locator(".answer .name >> text=both").count()
    assert page.title() == "dexml"


def test_a_full_disk_is_told_in_words(open_page, url: str, forgive):
    page = open_page(url)
    full = {
        "status": 507,
        "detail": "the write could not be stored; nothing has changed",
        "error": {"code": "insufficient_storage"},
    }
    page.route("**/v1/labels", lambda route: route.fulfill(status=507, json=full))
    page.click("#labels > summary")
    page.fill("#label-id", "new")
    page.click("#label-save")
    page.wait_for_selector("#label-status.wrong >> text=The disk of the service is full")
    forgive(507)


def test_a_key_is_asked_for_kept_in_this_tab_and_sent(open_page, keyed, forgive):
    url, keys = keyed
    page = open_page(url, ready="text=This asks for a key.")
    assert page.evaluate("document.activeElement.id") == "key"
    page.keyboard.type("wrong")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=This key is not known here.")
    page.fill("#key", keys["read"])
    page.keyboard.press("Enter")
    page.wait_for_selector("#dot.up")
    page.fill("#query", "sorting of arrays")
    page.wait_for_selector(".answer.first >> text=sorting")
    page.click("#share > summary")
    assert "Bearer $DEXML_API_KEY" in page.inner_text("#curl") and keys["read"] not in page.content()
    page.click("#labels > summary")
    page.fill("#label-id", "new")
    page.click("#label-save")
    page.wait_for_selector("#label-status >> text=This is not allowed with this key.")
    page.fill("#key", keys["write"])
    page.click("#keyring >> text=Use")
    page.wait_for_function("document.getElementById('key').value === ''")
    page.fill("#label-id", "new")
    page.fill("#label-text", "brand new regression")
    page.click("#label-save")
    page.wait_for_selector("#label-status >> text=new was added")
    assert page.evaluate("localStorage.length") == 0 and page.context.cookies() == []
    page.reload()
    page.wait_for_selector(".answer")  # the tab still has the key
    page.click("#labels > summary")
    page.click("#key-forget")
    page.wait_for_selector("text=This asks for a key.")
    assert page.evaluate("sessionStorage.length") == 0
    forgive(401, 403)


def test_versions_are_listed(open_page, url: str):
    page = open_page(url)
    page.click("#about > summary")
    page.wait_for_selector("#version-rows >> text=served now")
    assert re.fullmatch(r"v\d{6}", page.locator("#version-rows code").last.inner_text())
