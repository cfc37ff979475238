"""Stands in for `vllm serve`: tells the same events, serves /health and a streamed completion on stage 0.

python fake_stage.py INDEX API_PORT BEHAVIOUR

Behaviours: ok; slow: never loads; fail: says why; crash: only its log does; deaf: ignores SIGTERM;
orphan: stops, but has a child that ignores SIGTERM; dies: is killed soon after it was ready; once: is
killed so the first time, and stays the next; worse: is killed so the first time, and fails the next.
FAKE_BEHAVIOUR in the environment comes before the one given.
"""

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from zmqpp.pipeline.events import emit

TEXT = ["exception ", "handlers ", "and/or ", "cleanup ", "code"]


class Api(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if request["prompt"] == "refuse":
            self.send_response(400)
            self.end_headers()
            self.wfile.write(json.dumps({"error": {"message": "prompt is too long"}}).encode())
            return
        self.send_response(200)
        self.end_headers()
        for piece in TEXT * (1000 if request["prompt"] == "endless" else 1):
            self.wfile.write(f"data: {json.dumps({'choices': [{'text': piece}]})}\n\n".encode())
            self.wfile.flush()
            time.sleep(0.05)
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *_arguments: object) -> None:
        pass


def is_first_time() -> bool:
    mark = Path(os.environ["ZMQPP_EVENTS"]).with_name("died_once")
    first = not mark.exists()
    mark.touch()
    return first


def main() -> None:
    index, port = int(sys.argv[1]), int(sys.argv[2])
    behaviour = os.environ.get("FAKE_BEHAVIOUR", sys.argv[3])
    if behaviour == "worse":
        behaviour = "dies" if is_first_time() else "fail"
    stop = threading.Event()
    signal.signal(signal.SIGTERM, signal.SIG_IGN if behaviour == "deaf" else lambda *_: stop.set())
    emit(index, "starting")
    if behaviour in ("deaf", "orphan"):
        # What vLLM's engine core is to its API server: a child that must not outlive a killed parent.
        ignore = "import signal,time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"
        subprocess.Popen([sys.executable, "-c", ignore], start_new_session=False)
    if behaviour == "crash":
        print("(EngineCore pid=12) ERROR 11-21 05:40:03 [core.py:11] ValueError: the model has no layer 9")
        print("RuntimeError: Engine core initialization failed. See root cause above.")
        sys.exit(3)
    if behaviour == "fail":
        emit(index, "failed", reason="LayerRangeError: gap: layers 3-4 belong to no stage")
        sys.exit(1)
    place = {"start_layer": index * 4, "end_layer": index * 4 + 4, "total_layers": 8}
    emit(index, "loading", **place)
    stop.wait(600 if behaviour == "slow" else 0.2)
    emit(index, "loaded", parameters=1_970_000, bytes=3_940_000, seconds=0.2, **place)
    if index == 0:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Api)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
    emit(index, "ready", lane="shm to stage 1" if index == 0 else "")
    if behaviour == "dies" or (behaviour == "once" and is_first_time()):
        stop.wait(0.5)
        os.kill(os.getpid(), signal.SIGKILL)
    while not stop.wait(1.0):
        pass
    emit(index, "stopped", sent_bytes=123_456, received_bytes=654_321, steps=64)
    os._exit(0)


if __name__ == "__main__":
    main()
