"""A stage between two neighbours that are both away, with one of them back before the other."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from tests.links import ANY_PORT, FAST
from zmqpp import control
from zmqpp.errors import PeerLostError
from zmqpp.transport import Link, Relay, Route
from zmqpp.vllm.options import StageOptions
from zmqpp.vllm.place import Place

HELLO = control.Hello("s", 1, control.PROTOCOL_VERSION, "0", "0", 3, {}, {}, {})
AWAY_S = 3.0
"""Longer than any word of the stage would wait to be taken, but for the engine."""


def test_a_loss_that_nobody_can_be_told_of_yet_does_not_break_the_way_to_who_comes_later() -> None:
    first = Link(bind=ANY_PORT, connect=None, config=FAST)
    where = str(first.bound)
    options = StageOptions(1, 3, "15550", prev_stage_service_addr=where.removeprefix("tcp://"))
    with Link(bind=ANY_PORT, connect=where, relay=Relay.FORWARD, config=FAST) as link:
        place = Place(options, link, 60.0)
        with first:
            first.send_control(control.encode(HELLO), route=Route.NOTICE)
            assert place.next(lambda: None) == HELLO
            place.pass_on(HELLO)
        with pytest.raises(PeerLostError):
            place.next(lambda: None)
        back: list[Link] = []
        again = threading.Timer(0.2, lambda: back.append(_greeting(where)))
        again.start()
        try:
            assert place.rejoin(20.0, lambda line: None) == HELLO
            time.sleep(AWAY_S)
            assert link.next_error() is None
            with Link(bind=None, connect=link.bound, config=FAST) as later:
                heard = [control.decode(later.recv_control(5).body) for _ in range(3)]
            assert sorted(type(word).__name__ for word in heard) == ["Hello", "Hello", "Lost"]
        finally:
            again.join()
            for sender in back:
                sender.close()


def test_a_next_place_that_comes_and_is_gone_while_it_is_greeted_is_awaited_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Link(bind=ANY_PORT, connect=None, config=FAST) as first:
        where = str(first.bound)
        options = StageOptions(1, 3, "15550", prev_stage_service_addr=where.removeprefix("tcp://"))
        with Link(bind=ANY_PORT, connect=where, relay=Relay.FORWARD, config=FAST) as link:
            place, send, losses = Place(options, link, 60.0), link.send_control, 0
            first.send_control(control.encode(HELLO), route=Route.NOTICE)
            assert place.next(lambda: None) == HELLO
            place.pass_on(HELLO)

            def lose_next() -> None:
                with Link(bind=None, connect=link.bound, config=FAST) as next_one:
                    next_one.wait_peers(5)
                deadline = time.monotonic() + 5
                while link.next_error() is None and time.monotonic() < deadline:
                    time.sleep(0.002)

            def send_too_late(*args: Any, **named: Any) -> None:
                nonlocal losses
                losses += 1
                if losses == 1:
                    lose_next()
                send(*args, **named)

            lose_next()
            monkeypatch.setattr(link, "send_control", send_too_late)
            again = threading.Timer(
                1.0, lambda: first.send_control(control.encode(HELLO), route=Route.NOTICE)
            )
            again.start()
            try:
                assert place.rejoin(20.0, lambda line: None) == HELLO
            finally:
                again.join()
            assert losses == 2 and link.next_error() is None
            with Link(bind=None, connect=link.bound, config=FAST) as later:
                assert control.decode(later.recv_control(5).body) == HELLO


def _greeting(where: str) -> Link:
    sender = Link(bind=where, connect=None, config=FAST)
    sender.send_control(control.encode(HELLO), route=Route.NOTICE)
    return sender
