"""An endpoint as `zmqpp serve` shows it, which answers every prompt with the same token."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Endpoint(ThreadingHTTPServer):
    """Counts what it is asked; `root` is where it says its model lies."""

    daemon_threads = False
    block_on_close = True

    def __init__(self, root: str, *, with_status: bool = True, failing: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root, self.with_status, self.failing = root, with_status, failing
        self.lock = threading.Lock()
        self.prompts: list[dict[str, Any]] = []
        self.at_once = self.most_at_once = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def endpoint(root: str, **options: bool) -> Iterator[Endpoint]:
    """Serves until left."""
    server = Endpoint(root, **options)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self._answer({"data": [{"id": "model", "root": self.server.root}]})
        elif self.path == "/pipeline/status" and self.server.with_status:
            busy = self.server.at_once > 0
            # Whatever is done takes two seconds, three quarters of which the one stage computes.
            done = len(self.server.prompts)
            stage = {"stage": 0, "spent": {"compute_s": 1.5 * done}}
            told = {"state": "ready", "stages": [stage], "in_flight": int(busy), "at": time.time()}
            self._answer({**told, "tokens": 100 * done, "busy_s": 2.0 * done})
        else:
            self._answer({"error": "not found"}, 404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/completions":
            self._answer({"error": {"message": "not found"}}, 404)
            return
        if self.server.failing:
            self._answer({"error": {"message": "the prompt is too long"}}, 400)
            return
        self._count(1, body)
        try:
            self._stream(body["max_tokens"])
        finally:
            self._count(-1)

    def _count(self, change: int, body: dict[str, Any] | None = None) -> None:
        with self.server.lock:
            self.server.prompts += [body] if body else []
            self.server.at_once += change
            self.server.most_at_once = max(self.server.most_at_once, self.server.at_once)

    def _stream(self, tokens: int) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for _ in range(tokens):
            time.sleep(0.05)
            self._event({"choices": [{"index": 0, "text": "the ", "finish_reason": None}]})
        self._event({"choices": [], "usage": {"prompt_tokens": 8, "completion_tokens": tokens}})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, event: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        self.wfile.flush()

    def _answer(self, value: dict[str, Any], code: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass
