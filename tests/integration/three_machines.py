"""A pipeline of three stages on three machines with a router between them."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cli.command import zmqpp
from tests.fault.network import PORT, Network, routed_machines
from tests.integration.cases import CASES
from tests.integration.machine import children, stop
from tests.integration.serving import FLAGS, NAME, Served, essence
from tests.integration.test_two_hosts import await_health, environment_in
from zmqpp.models import docs_llama

RETURN_PORT = PORT + 3
_PATIENCE_S = 300.0
"""Of a client: more than any recovery here takes."""


@dataclass
class Pipeline:
    """Stage I runs on machine I; stage 0's also has the engine and the HTTP server."""

    network: Network
    folder: Path
    processes: list[subprocess.Popen[bytes]]

    def ask(self, act: Callable[[Served], Any]) -> Any:
        """From the machine of stage 0."""
        return self.network.machines[0].inside(lambda: act(Served("http://127.0.0.1:8000")))

    def pid(self, title: str) -> int:
        """Of the one process that calls itself so."""
        started = [pid for process in self.processes for pid in _descendants(process.pid)]
        (found,) = (pid for pid in started if title in _title(pid))
        return found

    def stand_still(self, pid: int) -> None:
        """SIGSTOP."""
        os.kill(pid, signal.SIGSTOP)

    def go_on(self, pid: int) -> None:
        """SIGCONT, also to the nsenter before it, which stops with its child."""
        os.kill(pid, signal.SIGCONT)
        for process in self.processes:
            process.send_signal(signal.SIGCONT)

    def log(self, stage: int) -> str:
        return (self.folder / f"stage_{stage}.log").read_text()


@contextmanager
def on_three_machines(folder: Path, peer_timeout_s: float, recovery_s: float) -> Iterator[Pipeline]:
    """It answers; what its stages log lies in the folder."""
    with routed_machines(3) as network, ExitStack() as logs:
        hosts = ",".join(machine.address for machine in network.machines)
        done = zmqpp(
            *("stage", "--print", "--all", "--hosts", hosts, "--base-port", str(PORT)),
            *("--model", str(docs_llama()), "--ranges", "0-3", "3-6", "6-8", "--served-model-name", NAME),
            *(*FLAGS, "--pipeline-peer-timeout", str(peer_timeout_s)),
        )
        assert done.returncode == 0, done.stderr
        environment = {
            **environment_in(folder),
            "ZMQPP_RECOVERY_TIMEOUT_S": str(recovery_s),
        }
        processes = []
        for index, block in enumerate(done.stdout.strip().split("\n\n")):
            log = logs.enter_context((folder / f"stage_{index}.log").open("wb"))
            command = f"exec env {block.partition(chr(10))[2]}"
            processes.append(network.machines[index].start(command, log, environment))
        try:
            network.machines[0].inside(lambda: await_health(processes, folder))
            yield Pipeline(network, folder, processes)
        finally:
            network.mend()
            for process in processes:
                stop(process)


class Load:
    """All cases, sixteen at a time, again and again until it is waited for, while something happens to the pipeline."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.rounds: list[dict[str, Any]] = []
        self._pipeline, self._last = pipeline, threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._last.is_set():
                self.rounds.append(self._pipeline.ask(_answers))
        except Exception as error:
            self._error = error

    def wait(self, within_s: float) -> list[dict[str, Any]]:
        """Each round's answers, of one at least."""
        self._last.set()
        self._thread.join(within_s)
        assert not self._thread.is_alive(), "requests hang"
        assert self._error is None, self._error
        return self.rounds


def _answers(served: Served) -> dict[str, Any]:
    with ThreadPoolExecutor(16) as pool:
        return dict(
            zip(
                CASES,
                pool.map(lambda body: essence(served.complete(body, _PATIENCE_S)), CASES.values()),
                strict=True,
            )
        )


def _descendants(pid: int) -> list[int]:
    found = [pid]
    for child in children(pid):
        found += _descendants(child)
    return found


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""
