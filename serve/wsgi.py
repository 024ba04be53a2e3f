"""The server process: gunicorn with one worker of many threads, which drains on SIGTERM and on Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.http import errors as http_errors

from dexml.errors import InputError
from serve import create_app, logs
from serve.admin import AdminServer
from serve.errors import Problem, body_of
from serve.hosts import shown
from serve.intake import Intake, Stalled, connections_for
from serve.metrics import OTHER
from serve.settings import Settings
from serve.shedding import early

if TYPE_CHECKING:
    from index.retriever import Retriever


FAULT = 70  # the exit code of a worker process that gave itself up (EX_SOFTWARE); the arbiter starts another
SWITCH_S = 0.0005  # seconds a thread may keep the interpreter from the one that gathers requests, and from the model's
LAST_WORDS_S = 1.0  # for the answers that wait, and for a probe to see 503


def listen(settings: Settings) -> socket.socket:
    """Return a listening socket. Raises InputError in one line when the address cannot be had."""
    return _listen(settings.host, settings.port)


def listen_admin(settings: Settings) -> socket.socket:
    """Return the admin listener's socket; raises as `listen` does."""
    assert settings.admin_port is not None
    return _listen(settings.admin_host, settings.admin_port)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except (OSError, TypeError, UnicodeError) as error:  # the last two: names that are none, which IDNA cannot encode
        listener.close()
        reason = (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())
        raise InputError(f"cannot listen on {shown(host)}:{port}: {reason}") from None
    return listener


def run(
    settings: Settings,
    listener: socket.socket,
    retriever: Callable[[], Retriever] | None = None,
    admin: socket.socket | None = None,
) -> int:
    """Serve until a signal ends it; return the exit code: 0 after a drain, 2 when the model could not be loaded.

    `admin` is the socket that probes and metrics are asked at besides.
    """
    logs.configure(settings.log_format, settings.log_level)
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")  # a server fetches nothing
    try:
        Master(Application(settings, listener, retriever, admin)).run()
    except SystemExit as end:
        return 0 if end.code in (0, None) else 2
    return 0


def options(settings: Settings) -> dict[str, Any]:
    """Return how gunicorn must be set up, but for the address."""
    return {
        "workers": 1,
        "worker_class": Drainer,
        "threads": settings.pool,
        "worker_connections": connections_for(settings.pool),
        "keepalive": 15,
        "timeout": 120,
        "graceful_timeout": settings.drain_s,
        "control_socket_disable": True,
        "proc_name": "dexml",
        "loglevel": "warning",
        "worker_exit": stop_worker,
    }


class Application(BaseApplication):  # type: ignore[misc]
    """Gunicorn's view of us: its settings, and the application, made in the worker after the fork."""

    def __init__(
        self,
        settings: Settings,
        listener: socket.socket,
        retriever: Callable[[], Retriever] | None,
        admin: socket.socket | None,
    ) -> None:
        self.settings = settings
        self.url = url_of(listener)
        self.fd = listener.detach()
        self.retriever = retriever
        self.admin = admin
        super().__init__()

    def load_config(self) -> None:
        """Set what differs from gunicorn's defaults; no environment, file or command line of its own is read."""
        for name, value in {"bind": f"fd://{self.fd}", **options(self.settings)}.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        """Return the WSGI application, and say when it is ready."""
        return begin(self.settings, self.url, self.retriever, self.admin)


def begin(
    settings: Settings,
    url: str,
    retriever: Callable[[], Retriever] | None = None,
    admin: socket.socket | None = None,
) -> Any:
    """Return the WSGI application of a worker process, which says when it is ready, and ends the process when it cannot be."""
    sys.setswitchinterval(SWITCH_S)
    app = create_app(settings, retriever, end_process)
    if admin is not None:
        service = app.extensions["dexml"]
        AdminServer(admin, service.worker, service.metrics).start()
    probed = "" if admin is None else f", probes and metrics at {url_of(admin)}"
    threading.Thread(target=_announce, args=(app, url + probed), name="dexml-announce", daemon=True).start()
    return app


