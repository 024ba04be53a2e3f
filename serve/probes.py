"""Whether the process lives and may have traffic: asked by whoever supervises it, with no key."""

from __future__ import annotations

from flask import Response, request
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag

from serve.admin import check_alive
from serve.api import answer, refusals, service
from serve.schemas import Health
from serve.sharding import check_up

probes = APIBlueprint("probes", __name__)


@probes.get("/livez", summary="Is the process alive", tags=[Tag(name="probes")], responses={200: Health, **refusals(421, 503)})
@probes.get("/v2/health/live", endpoint="v2_live", doc_ui=False)
def livez() -> Response:
    """Return 200 while the owner of the model lives, 503 when nothing will ever be answered."""
    check_alive(service().worker)
    return answer({"status": "alive"})


@probes.get("/readyz", summary="May it have traffic", tags=[Tag(name="probes")], responses={200: Health, **refusals(421, 503)})
@probes.get("/health", endpoint="health", doc_ui=False)
@probes.get("/v2/health/ready", endpoint="v2_ready", doc_ui=False)
def readyz() -> Response:
    """Return 200 when searches will be answered, 503 while loading, draining, or a shard of the labels is missing."""
    check_up(service().worker.check_ready().store)
    return answer({"status": "ready"})


@probes.get("/metrics", endpoint="metrics", doc_ui=False)
def metrics() -> Response:
    """Return the admin listener's metrics, for services that have no such listener or whose port cannot be reached."""
    page, content_type = service().metrics.page(request.headers.get("Accept", ""))
    return Response(page, 200, content_type=content_type)
