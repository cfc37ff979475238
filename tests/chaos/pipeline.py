"""The pipeline that is tormented: its stages talk through wires, and whoever dies is started again."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.chaos.wire import Wires
from tests.integration.serving import ENVIRONMENT, FLAGS, NAME, READY_S
from zmqpp.errors import LaunchError
from zmqpp.models import docs_llama
from zmqpp.pipeline.launcher import Launcher
from zmqpp.pipeline.plan import ApiEndpoint, PipelinePlan
from zmqpp.pipeline.ports import free_base_port

_LOOK_S = 0.1


@contextmanager
def wired_pipeline(log_dir: Path, stages: int, lanes: list[str]) -> Iterator[tuple[Launcher, Wires]]:
    """N stages, each connected to the one before through a wire; `lanes` gives each its ZMQPP_LANE."""
    base = free_base_port(stages + 2)
    plan = PipelinePlan(
        model=str(docs_llama()),
        total=stages,
        base_port=base,
        api=ApiEndpoint("127.0.0.1", base + stages + 1, NAME),
        arguments=FLAGS,
        environments=[{**ENVIRONMENT, "ZMQPP_LANE": lane} for lane in lanes],
    )
    with Wires() as wires:
        wired = [_through(stage.previous, wires) for stage in (*plan.stages[1:], plan.stages[0])]
        places = [wired[-1], *wired[:-1]]
        rewired = tuple(dataclasses.replace(s, previous=p) for s, p in zip(plan.stages, places, strict=True))
        object.__setattr__(plan, "stages", rewired)
        with Launcher(plan, log_dir) as launcher:
            launcher.start()
            launcher.wait_ready(READY_S)
            yield launcher, wires


def _through(previous: str, wires: Wires) -> str:
    host, _, port = previous.rpartition(":")
    return f"127.0.0.1:{wires.add(host, int(port))}"


class Keeper:
    """Starts lost stages again, as a supervisor does. Thread: its own; the launcher's other calls only read."""

    def __init__(self, launcher: Launcher) -> None:
        self.failure: str = ""
        """Why it gave up: the pipeline itself failed."""
        self.restarts = 0
        self._launcher = launcher
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="keeper")

    def __enter__(self) -> Keeper:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _keep(self) -> None:
        while not self._stopping.is_set():
            for stage in self._launcher.lost_stages():
                self._launcher.restart_stage(stage)
                self.restarts += 1
            if any(state.phase == "failed" for state in self._launcher.states):
                try:
                    self._launcher.check()
                except LaunchError as error:
                    self.failure = str(error)
                    return
            time.sleep(_LOOK_S)
