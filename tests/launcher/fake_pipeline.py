"""A plan whose stages are fakes.

python fake_pipeline.py LOG_DIR BEHAVIOUR..      is a launcher to send signals to
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from zmqpp.pipeline.launcher import Launcher
from zmqpp.pipeline.plan import ApiEndpoint, PipelinePlan, StagePlan
from zmqpp.pipeline.ports import free_base_port, free_port
from zmqpp.pipeline.signals import StopRequested

FAKE_STAGE = Path(__file__).parent / "fake_stage.py"


@dataclass(frozen=True)
class FakeStage(StagePlan):
    def command(self) -> list[str]:
        port = self.api.port if self.api else 0
        return [sys.executable, str(FAKE_STAGE), str(self.index), str(port), self.arguments[self.index]]


class FakePipeline(PipelinePlan):
    """`arguments` holds one behaviour per stage."""

    def _stage(self, index: int) -> StagePlan:
        return FakeStage(**super()._stage(index).__dict__)


def fake_pipeline(*behaviours: str) -> FakePipeline:
    api = ApiEndpoint("127.0.0.1", free_port(), "fake")
    return FakePipeline("fake", len(behaviours), free_base_port(len(behaviours)), api, arguments=behaviours)


def main() -> None:
    log_dir, behaviours = Path(sys.argv[1]), sys.argv[2:]
    try:
        with Launcher(fake_pipeline(*behaviours), log_dir, grace_s=1.0) as launcher:
            print("ENTERED", flush=True)
            launcher.start()
            print("STARTED", flush=True)
            launcher.wait_ready(60)
            print("READY", flush=True)
            while True:
                launcher.check()
                time.sleep(0.05)
    except StopRequested as stop:
        sys.exit(128 + stop.signum)


if __name__ == "__main__":
    main()
