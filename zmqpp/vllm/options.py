"""The pipeline options of one stage: read from flags or from Python, checked against one another."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from zmqpp.config import COMPRESSIONS, TransportConfig
from zmqpp.endpoint import Endpoint, bind_endpoint, connect_endpoint
from zmqpp.errors import ConfigError
from zmqpp.layers import LayerRange

CONFIG_KEY = "zmqpp"
"""Key of vLLM's `additional_config` under which the options travel."""
_BEATS = 5
"""Signs of life, at least, in the time after which a stage without them is given up."""


@dataclass(frozen=True)
class StageOptions:
    """One stage's place in the pipeline.

    From Python, on stage 0:

        LLM(model, **StageOptions(0, 2, "15550", prev_stage_addr="host:15552").engine_args())
    """

    stage_idx: int
    total_stages: int
    local_bind_port: str
    """`PORT` (loopback) or `HOST:PORT` where this stage's PUSH binds; the last stage's is the return port."""
    prev_stage_service_addr: str | None = None
    """`IP:PORT` of the stage before; stages 1..N-1."""
    prev_stage_addr: str | None = None
    """`IP:PORT` of the last stage's return port; stage 0."""
    layer_range: str | None = None
    """`A-B`, half-open; None: from the model's `_pipeline_info`, else vLLM's even split."""
    curve_dir: str | None = None
    """Folder of the pipeline's keys, the same keys on every stage; None: what ZMQPP_CURVE_DIR says."""
    require_auth: bool | None = None
    """Bind nothing but loopback addresses without keys; None: what ZMQPP_REQUIRE_AUTH says."""
    peer_timeout_s: float | None = None
    """Silence after which a neighbour is given up; None: what ZMQPP_PEER_TIMEOUT_S says, or 5."""
    compression: str | None = None
    """Of the hidden states that this stage sends: "none", "fp8" or "int8"; None: what ZMQPP_COMPRESSION says."""

    def __post_init__(self) -> None:
        self._check_place()
        self._check_addresses()
        if self.layer_range is not None:
            LayerRange.parse(self.layer_range)
        if self.curve_dir is not None and not (isinstance(self.curve_dir, str) and self.curve_dir.strip()):
            raise ConfigError(
                f"--pipeline-curve-dir {self.curve_dir!r}: give the folder that `zmqpp keygen` made"
            )
        self._check_peer_timeout()
        if self.compression is not None and self.compression not in COMPRESSIONS:
            raise ConfigError(
                f"--pipeline-compression {self.compression!r}: give one of {', '.join(COMPRESSIONS)}"
            )

    def _check_place(self) -> None:
        if self.total_stages < 2:
            raise ConfigError(
                f"--pipeline-total-stages {self.total_stages}: a pipeline has at least 2 stages; "
                f"for one process leave the --pipeline flags out"
            )
        if not 0 <= self.stage_idx < self.total_stages:
            raise ConfigError(
                f"--pipeline-stage-idx {self.stage_idx} is out of range: "
                f"with {self.total_stages} stages it is 0 to {self.total_stages - 1}"
            )

    def _check_peer_timeout(self) -> None:
        given = self.peer_timeout_s
        if given is None:
            return
        if isinstance(given, bool) or not isinstance(given, int | float) or not 0.1 <= given <= 3600:
            raise ConfigError(f"--pipeline-peer-timeout {given!r}: give a number of seconds, 0.1 to 3600")

    def _check_addresses(self) -> None:
        _read_address(bind_endpoint, self.local_bind_port, "--pipeline-local-bind-port")
        if self.stage_idx == 0:
            if self.prev_stage_service_addr is not None:
                raise ConfigError(
                    "--pipeline-prev-stage-service-addr is for stages 1 and up; stage 0 takes "
                    "--pipeline-prev-stage-addr IP:PORT, the last stage's return port"
                )
            if self.prev_stage_addr is None:
                raise ConfigError(
                    "stage 0 needs --pipeline-prev-stage-addr IP:PORT, the last stage's return port "
                    "(its --pipeline-local-bind-port)"
                )
            _read_address(connect_endpoint, self.prev_stage_addr, "--pipeline-prev-stage-addr")
            return
        if self.prev_stage_addr is not None:
            raise ConfigError(
                f"--pipeline-prev-stage-addr is for stage 0; stage {self.stage_idx} takes "
                f"--pipeline-prev-stage-service-addr IP:PORT, where stage {self.stage_idx - 1} binds"
            )
        if self.prev_stage_service_addr is None:
            raise ConfigError(
                f"stage {self.stage_idx} needs --pipeline-prev-stage-service-addr IP:PORT, "
                f"where stage {self.stage_idx - 1} binds (its --pipeline-local-bind-port)"
            )
        _read_address(connect_endpoint, self.prev_stage_service_addr, "--pipeline-prev-stage-service-addr")

    @property
    def is_first(self) -> bool:
        """Stage 0 serves HTTP and schedules."""
        return self.stage_idx == 0

    @property
    def is_last(self) -> bool:
        """The last stage samples."""
        return self.stage_idx == self.total_stages - 1

    @property
    def bind(self) -> Endpoint:
        """Where this stage's PUSH binds."""
        return bind_endpoint(self.local_bind_port)

    @property
    def connect(self) -> Endpoint:
        """Where this stage's PULL (for stage 0: the engine's) connects to."""
        return connect_endpoint(str(self.prev_stage_addr or self.prev_stage_service_addr))

    def transport_config(self) -> TransportConfig:
        """Settings of this stage's links: those of the environment, but for what was given here."""
        config = TransportConfig.from_env()
        if self.curve_dir is not None:
            config = dataclasses.replace(config, curve_dir=self.curve_dir)
        if self.require_auth is not None:
            config = dataclasses.replace(config, require_auth=self.require_auth)
        if self.compression is not None:
            config = dataclasses.replace(config, compression=self.compression)
        if self.peer_timeout_s is not None:
            beat_s = min(config.heartbeat_s, self.peer_timeout_s / _BEATS)
            config = dataclasses.replace(config, peer_timeout_s=self.peer_timeout_s, heartbeat_s=beat_s)
        return config

    def additional_config(self) -> dict[str, Any]:
        """What to pass as vLLM's `additional_config`."""
        return {CONFIG_KEY: {k: v for k, v in dataclasses.asdict(self).items() if v is not None}}

    def engine_args(self) -> dict[str, Any]:
        """Keyword arguments for `LLM(...)`, `EngineArgs(...)` or `AsyncEngineArgs(...)` of stage 0."""
        return {"additional_config": self.additional_config()}

    @classmethod
    def from_config(cls, given: Any) -> StageOptions:
        """Read `additional_config["zmqpp"]`.

        Raises:
            ConfigError: unknown, missing or ill-typed entries, named.
        """
        if isinstance(given, cls):
            return given
        if not isinstance(given, Mapping):
            raise ConfigError(
                f'additional_config["zmqpp"] must be a dict of StageOptions fields, not {given!r}'
            )
        fields = {field.name: field for field in dataclasses.fields(cls)}
        if unknown := given.keys() - fields.keys():
            raise ConfigError(
                f'additional_config["zmqpp"] has no option {sorted(unknown)[0]!r}; it has {", ".join(fields)}'
            )
        if missing := [n for n in ("stage_idx", "total_stages", "local_bind_port") if n not in given]:
            raise ConfigError(f'additional_config["zmqpp"] lacks {missing[0]!r}')
        for name in ("stage_idx", "total_stages"):
            if type(given[name]) is not int:
                raise ConfigError(f'additional_config["zmqpp"][{name!r}] must be an int, not {given[name]!r}')
        values = dict(given)
        values["local_bind_port"] = str(values["local_bind_port"])
        return cls(**values)


