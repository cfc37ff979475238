"""A link that packs what it sends: on either lane, whatever the receiver's own setting is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from tests.links import FAST, assert_same, pair
from zmqpp import _packing
from zmqpp.communicator import ZeroMQCommunicator
from zmqpp.errors import ConfigError
from zmqpp.transport import Link

FORMS = ("fp8", "int8")


@pytest.fixture(params=[(form, lane) for form in FORMS for lane in ("tcp", "shm")], ids=" ".join)
def links(request: pytest.FixtureRequest) -> Iterator[tuple[Link, Link, str]]:
    form, lane = request.param
    with pair(sender=replace(FAST, lane=lane, compression=form), receiver=replace(FAST, lane=lane)) as (
        one,
        other,
    ):
        yield one, other, form


def through_packing(x: torch.Tensor, form: str) -> torch.Tensor:
    name = str(x.dtype).removeprefix("torch.")
    return _packing.unpack(*_packing.pack(x, form), name, form, list(x.shape), None)


@pytest.mark.parametrize("rows", [1, 16, 512])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_what_arrives_is_what_packing_makes_of_it(
    links: tuple[Link, Link, str], rows: int, dtype: torch.dtype
) -> None:
    sender, receiver, form = links
    hidden = torch.randn(rows, 4096).to(dtype)
    ticket = sender.isend_dict({"hidden": hidden, "step": rows, "ids": torch.arange(rows)}, tag=3)
    wanted = through_packing(hidden, form)
    hidden.zero_()  # what is packed has been read
    got = receiver.recv_dict(tag=3)
    ticket.wait()
    assert_same(got, {"hidden": wanted, "step": rows, "ids": torch.arange(rows)})


def test_fewer_bytes_go_through_the_link(links: tuple[Link, Link, str]) -> None:
    sender, receiver, _ = links
    before = sender.stats()["bytes_sent"]
    for _ in range(8):
        sender.send_dict({"hidden": torch.randn(256, 4096, dtype=torch.float32)})
        receiver.recv_dict()
    moved = sender.stats()["bytes_sent"] - before
    original = 8 * 256 * 4096 * 4
    assert 0.25 * original < moved < 0.27 * original


def test_memory_is_used_again(links: tuple[Link, Link, str]) -> None:
    sender, receiver, form = links
    for round_ in range(30):
        x = torch.full((64, 4096), float(round_))
        sender.send_dict({"x": x})
        got = receiver.recv_dict()["x"]
        assert torch.equal(got, through_packing(x, form))
    assert sender.stats()["in_flight"] == 0


def test_a_communicator_packs_what_it_sends_and_reads_what_is_not_packed() -> None:
    def rank(index: int, compression: str | None, **given: str) -> ZeroMQCommunicator:
        return ZeroMQCommunicator(rank=index, lane="tcp", compression=compression, **given)

    x = torch.randn(32, 512)
    with rank(0, "fp8", bind="127.0.0.1:0") as first:
        with rank(1, None, connect=str(first.bound), bind="127.0.0.1:0") as second:
            first.send_tensor_dict({"x": x})
            assert_same(second.recv_tensor_dict(), {"x": through_packing(x, "fp8")})
    with pytest.raises(ConfigError, match="compression='fp7' must be one of none, fp8, int8"):
        rank(0, "fp7", bind="127.0.0.1:0")
