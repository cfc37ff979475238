"""The multi-machine plan that `zmqpp stage --print --all` prints, run as printed on two machines."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
import zmq

from tests.cli.command import zmqpp
from tests.integration.cases import CASES
from tests.integration.machine import Machine, stop, two_machines
from tests.integration.serving import ENVIRONMENT, FLAGS, NAME, READY_S, Served
from zmqpp.models import docs_llama
from zmqpp.pipeline.events import read_events

BASE_PORT = 15550
NAMED = "stage-1.zmqpp.test"
"""Where stage 2 finds stage 1; both machines know it from their own /etc/hosts."""
MOVED_TO = "10.77.0.3"


@dataclass
class Running:
    """The stages run; what they log and tell lies in the folder."""

    machine: Machine
    """The first one."""
    folder: Path
    hosts: Path
    stages: list[subprocess.Popen[bytes]]


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A, B, A: both machines bind the same BASE_PORT, and one of them runs two stages; all have the same keys."""
    keys = tmp_path_factory.mktemp("two_hosts_keys") / "keys"
    assert zmqpp("keygen", str(keys)).returncode == 0
    done = zmqpp(
        *("stage", "--print", "--all", "--hosts", "10.77.0.1,10.77.0.2,10.77.0.1"),
        *("--model", str(docs_llama()), "--ranges", "0-3", "3-6", "6-8", "--base-port", str(BASE_PORT)),
        *("--served-model-name", NAME, *FLAGS),
        *("--pipeline-curve-dir", str(keys), "--pipeline-require-auth"),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().split("\n\n")


@pytest.fixture(scope="module")
def served(printed: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("two_hosts")
    hosts = folder / "hosts"
    hosts.write_text(f"127.0.0.1 localhost\n10.77.0.2 {NAMED}\n")
    with two_machines() as machines, ExitStack() as open_files:
        by_address = {machine.address: machine for machine in machines}
        machines[0].run("mount", "--bind", str(hosts), "/etc/hosts")
        stages = []
        for index, block in enumerate(printed):
            address, _, stage = block.partition("\n")[0].removeprefix("# ").partition(": stage ")
            assert int(stage) == index
            log = open_files.enter_context((folder / f"stage_{index}.log").open("wb"))
            environment = {**environment_in(folder), "ZMQPP_EVENTS": str(folder / f"events_{index}.jsonl")}
            line = block.partition("\n")[2].replace("addr 10.77.0.2:", f"addr {NAMED}:")
            stages.append(by_address[address].start(f"exec env {line}", log, environment))
        try:
            machines[0].inside(lambda: await_health(stages, folder))
            yield Running(machines[0], folder, hosts, stages)
        finally:
            for stage in stages:
                stop(stage)


def environment_in(folder: Path) -> dict[str, str]:
    scripts = Path(sys.executable).parent
    return {
        **ENVIRONMENT,
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(sys.path),
        "TMPDIR": str(folder),
    }


def await_health(stages: list[subprocess.Popen[bytes]], folder: Path) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline and all(stage.poll() is None for stage in stages):
        try:
            if httpx.get("http://127.0.0.1:8000/health", timeout=2).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.3)
    logs = "\n".join(f"{log.name}: {log.read_text()[-1500:]}" for log in sorted(folder.glob("*.log")))
    raise AssertionError(f"the pipeline did not come up:\n{logs}")


def test_stages_on_two_machines_answer_as_one_process_does(served: Running, expected: dict[str, Any]) -> None:
    api = Served("http://127.0.0.1:8000")
    assert served.machine.inside(lambda: api.answers(CASES, at_once=8)) == expected


def test_both_machines_bind_the_same_base_port_and_tensors_go_by_tcp(
    served: Running, printed: list[str]
) -> None:
    assert f"--pipeline-local-bind-port 10.77.0.1:{BASE_PORT} " in printed[0]
    assert f"--pipeline-local-bind-port 10.77.0.2:{BASE_PORT} " in printed[1]
    assert f"--pipeline-local-bind-port 10.77.0.1:{BASE_PORT + 3} " in printed[2]
    for index in (0, 1):
        events, _ = read_events(str(served.folder / f"events_{index}.jsonl"))
        lanes = [event["lane"] for event in events if event.get("lane")]
        assert lanes and all(lane.startswith("tcp") for lane in lanes), events


def test_stranger_at_a_running_stage_is_named_in_its_log_and_gets_nothing(
    served: Running, expected: dict[str, Any]
) -> None:
    machine, folder = served.machine, served.folder
    log = folder / "stage_1.log"
    stage = f"tcp://10.77.0.2:{BASE_PORT}"
    got = machine.inside(lambda: _listen_without_keys(stage, lambda: "refused a peer" in log.read_text()))
    assert got == 0
    # He may be gone before his address can be asked for.
    where = "(10.77.0.1|an unknown address)"
    said = re.search(f"zmqpp: warning: stage 1: refused a peer at {where}: it showed no key", log.read_text())
    assert said, log.read_text()[-1500:]
    told, _ = read_events(str(folder / "events_1.jsonl"))
    assert {(e["peer"], e["why"]) for e in told if e["event"] == "refused"} == {(said[1], "it showed no key")}
    some = {name: CASES[name] for name in ("greedy 0", "seeded")}
    answers = machine.inside(lambda: Served("http://127.0.0.1:8000").answers(some))
    assert answers == {name: expected[name] for name in some}


def test_a_stage_moves_to_another_address_under_load_and_every_request_goes_on(
    served: Running, printed: list[str], expected: dict[str, Any]
) -> None:
    line = printed[1].partition("\n")[2].replace("port 10.77.0.2:", f"port {MOVED_TO}:")
    served.machine.run("ip", "address", "add", f"{MOVED_TO}/24", "dev", "veth0")
    answers: dict[str, Any] = {}

    def ask() -> None:
        api = Served("http://127.0.0.1:8000")
        answers.update(served.machine.inside(lambda: api.answers(CASES, at_once=16)))

    asking = Thread(target=ask)
    asking.start()
    time.sleep(0.5)
    stop(served.stages[1])
    served.hosts.write_text(f"127.0.0.1 localhost\n{MOVED_TO} {NAMED}\n")
    with (served.folder / "stage_1_moved.log").open("wb") as log:
        served.stages[1] = served.machine.start(f"exec env {line}", log, environment_in(served.folder))
    asking.join(READY_S)
    assert answers == expected, (served.folder / "stage_1_moved.log").read_text()[-2000:]


def _listen_without_keys(where: str, noticed: Callable[[], bool]) -> int:
    """What came meanwhile; an idle stage looks now and then, and a busy machine takes its time for both."""
    with zmq.Context() as context, context.socket(zmq.PULL) as pull:
        pull.linger = 0
        pull.connect(where)
        got, deadline = pull.poll(1500), time.monotonic() + 30
        while not got and not noticed() and time.monotonic() < deadline:
            got = pull.poll(200)
        return got


_PARSE = """
import dataclasses, json, sys
sys.argv = ["vllm", "serve"]
from vllm.entrypoints.cli.serve import ServeSubcommand
from vllm.utils.argparse_utils import FlexibleArgumentParser
from zmqpp.vllm.options import read_flags
parser = FlexibleArgumentParser()
ServeSubcommand().subparser_init(parser.add_subparsers())
for words in json.load(sys.stdin):
    print("PARSED", json.dumps(dataclasses.asdict(read_flags(parser.parse_args(words), print))))
"""


def test_printed_lines_are_understood_by_vllms_own_parser() -> None:
    done = zmqpp("stage", "--all", "--json", "--hosts", "a,[fd00::2],c", "--model", "m", "--dtype", "half")
    words = [stage["argv"][1:] for stage in json.loads(done.stdout)["stages"]]
    parsed = subprocess.run(
        [sys.executable, "-c", _PARSE],
        input=json.dumps(words),
        capture_output=True,
        text=True,
        env={**os.environ, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=200,
        check=False,
    )
    assert parsed.returncode == 0, parsed.stderr[-3000:]
    lines = [
        line.removeprefix("PARSED ") for line in parsed.stdout.splitlines() if line.startswith("PARSED ")
    ]
    options = [json.loads(line) for line in lines]
    assert [option["stage_idx"] for option in options] == [0, 1, 2]
    assert {option["total_stages"] for option in options} == {3}
    assert [option["local_bind_port"] for option in options] == ["a:15550", "[fd00::2]:15550", "c:15553"]
    assert [option["prev_stage_addr"] for option in options] == ["c:15553", None, None]
    assert [option["prev_stage_service_addr"] for option in options] == [None, "a:15550", "[fd00::2]:15550"]
