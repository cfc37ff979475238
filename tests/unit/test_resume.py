"""After a loss vLLM's scheduler expects nothing any more of what was on the ring, or was computed on a stage."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed: `make test` installs it", allow_module_level=True)

from vllm.sampling_params import SamplingParams
from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT
from vllm.v1.request import Request, RequestStatus

from zmqpp.vllm.recovery import Recovery

pytestmark = pytest.mark.vllm


def preempted(name: str, in_flight: int) -> Request:
    """As vLLM leaves a request that had to make room, with so many tokens still on the ring."""
    request = Request(name, [1, 2, 3], SamplingParams(), None, arrival_time=0.0)
    request.status = RequestStatus.PREEMPTED
    request.num_stale_output_tokens, request.drop_stale_output = in_flight, False
    return request


def test_what_was_on_the_ring_and_what_was_computed_of_images_is_not_expected_any_more() -> None:
    before, idle = preempted("had to make room", 1), preempted("nothing on the ring", 0)
    done: list[Any] = []
    scheduler = SimpleNamespace(
        requests={request.request_id: request for request in (before, idle)},
        reset_prefix_cache=lambda reset_running_requests: done.append("requests"),
        reset_encoder_cache=lambda: done.append("images"),
    )
    ring = SimpleNamespace(
        call=lambda method, arguments: SimpleNamespace(result=lambda: done.append(len(arguments[0]))),
        give_up=done.append,
    )
    engine = SimpleNamespace(scheduler=scheduler, _process_aborts_queue=lambda: None)
    recovery = Recovery.__new__(Recovery)
    recovery._executor = SimpleNamespace(ring=ring, engine=engine)  # type: ignore[assignment]
    recovery._resume()
    assert done == ["requests", "images", 2, EMPTY_MODEL_RUNNER_OUTPUT]
    assert before.drop_stale_output and not idle.drop_stale_output
