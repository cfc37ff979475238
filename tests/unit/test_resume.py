"""After a loss vLLM's scheduler expects nothing any more of what was on the ring, or was computed on a stage."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed: `make test` installs it", allow_module_level=True)

from vllm.lora.request import LoRARequest
from vllm.pooling_params import LateInteractionParams, PoolingParams
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT
from vllm.v1.request import Request, RequestStatus

from zmqpp import control
from zmqpp.config import TransportConfig
from zmqpp.errors import RemoteError, UnsupportedError
from zmqpp.vllm.bereft import Bereft
from zmqpp.vllm.recovery import Recovery, _portions
from zmqpp.vllm.ring_future import StageLost

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
        link=SimpleNamespace(config=TransportConfig()),
    )
    engine = SimpleNamespace(scheduler=scheduler, _process_aborts_queue=lambda: None)
    recovery = Recovery.__new__(Recovery)
    bereft = SimpleNamespace(end=lambda engine: done.append("bereft"))
    recovery._executor = SimpleNamespace(ring=ring, engine=engine, bereft=bereft)  # type: ignore[assignment]
    recovery._resume()
    assert done == ["bereft", "requests", "images", 2, EMPTY_MODEL_RUNNER_OUTPUT]
    assert before.drop_stale_output and not idle.drop_stale_output


@pytest.mark.parametrize("failed", [True, False])
def test_a_stage_that_told_why_it_left_is_remembered_by_that(
    monkeypatch: pytest.MonkeyPatch, failed: bool
) -> None:
    refused: list[str] = []
    ring = SimpleNamespace(
        lost=control.Lost(1, "stage 1 failed: out of memory", failed), refuse=refused.append, failure=None
    )
    recovery = Recovery.__new__(Recovery)
    recovery._executor, recovery._failures = SimpleNamespace(ring=ring), []  # type: ignore[assignment]

    def bring_back(left_s: float) -> None:
        raise StageLost("stage 1 is lost: closed the link")

    monkeypatch.setattr(recovery, "_bring_back", bring_back)
    monkeypatch.setenv("ZMQPP_RECOVERY_TIMEOUT_S", "1")
    with pytest.raises(RemoteError):
        recovery.run()
    why = "stage 1 failed: out of memory" if failed else "stage 1 is lost: closed the link"
    (said,) = refused
    assert said.startswith(f"{why}; it was not back after ")


def test_requests_that_are_large_together_go_back_in_several_messages() -> None:
    text = "x" * (5 << 20)
    requests = [Request(str(n), [n], SamplingParams(extra_args={"a": text}), None) for n in range(5)]
    new = [NewRequestData.from_request(request, ()) for request in requests]
    outputs = [[n] * n for n in range(5)]
    portions = list(_portions(new, outputs, 16 << 20))
    assert [len(some) for some, _ in portions] == [3, 2]
    assert [request.req_id for some, _ in portions for request in some] == ["0", "1", "2", "3", "4"]
    assert [tokens for _, some in portions for tokens in some] == outputs
    assert list(_portions([], [], 1)) == [([], [])]


def late(name: str, mode: str) -> Request:
    pooling = PoolingParams(late_interaction_params=LateInteractionParams(mode=mode, query_key=name[-1]))
    return Request(name, [1], None, pooling, arrival_time=0.0)


def test_requests_whose_adapter_or_query_is_lost_end_and_all_others_go_on() -> None:
    adapted, other = preempted("adapted", 0), preempted("other", 0)
    adapted.lora_request, adapted.client_index = LoRARequest("one", 1, "/one"), 3
    asked = [late("query 1", "cache_query"), late("document of 1", "score_doc")]
    running = [adapted, other, late("query 2", "cache_query"), asked[1]]
    told: list[Any] = []
    engine = SimpleNamespace(
        scheduler=SimpleNamespace(
            requests={request.request_id: request for request in running},
            finish_requests=lambda ids, status: told.append((list(ids), status)),
        ),
        _send_error_outputs_to_client=lambda ids, client: told.append((list(ids), client)),
    )
    bereft = Bereft()
    for request in (*asked, *running):
        bereft.check(request)
    bereft.adapters.note(1, "its folder is gone")
    bereft.end(engine)
    assert told == [
        (["adapted"], RequestStatus.FINISHED_ERROR),
        (["adapted"], 3),
        (["document of 1"], RequestStatus.FINISHED_ERROR),
        (["document of 1"], 0),
    ]
    with pytest.raises(UnsupportedError, match="ask again"):
        bereft.check(asked[1])
    bereft.check(late("document of 2", "score_doc"))
    bereft.check(asked[0])
    bereft.check(asked[1])
