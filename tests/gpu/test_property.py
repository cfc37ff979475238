"""Whatever fits the contract comes back from a GPU the same: the dicts of the property suite, there and back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.conformance.echo import ring_of_two
from tests.gpu.device import DEVICE, LANES, brought, moved, require
from tests.lanes import Lane
from tests.links import assert_same
from tests.property.test_tensors import dicts, tensors
from zmqpp.transport import Link

require()
pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", params=LANES)
def link(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Link]:
    lane = Lane(request.param, tmp_path_factory.mktemp("p"))
    with ring_of_two(lane, "processes", lane.config(), (DEVICE, DEVICE)) as here:
        yield here


@given(sent=dicts)
def test_every_allowed_dict_comes_back_from_the_device(link: Link, sent: dict[str, Any]) -> None:
    link.send_dict(moved(sent))
    assert_same(brought(link.recv_dict()), sent)


@given(sent=st.dictionaries(st.text(max_size=6), tensors(), max_size=5))
def test_dicts_come_back_however_often_they_repeat(link: Link, sent: dict[str, torch.Tensor]) -> None:
    there = moved(sent)
    tickets = [link.isend_dict(there) for _ in range(4)]
    for ticket in tickets:
        assert_same(brought(link.recv_dict()), sent)
        ticket.wait()


@given(sent=dicts, other=dicts)
def test_dicts_of_the_host_and_of_the_device_take_turns(
    link: Link, sent: dict[str, Any], other: dict[str, Any]
) -> None:
    """A dict in CPU memory among those of the device, and one with tensors of both."""
    for values in (moved(sent), other, {"there": moved(sent), "here": other}):
        link.send_dict(values)
    assert_same(brought(link.recv_dict()), sent)
    assert_same(brought(link.recv_dict(), wherever=True), other)
    both = link.recv_dict()
    assert_same(brought(both["there"]), sent)
    assert_same(brought(both["here"], wherever=True), other)
