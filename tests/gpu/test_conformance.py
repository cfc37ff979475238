"""The whole conformance suite over a GPU: each tensor is moved there, sent, sent back from there, brought home."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.conformance import test_lanes as suite
from tests.conformance.echo import ring_of_two
from tests.gpu.device import DEVICE, LANES, brought, moved, require
from tests.lanes import Lane
from zmqpp.transport import Link

require()
pytestmark = pytest.mark.gpu

globals().update({name: value for name, value in vars(suite).items() if name.startswith("test_")})

# A process cannot open the memory that it has itself exported, so cuda_ipc is between processes alone.
PLACES = [
    (lane, where, {}) for lane in LANES for where in suite.WHERE if (lane, where) != ("cuda_ipc", "threads")
]
PLACES.append(("shm", "processes", {"shm_bytes": suite.MIB}))


@pytest.fixture(scope="module", params=PLACES, ids=suite._name)
def link(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A ring of two whose tensors are on the device; the other place echoes."""
    name, where, changes = request.param
    lane = Lane(name, tmp_path_factory.mktemp("r"))
    with ring_of_two(lane, where, lane.config(**changes), (DEVICE, DEVICE)) as here:
        assert here.stats()["lane"] == name
        yield OnDevice(here)


class OnDevice:
    """A link as the suite knows it: CPU tensors in, CPU tensors out; on their way they are the device's."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def __getattr__(self, name: str) -> Any:
        return getattr(self._link, name)

    def send_dict(self, tensors: dict[str, Any], **options: Any) -> None:
        self._link.send_dict(moved(tensors), **options)

    def isend_dict(self, tensors: dict[str, Any], **options: Any) -> Any:
        return self._link.isend_dict(moved(tensors), **options)

    def recv_dict(self, **options: Any) -> dict[str, Any]:
        return brought(self._link.recv_dict(**options))

    def irecv_dict(self, **options: Any) -> Any:
        return _Posted(self._link.irecv_dict(**options))


class _Posted:
    def __init__(self, ticket: Any) -> None:
        self._ticket = ticket

    def wait(self) -> dict[str, Any]:
        return brought(self._ticket.wait())
