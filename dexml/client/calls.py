"""What can be asked of a service, once for both clients: each function is a plan of calls, and a method of either."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, TypedDict, TypeVar, Unpack
from urllib.parse import quote

from dexml.client.exchange import Call, DexmlError, Plan, Wait
from dexml.client.results import (
    Info,
    NewLabel,
    Page,
    Ranked,
    Search,
    StoredLabel,
    Written,
    made,
    read_embeddings,
    read_info,
    read_page,
    read_ranking,
    read_search,
)

T = TypeVar("T")

MOST_LABELS = 1000  # of one write
MOST_BYTES = 1_500_000  # of one write's body; the service reads 2,000,000
POLL_S = 0.2
JSON = {"Content-Type": "application/json"}


class CallOptions(TypedDict, total=False):
    """Of every call: seconds for everything, waits included, and the X-Request-ID, which the service's log has too."""

    timeout: float
    request_id: str


class SearchOptions(CallOptions, total=False):
    """Of a search, as `POST /v1/search` documents them; what is left out takes the service's default."""

    top_k: int
    candidates: int
    exact: bool
    temperature: float
    normalize: Literal["none", "topk", "all", "sigmoid", "calibrated"]
    min_score: float
    min_precision: float
    exclude_ids: Sequence[str]
    include: Sequence[Literal["text", "probability", "why"]]
    diversity: float
    truncate: bool
    timeout_ms: int
    index_version: str


def search(
    queries: str | Sequence[str] | None = None, *, embeddings: Any = None, **options: Unpack[SearchOptions]
) -> Plan[Search]:
    """Return the best labels of texts, or of `embeddings` (B, D) as lists or as an array; give exactly one."""
    common: CallOptions = {}
    if "timeout" in options:
        common["timeout"] = options.pop("timeout")
    if "request_id" in options:
        common["request_id"] = options.pop("request_id")
    fields: dict[str, Any] = dict(options)
    if queries is not None:
        fields["queries"] = _texts(queries)
    if embeddings is not None:
        fields["embeddings"] = _numbers(embeddings)
    return _ask(_post("/v1/search", fields, read_search, common))


def embed(
    texts: str | Sequence[str], input_type: Literal["query", "label"] = "query", **options: Unpack[CallOptions]
) -> Plan[list[list[float]]]:
    """Return the unit rows (B, D) of texts, as the model reads queries or labels."""
    fields = {"input": _texts(texts), "input_type": input_type, "encoding_format": "float"}
    return _ask(_post("/v1/embeddings", fields, read_embeddings, options))


def rerank(
    query: str, documents: Sequence[str], top_n: int | None = None, **options: Unpack[CallOptions]
) -> Plan[list[Ranked]]:
    """Return the documents by descending score."""
    fields: dict[str, Any] = {"query": query, "documents": list(documents), "return_documents": True}
    if top_n is not None:
        fields["top_n"] = top_n
    return _ask(_post("/v1/rerank", fields, read_ranking, options))


def page(cursor: str | None = None, **options: Unpack[CallOptions]) -> Plan[Page]:
    """Return a thousand labels from `cursor` on."""
    params = {"limit": str(MOST_LABELS), **({} if cursor is None else {"cursor": cursor})}
    return _ask(Call("GET", "/v1/labels", read_page, params=params, **options))


def label(name: str, **options: Unpack[CallOptions]) -> Plan[StoredLabel]:
    """Return the label with that id."""
    path = f"/v1/labels/{quote(name, safe='').replace('.', '%2E')}"  # a bare `..` would be a step up
    return _ask(Call("GET", path, partial(made, StoredLabel), **options))


def upsert(labels: Iterable[NewLabel], *, replace: bool = True, **options: Unpack[CallOptions]) -> Plan[Written]:
    """Put labels there, in writes of at most a thousand, each of them all or nothing.

    Without `replace`, one that is there already is an error (code `conflict`). An error's note says how many came before.
    """
    tail = f'],"if_exists":"{"replace" if replace else "error"}"}}'
    rows = (json.dumps(_fields_of(label), allow_nan=False) for label in labels)
    return _write("/v1/labels", '{"labels":[', rows, tail, replace, options)


