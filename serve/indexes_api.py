"""The routes of versions: which there are, which one answers, and how to change that while searches go on."""

from __future__ import annotations

import re
from typing import Annotated, Any

from flask import Response
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag
from pydantic import BaseModel, ConfigDict, Field

from dexml import manifest as manifest_of
from dexml import versions
from dexml.errors import InputError
from index.store import Store
from serve.api import ANSWERS, READS_JSON, answer, reads_json, refusals, service
from serve.errors import Problem
from serve.tickets import Serving

NAME = re.compile(r"v\d{1,12}")

indexes_api = APIBlueprint("indexes", __name__)
TAG = Tag(name="indexes", description="Versions of labels, index and model")
CHANGES = (*ANSWERS, *READS_JSON, 403, 409, 507)


class VersionPath(BaseModel):
    """A version's name, as `GET /v1/indexes` gives it."""

    version: str


class Nothing(BaseModel):
    """An empty object. It must be sent: a page of another origin can send a form, and no JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra={"example": {}})


class VersionItem(BaseModel):
    """A version that is kept. `model` names its encoder; null fields are those of a version whose manifest cannot be read."""

    name: str
    current: Annotated[bool, Field(description="Whether it is the one that answers.")]
    created: str | None
    labels: Annotated[int | None, Field(description="As it was published, without later writes.")]
    dimension: int | None
    index: dict[str, Any] | None
    parent: Annotated[str | None, Field(description="The version that it continues.")]
    bytes: int | None


class VersionList(BaseModel):
    """All versions that are kept, oldest first; `index_version` is what answers, with its writes."""

    versions: list[VersionItem]
    index_version: str


class VersionChanged(BaseModel):
    """The version that answers from now on."""

    index_version: str
    labels: int
    model: str


@indexes_api.get("/v1/indexes", summary="All versions", tags=[TAG], responses={200: VersionList, **refusals(*ANSWERS)})
@indexes_api.get(
    "/v1/snapshots",
    endpoint="snapshots",
    summary="The same list",
    tags=[TAG],
    responses={200: VersionList, **refusals(*ANSWERS)},
)
def list_versions() -> Response:
    """Return the versions that can be activated, and which one answers."""
    store = service().worker.check_ready().store
    answering = store.bundle.root.name
    found = [_item(store, name, answering) for name in versions.names(store.root)]
    return answer({"versions": found, "index_version": store.name})


@indexes_api.post(
    "/v1/indexes/<version>/activate",
    summary="Let another version answer",
    tags=[TAG],
    responses={200: VersionChanged, **refusals(*CHANGES, 404)},
)
@reads_json
def activate(path: VersionPath, body: Nothing) -> Response:
    """Load a version, ask its canary queries, and let it answer; searches go on meanwhile, and nothing changes when it fails.

    A version that is not the newest is published anew, as it was, under the next name: going back is a change like any other.
    One that another process published, such as a training, is taken over under its own name.
    """
    serving = service().worker.check_ready()
    if service().keys is None and not service().settings.writable:
        raise Problem("forbidden", "versions are changed with an administrator's key, or with `dexml serve --writable`")
    if not NAME.fullmatch(path.version) or path.version not in versions.names(serving.store.root):
        raise Problem("not_found", "no version has this name; GET /v1/indexes lists them")
    service().worker.upkeep.change(serving.store, lambda: serving.store.activate(path.version))
    return _changed(serving)


@indexes_api.post(
    "/v1/snapshots",
    summary="Publish the labels as they are now",
    tags=[TAG],
    responses={200: VersionChanged, **refusals(*CHANGES)},
)
@reads_json
def snapshot(body: Nothing) -> Response:
    """Compact: publish the labels with all writes so far as the next version, and let it answer; searches and writes go on."""
    serving = service().worker.check_ready()
    if not service().settings.writable:
        raise Problem("forbidden", "this service takes no writes; `dexml serve --writable` does")
    service().worker.upkeep.change(serving.store, serving.store.compact)
    return _changed(serving)


def _changed(serving: Serving) -> Response:
    live, about = serving.store.live, serving.info
    return answer({"index_version": live.name, "labels": len(live.labels), "model": about["model"]})


def _item(store: Store, name: str, answering: str) -> dict[str, Any]:
    try:
        manifest = manifest_of.read(store.root / name)
    except (InputError, OSError):  # damaged, or gone since: listed all the same, and refused when it is activated
        unknown = dict.fromkeys(("created", "labels", "dimension", "index", "parent", "bytes"))
        return {"name": name, "current": name == answering, **unknown}
    return {
        "name": name,
        "current": name == answering,
        "created": manifest.created,
        "labels": manifest.labels,
        "dimension": manifest.dimension,
        "index": {"name": manifest.index.name, **manifest.index.options},
        "parent": manifest.parent.version if manifest.parent else None,
        "bytes": sum(entry.size for entry in manifest.files.values()),
    }
