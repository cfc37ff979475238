"""A model by its hub id: the real client against a hub of our own on loopback."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.checkpoints import qwen, tensors_of

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves the files of `folder` as the model org/tiny, as much of the hub's protocol as a download takes."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.folder = folder
        self.served: list[str] = []


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/org/tiny"):
            files = [
                {
                    "rfilename": p.name,
                    "type": "file",
                    "path": p.name,
                    "size": p.stat().st_size,
                    "oid": "0" * 40,
                }
                for p in self.server.folder.iterdir()
            ]
            listing = {"id": "org/tiny", "modelId": "org/tiny", "sha": COMMIT, "siblings": files, "tags": []}
            self.reply(json.dumps(listing if "/tree/" not in path else files).encode(), "application/json")
        elif path.startswith("/org/tiny/resolve/"):
            name = path.rpartition("/")[2]
            if self.command == "GET":
                self.server.served.append(name)
            self.reply((self.server.folder / name).read_bytes(), "application/octet-stream")
        else:
            self.send_error(404)

    do_HEAD = do_GET

    def reply(self, content: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Quiet."""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    folder = qwen(tmp_path / "upstream")
    (folder / "pytorch_model.bin").write_bytes(b"large and not needed")
    with Hub(folder) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def zmqpp(hub: Hub, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_address[1]}",
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    command = [sys.executable, "-m", "zmqpp", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)


def test_a_hub_id_is_fetched_once_and_exported(hub: Hub, tmp_path: Path) -> None:
    home, out = tmp_path / "home", tmp_path / "out"
    done = zmqpp(hub, home, "export", "--model", "org/tiny", "--num-stages", "2", "--output-dir", str(out))
    assert done.returncode == 0, done.stderr
    (source,), shares = tensors_of([hub.folder]), tensors_of([out / "stage_0", out / "stage_1"])
    assert set().union(*shares) == set(source)
    assert not [path for path in out.rglob("*") if path.is_symlink()]
    assert json.loads((out / "stage_1" / "config.json").read_text())["_pipeline_info"]["source"] == "org/tiny"
    assert "pytorch_model.bin" not in hub.served and "tokenizer.json" in hub.served
    fetched = list(hub.served)
    checked = zmqpp(hub, home, "validate", "--model", "org/tiny", "--num-stages", "3")
    assert checked.returncode == 0 and "✓ Model: org/tiny" in checked.stdout
    assert [name for name in hub.served[len(fetched) :] if name.endswith(".safetensors")] == []


def test_an_id_the_hub_does_not_know_is_one_line(hub: Hub, tmp_path: Path) -> None:
    done = zmqpp(hub, tmp_path / "home", "validate", "--model", "org/other", "--num-stages", "3")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("zmqpp: there is no model directory org/other, and it cannot be fetched")
    assert done.stderr.count("\n") == 1
