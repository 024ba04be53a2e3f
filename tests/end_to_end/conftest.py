"""A real headless Chromium, real servers for it to ask, and pages that may neither complain nor ask anybody else."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

MISSING = "no chromium on this machine (apt-get install chromium)"


@contextlib.contextmanager
def serving(*arguments: str):
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    line = process.stdout.readline()
    try:
        yield re.search(r"http://\S+/", line).group()
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
        process.stdout.close()


@pytest.fixture(scope="session")
def served():
    """`serving`, for tests that start servers of their own."""
    return serving


@pytest.fixture(scope="session")
def stand_in():
    with serving("tests/serve/stand_in.py", "0") as url:
        yield url


@pytest.fixture(scope="session")
def kept(tiny_bundle: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle, calibrated, with the training queries kept, which may be shown and have no say."""
    from click.testing import CliRunner

    from dexml.__main__ import command
    from dexml.bundle import extend
    from dexml.calibration import Calibration

    root = Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("page") / "bundle"))
    done = CliRunner().invoke(command, ["memory", str(root), "--data", str(tiny_data), "--texts", "--weight", "0"])
    assert done.exit_code == 0, done.output
    curve = {"knots": (-1.0, 8.0), "probabilities": (0.01, 0.9), "temperature": 0.1, "share": 0.2}
    extend(root, Calibration.model_validate({**curve, "rows": 60, "depth": 10, "ece": (0.5, 0.02)}).write)
    return root


@pytest.fixture(scope="session")
def url(kept: Path):
    with serving("-m", "dexml", "serve", str(kept), "--port", "0", "--admin-port", "0", "--writable") as url:
        yield url


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright

    if CHROMIUM is None:
        if "CI" in os.environ:  # where nobody reads what was skipped
            pytest.fail(MISSING)
        pytest.skip(MISSING)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """Open pages that may neither log an error nor ask another origin."""
    contexts = []
    complaints: list[str] = []

    def open_at(url: str, width: int = 1200, height: int = 900, scheme: str = "light", ready: str = "#dot.up", **more):
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, **more)
        contexts.append(context)
        page = context.new_page()
        origin = re.match(r"http://[^/]+/", url).group()
        page.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request", lambda request: None if request.url.startswith((origin, "data:")) else complaints.append(request.url)
        )
        page.goto(url)
        page.wait_for_selector(ready)
        return page

    open_at.complaints = complaints
    yield open_at
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def forgive(open_page):
    """Take back what Chromium says of answers that a test provokes; each was there at least once."""

    def forgive(*statuses: int) -> None:
        for status in statuses:
            lines = [line for line in open_page.complaints if f"status of {status}" in line]
            assert lines, (status, open_page.complaints)
            for line in lines:
                open_page.complaints.remove(line)

    return forgive


@pytest.fixture(scope="session")
def ask():
    def ask(page, text: str) -> None:
        with page.expect_response("**/v1/search") as reply:
            page.fill("#query", text)
        assert reply.value.ok
        page.wait_for_selector(".answer")

    return ask


CONTRAST = r"""() => {
  const channel = (v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = (c) => {
    const [r, g, b] = c.match(/[\d.]+/g).map(Number);
    return .2126 * channel(r) + .7152 * channel(g) + .0722 * channel(b);
  };
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const c = getComputedStyle(e).backgroundColor;
      if (!/, 0\)$|transparent/.test(c)) return c;
    }
  };
  const poor = [];
  for (const e of document.querySelectorAll('body *')) {
    if (![...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()) || !e.checkVisibility()) continue;
    const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    if (ratio < 4.5) poor.push(`${e.tagName}.${e.className} ${ratio.toFixed(2)}`);
  }
  return poor;
}"""


@pytest.fixture(scope="session")
def poor_contrasts():
    """A function that returns what has less contrast on a page than WCAG AA asks for."""
    return lambda page: page.evaluate(CONTRAST)
