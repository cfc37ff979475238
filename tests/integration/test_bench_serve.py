"""`zmqpp bench serve` with vLLM's real client, against an endpoint that counts what it is asked."""

from __future__ import annotations

import json

from tests.cli.command import assert_mistake, zmqpp
from tests.cli.endpoint import endpoint
from zmqpp.models import docs_llama

ENVIRONMENT = {"HF_HUB_OFFLINE": "1"}


def test_requests_go_out_as_asked_for_and_the_pipelines_figures_stand_beside_theirs() -> None:
    with endpoint(str(docs_llama())) as server:
        done = zmqpp(
            *("bench", "serve", server.url, "--num-prompts", "12", "--concurrency", "3", "--json"),
            *("--input-len", "20", "--output-len", "8", "--seed", "5"),
            environment=ENVIRONMENT,
            timeout_s=200,
        )
        assert done.returncode == 0, done.stderr
        measured = json.loads(done.stdout)
        assert len(server.prompts) >= 12 and server.most_at_once == 3
        assert {body["max_tokens"] for body in server.prompts} == {8}
        assert {body["temperature"] for body in server.prompts} == {0}
    assert (measured["requests"]["completed"], measured["requests"]["failed"]) == (12, 0)
    assert measured["requests"]["total_output_tokens"] == 12 * 8
    assert (measured["pipeline"]["bubble"], measured["pipeline"]["tokens_per_s"]) == (0.25, 50.0)
    assert measured["pipeline"]["peak_tokens_per_s"] > 0


def test_requests_that_all_fail_are_one_line_with_the_endpoints_own_reason() -> None:
    with endpoint(str(docs_llama()), with_status=False, failing=True) as server:
        done = zmqpp(
            *("bench", "serve", server.url, "--num-prompts", "2", "--input-len", "20", "--output-len", "2"),
            environment=ENVIRONMENT,
            timeout_s=200,
        )
    assert_mistake(done, "answered none of 2 requests: the prompt is too long", code=1)
