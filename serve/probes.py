"""Whether the process lives and may have traffic: asked by whoever supervises it, with no key."""

from __future__ import annotations

from flask import Response
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag

from serve.api import answer, refusals, service
from serve.errors import Problem
from serve.schemas import Health

probes = APIBlueprint("probes", __name__)


@probes.get("/livez", summary="Is the process alive", tags=[Tag(name="probes")], responses={200: Health, **refusals(421, 503)})
@probes.get("/v2/health/live", endpoint="v2_live", doc_ui=False)
def livez() -> Response:
    """Return 200 while the owner of the model lives, 503 when nothing will ever be answered."""
    if not service().worker.alive:
        raise Problem("not_ready", "the thread that owns the model has ended")
    return answer({"status": "alive"})


@probes.get("/readyz", summary="May it have traffic", tags=[Tag(name="probes")], responses={200: Health, **refusals(421, 503)})
@probes.get("/health", endpoint="health", doc_ui=False)
@probes.get("/v2/health/ready", endpoint="v2_ready", doc_ui=False)
def readyz() -> Response:
    """Return 200 when searches will be answered, 503 while loading or draining."""
    service().worker.check_ready()
    return answer({"status": "ready"})
