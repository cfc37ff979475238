"""Machines, each with a network of its own, and a router between them that can be told to drop what goes from one to
another: no FIN, no RST, no ICMP, as when a cable is cut or a host loses its power.

with routed_machines(3) as network:
    link = network.machines[0].inside(lambda: Link(bind=network.address(0), connect=None))
    network.cut(0, 1)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from tests.fault.wire import Wire, bad_wire, dial, listen
from tests.integration.machine import Machine, check_possible, one_machine, run

PORT = 15550


@dataclass(frozen=True)
class Network:
    """Machine I is 10.77.I.1."""

    machines: list[Machine]
    router: Machine
    _cut: list[tuple[int, int]] = field(default_factory=list)

    def address(self, of: int) -> str:
        """Where the stage of this machine binds, and the next one connects."""
        return f"{_host(of)}:{PORT + of}"

    def cut(self, one: int, other: int, back: bool = True) -> None:
        """From now on nothing comes from `one` to `other`, nor `back`."""
        for way in [(one, other), *([(other, one)] if back else [])]:
            self._rule("add", way)

    def mend(self) -> None:
        """All is as it was."""
        while self._cut:
            self._rule("delete", self._cut[-1])

    @contextmanager
    def bad_wire(self, owner: int, at: int, port: int = PORT) -> Iterator[Wire]:
        """What `at` believes to be `owner` is a relay on its own machine; connections made before break.

        Those from other addresses are let in by the owner like any.
        """
        mine = (f"{_host(owner)}/32", "dev", "lo")
        inside(self.machines[at], "address", "add", *mine)
        try:
            server = self.machines[at].inside(lambda: listen(_host(owner), port))
            target = f"{_host(owner)}:{port}"
            with bad_wire(server, lambda: self.router.inside(lambda: dial(target))) as wire:
                yield wire
        finally:
            inside(self.machines[at], "address", "delete", *mine)

    def _rule(self, verb: str, way: tuple[int, int]) -> None:
        (self._cut.append if verb == "add" else self._cut.remove)(way)
        one, other = way
        inside(self.router, "rule", verb, "from", _host(one), "to", _host(other), "blackhole")


@contextmanager
def routed_machines(count: int) -> Iterator[Network]:
    """Skips the test where they cannot be made."""
    check_possible()
    with ExitStack() as holders:
        router = holders.enter_context(one_machine("zmqpp-router", ""))
        run("nsenter", "-t", str(router.pid), "-n", "sysctl", "-qw", "net.ipv4.ip_forward=1")
        machines = []
        for index in range(count):
            machine = holders.enter_context(one_machine(f"zmqpp-{index}", _host(index)))
            _connect(machine, router, index)
            machines.append(machine)
        yield Network(machines, router)


def inside(machine: Machine, *arguments: str) -> None:
    """`ip …` on that machine."""
    run("nsenter", "-t", str(machine.pid), "-n", "ip", *arguments)


def _connect(machine: Machine, router: Machine, index: int) -> None:
    port, gateway = f"port{index}", f"10.77.{index}.254"
    near, far = ["veth0", "netns", str(machine.pid)], [port, "netns", str(router.pid)]
    run("ip", "link", "add", *near, "type", "veth", "peer", "name", *far)
    for where, name, address in ((machine, "veth0", _host(index)), (router, port, gateway)):
        inside(where, "address", "add", f"{address}/24", "dev", name)
        inside(where, "link", "set", name, "up")
    # Not the default route: a look-up of a name would wait for its answer.
    inside(machine, "route", "add", "10.77.0.0/16", "via", gateway)


def _host(index: int) -> str:
    return f"10.77.{index}.1"
