"""The model card of a run, and its way to a Hub: a server of the Hub's interface on this machine takes it."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from test_report import empty, run, step, trained, write

from dit_compress.core.errors import UserError
from dit_compress.model.licence import licence_of
from dit_compress.report.card import write_card
from dit_compress.report.data import read_run
from dit_compress.report.upload import stage

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["empty", "run"]


def front(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text("utf-8").split("---\n")[1])
    return found


def test_the_card_states_sizes_figures_files_and_recipe(run: Path) -> None:
    path = write_card(run, base_model="org/server")
    text = path.read_text("utf-8")
    assert path == run / "README.md"
    assert front(path) == {
        "license": "other", "license_name": "unknown", "base_model": "org/server", "base_model_relation": "finetune",
        "library_name": "dit-compress", "pipeline_tag": "text-to-video",
        "tags": ["dit-compress", "diffusion-transformer", "model-compression"],
    }  # fmt: skip
    removed = text.partition("## Figures")[0]
    rows = [line for line in removed.splitlines() if line.startswith("| ") and "(" in line]
    assert [row.split(" | ")[4] for row in rows] == ["8,400,000", "3,600,000"], "only where the size changed"
    assert "| student_4 (evaluate: shapes) | student | attribute_accuracy | 0.871 |" in text
    assert "| speed (evaluate: latency) | student | times_faster | 42.5 |" in text
    assert "| phone | dit_step |" in text
    assert "| 58.5 dB |" in text, "the lowest of the three sets"
    assert "seed: 0  # <b>" in text


@pytest.mark.parametrize(
    ("stated", "expected"),
    [("apache-2.0", {"license": "apache-2.0"}),
     ("ltxv (https://x)", {"license": "other", "license_name": "ltxv", "license_link": "https://x"})],
)  # fmt: skip
def test_the_licence_comes_back_from_the_card(empty: Path, stated: str, expected: dict[str, str]) -> None:
    trained(empty)
    bundle = empty / "steps" / "student" / "bundle" / "bundle.json"
    write(bundle, {**json.loads(bundle.read_text("utf-8")), "licence": stated})
    card = write_card(empty)
    assert {name: value for name, value in front(card).items() if name.startswith("license")} == expected
    assert licence_of(card.parent) == stated


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_what_is_sent_is_the_bundle_or_the_pipeline_and_every_package(run: Path, tmp_path: Path) -> None:
    stage(read_run(run), run, tmp_path / "bundle")
    assert names(tmp_path / "bundle") >= {"bundle.json", "phone/manifest.json", "recipe.yaml"}
    pipeline = step(run, "pipeline", "export", "diffusers", inputs={"input": "student"})
    (pipeline / "files").mkdir()
    (pipeline / "files" / "model_index.json").write_text("{}", "utf-8")
    listing = json.loads((run / "run.json").read_text("utf-8"))
    write(run / "run.json", {**listing, "steps": [*listing["steps"], "pipeline"]})
    stage(read_run(run), run, tmp_path / "pipeline")
    assert names(tmp_path / "pipeline") >= {"model_index.json", "phone/manifest.json", "recipe.yaml"}
    assert "bundle.json" not in names(tmp_path / "pipeline")
    assert front(write_card(run))["library_name"] == "diffusers"


def test_a_run_without_a_bundle_and_no_run_are_refused(empty: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no step has given a bundle"):
        stage(read_run(empty), empty, tmp_path / "place")
    with pytest.raises(UserError, match="not a run folder"):
        write_card(tmp_path)
    assert not (tmp_path / "README.md").exists()


# ------------------------------------------------------------------ a Hub on this machine


class Hub(BaseHTTPRequestHandler):
    """What the Hub answers to one upload, and to one download of what is ``stored`` at ``commit``; keeps what it was given."""

    requests: list[str]
    files: dict[str, bytes]
    made: list[str]
    stored: dict[str, bytes]
    fetched: list[str]
    commit: str

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.requests.append(self.path)
        if b"offline" in body:
            self.close_connection = True  # without an answer
        elif self.headers["Authorization"] != "Bearer hf_good":
            self.answer({"error": "Invalid credentials"}, 401)
        elif self.path == "/api/repos/create":
            self.made.append(json.loads(body)["visibility"])
            self.answer({"url": f"http://{self.headers['Host']}/team/phone"})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif self.path.endswith("/preupload/main"):
            sent = [entry["path"] for entry in json.loads(body)["files"]]
            self.answer({"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in sent]})
        else:
            rows = [json.loads(line) for line in body.splitlines()]
            for row in rows:
                if row["key"] == "file":
                    self.files[row["value"]["path"]] = base64.b64decode(row["value"]["content"])
            address = f"http://{self.headers['Host']}/team/phone/commit/1"
            self.answer({"commitUrl": address, "commitOid": "1", "success": True})

    def do_GET(self) -> None:
        self.fetched.append(self.path)
        kind, _, file = self.path.partition("?")[0].partition(f"/{self.commit}")
        if not self.path.startswith(("/api/models/team/phone/", "/team/phone/")):
            self.answer({"error": "Repository not found"}, 404)
        elif kind.startswith("/api/models/team/phone/revision/"):
            listed = [{"rfilename": name} for name in self.stored]
            self.answer({"id": "team/phone", "sha": self.commit, "siblings": listed})
        elif kind == "/api/models/team/phone/tree":
            rows = [(name, hashlib.sha1(body).hexdigest(), len(body)) for name, body in self.stored.items()]
            self.answer([{"type": "file", "path": name, "oid": oid, "size": size} for name, oid, size in rows])
        else:
            body = self.stored[file.removeprefix("/")]
            self.send_response(200)
            self.send_header("X-Repo-Commit", self.commit)
            self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body if self.command == "GET" else b"")

    do_HEAD = do_GET

    def answer(self, data: Any, status: int = 200) -> None:
        text = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def hub() -> Iterator[tuple[type[Hub], str]]:
    kept = type("Kept", (Hub,), {"requests": [], "files": {}, "made": [], "stored": {}, "fetched": [], "commit": ""})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kept)
    Thread(target=server.serve_forever, daemon=True).start()
    yield kept, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def share(words: list[Any], endpoint: str, home: Path, token: str | None = None) -> subprocess.CompletedProcess[str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    own |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), **({"HF_TOKEN": token} if token else {})}
    command = [sys.executable, "-m", "dit_compress", *map(str, words)]
    return subprocess.run(command, env=own, capture_output=True, text=True, check=False)


def test_push_sends_the_result_with_its_card(run: Path, hub: tuple[type[Hub], str], tmp_path: Path) -> None:
    kept, endpoint = hub
    ended = share(["push", run, "team/phone"], endpoint, tmp_path / "home", "hf_good")
    assert (ended.returncode, ended.stdout) == (0, f"{endpoint}/team/phone/commit/1\n"), ended.stderr
    assert kept.made == ["private"]
    assert set(kept.files) >= {"README.md", "bundle.json", "phone/manifest.json", "recipe.yaml"}
    assert kept.files["recipe.yaml"] == (run / "recipe.yaml").read_bytes()
    assert b"attribute_accuracy" in kept.files["README.md"]
    assert not (run / "README.md").exists(), "the run stays as it was"


@pytest.mark.parametrize(
    ("token", "repository", "said", "asked"),
    [(None, "team/phone", "no token for the Hub: nothing was sent", 0),
     ("hf_good", "no/such/name", "names no repository: nothing was sent", 0),
     ("hf_bad", "team/phone", "the Hub refused: ", 1),
     ("hf_good", "team/offline", "the Hub refused: ", 1)],
)  # fmt: skip
def test_push_says_in_one_message_what_is_wrong(
    run: Path, hub: tuple[type[Hub], str], tmp_path: Path, token: str | None, repository: str, said: str, asked: int
) -> None:
    kept, endpoint = hub
    ended = share(["push", run, repository], endpoint, tmp_path / "home", token)
    assert ended.returncode == 2
    assert said in ended.stderr
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert (len(kept.requests), kept.files) == (asked, {})
