"""The way between two machines, as the doctor sees it on one of them: open, silently dropped, cut."""

from __future__ import annotations

import subprocess

from tests.integration.machine import Machine, two_machines
from zmqpp.doctor import Deployment, Finding, network
from zmqpp.pipeline.own_address import address_doubt


def looked_at(machine: Machine) -> list[Finding]:
    def look() -> list[Finding]:
        deployment = Deployment(2, 15550, 8000, ("10.77.0.1", "10.77.0.2"))
        return [*network.hosts(deployment), *network.ways(deployment)]

    return machine.inside(look)


def ip(machine: Machine, *words: str) -> None:
    subprocess.run(["nsenter", "-t", str(machine.pid), "-n", "ip", *words], check=True)


def test_way_between_two_machines_open_dropped_and_cut() -> None:
    with two_machines() as (first, second):
        here, way = looked_at(second)
        assert here.text == "this machine is stage 1 (10.77.0.2)"
        assert way.level == "ok" and "10.77.0.1 port 15550 (stage 0) refused" in way.text
        # Frames to an address of nobody's are dropped without a word, as a firewall does it.
        ip(second, "neighbour", "replace", "10.77.0.1", "lladdr", "02:00:00:00:00:99", "dev", "veth0")
        _, way = looked_at(second)
        assert way.level == "problem" and "gives no answer" in way.text
        assert way.remedy == "on 10.77.0.1 open TCP port 15550 for 10.77.0.2, and check the route"
        ip(second, "address", "flush", "dev", "veth0")
        missing, *_ = looked_at(second)
        assert missing.level == "problem" and "none of 10.77.0.1, 10.77.0.2 is an address" in missing.text
        doubt = first.inside(lambda: address_doubt("10.77.0.2"))
        assert doubt == "10.77.0.2 is not an address of this machine (it has 10.77.0.1)"
