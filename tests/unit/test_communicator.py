"""vLLM's verbs over a ring of communicators."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from tests.links import ANY_PORT, assert_same
from tests.unit.test_link import free_ports
from zmqpp import ZeroMQCommunicator
from zmqpp.errors import ConfigError, RecvTimeout, TensorMismatchError, UnsupportedError


@contextmanager
def two() -> Iterator[tuple[ZeroMQCommunicator, ZeroMQCommunicator]]:
    ports = free_ports(2)
    with (
        ZeroMQCommunicator(0, 2, bind=ports[0], connect=f"127.0.0.1:{ports[1]}", timeout_ms=10_000) as zero,
        ZeroMQCommunicator(1, 2, bind=ports[1], connect=f"127.0.0.1:{ports[0]}", timeout_ms=10_000) as one,
    ):
        zero.wait_peers()
        one.wait_peers()
        yield zero, one


class Group:
    """A tensor-parallel group of which one rank is here; the others hold the same slice plus 100 each."""

    def __init__(self, world_size: int, rank_in_group: int = 0) -> None:
        self.world_size, self.rank_in_group = world_size, rank_in_group

    def all_gather(self, input_: torch.Tensor, dim: int = -1) -> torch.Tensor:
        return torch.cat([input_ + 100 * i for i in range(self.world_size)], dim=dim)


def test_send_and_receive_both_ways() -> None:
    with two() as (zero, one):
        sent = {"hidden_states": torch.randn(3, 4), "residual": torch.ones(3, 4), "step": 4}
        assert zero.send_tensor_dict(sent) is None
        assert_same(one.recv_tensor_dict(), sent)
        one.send_tensor_dict({"tokens": torch.tensor([1])}, dst=0)
        assert_same(zero.recv_tensor_dict(src=1), {"tokens": torch.tensor([1])})
        assert zero.stats()["dicts_sent"] == 1


def test_receive_may_be_posted_before_the_data_is_there() -> None:
    with two() as (zero, one):
        values, handles, postprocess = one.irecv_tensor_dict()
        assert values == {} and not handles[0].is_completed()
        sends = zero.isend_tensor_dict({"x": torch.ones(1 << 20)})
        for handle in [*handles, *handles, *sends]:
            handle.wait()
        for call in postprocess:
            call()
        assert values is not None and values["x"].sum() == 1 << 20
        assert len(sends) == 2 and all(handle.is_completed() for handle in sends)


def test_only_a_slice_travels_with_an_all_gather_group() -> None:
    with two() as (zero, one):
        sent: dict[str, Any] = {
            "sliced": torch.arange(8.0).view(2, 4),
            "odd": torch.ones(3),
            "whole": torch.ones(4),
            "empty": torch.empty(0, 2),
            "n": 5,
        }
        overrides = {"whole": False}
        zero.send_tensor_dict(sent, all_gather_group=Group(2, 1), all_gather_tensors=overrides)
        got = one.recv_tensor_dict(all_gather_group=Group(2, 1), all_gather_tensors=overrides)
        assert got is not None and list(got) == list(sent)
        assert got["sliced"].tolist() == [[4, 5, 6, 7], [104, 105, 106, 107]]
        for key in ("odd", "whole", "empty", "n"):
            assert_same(got[key], sent[key])


def test_gathering_happens_in_postprocess() -> None:
    with two() as (zero, one):
        zero.isend_tensor_dict({"x": torch.arange(4)}, all_gather_group=Group(4))
        values, handles, postprocess = one.irecv_tensor_dict(all_gather_group=Group(4))
        handles[0].wait()
        assert values is not None and list(values) == ["x"]  # no key of ours in between
        postprocess[0]()
        assert values["x"].tolist() == [0, 100, 200, 300]


def test_group_of_one_changes_nothing() -> None:
    with two() as (zero, one):
        zero.send_tensor_dict({"x": torch.ones(2)}, all_gather_group=Group(1))
        assert_same(one.recv_tensor_dict(all_gather_group=Group(1)), {"x": torch.ones(2)})


@pytest.mark.parametrize(("there", "here"), [(Group(2), None), (None, Group(2))])
def test_different_groups_are_noticed(there: Group | None, here: Group | None) -> None:
    with two() as (zero, one):
        zero.send_tensor_dict({"x": torch.ones(4)}, all_gather_group=there)
        with pytest.raises(TensorMismatchError, match="the sender sliced"):
            one.recv_tensor_dict(all_gather_group=here)


def test_only_neighbours_can_be_reached() -> None:
    with ZeroMQCommunicator(0, 3, bind=ANY_PORT) as comm:
        with pytest.raises(ValueError, match="dst=1, not 2"):
            comm.send_tensor_dict({}, dst=2)
        with pytest.raises(ConfigError, match="src=2, not 1"):
            comm.recv_tensor_dict(src=1)
        with pytest.raises(ConfigError, match="without `connect`"):
            comm.recv_tensor_dict()


def test_ring_of_one_moves_nothing() -> None:
    with ZeroMQCommunicator(0, 1) as comm:
        values = {"x": torch.ones(1)}
        assert comm.send_tensor_dict(values) is values
        assert comm.recv_tensor_dict() is None
        assert comm.isend_tensor_dict(values) == []
        assert comm.irecv_tensor_dict() == (None, [], [])


WRONG: list[dict[str, Any]] = [
    *({"rank": rank} for rank in (2, -1, True, False, 0.0, "0")),
    *({"world_size": size} for size in (0, True, 2.0)),
    *({"timeout_ms": ms} for ms in (-1, 0, float("nan"), float("inf"), True, "5", None)),
    *({"device": device} for device in ("foo", "meta", "cuda:99", 1.5, torch.device("meta"))),
]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_wrong_arguments_are_refused(wrong: dict[str, Any]) -> None:
    name, value = next(iter(wrong.items()))
    with pytest.raises(ConfigError, match=f"{name}="):
        ZeroMQCommunicator(**({"bind": ANY_PORT} | wrong))
    if name != "world_size":
        with pytest.raises(ConfigError):
            ZeroMQCommunicator(world_size=1, **{name: True if value == 0 else value})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_missing_cuda_device_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match=r"device='cuda:0' cannot be used"):
        ZeroMQCommunicator(bind=ANY_PORT, device="cuda:0")


@pytest.mark.parametrize("wrong", [-1, float("inf"), float("nan")])
def test_deadlines_of_single_operations_are_checked(wrong: float) -> None:
    with (
        ZeroMQCommunicator(bind=ANY_PORT, device="cpu") as comm,
        pytest.raises(ConfigError, match="timeout_ms"),
    ):
        comm.send_tensor_dict({}, timeout_ms=wrong)


def test_unknown_lanes_are_refused_naming_those_there_are() -> None:
    with pytest.raises(UnsupportedError, match="auto, tcp, shm, cuda_ipc"):
        ZeroMQCommunicator(bind=ANY_PORT, lane="udp")


def test_lane_is_what_was_asked_for_or_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZMQPP_LANE", "tcp")
    for lane, wanted in ((None, "tcp"), ("auto", "auto"), ("shm", "shm")):
        with ZeroMQCommunicator(bind=ANY_PORT, lane=lane) as comm:
            assert comm._require_link().config.lane == wanted


def test_deadline_is_in_milliseconds() -> None:
    with two() as (_, one):
        with pytest.raises(RecvTimeout):
            one.recv_tensor_dict(timeout_ms=50)
