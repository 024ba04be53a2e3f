"""The routes of labels: listed and fetched by anyone who may ask, written where the service was started to take writes."""

from __future__ import annotations

import re
from typing import Any

from flask import Response, g, request
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag
from pydantic import BaseModel

from index.live import Live
from index.store import Store
from serve.answers import unit_rows
from serve.api import ANSWERS, ASKS, READS_JSON, answer, reads_json, refusals, service
from serve.errors import Fault, Problem
from serve.label_schemas import DeleteRequest, LabelBody, LabelList, NewLabel, UpsertRequest, WriteResponse
from serve.tickets import Edit

MOST_LISTED = 1000
CURSOR = re.compile(r"(v\d{6,12})-(\d{1,12})")

labels_api = APIBlueprint("labels", __name__)
TAG = Tag(name="labels")
WRITES = (*ANSWERS, *ASKS, 403, 507)


def parameter(name: str, place: str, description: str, **schema: Any) -> dict[str, Any]:
    """Return the OpenAPI entry of a parameter that a route reads by itself."""
    return {"name": name, "in": place, "description": description, "schema": {"type": "string", **schema}}


PAGES = [
    parameter("limit", "query", "How many.", type="integer", minimum=1, maximum=MOST_LISTED, default=100),
    parameter("cursor", "query", "The `next` of the answer before.", pattern=f"^{CURSOR.pattern}$"),
]
ONCE = parameter("Idempotency-Key", "header", "A request with a key that was seen is not done again.", pattern="^[!-~]{1,255}$")
MATCH = parameter("If-Match", "header", "The ETag of an answer before: 412 where the labels have changed since.")


class LabelPath(BaseModel):
    """The id of a label, percent-encoded; it may hold slashes."""

    label_id: str


@labels_api.get(
    "/v1/labels",
    summary="All labels, some at a time",
    tags=[TAG],
    responses={200: LabelList, **refusals(*ANSWERS, 422)},
    openapi_extensions={"parameters": PAGES},
)
def list_labels() -> Response:
    """Return `limit` labels (100) from `cursor` on, which is the `next` of the answer before; a new version starts anew."""
    store = service().worker.check_ready().store
    if strange := sorted(set(request.args) - {"limit", "cursor"}):
        raise Problem("schema", f"{strange[0]!r} is not a known parameter; limit and cursor are")
    limit = request.args.get("limit", "100")
    if not limit.isascii() or not limit.isdigit() or not 1 <= int(limit[:9]) <= MOST_LISTED or len(limit) > 9:
        raise Problem("schema", f"limit must be between 1 and {MOST_LISTED}")
    live, version = store.live, store.bundle.root.name
    first = 0
    if (cursor := request.args.get("cursor")) is not None:
        found = CURSOR.fullmatch(cursor)
        if found is None or found[1] != version:
            raise Problem("schema", "the cursor is not one of the version that is being served; start without")
        first = int(found[2])
    rows, following = _rows_from(live, first, int(limit))
    labels = [{"id": live.labels.ids[row], "text": live.labels.texts[row]} for row in rows]
    after = None if following is None else f"{version}-{following}"
    return answer({"labels": labels, "next": after, "index_version": store.name}, {"ETag": f'"{store.name}"'})


@labels_api.get(
    "/v1/labels/<path:label_id>", summary="A label", tags=[TAG], responses={200: LabelBody, **refusals(*ANSWERS, 404)}
)
def get_label(path: LabelPath) -> Response:
    """Return the label with that id."""
    live = service().worker.check_ready().store.live
    row = live.labels.row(path.label_id)
    if row is None:
        raise Problem("not_found", "no label has this id")
    return answer({"id": live.labels.ids[row], "text": live.labels.texts[row]})


