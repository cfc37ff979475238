"""Stages of several tensor-parallel ranks: what they say to one another, and what the engine makes of their answers."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from multiprocessing import get_context
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch

from zmqpp import control
from zmqpp.errors import ConfigError, MalformedError, StageError, UnsupportedError
from zmqpp.vllm import codec, rank_group, rank_words
from zmqpp.vllm.fit import check_ranks, first_workers
from zmqpp.vllm.greeting import check_places
from zmqpp.vllm.options import StageOptions
from zmqpp.vllm.place import Place
from zmqpp.vllm.rank_group import FollowingGroup, LeadingGroup, StepAbandonedError
from zmqpp.vllm.rank_words import Abandon, Tensors
from zmqpp.vllm.ranks import RankKilled, Ranks, _Child
from zmqpp.vllm.ring_future import RingCall
from zmqpp.vllm.stage import Stage

CPU = torch.device("cpu")


class Meeting:
    """vLLM's tensor-parallel group of two, in one process: what one broadcasts, the other gets."""

    def __init__(self) -> None:
        self.sent: list[torch.Tensor] = []

    def broadcast(self, tensor: torch.Tensor, source: int) -> torch.Tensor:
        assert source == 0
        if tensor.isnan().any():
            tensor.copy_(self.sent.pop(0))
        else:
            self.sent.append(tensor.clone())
        return tensor


@pytest.fixture
def meeting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Meeting]:
    group = Meeting()
    monkeypatch.setattr(rank_group, "get_tp_group", lambda: group)
    monkeypatch.setattr(torch, "empty", lambda *shape, **given: torch.full(*shape, torch.nan, **given))
    yield group


def leader_and_follower() -> tuple[LeadingGroup, FollowingGroup, list[bytes]]:
    words: list[bytes] = []
    leader = LeadingGroup(
        None,
        1,
        2,
        CPU,
        1.0,
        lambda word: words.append(rank_words.encode(word)),  # type: ignore[arg-type]
    )
    follower = FollowingGroup(1, 2, CPU, lambda: rank_words.decode(words.pop(0)))
    leader.step = follower.step = 3
    return leader, follower, words


def test_what_rank_0_received_every_rank_has(meeting: Meeting) -> None:
    leader, follower, _ = leader_and_follower()
    given = {"hidden_states": torch.randn(5, 8), "residual": torch.randn(5, 8, dtype=torch.bfloat16)}
    leader.share(given)
    taken = follower.recv_tensor_dict()
    assert list(taken) == list(given)
    assert all(torch.equal(taken[name], given[name]) for name in given)
    assert [handle.wait() for handle in follower.isend_tensor_dict(taken)] == [None, None]


def test_a_step_that_was_given_up_is_told_from_one_out_of_turn() -> None:
    _, follower, words = leader_and_follower()
    words += [rank_words.encode(Abandon(3)), rank_words.encode(Tensors(4, []))]
    with pytest.raises(StepAbandonedError):
        follower.recv_tensor_dict()
    with pytest.raises(StageError, match="step 3: rank 0 says Tensors"):
        follower.recv_tensor_dict()


def test_what_each_rank_has_its_own_part_of_is_refused() -> None:
    leader, _, _ = leader_and_follower()
    with pytest.raises(UnsupportedError, match="sequence parallelism"):
        leader.isend_tensor_dict({}, all_gather_tensors={"residual": False})


def test_results_come_in_the_order_of_all_workers() -> None:
    class Heard:
        result: Any = None

        def set_result(self, result: Any) -> None:
            self.result = result

    heard = Heard()
    call = RingCall("method", range(3), heard)  # type: ignore[arg-type]
    for stage, results in ((1, ["b", "c"]), (0, ["a"]), (2, ["d"])):
        call.add(control.RpcReply(7, stage, payload=codec.encode(results)))
    assert heard.result == ["a", "b", "c", "d"]
    call = RingCall("method", range(1), heard)  # type: ignore[arg-type]
    with pytest.raises(MalformedError, match="stage 0's answer is no list"):
        call.add(control.RpcReply(8, 0, payload=codec.encode("a")))


def replies(*ranks: int) -> list[control.HelloReply]:
    return [
        control.HelloReply(i, 8, 0, 4, "0", "0", "h", 1, "b", "c", ranks=size) for i, size in enumerate(ranks)
    ]


def test_every_stage_learns_where_its_workers_begin() -> None:
    assert first_workers(check_ranks([], replies(1, 2, 2, 1))) == [0, 1, 3, 5]
    with pytest.raises(ConfigError, match="stage 1 came back with --tensor-parallel-size 1, it had 2"):
        check_ranks([1, 2], replies(1, 1))
    options = StageOptions(0, 2, "15550", prev_stage_addr="127.0.0.1:15552")
    check_places([0, 2], options)
    for wrong in (None, [0], ["0", "2"], {0: 0, 1: 2}):
        with pytest.raises(MalformedError):
            check_places(wrong, options)


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM])
def test_a_rank_that_was_killed_is_told_from_one_that_failed(signal_number: int) -> None:
    context = get_context("fork")
    reason, _ = context.Pipe(duplex=False)
    process = context.Process(target=time.sleep, args=(60,), daemon=True)
    process.start()
    ranks = Ranks(1, 1, "model")
    ranks._children = [_Child(1, process, reason, reason)]
    ranks.check()
    os.kill(process.pid or 0, signal_number)
    process.join(10)
    with pytest.raises(StageError, match="rank 1 was killed by SIG") as caught:
        ranks.check()
    assert isinstance(caught.value, RankKilled) == (signal_number == signal.SIGKILL)


@pytest.mark.parametrize(("error", "in_use"), [(RankKilled, True), (RankKilled, False), (StageError, True)])
def test_a_stage_whose_rank_was_killed_is_lost_and_has_not_failed(
    error: type[StageError], in_use: bool
) -> None:
    """Who fails is waited for five times; who is killed, for ever."""
    sent: list[bytes] = []
    place = object.__new__(Place)
    place.index, place.in_use, place.on_trial = 1, in_use, False
    place._hello = control.Hello("s", 3, 1, "", "", 2, {}, {}, {})
    place.link = SimpleNamespace(  # type: ignore[assignment]
        send_control=lambda body, **_: sent.append(body), stats=lambda: {"send_peer_connected": True}
    )
    place.link.next_error = lambda: None  # type: ignore[method-assign]
    stage = object.__new__(Stage)
    stage.index, stage.place = 1, place
    stage._tell(error("rank 1 is gone"))
    [told] = [control.decode(body) for body in sent]
    if error is RankKilled and in_use:
        assert told == control.Lost(1, "rank 1 is gone", session="s", epoch=3)
    else:
        assert isinstance(told, control.Failed) and told.reason == "rank 1 is gone"
