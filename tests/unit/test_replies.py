"""What the last stage samples is sent in order, beside the runner, and its failures are heard."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from zmqpp import control
from zmqpp.errors import PeerLostError
from zmqpp.vllm.replies import Replies


def reply(step: int, output: Any) -> control.StepReply:
    return control.StepReply(step, output() if callable(output) else output)


def test_outputs_that_are_awaited_do_not_hold_the_runner_and_leave_in_order() -> None:
    sent: list[int] = []
    there = threading.Event()
    replies = Replies(reply, lambda message: sent.append(message.step), defers=True)
    replies.give(1, lambda: there.wait(5) and b"")
    replies.give(2, b"")
    assert sent == []
    there.set()
    replies.close()
    assert sent == [1, 2]


def test_an_output_that_fails_is_the_next_one_s_error() -> None:
    def fail() -> bytes:
        raise ValueError("no logits")

    sent: list[Any] = []
    replies = Replies(reply, sent.append, defers=True)
    replies.give(1, fail)
    replies.close()
    with pytest.raises(ValueError, match="no logits"):
        replies.check()
    assert sent == []


def test_a_lost_neighbour_is_not_an_error_here() -> None:
    def send(message: Any) -> None:
        raise PeerLostError("gone")

    replies = Replies(reply, send, defers=True)
    replies.give(1, b"")
    replies.close()
    replies.check()


def test_without_a_thread_all_happens_at_once() -> None:
    sent: list[int] = []
    replies = Replies(reply, lambda message: sent.append(message.step), defers=False)
    replies.give(1, b"")
    assert sent == [1]
    replies.close()
