"""What a link carries in order, and a stage cannot read: it drops the place before, says so, and hears the next."""

from __future__ import annotations

import threading

import pytest
import zmq

from tests.fault.raw import CONTROL, RawSender
from tests.links import ANY_PORT, FAST
from zmqpp import control
from zmqpp.errors import MalformedError
from zmqpp.transport import Link, Relay, Route
from zmqpp.vllm.options import StageOptions
from zmqpp.vllm.place import Place

HELLO = control.Hello("s", 1, control.PROTOCOL_VERSION, "0", "0", 2, {}, {}, {})


@pytest.mark.parametrize(
    "words", [b"", b"\xc1", b"\x91" * 5000, b"\x81\xa4verb\xa4none", b"\x81\xa4verb\xa4exec"]
)
def test_a_control_message_that_cannot_be_read_drops_the_place_before_and_a_new_hello_goes_on(
    words: bytes,
) -> None:
    with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
        socket.linger = 0
        where = f"127.0.0.1:{socket.bind_to_random_port('tcp://127.0.0.1')}"
        options = StageOptions(1, 2, "15550", prev_stage_service_addr=where)
        with (
            Link(bind=ANY_PORT, connect=where, relay=Relay.RETURN, config=FAST) as link,
            Link(bind=None, connect=link.bound, config=FAST) as engine,
        ):
            place, said = Place(options, link, 5.0), list[str]()
            sender = _greet(socket, HELLO)
            assert place.next(lambda: None) == HELLO
            sender.message(CONTROL, words, route=int(Route.REQUEST))
            with pytest.raises(MalformedError, match="cannot be read") as wrong:
                place.next(lambda: None)
            again = threading.Timer(0.3, _greet, (socket, HELLO))
            again.start()
            try:
                assert place.rejoin(20.0, said.append, wrong.value) == HELLO
            finally:
                again.join()
            assert len(said) == 1 and "cannot be read" in said[0] and "waiting for it to come back" in said[0]
            lost = control.decode(engine.recv_control(5).body)
            while not isinstance(lost, control.Lost):
                lost = control.decode(engine.recv_control(5).body)
            assert lost.stage == 0 and "cannot be read" in lost.reason


def _greet(socket: zmq.Socket, hello: control.Hello) -> RawSender:
    sender = RawSender(socket)
    sender.hello()
    sender.message(CONTROL, control.encode(hello), route=int(Route.NOTICE), epoch=hello.epoch)
    return sender
