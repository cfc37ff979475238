"""The commands are the documented ones, flag for flag (startup parameters, complete example)."""

from __future__ import annotations

import socket
import sys

import pytest

from zmqpp.errors import ConfigError
from zmqpp.layers import LayerRange, even_ranges
from zmqpp.pipeline.plan import ApiEndpoint, PipelinePlan
from zmqpp.pipeline.ports import check_port_free, free_base_port, free_port
from zmqpp.pipeline.tensor_parallel import ranks_given

API = ApiEndpoint("127.0.0.1", 8000, "docs-llama")
VLLM = [
    sys.executable,
    "-m",
    "vllm.entrypoints.cli.main",
    "serve",
    "MODEL",
    "--pipeline-stage-mode",
    "external",
]


def flags(command: list[str]) -> dict[str, str]:
    """`--flag value` pairs; a flag without a value maps to nothing."""
    return {
        word: following if not following.startswith("--") else ""
        for word, following in zip(command, [*command[1:], "--"], strict=True)
        if word.startswith("--")
    }


def test_four_stages_get_the_documented_flags() -> None:
    plan = PipelinePlan("MODEL", 4, 15550, API, arguments=("--enforce-eager",))
    assert all(stage.command()[:7] == VLLM for stage in plan.stages)
    assert flags(plan.stages[0].command()) == {
        "--pipeline-stage-mode": "external",
        "--pipeline-stage-idx": "0",
        "--pipeline-total-stages": "4",
        "--pipeline-local-bind-port": "15550",
        "--pipeline-prev-stage-addr": "127.0.0.1:15554",
        "--host": "127.0.0.1",
        "--port": "8000",
        "--served-model-name": "docs-llama",
        "--tensor-parallel-size": "1",
        "--enforce-eager": "",
    }
    assert flags(plan.stages[2].command()) == {
        "--pipeline-stage-mode": "external",
        "--pipeline-stage-idx": "2",
        "--pipeline-total-stages": "4",
        "--pipeline-local-bind-port": "15552",
        "--pipeline-prev-stage-service-addr": "127.0.0.1:15551",
        "--external-pp-worker": "",
        "--tensor-parallel-size": "1",
        "--enforce-eager": "",
    }


@pytest.mark.parametrize(
    "given", [("--tensor-parallel-size", "2"), ("--tensor-parallel-size=2",), ("-tp", "2")]
)
def test_the_users_tensor_parallel_size_is_the_only_one(given: tuple[str, ...]) -> None:
    for stage in PipelinePlan("MODEL", 2, 15550, API, arguments=given).stages:
        assert stage.command()[-len(given) :] == list(given)
        assert sum(word.startswith(("--tensor-parallel-size", "-tp")) for word in stage.command()) == 1
    assert ranks_given(given) == 2 and ranks_given([]) is None
    with pytest.raises(ConfigError, match="'two': give the number of ranks"):
        ranks_given(["--tensor-parallel-size", "two"])


@pytest.mark.parametrize("total", [2, 3, 8])
def test_every_stage_connects_to_where_the_one_before_binds(total: int) -> None:
    stages = PipelinePlan("MODEL", total, 15550, API).stages
    for stage in stages:
        assert stage.previous == f"127.0.0.1:{stages[stage.index - 1].bind_port}"
    assert stages[-1].bind_port == 15550 + total
    assert len({stage.bind_port for stage in stages}) == total


def test_ranges_and_environments_go_to_their_stages() -> None:
    environments = [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    plan = PipelinePlan("MODEL", 2, 15550, API, [LayerRange(0, 3), LayerRange(3, 8)], (), environments)
    assert [flags(stage.command())["--pipeline-layer-range"] for stage in plan.stages] == ["0-3", "3-8"]
    assert [stage.environment for stage in plan.stages] == environments


@pytest.mark.parametrize(
    ("total", "base", "ranges", "message"),
    [
        (1, 15550, [], "at least 2 stages"),
        (3, 15550, even_ranges(8, 2), "2 layer ranges for 3 stages"),
        (2, 0, [], "1..65535"),
        (4, 65532, [], "1..65535"),
        (4, 7998, [], "API port 8000 lies within"),
    ],
)
def test_impossible_plan_is_refused(total: int, base: int, ranges: list[LayerRange], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PipelinePlan("MODEL", total, base, API, ranges)


def test_ipv6_api_address_is_bracketed() -> None:
    assert ApiEndpoint("::1", 80, "m").url == "http://[::1]:80"


def test_free_base_port_leaves_room_for_every_stage_and_the_return() -> None:
    base = free_base_port(4)
    probes = [socket.create_server(("127.0.0.1", base + offset)) for offset in range(5)]
    for probe in probes:
        probe.close()


def test_port_in_use_is_refused_with_the_flag_to_change() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port: port {port} on 127.0.0.1 is in use"):
            check_port_free("127.0.0.1", port, "--port")
    check_port_free("127.0.0.1", free_port(), "--port")
