"""Who says how a stage packs what it sends: `--pipeline-compression`, its variable, and what the tools hand on."""

from __future__ import annotations

import argparse

import pytest

from tests.unit.test_key_options import LAST, PLACE, stage
from zmqpp.cli.passing import check_flags, without_ours
from zmqpp.errors import ConfigError
from zmqpp.vllm.flags import add_flags
from zmqpp.vllm.options import StageOptions, read_flags


def test_it_is_off_and_the_flag_wins_over_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZMQPP_COMPRESSION", raising=False)
    assert stage(f"{LAST} {PLACE} 15551").transport_config().compression == "none"
    monkeypatch.setenv("ZMQPP_COMPRESSION", "int8")
    assert stage(f"{LAST} {PLACE} 15551").transport_config().compression == "int8"
    for form in ("none", "fp8"):
        given = stage(f"{LAST} {PLACE} 15551 --pipeline-compression {form}")
        assert given.transport_config().compression == form
        assert StageOptions.from_config(given.additional_config()["zmqpp"]) == given


@pytest.mark.parametrize("value", ["fp7", "", "FP8", 8])
def test_what_is_no_form_is_refused_naming_those_there_are(value: object) -> None:
    with pytest.raises(ConfigError, match=r"--pipeline-compression .*: give one of none, fp8, int8"):
        StageOptions(1, 2, "1", prev_stage_service_addr="h:2", compression=value)  # type: ignore[arg-type]


def test_without_the_external_mode_it_is_a_stray() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    with pytest.raises(ConfigError, match="--pipeline-compression has no effect without"):
        read_flags(parser.parse_args(["--pipeline-compression", "fp8"]), pytest.fail)


@pytest.mark.parametrize(
    "words", ["--pipeline-compression fp8 --dtype x", "--pipeline-compression=int8 --dtype x"]
)
def test_tools_pass_it_on_to_every_stage_but_not_to_a_plain_vllm(words: str) -> None:
    passed = check_flags(words.split(), {})
    assert passed == tuple(words.split())
    assert without_ours(passed) == ("--dtype", "x")


@pytest.mark.parametrize(
    "words", ["--pipeline-compression fp7", "--pipeline_compression=", "--pipeline-compression"]
)
def test_tools_refuse_what_no_stage_would_take(words: str) -> None:
    with pytest.raises(ConfigError, match="--pipeline-compression .*: give one of none, fp8, int8"):
        check_flags(words.split(), {})
