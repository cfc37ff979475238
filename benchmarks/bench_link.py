"""How do the core cases of the link change from one commit to the next? For `pytest benchmarks --benchmark-only`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from zmqpp.bench.near import Near
from zmqpp.bench.payload import Size, check_same
from zmqpp.bench.peers import PEERS
from zmqpp.bench.targets import LARGE, MEDIUM, SMALL
from zmqpp.bench.transport import Transport, Unavailable
from zmqpp.bench.turn import warm_trips

pytest.importorskip("pytest_benchmark", reason="the bench extra is not installed")

LANES = [name for name, peer in PEERS.items() if peer.is_ours]
CASES = [(SMALL, 2000), (MEDIUM, 300), (LARGE, 12)]
STREAMS = [(MEDIUM, 400), (LARGE, 24)]


@pytest.fixture(scope="module", params=LANES)
def lane(request: pytest.FixtureRequest) -> Iterator[tuple[Near, str]]:
    """An open lane between this process and another one."""
    with Near() as near:
        try:
            near.open(request.param)
        except Unavailable as error:
            pytest.skip(str(error))
        yield near, request.param


@pytest.mark.parametrize(("size", "count"), CASES, ids=[size.label for size, _ in CASES])
def test_round_trip(lane: tuple[Near, str], benchmark: Any, size: Size, count: int) -> None:
    near, name = lane
    tensors = near.payloads(size)[0].tensors
    benchmark.extra_info["dict_bytes"] = size.dict_bytes

    def measure(transport: Transport) -> None:
        left = warm_trips(size) + count

        def there_and_back() -> dict[str, Any]:
            nonlocal left
            left -= 1
            transport.send(tensors)
            return transport.recv()

        transport.prepare(tensors)
        got = benchmark.pedantic(there_and_back, rounds=count, warmup_rounds=warm_trips(size))
        check_same(got, tensors, name)
        while left > 0:  # --benchmark-disable calls it once, but the far side answers that often
            there_and_back()

    near.with_echo(name, size, count, measure)


@pytest.mark.parametrize(("size", "count"), STREAMS, ids=[size.label for size, _ in STREAMS])
def test_stream(lane: tuple[Near, str], benchmark: Any, size: Size, count: int) -> None:
    near, name = lane
    benchmark.extra_info["bytes"] = size.dict_bytes * count
    benchmark.pedantic(near.stream, args=(name, size, count), rounds=5, warmup_rounds=1)
