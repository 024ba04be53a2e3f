"""Swagger UI at /docs in a real headless Chromium, under its own policy, asking nobody but the service."""

from __future__ import annotations

import json

import pytest


@pytest.fixture
def docs(open_page, stand_in):
    """Open /docs as any page is opened, which may neither log an error nor ask another origin; `stand_in` ends in a slash."""
    page = open_page(stand_in, ready="header")
    page.goto(f"{stand_in}docs")
    page.wait_for_selector(".opblock")
    return page


def test_every_operation_is_listed(docs, stand_in):
    spec = docs.request.get(f"{stand_in}openapi.json").json()
    operations = {(method.upper(), path) for path, item in spec["paths"].items() for method in item}
    shown = zip(
        docs.locator(".opblock-summary-method").all_inner_texts(),
        docs.locator(".opblock-summary-path").all_inner_texts(),
        strict=True,
    )
    assert {(method, path.replace("\u200b", "")) for method, path in shown} == operations


def test_a_search_is_tried_out(docs):
    docs.locator(".opblock-summary-path >> text=/search").click()
    body = docs.locator(".opblock.is-open textarea.body-param__text")
    assert json.loads(body.input_value()) == {"queries": ["sort an array along an axis"], "top_k": 5}
    with docs.expect_response("**/v1/search") as reply:
        docs.locator(".opblock.is-open button.execute").click()
    assert reply.value.status == 200
    answer = docs.locator(".opblock.is-open .live-responses-table .response").first
    assert answer.locator(".response-col_status").inner_text().startswith("200")
    assert "numpy.sort" in answer.inner_text()


def test_the_policy_forbids_scripts_in_the_page(docs):
    reply = docs.reload()
    policy = reply.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "unsafe" not in policy and "data:" in policy
    assert docs.locator("script:not([src])").count() == 0
