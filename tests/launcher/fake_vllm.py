"""A "vLLM" to put first on the path: `vllm serve` answers on /health, or ends with a reason."""

from __future__ import annotations

from pathlib import Path

MAIN = """
import os, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer

if sys.argv[2] == "broken":
    print("ValueError: no such model")
    sys.exit(3)

if sys.argv[2] == "slow":
    time.sleep(600)

class Health(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_):
        pass

print(os.getpid(), flush=True)
HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Health).serve_forever()
"""


def fake_vllm(folder: Path) -> Path:
    """The folder, with the package in it."""
    package = folder / "vllm" / "entrypoints" / "cli"
    package.mkdir(parents=True)
    for path in (package, package.parent, package.parent.parent):
        (path / "__init__.py").touch()
    (package / "main.py").write_text(MAIN)
    return folder
