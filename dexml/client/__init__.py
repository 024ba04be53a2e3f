"""Ask a running service from Python: `Client`, and `AsyncClient` with the same calls to be awaited.

    from dexml.client import Client

    with Client("http://127.0.0.1:8080") as client:
        for label in client.search("sort an array", top_k=3)[0].labels:
            print(label.id, label.score)

What was refused for the moment (429, 503), or never arrived, is sent again, no sooner than the service asks. Every failure
is a `DexmlError`.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import wraps
from typing import Any, Generic, ParamSpec, Self, TypeVar, Unpack, overload

import anyio

from dexml.client import calls
from dexml.client.calls import CallOptions
from dexml.client.exchange import DexmlError, Patience, Plan, Reply, Send, httpx, perform
from dexml.client.results import Info, Label, NewLabel, Ranked, Reason, Result, Search, StoredLabel, Written

P = ParamSpec("P")
T = TypeVar("T")


class _Method(Generic[P, T]):
    """A plan of `calls` as a method of both clients: its answer on `Client`, to be awaited on `AsyncClient`."""

    def __init__(self, plan: Callable[P, Plan[T]]) -> None:
        self._plan = plan
        self.__doc__ = plan.__doc__

    @overload
    def __get__(self, client: None, owner: type) -> Callable[P, Plan[T]]: ...
    @overload
    def __get__(self, client: Client, owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: AsyncClient, owner: type) -> Callable[P, Awaitable[T]]: ...
    def __get__(self, client: Client | AsyncClient | None, owner: type) -> Callable[P, Any]:
        if client is None:
            return self._plan

        @wraps(self._plan)
        def method(*arguments: P.args, **options: P.kwargs) -> Any:
            return client._perform(self._plan(*arguments, **options))

        return method


class _Core(ABC):
    """What both clients are made of: the settings, and a method for everything that can be asked."""

    def __init__(
        self, url: str, *, api_key: str | None = None, timeout: float = 30.0, retries: int = 4, connections: int = 100
    ) -> None:
        """Ask the service at `url`, with the key given or that of the environment's DEXML_API_KEY.

        A call may take `timeout` seconds, waits and up to `retries` further tries included; up to `connections` are pooled.
        """
        self._url = httpx.URL(url)
        if self._url.scheme not in ("http", "https") or not self._url.host or self._url.userinfo:
            raise ValueError("url must be http://HOST or https://HOST, without a password")
        key = os.environ.get("DEXML_API_KEY", "") if api_key is None else api_key
        if not key.isascii() or not key.isprintable() or " " in key:
            raise ValueError("api_key holds a character that no key has")  # httpx would show the key in its complaint
        self._patience = Patience(timeout, retries)
        self._settings: dict[str, Any] = {
            "base_url": self._url,
            "headers": {"Authorization": f"Bearer {key}"} if key else {},
            "limits": httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
        }
        self._open()

    @abstractmethod
    def _open(self) -> None:
        """Make the connections' pool."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self._url)!r})"

    search = _Method(calls.search)
    embed = _Method(calls.embed)
    rerank = _Method(calls.rerank)
    label = _Method(calls.label)
    upsert = _Method(calls.upsert)
    delete = _Method(calls.delete)
    info = _Method(calls.info)
    indexes = _Method(calls.indexes)
    activate = _Method(calls.activate)
    wait_until_ready = _Method(calls.wait_until_ready)
    _page = _Method(calls.page)


class Client(_Core):
    """Asks a service and waits for its answers; threads may share one."""

    def _open(self) -> None:
        self._http = httpx.Client(**self._settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def labels(self, **options: Unpack[CallOptions]) -> Iterator[StoredLabel]:
        """Iterate over all labels; where another version comes to be served on the way, that is an error (code `schema`)."""
        cursor: str | None = None
        while True:
            page = self._page(cursor, **options)
            yield from page.labels
            if (cursor := page.next) is None:
                return

    def _perform(self, plan: Plan[T]) -> T:
        steps = perform(plan, self._http.build_request, self._patience)
        reply: Reply = None
        try:
            while True:
                step = steps.send(reply)
                if isinstance(step, Send):
                    try:
                        reply = self._http.send(step.request)
                    except httpx.TransportError as error:
                        reply = error
                else:
                    time.sleep(step.seconds)
                    reply = None
        except StopIteration as end:
            result: T = end.value
            return result


class AsyncClient(_Core):
    """Asks a service; every call is to be awaited, on asyncio or trio."""

    def _open(self) -> None:
        self._http = httpx.AsyncClient(**self._settings)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def labels(self, **options: Unpack[CallOptions]) -> AsyncIterator[StoredLabel]:
        """Iterate over all labels, as `Client.labels` does."""
        cursor: str | None = None
        while True:
            page = await self._page(cursor, **options)
            for label in page.labels:
                yield label
            if (cursor := page.next) is None:
                return

    async def _perform(self, plan: Plan[T]) -> T:
        steps = perform(plan, self._http.build_request, self._patience)
        reply: Reply = None
        while True:
            try:
                step = steps.send(reply)
            except StopIteration as end:
                result: T = end.value
                return result
            if isinstance(step, Send):
                try:
                    reply = await self._http.send(step.request)
                except httpx.TransportError as error:
                    reply = error
            else:
                await anyio.sleep(step.seconds)
                reply = None


__all__ = [
    "AsyncClient",
    "Client",
    "DexmlError",
    "Info",
    "Label",
    "NewLabel",
    "Ranked",
    "Reason",
    "Result",
    "Search",
    "StoredLabel",
    "Written",
]
