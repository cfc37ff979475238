from __future__ import annotations

import pytest

from zmqpp import _engine
from zmqpp.config import _LIMITS, TransportConfig
from zmqpp.errors import ConfigError


def test_environment_overrides_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZMQPP_CHUNK_BYTES", "65536")
    monkeypatch.setenv("ZMQPP_LINGER_S", "0.5")
    config = TransportConfig.from_env()
    assert (config.chunk_bytes, config.linger_s) == (65536, 0.5)
    assert config.pool_chunks == TransportConfig().pool_chunks


@pytest.mark.parametrize("text", ["1", "true", "Yes", " ON "])
def test_environment_may_say_yes_in_several_words(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("ZMQPP_CHECKSUM", text)
    assert TransportConfig.from_env().checksum is True


@pytest.mark.parametrize("text", ["0", "false", "No", "off", ""])
def test_environment_may_say_no_in_several_words(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("ZMQPP_CHECKSUM", text)
    assert TransportConfig.from_env().checksum is False


def test_environment_chooses_the_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZMQPP_LANE", "tcp")
    assert TransportConfig.from_env().lane == "tcp"


@pytest.mark.parametrize(
    ("variable", "text", "said"),
    [
        (
            "ZMQPP_CHECKSUM",
            "maybe",
            "ZMQPP_CHECKSUM='maybe' must be one of 1, 0, true, false, yes, no, on, off",
        ),
        ("ZMQPP_LANE", "udp", "lane='udp' must be one of auto, tcp, shm, cuda_ipc"),
        ("ZMQPP_COMPRESSION", "fp7", "compression='fp7' must be one of none, fp8, int8"),
        ("ZMQPP_SPIN_US", "a while", "ZMQPP_SPIN_US='a while' is not a number"),
        ("ZMQPP_SHM_BYTES", "1024", "shm_bytes=1024 must lie within"),
    ],
)
def test_wrong_words_in_the_environment_are_refused_with_the_right_ones(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str, said: str
) -> None:
    monkeypatch.setenv(variable, text)
    with pytest.raises(ConfigError, match=said):
        TransportConfig.from_env()


@pytest.mark.parametrize("value", ["many", "1.5", "-1", "99999999999999999999"])
def test_environment_is_checked(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("ZMQPP_POOL_CHUNKS", value)
    with pytest.raises(ConfigError, match="(?i)pool_chunks"):
        TransportConfig.from_env()


@pytest.mark.parametrize(
    "wrong",
    [
        {"chunk_bytes": 100},
        {"chunk_bytes": 1 << 30},
        {"chunk_bytes": True},
        {"inline_bytes": "64"},
        {"timeout_s": float("nan")},
        {"linger_s": float("inf")},
        {"lane": "udp"},
        {"compression": "zstd"},
        {"compression": None},
        {"lane": None},
        {"lane": ["tcp"]},
        {"checksum": 1},
        {"shm_bytes": 1000},
        {"shm_hold_bytes": -1},
        {"spin_us": 100_001},
        {"heartbeat_s": 5.0, "peer_timeout_s": 5.0},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong)) if len(wrong) == 1 else "peer_timeout_s"):
        TransportConfig(**wrong)  # type: ignore[arg-type]


def test_upper_limits_are_those_of_the_wire() -> None:
    assert _LIMITS["chunk_bytes"][1] == _engine.MAX_CHUNK_BYTES
    assert _LIMITS["inline_bytes"][1] == _engine.MAX_INLINE_BYTES
    assert _LIMITS["max_control_bytes"][1] == _engine.MAX_CONTROL_BYTES
    assert _LIMITS["max_dict_bytes"][1] == _engine.MAX_DICT_BYTES
