"""Pinned commits, asked for through the real client at a server that speaks the hub's protocol."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from huggingface_hub import HfApi, constants

from capgap import pin
from capgap.study_file import load_study

MAIN, OLD, ABSENT = "a" * 40, "b" * 40, "c" * 40
ERRORS = {"RevisionNotFound": 404, "RepoNotFound": 401, "GatedRepo": 403}


class Hub(BaseHTTPRequestHandler):
    def do_GET(self):
        name, _, revision = self.path.removeprefix("/api/models/").partition("/revision/")
        if name == "meta/gated":
            return self.refuse("GatedRepo")
        if name != "some/model":
            return self.refuse("RepoNotFound")
        if revision not in ("", "main", MAIN, OLD):
            return self.refuse("RevisionNotFound")
        body = json.dumps({"id": name, "sha": OLD if revision == OLD else MAIN}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, code):
        self.send_response(ERRORS[code])
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def api(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield HfApi(endpoint=f"http://127.0.0.1:{server.server_port}", token=False)
    server.shutdown()


@pytest.mark.parametrize(
    ("name", "revision", "expected"),
    [
        ("some/model", MAIN, (True, f"some/model: {MAIN} is main")),
        ("some/model", OLD, (True, f"{OLD} is there; main has moved on to {MAIN}")),
        ("some/model", ABSENT, (False, f"no commit {ABSENT}; main is {MAIN}")),
        ("meta/gated", MAIN, (False, "gated; accept its licence")),
        ("no/model", MAIN, (False, "not on the hub, or private")),
    ],
)
def test_the_hub_is_asked_about_a_commit(api, name, revision, expected):
    there, sentence = pin.check("model", name, revision, api)
    assert there == expected[0]
    assert expected[1] in sentence


def test_models_and_data_sets_of_a_study_are_listed_once():
    found = pin.pins(load_study("configs/gpt2.yaml"))
    assert len(found) == len(set(found)) == 6
    assert [kind for kind, *_ in found] == ["model"] * 4 + ["dataset"] * 2
