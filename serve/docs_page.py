"""Swagger UI at /docs: the pages of flask-openapi3-swagger's package, with our own start; nothing comes from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from flask import Blueprint, Response, send_file

from serve.api import SECURITY_HEADERS
from serve.errors import Problem

OURS = Path(__file__).with_name("swagger")
VENDORED = Path(str(files("flask_openapi3_swagger"))) / "templates" / "swagger"
ASSETS: Mapping[str, Path] = {
    "start.js": OURS / "start.js",
    "swagger-ui.css": VENDORED / "css" / "swagger-ui.css",
    "swagger-ui-bundle.js": VENDORED / "js" / "swagger-ui-bundle.js",
}
# Swagger UI's style sheet holds its pictures as data.
HEADERS = {"Content-Security-Policy": f"{SECURITY_HEADERS['Content-Security-Policy']}; img-src 'self' data:"}

docs_page = Blueprint("docs", __name__)


@docs_page.get("/docs")
def page() -> Response:
    """Return the page that shows /openapi.json, and tries it out."""
    reply = send_file(OURS / "index.html", max_age=0)
    reply.headers.update(HEADERS)
    return reply


@docs_page.get("/docs/<name>")
def asset(name: str) -> Response:
    """Return a file of the page."""
    if name not in ASSETS:
        raise Problem("not_found")
    return send_file(ASSETS[name], max_age=0)


__all__ = ["docs_page"]