def delete(ids: Iterable[str], **options: Unpack[CallOptions]) -> Plan[Written]:
    """Delete labels, in writes of at most a thousand; ids that are not there are passed over."""
    return _write("/v1/labels/delete", '{"ids":[', map(json.dumps, ids), "]}", True, options)


def info(**options: Unpack[CallOptions]) -> Plan[Info]:
    """Return what is being served."""
    return _ask(Call("GET", "/v1/info", read_info, **options))


def indexes(**options: Unpack[CallOptions]) -> Plan[dict[str, Any]]:
    """Return the versions of the index, as the service tells them."""
    return _ask(Call("GET", "/v1/indexes", dict, **options))


def activate(version: str, **options: Unpack[CallOptions]) -> Plan[str]:
    """Have another version of the index served; return its name, a new one where it was not the newest."""
    path = f"/v1/indexes/{quote(version, safe='')}/activate"
    return _ask(_post(path, {}, lambda document: str(document["index_version"]), options))


def wait_until_ready(timeout: float = 60.0) -> Plan[None]:
    """Return once searches are answered; raise the last DexmlError when they are not within `timeout` seconds."""
    until = time.monotonic() + timeout
    while True:
        left = max(0.1, until - time.monotonic())
        try:
            yield Call("GET", "/readyz", lambda document: None, timeout=left, retries=0)
            return
        except DexmlError as error:
            starting = error.code in ("connect_failed", "connection_lost") or error.status in (502, 503, 504)
            if not starting or time.monotonic() + POLL_S >= until:
                raise
        yield Wait(POLL_S)


def _ask(call: Call[T]) -> Plan[T]:
    answer: T = yield call
    return answer


def _post(path: str, fields: dict[str, Any], read: Callable[[Any], T], options: CallOptions) -> Call[T]:
    return Call("POST", path, read, json.dumps(fields, allow_nan=False).encode(), headers=JSON, **options)


def _write(path: str, head: str, rows: Iterable[str], tail: str, repeatable: bool, options: CallOptions) -> Plan[Written]:
    """Write rows of JSON, as many at once as a body may hold; return the sums, and what was true in the end."""
    done: Written | None = None
    stored = 0
    for part in _parts(rows):
        content = (head + ",".join(part) + tail).encode()
        headers = {**JSON, "Idempotency-Key": str(uuid.uuid4())}
        try:
            written = yield Call(
                "POST", path, partial(made, Written), content, headers=headers, repeatable=repeatable, **options
            )
        except DexmlError as error:
            error.add_note(f"{stored} labels of this call were written before")
            raise
        done = written if done is None else done + written
        stored += len(part)
    if done is None:
        raise ValueError("there is nothing to write")
    return done


def _parts(rows: Iterable[str]) -> Iterator[list[str]]:
    part: list[str] = []
    size = 0
    for row in rows:
        if part and (len(part) == MOST_LABELS or size + len(row) > MOST_BYTES):
            yield part
            part, size = [], 0
        part.append(row)
        size += len(row) + 1
    if part:
        yield part


def _fields_of(label: NewLabel) -> dict[str, Any]:
    fields: dict[str, Any] = {"id": label.id}
    if label.text is not None:
        fields["text"] = label.text
    if label.embedding is not None:
        fields["embedding"] = _numbers(label.embedding)
    return fields


def _texts(given: str | Sequence[str]) -> list[str]:
    return [given] if isinstance(given, str) else list(given)


def _numbers(rows: Any) -> Any:
    """Return an array of any kind, or a sequence that may hold some, as lists."""
    if hasattr(rows, "tolist"):
        return rows.tolist()
    return [_numbers(row) if hasattr(row, "__len__") else row for row in rows]
