"""What a link does on its own and in a ring."""

from __future__ import annotations

import gc
import os
import re
import socket
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.links import ANY_PORT, FAST, pair
from zmqpp import _engine
from zmqpp.errors import ConfigError, ConnectError, PeerLostError, RecvTimeout
from zmqpp.transport import Link, Relay, Route

MIB = 1 << 20


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextmanager
def ring(relays: list[Relay]) -> Iterator[list[Link]]:
    """Place i sends to place i + 1."""
    ports = free_ports(len(relays))
    with ExitStack() as stack:
        links = [
            stack.enter_context(
                Link(bind=port, connect=f"127.0.0.1:{ports[i - 1]}", config=FAST, relay=relay)
            )
            for i, (port, relay) in enumerate(zip(ports, relays, strict=True))
        ]
        for link in links:
            link.wait_peers(5)
        yield links


def test_relay_passes_requests_down_and_replies_back_without_python() -> None:
    with ring([Relay.NONE, Relay.FORWARD, Relay.FORWARD, Relay.RETURN]) as (engine, first, middle, last):
        engine.send_control(b"request", route=Route.REQUEST, tag=7)
        for place in (first, middle, last):
            got = place.recv_control(5)
            assert (got.body, got.route, got.tag) == (b"request", Route.REQUEST, 7)
        first.send_control(b"reply", route=Route.REPLY, tag=7)
        assert engine.recv_control(5).body == b"reply"
        for place in (first, middle, last):
            with pytest.raises(RecvTimeout):
                place.recv_control(0.05)
        assert [place.stats()["relayed"] for place in (engine, first, middle, last)] == [0, 1, 2, 1]


def test_notice_reaches_everybody_once_and_link_messages_stay() -> None:
    with ring([Relay.NONE, Relay.FORWARD, Relay.RETURN]) as (engine, first, last):
        first.send_control(b"lost", route=Route.NOTICE)
        first.send_control(b"near", route=Route.LINK)
        assert last.recv_control(5).body == b"lost"
        assert last.recv_control(5).body == b"near"
        assert engine.recv_control(5).body == b"lost"
        with pytest.raises(RecvTimeout):
            engine.recv_control(0.1)


def test_relayed_messages_keep_their_epoch_and_old_ones_go_nowhere() -> None:
    with ring([Relay.NONE, Relay.FORWARD, Relay.RETURN]) as (engine, first, last):
        first.set_epoch(3)
        last.set_epoch(3)
        engine.send_control(b"old", route=Route.REQUEST)
        engine.set_epoch(3)
        engine.send_control(b"new", route=Route.REQUEST)
        assert first.recv_control(5).body == b"new"
        got = last.recv_control(5)
        assert (got.body, got.epoch) == (b"new", 3)
        assert first.stats()["stale"] == 1


@pytest.mark.parametrize("lane", ["tcp", "shm"])
def test_new_epoch_drops_what_was_received_and_not_taken(lane: str) -> None:
    config = replace(FAST, lane=lane)
    with pair(sender=config, receiver=config) as (sender, receiver):
        sender.send_control(b"old", route=Route.LINK)
        sender.send_dict({"old": 1})
        until(lambda: receiver.stats()["control_received"] == 1)
        if lane == "tcp":  # from a segment it is taken when it is asked for
            until(lambda: receiver.stats()["dicts_received"] == 1)
        waiting = receiver.irecv_dict()
        receiver.set_epoch(1)
        sender.set_epoch(1)
        sender.send_control(b"new", route=Route.LINK)
        sender.send_dict({"new": 1})
        assert receiver.recv_control(5).body == b"new"
        assert waiting.wait() == {"new": 1}
        assert receiver.stats()["stale"] == 2


def test_ring_of_three_passes_a_dict_around() -> None:
    with ring([Relay.NONE] * 3) as links:
        links[0].send_dict({"x": torch.ones(MIB), "hops": 0}, tag=1)
        for place in (1, 2, 0):
            got = links[place].recv_dict(tag=1)
            got["hops"] += 1
            if place:
                links[place].send_dict(got, tag=1)
        assert got["hops"] == 3 and bool((got["x"] == 1).all())


def test_tensors_outlive_the_link_and_their_memory_is_used_again() -> None:
    _engine.drop_cached_receive_blocks()
    tcp = replace(FAST, lane="tcp")
    with pair(sender=tcp) as (sender, receiver):
        sender.send_dict({"x": torch.full((MIB,), 3.0)})
        kept = receiver.recv_dict()["x"]
    assert bool((kept == 3).all())
    address = kept.data_ptr()
    del kept
    gc.collect()
    assert _engine.cached_receive_bytes() >= 4 * MIB
    with pair(sender=tcp) as (sender, receiver):
        sender.send_dict({"x": torch.zeros(MIB)})
        assert receiver.recv_dict()["x"].data_ptr() == address


