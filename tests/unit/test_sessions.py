"""A request whose input comes in parts goes on after a loss between two of them, with all it has said."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace

import pytest

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed: `make test` installs it", allow_module_level=True)

from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, RequestStatus, StreamingUpdate

from zmqpp.vllm.sessions import let_go_of_blocks

pytestmark = pytest.mark.vllm


def request(name: str, prompt: list[int], resumable: bool = True) -> Request:
    return Request(name, prompt, SamplingParams(), None, arrival_time=0.0, resumable=resumable)


def between_parts() -> Request:
    """It has computed its prompt and the first of two tokens, and waits for more input."""
    session = request("session", [1, 2, 3])
    session.append_output_token_ids([7, 8])
    session.num_computed_tokens = 4
    session.status = RequestStatus.WAITING_FOR_STREAMING_REQ
    return session


class SomeOfScheduler:
    """As much of vLLM's scheduler as a part that comes meets."""

    hash_block_size, num_waiting_for_streaming_input, log_stats = 32, 1, False
    _update_request_as_session = Scheduler._update_request_as_session

    def __init__(self, *requests: Request) -> None:
        self.requests = {each.request_id: each for each in requests}
        self.freed: list[Request] = []
        self.kv_cache_manager = SimpleNamespace(free=self.freed.append)
        self.encoder_cache_manager = SimpleNamespace(free=lambda request: None)


def test_the_next_part_computes_what_was_said_before_anew() -> None:
    session, fresh = between_parts(), request("waits for its first step", [1, 2])
    running = request("preempted by vLLM itself", [1, 2], resumable=False)
    running.status, running.num_computed_tokens = RequestStatus.RUNNING, 2
    scheduler = SomeOfScheduler(session, fresh, running)
    for _ in range(2):  # lost again before there was any input
        let_go_of_blocks(scheduler)
    assert {each.request_id for each in scheduler.freed} == {"session"}
    assert session.status == RequestStatus.WAITING_FOR_STREAMING_REQ
    part = StreamingUpdate.from_request(request("session", [50, 51]))
    scheduler._update_request_as_session(session, part)
    assert session.status == RequestStatus.WAITING and session.num_computed_tokens == 0
    assert session.prompt_token_ids == [1, 2, 3, 7, 50, 51]
    session.num_computed_tokens = 6
    scheduler._update_request_as_session(session, part)
    assert session.num_computed_tokens == 6, "only what was lost is computed anew"


def test_a_part_that_came_before_the_loss_is_computed_with_all_before_it() -> None:
    session = between_parts()
    session.status = RequestStatus.WAITING
    scheduler = SomeOfScheduler(session)
    let_go_of_blocks(scheduler)
    assert scheduler.freed == [session] and session.num_computed_tokens == 0
