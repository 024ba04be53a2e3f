"""Versions over HTTP: listed, activated, gone back to, refused, while searches go on and see one version at a time."""

from __future__ import annotations

import json
import shutil
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import CliRunner

from dexml import versions
from dexml.__main__ import command
from dexml.model import DualEncoder
from index.retriever import Retriever

TEXT = "fast Fourier transform of a signal"


@pytest.fixture(scope="module")
def two_models(tiny_config: Path, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of two versions whose models differ in everything, the width of their rows too."""
    out = tmp_path_factory.mktemp("versions") / "run"
    for width, seed in ((32, 0), (24, 7)):
        options = [f"--set={option}" for option in (f"out={out}", f"tower.dimension={width}", f"seed={seed}")]
        done = CliRunner().invoke(command, ["train", str(tiny_config), *options], prog_name="dexml")
        assert done.exit_code == 0, done.output
    assert versions.names(out / "bundle") == ["v000001", "v000002"]
    return out / "bundle"


@pytest.fixture
def bundle(two_models: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(two_models, tmp_path / "bundle"))


@pytest.fixture
def serve(make_app, bundle: Path):
    def started(*, writable: bool = True, **settings):
        app = make_app(lambda: Retriever.open(bundle, writable=writable), writable=writable, **settings)
        assert app.extensions["dexml"].worker.wait_until_loaded(20)
        return app.test_client()

    return started


def search(client, **fields):
    reply = client.post("/v1/search", json={"queries": [TEXT], "top_k": 3, **fields})
    assert reply.status_code == 200, reply.text
    return reply.json


def activate(client, name: str):
    return client.post(f"/v1/indexes/{name}/activate", json={})


def test_versions_are_listed(serve):
    found = serve().get("/v1/indexes").json
    assert [(each["name"], each["current"], each["dimension"], each["labels"]) for each in found["versions"]] == [
        ("v000001", False, 32, 10),
        ("v000002", True, 24, 10),
    ]
    assert found["index_version"] == "v000002" and found["versions"][0]["bytes"] > 1000
    assert found["versions"][0]["index"]["name"] == "exact" and found["versions"][0]["created"]


def test_going_back_changes_the_model_too_and_lasts(serve, bundle: Path):
    client = serve()
    before, about = search(client), client.get("/v1/info").json
    reply = activate(client, "v000001")
    assert reply.status_code == 200 and reply.json["index_version"] == "v000003" and reply.json["labels"] == 10
    after = search(client)
    assert after["index_version"] == "v000003" and after["model"] == reply.json["model"] != before["model"]
    now = client.get("/v1/info").json
    assert (about["dimension"], now["dimension"]) == (24, 32) and now["index_version"] == "v000003"
    assert versions.current(bundle)[0].name == "v000003", "a restart answers the same"
    row = [0.0] * 31 + [1.0]
    assert client.post("/v1/search", json={"embeddings": [row]}).status_code == 200
    assert client.post("/v1/search", json={"embeddings": [row[:24]]}).json["error"]["code"] == "dimension_mismatch"
    assert 'dexml_index_swap_total{result="ok"} 1.0' in client.get("/metrics").text
    assert 'version="v000003"' in client.get("/metrics").text
    again = activate(client, "v000002")
    assert again.json["model"] == before["model"] and search(client)["results"] == before["results"]


def test_later_writes_go_with_the_version_that_they_were_made_to(serve):
    client = serve()
    assert client.post("/v1/labels", json={"labels": [{"id": "new", "text": TEXT}]}).status_code == 200
    assert search(client)["index_version"] == "v000002+1"
    activate(client, "v000001")
    assert "new" not in {label["id"] for label in search(client, top_k=100)["results"][0]["labels"]}
    made = client.post("/v1/labels", json={"labels": [{"id": "newer", "text": TEXT}]})
    assert made.status_code == 200 and made.json["index_version"] == "v000003+1"
    assert search(client, top_k=1)["results"][0]["labels"][0]["id"] in ("newer", "fft")


def test_a_snapshot_keeps_what_was_written(serve, bundle: Path):
    client = serve()
    client.post("/v1/labels", json={"labels": [{"id": "new", "text": "clustering of text"}, {"id": "other", "text": TEXT}]})
    before = search(client, top_k=20)
    reply = client.post("/v1/snapshots", json={})
    assert reply.status_code == 200 and reply.json["index_version"] == "v000003" and reply.json["labels"] == 12
    after = search(client, top_k=20)
    for label, was in zip(after["results"][0]["labels"], before["results"][0]["labels"], strict=True):
        assert label["id"] == was["id"] and abs(label["score"] - was["score"]) < 1e-6
    listed = client.get("/v1/snapshots").json
    assert listed == client.get("/v1/indexes").json and listed["versions"][-1]["parent"] == "v000002"
    assert Retriever.open(bundle).store.name == "v000003"


def damaged_byte(folder: Path) -> None:
    file = folder / "embeddings.safetensors"
    file.chmod(0o644)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))


def cut_short(folder: Path) -> None:
    file = folder / "labels.jsonl"
    file.chmod(0o644)
    file.write_bytes(file.read_bytes()[:-20])


def missing_file(folder: Path) -> None:
    (folder / "encoder" / "modules.json").unlink()


def resealed(folder: Path, change) -> None:
    """Change a version and make its checksums true again: what only opening it, or asking its canaries, can tell."""
    from dexml import manifest as manifest_of

    manifest = manifest_of.read(folder)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o644)
    manifest = change(folder, manifest) or manifest
    (folder / manifest_of.FILE).unlink()
    manifest = manifest.model_copy(update={"files": manifest_of.seal(folder)}).sealed()
    manifest.write(folder / manifest_of.FILE)


def wrong_dimension(folder: Path) -> None:
    resealed(folder, lambda _, manifest: manifest.model_copy(update={"dimension": 31}))


def wrong_model(folder: Path) -> None:
    def change(folder: Path, manifest) -> None:
        shutil.rmtree(folder / "encoder")
        shutil.copytree(folder.parent / "v000002" / "encoder", folder / "encoder")

    resealed(folder, change)


def other_rows(folder: Path) -> None:
    def change(folder: Path, manifest) -> None:
        from safetensors.torch import load_file, save_file

        rows = load_file(folder / "embeddings.safetensors")["embeddings"]
        save_file({"embeddings": -rows}, folder / "embeddings.safetensors")

    resealed(folder, change)


@pytest.mark.parametrize("damage", [damaged_byte, cut_short, missing_file, wrong_dimension, wrong_model, other_rows])
@pytest.mark.parametrize("writable", [True, False])
def test_a_version_that_cannot_answer_is_refused_and_the_old_one_goes_on(
    serve, bundle: Path, tmp_path: Path, texts_of_admin: tuple[Path, dict[str, str]], damage, writable: bool
):
    file, headers = texts_of_admin
    damage(bundle / "v000001")
    client = serve(writable=writable, keys=file, anonymous_read=True)
    before, failed, stop = search(client), [], threading.Event()

    def go_on() -> None:
        while not stop.is_set():
            failed.extend([1] * (search(client)["results"] != before["results"]))

    reader = threading.Thread(target=go_on)
    reader.start()
    reply = client.post("/v1/indexes/v000001/activate", json={}, headers=headers)
    stop.set()
    reader.join()
    assert reply.status_code == 409 and reply.json["error"]["code"] == "version_unusable", reply.text
    assert "v00000" in reply.json["detail"] and str(tmp_path) not in reply.text
    assert not failed and search(client)["index_version"] == "v000002"
    assert versions.current(bundle)[0].name == "v000002" or not writable
    assert client.get("/readyz").status_code == 200
    assert 'dexml_index_swap_total{result="refused"} 1.0' in client.get("/metrics", headers=headers).text


@pytest.fixture(scope="module")
def texts_of_admin(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    from serve import keys

    file = tmp_path_factory.mktemp("keys") / "keys.json"
    return file, {"Authorization": f"Bearer {keys.add(file, 'ops', 'admin')}"}


def test_what_another_process_published_is_taken_over(serve, bundle: Path, tiny_bundle: Path, texts_of_admin):
    from dexml.bundle import extend

    file, headers = texts_of_admin
    client = serve(writable=False, keys=file, anonymous_read=True)
    assert extend(bundle, lambda folder: None).root.name == "v000003"
    assert search(client)["index_version"] == "v000002"
    reply = client.post("/v1/indexes/v000003/activate", json={}, headers=headers)
    assert reply.status_code == 200 and reply.json["index_version"] == "v000003"
    assert search(client)["index_version"] == "v000003" and versions.names(bundle)[-1] == "v000003"


def test_names_that_are_none_and_forms_are_refused(serve):
    client = serve()
    for name in ("v000009", "latest", "..", "v1/../v000001", "V000001", "v" + "1" * 70):
        assert activate(client, name).status_code in (404, 422), name
    form = client.post("/v1/indexes/v000001/activate", data="{}", content_type="text/plain")
    assert form.status_code == 415 and client.post("/v1/indexes/v000001/activate").status_code == 415
    assert client.post("/v1/snapshots", json={"more": 1}).status_code == 422


def test_without_keys_a_service_that_takes_no_writes_changes_no_version(serve):
    client = serve(writable=False)
    assert activate(client, "v000001").status_code == 403 and client.post("/v1/snapshots", json={}).status_code == 403
    assert client.get("/v1/indexes").status_code == 200


def test_two_changes_at_once_are_a_conflict(serve, bundle: Path):
    client = serve()
    upkeep = client.application.extensions["dexml"].worker.upkeep
    gate, begun = threading.Event(), threading.Event()

    def slow() -> str:
        begun.set()
        gate.wait(10)
        return "v"

    first = threading.Thread(target=upkeep.change, args=(None, slow))
    first.start()
    begun.wait(10)
    assert activate(client, "v000001").status_code == 409
    gate.set()
    first.join()
    assert activate(client, "v000001").status_code == 200


def test_fifty_swaps_under_load_fail_nobody_and_mix_nothing(serve):
    """Each answer is, number by number, the one that its model gives when nothing changes."""
    client = serve()
    expected = {}
    for name in ("v000001", "v000002"):
        activate(client, name)
        found = search(client)
        expected[found["model"]] = found["results"]
    assert len(expected) == 2
    stop, seen, wrong = threading.Event(), [], []

    def go_on() -> None:
        while not stop.is_set():
            found = search(client)
            seen.append(found["model"])
            if found["results"] != expected[found["model"]]:
                wrong.append(found)

    readers = [threading.Thread(target=go_on) for _ in range(4)]
    for reader in readers:
        reader.start()
    for _ in range(50):
        older = [each["name"] for each in client.get("/v1/indexes").json["versions"] if not each["current"]][-1]
        assert activate(client, older).status_code == 200
    time.sleep(0.1)
    stop.set()
    for reader in readers:
        reader.join()
    assert not wrong and len(seen) > 50 and len(set(seen)) == 2
    assert sum(a != b for a, b in pairwise(seen)) >= 10, "searches saw the changes"


def test_a_write_is_made_by_the_model_that_answers(serve, monkeypatch: pytest.MonkeyPatch):
    """A model activated while another encodes a label's text: the label is encoded again."""
    client = serve()
    store = client.application.extensions["dexml"].worker.serving.store
    real, done = DualEncoder.embed_labels, []

    def slow(model, texts):
        rows = real(model, texts)
        if not done:
            done.append(store.activate("v000001"))
        return rows

    monkeypatch.setattr(DualEncoder, "embed_labels", slow)
    assert client.post("/v1/labels", json={"labels": [{"id": "new", "text": "splitting text strings"}]}).status_code == 200
    assert store.name == "v000003+1" and store.live.index.dimension == 32
    best = client.post("/v1/search", json={"queries": ["splitting text strings"], "top_k": 2}).json["results"][0]["labels"]
    assert "new" in [label["id"] for label in best] and json.dumps(best)