def test_tensors_in_a_segment_outlive_the_link_and_give_its_memory_back() -> None:
    shm = replace(FAST, lane="shm")
    with pair(sender=shm, receiver=shm) as (sender, receiver):
        sender.send_dict({"x": torch.full((MIB,), 3.0)})
        kept = receiver.recv_dict()["x"]
        assert receiver.stats()["held_bytes"] == 4 * MIB
        sender.send_dict({"x": torch.ones(MIB)})
        receiver.recv_dict()
        assert receiver.stats()["held_bytes"] == 4 * MIB  # the second one died at once
    kept += 1
    assert bool((kept == 4).all())
    del kept


class Engine:
    """The engine of a link, some of whose answers are given."""

    def __init__(self, link: Link, stats: dict[str, int], reason: str = "") -> None:
        self._engine, self._stats, self._reason = link._engine, stats, reason

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def stats(self) -> dict[str, int]:
        return self._engine.stats() | self._stats

    def lane_reason(self) -> str:
        return self._reason


@pytest.mark.parametrize(
    ("bound", "send", "receive", "lanes"),
    [
        (True, 0, 0, ("tcp", None, None)),
        (True, 1, 2, ("tcp", "tcp", "shm")),
        (True, 2, 1, ("shm", "shm", "ipc")),
        (True, 3, 2, ("cuda_ipc", "cuda_ipc", "shm")),
        (False, 0, 2, ("shm", None, "shm")),
        (False, 0, 1, ("ipc", None, "ipc")),
        (False, 0, 0, ("ipc", None, None)),
    ],
)
def test_stats_name_the_lane_of_each_half(
    bound: bool, send: int, receive: int, lanes: tuple, tmp_path: Path
) -> None:
    bind = ANY_PORT if bound else None
    with Link(bind=bind, connect=f"ipc://{tmp_path}/previous", config=FAST) as link:
        link._engine = Engine(link, {"send_lane": send, "receive_lane": receive}, "why not")
        stats = link.stats()
        assert tuple(stats[name] for name in ("lane", "send_lane", "receive_lane")) == lanes
        assert stats["lane_reason"] == "why not"


def test_every_number_of_stats_is_documented_and_there() -> None:
    documented = set(
        re.findall(
            r"\b(?!cuda_ipc)[a-z]+_[a-z0-9_]+\b|\blane\b|\brelayed\b|\bstale\b|\bcancelled\b",
            Link.stats.__doc__,
        )
    )
    documented |= set(re.findall(r"\b(allocations|doorbells|refused)\b", Link.stats.__doc__))
    with pair() as (sender, receiver):
        sender.send_dict({"x": torch.ones(10)})
        receiver.recv_dict()
        for link in (sender, receiver):
            assert set(link.stats()) == documented
            assert all(
                isinstance(value, float) for name, value in link.stats().items() if name.endswith("_us")
            )


@pytest.mark.parametrize(
    ("reason", "level"),
    [("another host: boot ids differ", "INFO"), ("/dev/shm is full", "WARNING"), ("", None)],
)
def test_reason_for_the_socket_is_logged_once(
    reason: str, level: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "zmqpp")
    with pair() as (sender, receiver):
        caplog.clear()
        receiver._log.forget_lane()
        receiver._log._engine = Engine(receiver, {"receive_lane": 0}, reason)
        sender.send_dict({})
        receiver.recv_dict()
        assert not caplog.records  # not known yet
        receiver._log._engine = Engine(receiver, {"receive_lane": 1}, reason)
        for _ in range(2):
            sender.send_dict({})
            receiver.irecv_dict().wait()
            receiver.wait_peers()
        said = [(record.levelname, record.getMessage()) for record in caplog.records]
        wanted = f"b: tensors from a come through the socket, not through shared memory: {reason}"
        assert said == ([(level, wanted)] if level else [])


def test_reason_for_the_socket_is_not_logged_where_it_was_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "zmqpp")
    with pair(receiver=replace(FAST, lane="tcp")) as (sender, receiver):
        receiver._log._engine = Engine(receiver, {"receive_lane": 1}, "the sender said no")
        sender.send_dict({})
        receiver.recv_dict()
    assert not caplog.records


def test_lane_of_a_link_goes_before_the_configurations() -> None:
    with Link(bind=ANY_PORT, connect=None, config=FAST, lane="tcp") as link:
        assert (link.config.lane, FAST.lane) == ("tcp", "auto")
    with pytest.raises(ConfigError, match="lane='udp' must be one of auto, tcp, shm, cuda_ipc"):
        Link(bind=ANY_PORT, connect=None, config=FAST, lane="udp")