def _read_address(read: Callable[[str], Endpoint], text: str, flag: str) -> None:
    try:
        endpoint = read(text)
    except ConfigError as error:
        raise ConfigError(f"{flag}: {error}") from None
    if endpoint.scheme != "tcp" or not endpoint.port:
        raise ConfigError(f"{flag} {text}: give a TCP address with a port of 1 to 65535")


_REQUIRED = {
    "pipeline_stage_idx": "--pipeline-stage-idx I",
    "pipeline_total_stages": "--pipeline-total-stages N",
    "pipeline_local_bind_port": "--pipeline-local-bind-port PORT",
}
_DEPRECATED = {
    "pipeline_next_stage_addr": ("pipeline_prev_stage_service_addr", "--pipeline-prev-stage-service-addr"),
    "pipeline_local_listen_port": ("pipeline_local_bind_port", "--pipeline-local-bind-port"),
}


def read_flags(args: argparse.Namespace, warn: Any) -> StageOptions | None:
    """The stage that the parsed flags describe; None for plain vLLM.

    Args:
        args: what vLLM's parser returned, with our flag group in it (see flags).
        warn: called with a line for each deprecated flag.

    Raises:
        ConfigError: a flag missing, out of range or contradicting another.
    """
    given = {
        name: value
        for name, value in vars(args).items()
        if name.startswith("pipeline_") and value is not None
    }
    given.pop("pipeline_parallel_size", None)
    mode = given.pop("pipeline_stage_mode", None)
    worker = bool(getattr(args, "external_pp_worker", False))
    if mode != "external":
        _refuse_strays(given, worker)
        return None
    _replace_deprecated(given, warn)
    for name, flag in _REQUIRED.items():
        if name not in given:
            raise ConfigError(f"--pipeline-stage-mode external needs {flag}")
    options = StageOptions(**{name.removeprefix("pipeline_"): value for name, value in given.items()})
    _check_worker_flag(options, worker)
    return options


def _refuse_strays(given: dict[str, Any], worker: bool) -> None:
    strays = ["--" + name.removesuffix("_s").replace("_", "-") for name in given]
    strays += ["--external-pp-worker"] if worker else []
    if strays:
        raise ConfigError(
            f"{strays[0]} has no effect without --pipeline-stage-mode external; add that, or leave it out"
        )


def _replace_deprecated(given: dict[str, Any], warn: Any) -> None:
    for old, (new, flag) in _DEPRECATED.items():
        if old not in given:
            continue
        old_flag = "--" + old.replace("_", "-")
        if new in given:
            raise ConfigError(f"{old_flag} is a deprecated alias of {flag}: give only {flag}")
        warn(f"{old_flag} is deprecated, use {flag}")
        given[new] = given.pop(old)


def _check_worker_flag(options: StageOptions, worker: bool) -> None:
    if options.is_first and worker:
        raise ConfigError(
            "--external-pp-worker is for stages 1 and up: stage 0 serves the HTTP API; leave it out"
        )
    if not options.is_first and not worker:
        raise ConfigError(
            f"stage {options.stage_idx} needs --external-pp-worker: only stage 0 serves the HTTP API"
        )
