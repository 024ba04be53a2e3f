"""Requests generated from /openapi.json, right ones and wrong ones: every answer is one that it describes."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, settings

schemathesis = pytest.importorskip("schemathesis")

from serve import create_app, spec  # noqa: E402  # after the skip
from serve.settings import Settings  # noqa: E402

SCHEMA = schemathesis.openapi.from_dict(spec.document())


@pytest.fixture(scope="module")
def app(stand_in):
    made = create_app(Settings(), stand_in.StandIn())
    assert made.extensions["dexml"].worker.wait_until_loaded(10)
    yield made
    made.extensions["dexml"].worker.stop(timeout=10)


@SCHEMA.parametrize()
@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
def test_every_answer_is_one_that_is_described(case, app):
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance
    from schemathesis.transport.wsgi import WSGI_TRANSPORT

    checks = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
    case.validate_response(WSGI_TRANSPORT.send(case, app=app), checks=checks)