def test_waiting_leaves_the_gil_to_others() -> None:
    with pair() as (_, receiver):
        thread = threading.Thread(target=lambda: pytest.raises(RecvTimeout, receiver.recv_control, 0.5))
        thread.start()
        turns, longest, last = 0, 0.0, time.monotonic()
        while thread.is_alive():
            time.sleep(0.001)
            now = time.monotonic()
            turns, longest, last = turns + 1, max(longest, now - last), now
        assert turns > 50 and longest < 0.25


def test_dropped_send_ticket_keeps_the_tensors_until_they_are_copied() -> None:
    with Link(bind=ANY_PORT, connect=None, config=FAST) as sender:
        for i in range(4):
            sender.isend_dict({"x": torch.full((MIB,), float(i))})
        gc.collect()
        with Link(bind=None, connect=sender.bound, config=FAST) as receiver:
            for i in range(4):
                assert bool((receiver.recv_dict()["x"] == i).all())


def test_dropped_receive_ticket_leaves_its_dict_to_the_next() -> None:
    with pair() as (sender, receiver):
        receiver.irecv_dict()
        cancelled = receiver.irecv_dict()
        cancelled.cancel()
        sender.send_dict({"i": 0})
        assert receiver.recv_dict() == {"i": 0}
        with pytest.raises(RecvTimeout, match="cancelled"):
            cancelled.wait()


def test_halves_that_were_not_opened_say_so() -> None:
    with pair() as (sender, receiver):
        with pytest.raises(ConfigError, match="without `connect`"):
            sender.recv_dict()
        with pytest.raises(ConfigError, match="without `bind`"):
            receiver.send_dict({})
    with pytest.raises(ConfigError, match="`bind`, `connect` or both"):
        Link(bind=None, connect=None)
    with pytest.raises(ConfigError, match="relay needs both"):
        Link(bind=ANY_PORT, connect=None, relay=Relay.FORWARD)


def test_sizes_above_the_limits_are_refused_before_sending() -> None:
    small = replace(FAST, max_dict_bytes=1000, max_control_bytes=10)
    with pair(sender=small) as (sender, receiver):
        with pytest.raises(ConfigError, match="tensor dict of 4032 bytes, the limit is 1000"):
            sender.send_dict({"x": torch.ones(1000)})
        with pytest.raises(ConfigError, match="11 bytes, the limit is 10"):
            sender.send_control(bytes(11), route=Route.LINK)
        sender.send_dict({})
        assert receiver.recv_dict() == {}


@pytest.mark.parametrize("tag", [-1, 1 << 64, 1.5, "1", None])
def test_what_is_no_tag_is_refused_with_one_line(tag: Any) -> None:
    with pair() as (sender, _):
        for send in (sender.isend_dict, sender.send_dict):
            with pytest.raises(ConfigError, match=f"^tag={re.escape(repr(tag))} must be a whole number"):
                send({}, tag=tag)


@pytest.mark.parametrize("seconds", ["1", float("nan"), [1]])
def test_what_is_no_time_is_refused_with_one_line(seconds: Any) -> None:
    with pair() as (sender, receiver):
        sent, posted = sender.isend_dict({}), receiver.irecv_dict()
        for wait in (
            sent.wait,
            sent.wait_sent,
            posted.wait,
            lambda s: receiver.recv_dict(timeout_s=s),
            lambda s: sender.send_dict({}, timeout_s=s),
        ):
            with pytest.raises(ConfigError, match="^timeout_s=.* must be a number of seconds$"):
                wait(seconds)


def test_sizes_above_the_receivers_limits_lose_the_link() -> None:
    with pair(receiver=replace(FAST, max_dict_bytes=1000)) as (sender, receiver):
        sender.send_dict({"x": torch.ones(1000)})
        with pytest.raises(Exception, match="dict payload of 4032 bytes, the limit is 1000"):
            receiver.recv_dict()
        with pytest.raises(PeerLostError):
            for _ in range(100):
                sender.send_dict({})
                time.sleep(0.02)


def test_wrong_neighbour_is_refused_by_name() -> None:
    with (
        Link(bind=ANY_PORT, connect=None, config=FAST, name="stage 3") as sender,
        Link(bind=None, connect=sender.bound, config=FAST, expect="stage 0") as receiver,
    ):
        with pytest.raises(ConnectError, match="is where stage 3 binds, not stage 0"):
            receiver.wait_peers(5)


def test_socket_files_are_removed(tmp_path: Path) -> None:
    with pair(bind=f"ipc://{tmp_path}/link") as (sender, receiver):
        sender.send_dict({"x": 1})
        assert receiver.recv_dict() == {"x": 1}
    assert list(tmp_path.iterdir()) == []


