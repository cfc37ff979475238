"""The stage under test: a real `vllm serve ... --external-pp-worker` of the embedded model, watched from outside."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

from tests.fuzz.recording import FOLDER, STAGE_ENVIRONMENT, stage_command, two_stages
from zmqpp.pipeline.process import StageProcess

_ENVIRONMENT = {
    **STAGE_ENVIRONMENT,
    "ZMQPP_PEER_TIMEOUT_S": "0",  # we do not beat
    "ZMQPP_HANDSHAKE_S": "1",
    "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS": "20",
    "ZMQPP_MAX_CONTROL_BYTES": str(4 << 20),
}
_LOST = re.compile(r"is lost \((.*)\); waiting for it to come back")


class Victim:
    """Owns: the process and its log. It connects to `base_port`, and the next one is to connect to `address`."""

    def __init__(self, base_port: int, log: Path | None = None) -> None:
        FOLDER.mkdir(parents=True, exist_ok=True)
        self._plan = two_stages(base_port)
        self._process = StageProcess(log or FOLDER / "fuzzed.log")
        self.previous_port = base_port
        self.address = f"tcp://127.0.0.1:{self._plan.stages[1].bind_port}"
        self.restarts = -1
        self.ends: list[str] = []
        """The last line of each that ended in order."""
        self._read_to = 0

    def start(self) -> None:
        """Begin anew; what it said before is kept aside."""
        self._process.reap()
        self._process.keep_log()
        self._process.start(stage_command(self._plan, 1), _ENVIRONMENT)
        self.restarts += 1
        self._read_to = 0

    def kill(self) -> None:
        self._process.reap()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log(self) -> str:
        return self._process.log_path.read_text(errors="replace")

    def exit_code(self) -> int | None:
        return self._process.exit_code()

    def await_end(self, timeout_s: float) -> int | None:
        """Its exit code, if it ends by then."""
        deadline = time.monotonic() + timeout_s
        while (code := self.exit_code()) is None and time.monotonic() < deadline:
            time.sleep(0.05)
        return code

    def judge_end(self) -> None:
        """It has ended: in order, with one line that says why, or not.

        Raises:
            AssertionError: not.
        """
        code, log = self.exit_code(), self.log
        said = [line for line in log.splitlines() if line.startswith("zmqpp: error: ") and "stage" in line]
        # nanobind, which Triton uses, may have more to say at an exit.
        assert code is not None and code > 0 and len(said) == 1, (
            f"the stage ended with {code}:\n{log[-4000:]}"
        )
        self.ends.append(said[0])

    def resident_bytes(self) -> int:
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def threads(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/task").iterdir()))

    def reasons(self) -> list[str]:
        """Why it gave connections up, since this was asked last."""
        with self._process.log_path.open(errors="replace") as log:
            log.seek(self._read_to)
            found = _LOST.findall(log.read())
            self._read_to = log.tell()
        return found
