"""Random faults in a pipeline under load: nothing may be lost, and nothing may come out otherwise.

    python -m tests.chaos [--minutes 10] [--stages 4] [--clients 16] [--seed N]

An ordinary vLLM gives the answers first. Ends with 1 when a request was lost or wrong, or the pipeline did not come
back. Requests that stage 0 took with it are counted apart: their clients saw a connection error.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.faults import Faults
from tests.chaos.load import Load
from tests.chaos.pipeline import Keeper, wired_pipeline
from tests.chaos.summary import Summary
from tests.integration.cases import CASES
from tests.integration.serving import one_process


def main() -> int:
    options = _options()
    print(f"chaos: seed {options.seed}, {options.stages} stages, {options.clients} clients", flush=True)
    logs = Path(tempfile.mkdtemp(prefix="zmqpp-chaos-"))
    summary = Summary(options.minutes, options.stages, options.clients, options.seed)
    if _torment(options, summary, logs):
        shutil.rmtree(logs)
        return 0
    print(f"chaos: the logs are in {logs}", flush=True)
    return 1


def _torment(options: argparse.Namespace, summary: Summary, logs: Path) -> bool:
    """Whether all went well."""
    with one_process(logs / "vllm.log") as vllm:
        expected = vllm.answers(CASES)
    dice = random.Random(options.seed)
    lanes = [dice.choice(("auto", "tcp")) for _ in range(options.stages)]
    with (
        wired_pipeline(logs / "stages", options.stages, lanes) as (launcher, wires),
        Keeper(launcher) as keeper,
    ):
        faults = Faults(launcher, wires, dice)
        load = Load(launcher.plan.api.url, expected, options.clients, options.seed, faults.stage_0_was_down)
        load.start()
        try:
            summary.run(faults, dice, keeper, load)
        finally:
            load.stop()
    print(summary.text(load, keeper), flush=True)
    return not (summary.trouble or load.trouble)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="default: 10")
    parser.add_argument("--stages", type=int, default=4, help="default: 4")
    parser.add_argument("--clients", type=int, default=16, help="default: 16")
    parser.add_argument(
        "--seed", type=int, default=time.time_ns() % 1_000_000, help="default: another each time"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