def test_held_socket_file_is_not_taken_over(tmp_path: Path) -> None:
    where = f"ipc://{tmp_path}/link"
    with pair(bind=where) as (sender, receiver):
        for _ in range(3):
            with pytest.raises(
                ConnectError, match=rf"link is in use.*pid {os.getpid()} .*its own path"
            ) as caught:
                Link(bind=where, connect=None)
            assert not re.search(r"\bport\b", str(caught.value))
        sender.send_dict({"x": 1})
        assert receiver.recv_dict() == {"x": 1}
    with pair(bind=where) as (sender, receiver):
        sender.send_dict({"x": 2})
        assert receiver.recv_dict() == {"x": 2}


def test_held_socket_file_without_a_receiver_is_not_taken_over(tmp_path: Path) -> None:
    where = f"ipc://{tmp_path}/link"
    with Link(bind=where, connect=None, config=FAST) as sender:
        with pytest.raises(ConnectError, match="in use"):
            Link(bind=where, connect=None)
        with Link(bind=None, connect=where, config=FAST) as receiver:
            sender.send_dict({"x": 1})
            assert receiver.recv_dict() == {"x": 1}


def test_only_one_of_many_gets_a_stale_socket_file(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(f"{tmp_path}/link")
    opened: list[Link] = []
    start = threading.Barrier(8)

    def take() -> None:
        start.wait()
        with suppress(ConnectError):
            opened.append(Link(bind=f"ipc://{tmp_path}/link", connect=None))

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for link in opened:
        link.close()
    assert len(opened) == 1


def test_other_files_at_the_path_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("precious")
    with pytest.raises(ConnectError, match="a file of another kind"):
        Link(bind=f"ipc://{tmp_path}/notes", connect=None)
    assert (tmp_path / "notes").read_text() == "precious"


def test_second_receiver_on_a_socket_file_is_refused_and_its_process_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pair(bind=f"ipc://{tmp_path}/link") as (sender, receiver):
        with Link(bind=None, connect=sender.bound, config=FAST):
            until(lambda: sender.stats()["refused"] > 0)
            sender.send_dict({"x": 1})
            assert receiver.recv_dict() == {"x": 1}
    assert f"refused a peer at pid {os.getpid()}: this link has its receiver already" in caplog.text


def test_wrong_neighbour_is_refused_by_rank() -> None:
    with (
        Link(bind=ANY_PORT, connect=None, config=FAST, rank=2, world_size=3) as sender,
        Link(bind=None, connect=sender.bound, config=FAST, rank=2, world_size=3) as receiver,
    ):
        with pytest.raises(ConnectError, match="sender is rank 2 of 3, expected rank 1 of 3"):
            receiver.wait_peers(5)


def test_ipv6_loopback_works() -> None:
    if not socket.has_ipv6 or not _can_bind_ipv6():
        pytest.skip("no IPv6 here")
    with pair(bind="[::1]:0") as (sender, receiver):
        sender.send_dict({"x": 1})
        assert receiver.recv_dict() == {"x": 1}


def _can_bind_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
        return True
    except OSError:
        return False


def until(holds) -> None:
    deadline = time.monotonic() + 5
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.01)


def test_only_tensors_that_a_failed_device_may_still_read_outlive_their_link() -> None:
    class Owner:
        pass

    class Ticket:
        def __init__(self, abandoned: bool) -> None:
            self.settled, self.abandoned = False, abandoned

        def is_settled(self) -> bool:
            return self.settled

        def is_abandoned(self) -> bool:
            return self.settled and self.abandoned

    link = Link(bind=ANY_PORT, connect=None, config=FAST)
    tickets, seen = [Ticket(False), Ticket(True), Ticket(False)], []
    for ticket in tickets:
        owner = Owner()
        link._sources.hold(ticket, [owner])  # type: ignore[arg-type]
        seen.append(weakref.ref(owner))
    for ticket in tickets:
        ticket.settled = True
    late = Owner()
    link._sources.hold(tickets[1], [late])  # type: ignore[arg-type]
    seen.append(weakref.ref(late))
    del owner, late
    link.close()
    del link
    gc.collect()
    assert [one() is not None for one in seen] == [False, True, False, True]


def test_why_device_memory_was_refused_is_logged_once_and_not_as_a_socket(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="zmqpp")
    with Link(bind=None, connect=f"ipc://{tmp_path}/previous", config=FAST) as link:
        link._log._engine = Engine(link, {"receive_lane": 2}, "not cuda_ipc: no access")  # type: ignore[assignment]
        link._log.say_lane()
        assert not caplog.messages
        link.stats()
        link.stats()
        assert [m for m in caplog.messages if "no access" in m] == [
            "CUDA tensors go through shared memory, not from device to device: no access"
        ]
