"""An HTTP face on a bundle. Flask lives here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command line imports this package for `--help`: nothing heavy may come with it
    from flask import Flask

    from index.retriever import Retriever
    from serve.settings import Settings


def create_app(
    settings: Settings,
    retriever: Retriever | Callable[[], Retriever] | None = None,
    on_fault: Callable[[], None] | None = None,
) -> Flask:
    """Return the WSGI application; its worker thread opens the retriever, or the bundle of `settings`, and answers.

    The application answers `/livez` at once and everything else with 503 until the thread has loaded. Make it after any
    fork: threads and CUDA do not survive one. `app.extensions["dexml"].worker.stop()` ends it. `on_fault` is called, in
    another thread, when the worker thread has died or hangs: `/livez` says 503 then, and only a new application helps.
    """
    from flask_openapi3.models.info import Info
    from flask_openapi3.openapi import OpenAPI

    from dexml import __version__
    from serve import api, compat_api, docs_page, errors, indexes_api, labels_api, logs, metrics, probes
    from serve.keys import Keys
    from serve.shedding import Shedding
    from serve.turns import InTurn, Turns
    from serve.watchdog import Watchdog
    from serve.worker import Worker

    def open_retriever() -> Retriever:
        from index.retriever import Retriever
        from serve import sharding

        if settings.engine == "ray":
            return sharding.open_retriever(settings)
        assert settings.bundle is not None, "without a retriever the settings must name a bundle"
        return Retriever.open(settings.bundle, writable=settings.writable)

    app = OpenAPI(
        "serve",
        info=Info(title="dexml", version=__version__, summary="Extreme multi-label retrieval"),
        doc_ui=False,
        security_schemes={},  # None is written as null, which OpenAPI forbids
        validation_error_model=errors.ProblemBody,
        validation_error_status=503,  # which every route describes itself: to others flask-openapi3 adds a 422 of its own
        static_folder="playground",
        static_url_path="/static",
    )
    app.url_map.strict_slashes = True
    app.url_map.merge_slashes = False  # `//v1/search` is not a path of ours, and a redirect would be HTML
    app.config.update(SEND_FILE_MAX_AGE_DEFAULT=0)
    opener = open_retriever if retriever is None else retriever if callable(retriever) else lambda: retriever
    counted = metrics.Metrics()
    turns = Turns()
    worker = Worker(opener, settings, counted, turns)
    counted.watch(worker)
    keys = None if settings.keys is None else Keys(settings.keys)
    app.extensions["dexml"] = api.Service(settings, worker, keys, counted)
    errors.install(app)
    metrics.install(app, counted)  # before `api`: what runs after a request runs in the opposite order
    logs.install(app)
    api.install(app)
    app.register_api(api.api)
    app.register_api(probes.probes)
    app.register_api(labels_api.labels_api)
    app.register_api(indexes_api.indexes_api)
    app.register_api(compat_api.compat_api)
    app.register_blueprint(docs_page.docs_page)
    if settings.otel is not None:
        from serve import tracing

        tracing.install(app, tracing.provider(settings.otel))
    app.wsgi_app = Shedding(InTurn(app.wsgi_app, turns), app.extensions["dexml"])  # type: ignore[method-assign]
    worker.start()
    Watchdog(worker, settings.watchdog_s, on_fault).start()
    return app


__all__ = ["create_app"]