@labels_api.post(
    "/v1/labels",
    summary="Add or replace labels",
    tags=[TAG],
    responses={200: WriteResponse, **refusals(*WRITES, *READS_JSON, 409, 412)},
    openapi_extensions={"parameters": [ONCE, MATCH]},
)
@reads_json
def upsert(body: UpsertRequest) -> Response:
    """Put labels there, all or none: on disk, and seen by every search from now on, when this answers."""
    serving, expected = _writable(), request.if_match

    def check(store: Store) -> None:
        if expected and not expected.contains(store.name):
            raise Problem("precondition_failed", f"the labels are those of {store.name}")
        for place, label in enumerate(body.labels):
            if body.if_exists == "error" and label.id in store.live.labels:
                raise Problem("conflict", faults=[Fault(f"/labels/{place}/id", "conflict", "names a label that is there")])

    put = tuple(_new(label, place, serving.dimension) for place, label in enumerate(body.labels))
    return _once(body, Edit(put, check=check))


@labels_api.post(
    "/v1/labels/delete",
    summary="Delete labels",
    tags=[TAG],
    responses={200: WriteResponse, **refusals(*WRITES, *READS_JSON, 409)},
    openapi_extensions={"parameters": [ONCE]},
)
@reads_json
def delete_many(body: DeleteRequest) -> Response:
    """Delete labels, those that are there: no search from now on returns them."""
    _writable()
    return _once(body, Edit(deleted=tuple(dict.fromkeys(body.ids))))


@labels_api.delete(
    "/v1/labels/<path:label_id>",
    summary="Delete a label",
    tags=[TAG],
    responses={200: WriteResponse, **refusals(*WRITES, 404)},
)
def delete_one(path: LabelPath) -> Response:
    """Delete the label with that id; 404 when there is none."""
    if path.label_id not in _writable().store.live.labels:
        raise Problem("not_found", "no label has this id")
    return _acknowledged(_written(Edit(deleted=(path.label_id,))))


def _writable() -> Any:
    serving = service().worker.check_ready()
    if not service().settings.writable:
        raise Problem("forbidden", "this service takes no writes; `dexml serve --writable` does")
    return serving


def _new(label: NewLabel, place: int, dimension: int) -> tuple[str, str | None, Any]:
    if label.embedding is None:
        return label.id, label.text, None
    try:
        row = unit_rows([label.embedding], dimension)[0].numpy()
    except Problem as problem:
        code, message = problem.code, problem.faults[0].message
        raise Problem(code, faults=[Fault(f"/labels/{place}/embedding", code, message)]) from None
    return label.id, label.text or label.id, row


def _once(body: BaseModel, edit: Edit) -> Response:
    """Make a write, unless its Idempotency-Key says that it has been made: its answer is given again then."""
    if (key := request.headers.get("Idempotency-Key")) is None:
        return _acknowledged(_written(edit))
    asked = f"{g.get('key_name')} {request.path} {request.headers.get('If-Match')} {body.model_dump_json()}"
    return _acknowledged(service().repeated.answer(key, asked, lambda: _written(edit)))


def _acknowledged(document: dict[str, Any]) -> Response:
    return answer(document, {"ETag": f'"{document["index_version"]}"'})


def _written(edit: Edit) -> dict[str, Any]:
    settings = service().settings
    g.ticket = ticket = service().worker.answer(edit, g.received + settings.max_deadline_ms / 1000)
    written = ticket.written
    assert written is not None
    changed = written.changed
    return {
        "upserted": changed.added + changed.replaced,
        "replaced": changed.replaced,
        "deleted": changed.deleted,
        "sequence": written.sequence,
        "durable": True,
        "visible": True,
        "index_version": written.version,
        "labels": written.labels,
    }


def _rows_from(live: Live, first: int, limit: int) -> tuple[list[int], int | None]:
    """Return at most `limit` live rows from number `first` on, and the number of the one after them."""
    found: list[int] = []
    labels = live.labels
    for row in range(first, len(labels.ids)):
        if labels.row(labels.ids[row]) == row:
            if len(found) == limit:
                return found, row
            found.append(row)
    return found, None
