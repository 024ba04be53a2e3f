"""Print the description of the API in OpenAPI 3.1, as /openapi.json gives it: `python -m serve.spec > docs/openapi.json`."""

from __future__ import annotations

import json
import sys
from typing import Any, NoReturn

from serve import create_app
from serve.settings import Settings


def document() -> dict[str, Any]:
    """Return what every service of this version says of its routes."""
    app = create_app(Settings(), _nothing)
    described: dict[str, Any] = app.api_doc  # type: ignore[attr-defined]
    app.extensions["dexml"].worker.stop()
    return described


def _nothing() -> NoReturn:
    raise RuntimeError("a description needs no model")


def main() -> None:
    """Print it with one entry a line, so that a change can be read."""
    sys.stdout.write(json.dumps(document(), indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
