"""How long silence is borne: `--pipeline-peer-timeout`, its variable, and what the tools hand on."""

from __future__ import annotations

import argparse

import pytest

from tests.unit.test_key_options import LAST, PLACE, stage
from zmqpp.cli.passing import check_flags, without_ours
from zmqpp.errors import ConfigError
from zmqpp.vllm.flags import add_flags
from zmqpp.vllm.options import StageOptions, read_flags


def test_the_default_is_five_seconds_and_the_flag_wins_over_the_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("ZMQPP_PEER_TIMEOUT_S", raising=False)
    assert stage(f"{LAST} {PLACE} 15551").transport_config().peer_timeout_s == 5
    monkeypatch.setenv("ZMQPP_PEER_TIMEOUT_S", "30")
    assert stage(f"{LAST} {PLACE} 15551").transport_config().peer_timeout_s == 30
    given = stage(f"{LAST} {PLACE} 15551 --pipeline-peer-timeout 2").transport_config()
    assert (given.peer_timeout_s, given.heartbeat_s) == (2, 0.4)


def test_a_long_patience_does_not_make_signs_of_life_rarer() -> None:
    assert stage(f"{LAST} {PLACE} 15551 --pipeline-peer-timeout 60").transport_config().heartbeat_s == 1


@pytest.mark.parametrize("value", [0, -1, 0.01, 1e9, float("nan"), True, "5"])
def test_what_is_no_time_is_refused(value: object) -> None:
    with pytest.raises(
        ConfigError, match=r"--pipeline-peer-timeout .*: give a number of seconds, 0\.1 to 3600"
    ):
        StageOptions(1, 2, "1", prev_stage_service_addr="h:2", peer_timeout_s=value)  # type: ignore[arg-type]


def test_it_travels_to_the_engine() -> None:
    options = stage(f"{LAST} {PLACE} 15551 --pipeline-peer-timeout 2")
    assert StageOptions.from_config(options.additional_config()["zmqpp"]) == options


def test_without_the_external_mode_it_is_a_stray() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    with pytest.raises(ConfigError, match="--pipeline-peer-timeout has no effect without"):
        read_flags(parser.parse_args(["--pipeline-peer-timeout", "2"]), pytest.fail)


@pytest.mark.parametrize(
    "words", ["--pipeline-peer-timeout 2 --dtype x", "--pipeline-peer-timeout=2 --dtype x"]
)
def test_tools_pass_it_on_to_every_stage_but_not_to_a_plain_vllm(words: str) -> None:
    passed = check_flags(words.split(), {})
    assert passed == tuple(words.split())
    assert without_ours(passed) == ("--dtype", "x")
