"""Who may do what: keys, roles, and the routes that ask for none."""

from __future__ import annotations

import hashlib
import io
import json
import stat
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from dexml.errors import InputError
from serve import keys
from serve.keys_cli import command


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys.json"


@pytest.fixture(scope="module")
def texts(file: Path) -> dict[str, str]:
    return {role: keys.add(file, f"{role}er", role) for role in keys.ROLES}


@pytest.fixture
def app(make_app, file: Path, texts: dict[str, str]):
    app = make_app(keys=file)
    assert app.extensions["dexml"].worker.wait_until_loaded(10)
    return app


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


ASKED = {"queries": ["sort"]}


def test_the_file_holds_checksums_for_its_owner_alone(file: Path, texts: dict[str, str]):
    content = file.read_text()
    assert not any(text in content for text in texts.values())
    assert hashlib.sha256(texts["read"].encode()).hexdigest() in content
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert all(len(text) > 40 for text in texts.values())


def test_no_key_and_a_wrong_key_are_401_with_a_challenge(app, texts):
    client = app.test_client()
    wrong = [{}, bearer("nonsense"), bearer(""), {"Authorization": "Basic abc"}, {"X-API-Key": texts["read"][:-1]}]
    wrong += [bearer("ü" * 10), {"Authorization": texts["read"]}]
    for headers in wrong:
        for path, body in (("/v1/search", ASKED), ("/v1/labels", {"labels": []})):
            reply = client.post(path, json=body, headers=headers)
            assert reply.status_code == 401 and reply.headers["WWW-Authenticate"].startswith("Bearer"), headers
            assert reply.json["error"]["code"] == "unauthenticated" and reply.content_type == "application/problem+json"
        assert client.get("/v1/info", headers=headers).status_code == 401


def test_it_is_asked_before_a_byte_of_the_body_is_read(app):
    body = io.BytesIO(b"{" * 100_000)
    reply = app.test_client().post("/v1/search", input_stream=body, content_type="application/json")
    assert reply.status_code == 401 and body.tell() == 0


@pytest.mark.parametrize("header", ["Authorization", "X-API-Key"])
def test_each_role_may_do_what_those_below_may(app, texts, header: str):
    client = app.test_client()
    asked = [("read", "POST", "/v1/search"), ("write", "POST", "/v1/labels/delete"), ("admin", "POST", "/v1/snapshots")]
    for role, text in texts.items():
        given = {header: f"bearer {text}" if header == "Authorization" else text}
        for needed, method, path in asked:
            reply = client.open(path, method=method, json=ASKED if "search" in path else {}, headers=given)
            if keys.allows(role, needed):
                assert reply.status_code in (200, 403, 422), (role, path)  # 403: this service takes no writes
                assert reply.status_code != 403 or "takes no writes" in reply.json["detail"]
            else:
                assert reply.status_code == 403 and needed in reply.json["detail"], (role, path)
                assert reply.json["error"]["type"] == "permission_error"


def test_probes_and_the_page_ask_for_none_by_name_and_not_by_prefix(app):
    client = app.test_client()
    for path in ("/livez", "/readyz", "/health", "/v2/health/live", "/v2/health/ready", "/", "/openapi.json", "/static/app.js"):
        with client.get(path) as reply:
            assert reply.status_code == 200, path
    for path in ("/livez/../v1/labels", "//v1/labels", "/LIVEZ", "/livez/", "/%2e%2e/v1/labels", "/static/../v1/labels"):
        assert client.get("/", environ_overrides={"PATH_INFO": path}).status_code in (401, 404), path
    for path in ("/v1/labels", "/v1/labels/a", "/v1/info", "/v1/indexes"):
        assert client.get(path).status_code == 401, path


def test_every_route_says_what_it_asks_for(app):
    from serve.guard import unlisted

    with app.app_context():
        assert unlisted() == []


def test_a_route_that_no_table_names_is_for_administrators(app, texts):
    app.add_url_rule("/new", view_func=lambda: "in", endpoint="new")
    client = app.test_client()
    assert client.get("/new").status_code == 401
    assert client.get("/new", headers=bearer(texts["write"])).status_code == 403
    assert client.get("/new", headers=bearer(texts["admin"])).status_code == 200


def test_anonymous_reading_asks_for_keys_to_write_alone(make_app, file, texts):
    app = make_app(keys=file, anonymous_read=True)
    assert app.extensions["dexml"].worker.wait_until_loaded(10)
    client = app.test_client()
    assert client.post("/v1/search", json=ASKED).status_code == 200
    assert client.post("/v1/labels", json={"labels": [{"id": "a", "text": "b"}]}).status_code == 401
    assert client.post("/v1/search", json=ASKED, headers=bearer("wrong")).status_code == 401
    assert client.get("/v1/info").json["keys"] is False and client.get("/v1/info").json["writes"] == "off"


def test_a_key_can_be_taken_away_and_replaced_while_it_runs(make_app, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(keys, "LOOK_AGAIN_S", 0.05)
    file = tmp_path / "keys.json"
    old = keys.add(file, "old", "read")
    app = make_app(keys=file)
    assert app.extensions["dexml"].worker.wait_until_loaded(10)
    client = app.test_client()

    def status(text: str) -> int:
        return client.post("/v1/search", json=ASKED, headers=bearer(text)).status_code

    assert status(old) == 200
    new = keys.add(file, "new", "read")
    time.sleep(0.1)
    assert (status(old), status(new)) == (200, 200), "two at once, so that clients can change over"
    keys.remove(file, "old")
    time.sleep(0.1)
    assert (status(old), status(new)) == (401, 200)
    file.write_text("{half")
    time.sleep(0.1)
    assert status(new) == 200, "what cannot be read changes nothing"


def test_the_commands(tmp_path: Path):
    file, runner = tmp_path / "keys.json", CliRunner()
    made = runner.invoke(command, ["add", str(file), "ops", "--role", "admin"])
    assert made.exit_code == 0 and made.output.startswith("dexml_")
    assert keys.Keys(file).find(made.output.strip()).role == "admin"
    assert runner.invoke(command, ["list", str(file)]).output.split("\t")[:2] == ["ops", "admin"]
    assert runner.invoke(command, ["remove", str(file), "ops"]).exit_code == 0 and keys.read(file).keys == ()


def test_what_is_wrong_is_told_by_file_and_field(tmp_path: Path):
    file = tmp_path / "keys.json"
    key = {"name": "a", "role": "read", "sha256": "0" * 64, "created": ""}
    for content, said in [
        ("{", "Invalid JSON"),
        (json.dumps({"keys": [{**key, "role": "owner"}]}), "keys.0.role: Input should be 'read', 'write' or 'admin'"),
        (json.dumps({"keys": [{**key, "sha256": "dexml_plain"}]}), "keys.0.sha256"),
        (json.dumps({"keys": [key, key]}), "two keys have one name"),
        (json.dumps({"keys": [], "other": 1}), "other"),
    ]:
        file.write_text(content)
        with pytest.raises(InputError, match=r"keys\.json") as caught:
            keys.read(file)
        assert said in str(caught.value)
    with pytest.raises(InputError, match="cannot be read"):
        keys.read(tmp_path / "none")
    file.unlink()
    keys.add(file, "a", "read")
    for name, said in (("a", "has a key 'a'"), ("a b", "letters, digits")):
        with pytest.raises(InputError, match=said):
            keys.add(file, name, "read")
    with pytest.raises(InputError, match="has no key 'b'; it has a"):
        keys.remove(file, "b")
