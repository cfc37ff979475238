"""Where a stage's keys come from: flags, environment, Python; and what the tools pass on."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from zmqpp.cli.passing import check_flags, check_keys, without_ours
from zmqpp.errors import ConfigError
from zmqpp.keys import make_keys
from zmqpp.vllm.flags import add_flags
from zmqpp.vllm.options import StageOptions, read_flags
from zmqpp.vllm.start_checks import check_keys as check_stage_keys

LAST = "--pipeline-stage-mode external --pipeline-stage-idx 1 --pipeline-total-stages 2 --external-pp-worker"
PLACE = "--pipeline-prev-stage-service-addr h:15550 --pipeline-local-bind-port"


def stage(words: str) -> StageOptions:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    options = read_flags(parser.parse_args(words.split()), pytest.fail)
    assert options is not None
    return options


def test_flags_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZMQPP_CURVE_DIR", "/from/environment")
    plain = stage(f"{LAST} {PLACE} 15551").transport_config()
    assert (plain.curve_dir, plain.require_auth) == ("/from/environment", False)
    given = stage(
        f"{LAST} {PLACE} 15551 --pipeline-curve-dir /from/flag --pipeline-require-auth"
    ).transport_config()
    assert (given.curve_dir, given.require_auth) == ("/from/flag", True)
    monkeypatch.setenv("ZMQPP_REQUIRE_AUTH", "yes")
    assert stage(f"{LAST} {PLACE} 15551").transport_config().require_auth


def test_keys_travel_to_the_engine_as_a_folder_and_never_as_keys(tmp_path: Path) -> None:
    path, pair = make_keys(tmp_path / "keys")
    options = stage(f"{LAST} {PLACE} 15551 --pipeline-curve-dir {path.parent}")
    travelling = options.additional_config()
    assert StageOptions.from_config(travelling["zmqpp"]) == options
    assert pair.secret not in str(travelling) + repr(options) + repr(options.transport_config())


def test_flags_without_the_external_mode_are_strays() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    for words in (["--pipeline-curve-dir", "x"], ["--pipeline-require-auth"]):
        with pytest.raises(
            ConfigError, match=f"{words[0]} has no effect without --pipeline-stage-mode external"
        ):
            read_flags(parser.parse_args(words), pytest.fail)


def test_a_stage_refuses_keys_it_cannot_use_before_it_binds(tmp_path: Path) -> None:
    path, _ = make_keys(tmp_path / "keys")
    place = f"{LAST} {PLACE} *:15551 --pipeline-require-auth"
    with pytest.raises(
        ConfigError, match=r"stage 1: tcp://\*:15551 is no loopback address, and keys are required"
    ):
        check_stage_keys(stage(place))
    check_stage_keys(stage(f"{place} --pipeline-curve-dir {path.parent}"))
    path.chmod(0o644)
    with pytest.raises(ConfigError, match=f"stage 1: key file {path}: open to others"):
        check_stage_keys(stage(f"{place} --pipeline-curve-dir {path.parent}"))
    with pytest.raises(ConfigError, match="--pipeline-curve-dir ' '"):
        StageOptions(1, 2, "1", prev_stage_service_addr="h:2", curve_dir=" ")


@pytest.mark.parametrize(
    "words", ["--pipeline-curve-dir=k --dtype x", "--pipeline_curve_dir k --pipeline-require-auth"]
)
def test_tools_pass_the_keys_on_to_every_stage_but_not_to_a_plain_vllm(words: str) -> None:
    passed = check_flags(words.split(), {})
    assert passed == tuple(words.replace("_", "-").split())
    assert without_ours(passed) == tuple(word for word in ("--dtype", "x") if word in words.split())


def test_tools_look_at_the_keys_before_they_start_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ZMQPP_CURVE_DIR", raising=False)
    check_keys(())
    for flags in (
        ("--pipeline-curve-dir", str(tmp_path)),
        (f"--pipeline-curve-dir={tmp_path}", "--dtype", "x"),
    ):
        with pytest.raises(ConfigError, match="No such file.*zmqpp keygen"):
            check_keys(flags)
    with pytest.raises(ConfigError, match="--pipeline-curve-dir needs the folder"):
        check_keys(("--pipeline-curve-dir", "--dtype"))
    make_keys(tmp_path / "keys")
    check_keys(("--pipeline-curve-dir", str(tmp_path / "keys")))
    monkeypatch.setenv("ZMQPP_CURVE_DIR", str(tmp_path))
    with pytest.raises(ConfigError, match="key file"):
        check_keys(())