def _announce(app: Any, where: str) -> None:
    """Print the address once searches are answered; end the process when they never will be."""
    worker = app.extensions["dexml"].worker
    worker.wait_until_loaded()
    if worker.serving is not None:
        labels = len(worker.serving.store.live.labels)
        click.echo(f"dexml: {labels:,} labels of {worker.serving.info['model']} at {where} (Ctrl-C ends it)")
        sys.stdout.flush()
        return
    shown = isinstance(worker.failure, InputError)
    reason = str(worker.failure) if shown else f"{type(worker.failure).__name__}: {worker.failure}"
    click.echo(f"dexml: {reason}", err=True)
    sys.stderr.flush()
    os._exit(Arbiter.APP_LOAD_ERROR)  # the arbiter stops instead of trying again


class Master(Arbiter):  # type: ignore[misc]
    """Gunicorn's arbiter, for which Ctrl-C is as gentle as SIGTERM (a second one is not)."""

    def setup(self, app: Any) -> None:
        """Leave the words about a model that could not be loaded to the worker, which has said them; log as all others do."""
        super().setup(app)
        for handler in self.log.error_log.handlers:
            handler.setFormatter(logs.FORMATS[app.settings.log_format]())
        self.log.error_log.addFilter(lambda record: record.args is None or self.APP_LOAD_ERROR not in record.args)

    def halt(self, reason: str | None = None, exit_status: int = 0) -> None:
        """End quietly when the worker has said why."""
        if exit_status == self.APP_LOAD_ERROR:
            self.stop()
            sys.exit(exit_status)
        super().halt(reason, exit_status)

    def handle_int(self) -> None:
        """Drain, as on SIGTERM."""
        self.handle_term()

    def stop(self, graceful: bool = True) -> None:
        """Drain, and end at once when told again: what was acknowledged is on disk, so only unanswered clients lose by it."""

        def end(number: int, _: Any) -> None:
            self.kill_workers(signal.SIGKILL)
            os._exit(128 + number)  # taking down the libraries that are loaded would last longer than all else

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, end)
        super().stop(graceful)


class Drainer(Intake):
    """The thread worker, which refuses new connections while it finishes the work it has."""

    def init_signals(self) -> None:
        """Leave Ctrl-C, which a terminal sends to every process of the group, to the arbiter."""
        super().init_signals()
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def at_once(self, held: bytearray) -> bytes | None:
        """Refuse work while the queue is full."""
        return early(self.wsgi.extensions["dexml"], held, len(self.under_way))

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Mark the service as draining before anything else."""
        wsgi = getattr(self, "wsgi", None)
        if wsgi is not None:
            wsgi.extensions["dexml"].worker.draining = True
        super().handle_exit(sig, frame)

    def set_accept_enabled(self, enabled: bool) -> None:
        """Close the listeners when draining: a client is refused rather than kept waiting."""
        super().set_accept_enabled(enabled)
        if not enabled and not self.alive:
            for listener in self.sockets:
                listener.close()

    def handle_error(self, req: Any, client: Any, addr: Any, exc: Exception) -> None:
        """Answer what gunicorn itself refuses with problem details, not with its HTML page."""
        if not isinstance(exc, http_errors.ParseException):
            super().handle_error(req, client, addr, exc)
            return
        code = "bad_request"
        if isinstance(exc, http_errors.LimitRequestLine):
            code = "uri_too_long"
        elif isinstance(exc, http_errors.LimitRequestHeaders):
            code = "headers_too_large"
        elif isinstance(exc, http_errors.UnsupportedTransferCoding):
            code = "not_implemented"
        elif isinstance(exc, Stalled):
            code = "request_timeout"
        problem = Problem(code, "the request is not valid HTTP/1.1" if code == "bad_request" else "")
        body = json.dumps(body_of(problem, "", "")).encode()
        head = (
            f"HTTP/1.1 {problem.status} {problem.title}\r\nConnection: close\r\n"
            f"Content-Type: application/problem+json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        if (wsgi := getattr(self, "wsgi", None)) is not None:
            metrics = wsgi.extensions["dexml"].metrics
            metrics.answered(OTHER, OTHER, problem.status)
            metrics.rejected(code)
        try:
            client.sendall(head.encode("latin-1") + body)
        except OSError:
            pass  # the client has gone


def end_process() -> None:
    """End this process, whatever its threads are at."""
    time.sleep(LAST_WORDS_S)
    os._exit(FAULT)


def url_of(listener: socket.socket) -> str:
    """Return the address of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def stop_worker(_: Any, process: Any) -> None:
    """Finish what is queued before the process ends."""
    wsgi = getattr(process, "wsgi", None)
    if wsgi is not None:
        wsgi.extensions["dexml"].worker.stop(timeout=5)
