"""Control messages survive the trip; anything else is an error with a name."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqpp import control
from zmqpp.errors import MalformedError

MESSAGES: list[control.AnyMessage] = [
    control.Hello("s", 0, 1, "0.1", "0.32.0", 2, {"a": [1, None]}, {"f": ("h", "d")}, {"dtype": "float32"}),
    control.HelloReply(
        1, 8, 4, 8, "0.1", "0.32.0", "host", 7, "tcp://127.0.0.1:15551", "tcp://127.0.0.1:15550"
    ),
    control.Rpc(3, "get_kv_cache_spec", b"x"),
    control.RpcReply(3, 0, payload=b"y"),
    control.RpcReply(3, 0, error="why"),
    control.Exec(1, 5, True, b"z"),
    control.Exec(2, 5, True, b"z", [control.Sampled(1, [[4, 5], []])]),
    control.Exec(2, 5, True, b"z", [control.Sampled(1, [[4, 5], []], [[6], []])]),
    control.Sample(1, b"m"),
    control.StepReply(1, b"t"),
    control.Report(1, b"r"),
    control.Lost(1, "reason", failed=True, session="s", epoch=2),
    control.Failed(2, "reason", "trace", "s"),
    control.Failed(control.PIPELINE, "reason", decided=True),
    control.Refused([1, 2], "reason"),
    control.Stop(),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_message_arrives_as_it_was_sent(message: control.AnyMessage) -> None:
    assert control.decode(control.encode(message)) == message


@given(st.binary(max_size=200))
def test_other_bytes_are_malformed(body: bytes) -> None:
    with pytest.raises(MalformedError):
        control.decode(body)


@pytest.mark.parametrize(
    "content",
    [
        {"verb": "pickle", "payload": b""},
        {"verb": "rpc", "call": 1},
        {"verb": "rpc", "call": "1", "method": "x", "payload": b""},
        {"verb": "exec", "step": 1, "tokens": 1, "sample": True, "payload": b"", "more": 1},
        {"verb": "exec", "step": 1, "tokens": 1, "sample": True, "payload": b"", "sampled": [[1, [[-1]]]]},
        {
            "verb": "exec",
            "step": 1,
            "tokens": 1,
            "sample": True,
            "payload": b"",
            "sampled": [[1, [[1 << 31]]]],
        },
        [1, 2],
    ],
)
def test_a_message_of_another_shape_is_malformed(content: object) -> None:
    with pytest.raises(MalformedError):
        control.decode(msgspec.msgpack.encode(content))


def test_a_failure_names_its_stage_once() -> None:
    assert str(control.Failed(1, "out of memory")) == "stage 1 failed: out of memory"
    assert str(control.Failed(1, "stage 1 is lost")) == "stage 1 is lost"
    assert str(control.Failed(control.PIPELINE, "gap")) == "gap"


def test_an_error_quotes_foreign_words_on_one_short_line_without_control_characters() -> None:
    body = b"\x82\xa4verb\xa4stop\xda\xff\xff" + b"\x1b\n" * 32767 + b"x\x01"
    with pytest.raises(MalformedError) as caught:
        control.decode(body)
    assert len(str(caught.value)) < 300 and str(caught.value).isprintable()


@pytest.mark.parametrize("number", [-1, 1 << 32, 1 << 63])
def test_an_epoch_that_no_head_can_carry_is_refused(number: int) -> None:
    hello = control.Hello("s", 1, control.PROTOCOL_VERSION, "0", "0", 2, {}, {}, {})
    hello.epoch = number
    with pytest.raises(MalformedError, match="epoch"):
        control.decode(control.encode(hello))
