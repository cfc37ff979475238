"""What to start: one `vllm serve` command per stage of a pipeline. Pure; starts nothing.

On one host:

    port BASE+0: stage 0 -> stage 1    ...    port BASE+N-2: stage N-2 -> stage N-1
    port BASE+N: stage N-1 -> stage 0 (the return path)

On several, every one binds BASE; see hosts.py.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from zmqpp.errors import ConfigError
from zmqpp.layers import LayerRange
from zmqpp.pipeline.hosts import LOOPBACK, RingPlace, check_hosts, ring_places
from zmqpp.pipeline.tensor_parallel import ranks_given

__all__ = ["ApiEndpoint", "PipelinePlan", "StagePlan"]


@dataclass(frozen=True)
class ApiEndpoint:
    """Where stage 0 serves the OpenAI API, and under which model name.

    An empty host or name is left to vLLM: every address of the machine, and the model as it was given.
    """

    host: str
    port: int
    model_name: str
    aliases: tuple[str, ...] = ()
    """More names that requests may use."""

    @property
    def names(self) -> tuple[str, ...]:
        """All of them; none when vLLM names the model."""
        return (self.model_name, *self.aliases) if self.model_name else ()

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


@dataclass(frozen=True)
class StagePlan:
    """One process: `total` stages, this is number `index`; `api` is set on stage 0 only."""

    index: int
    total: int
    model: str
    bind_port: int
    previous: str
    """HOST:PORT where the stage before this one binds; for stage 0, the last stage's return port."""
    api: ApiEndpoint | None = None
    layers: LayerRange | None = None
    """None = the stage works out its own share."""
    arguments: tuple[str, ...] = ()
    """More `vllm serve` flags, given to every stage alike."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Set on top of the launcher's own environment."""
    host: str = LOOPBACK
    """The machine it runs on, by the address that it binds."""

    def command(self) -> list[str]:
        """The documented `vllm serve` command line, run by this very Python."""
        return [sys.executable, "-m", "vllm.entrypoints.cli.main", *self.vllm_words()]

    def vllm_words(self) -> list[str]:
        """What follows `vllm` on the documented command line."""
        return [
            *["serve", self.model],
            *["--pipeline-stage-mode", "external"],
            *["--pipeline-stage-idx", str(self.index)],
            *["--pipeline-total-stages", str(self.total)],
            *["--pipeline-local-bind-port", RingPlace(self.host, self.bind_port, self.previous).bind],
            *self._place_flags(),
            *(["--pipeline-layer-range", str(self.layers)] if self.layers else []),
            *(["--tensor-parallel-size", "1"] if ranks_given(self.arguments) is None else []),
            *self.arguments,
        ]

    def _place_flags(self) -> list[str]:
        if self.api is None:
            return ["--pipeline-prev-stage-service-addr", self.previous, "--external-pp-worker"]
        return [
            *["--pipeline-prev-stage-addr", self.previous],
            *(["--host", self.api.host] if self.api.host else []),
            *["--port", str(self.api.port)],
            *(["--served-model-name", *self.api.names] if self.api.names else []),
        ]


@dataclass(frozen=True)
class PipelinePlan:
    """A whole pipeline, on one host or on several.

    Raises:
        ConfigError: fewer than 2 stages; ranges, environments, models or hosts that are not `total` in number;
            bad ports.
    """

    model: str
    total: int
    base_port: int
    api: ApiEndpoint
    ranges: Sequence[LayerRange] = ()
    arguments: tuple[str, ...] = ()
    environments: Sequence[Mapping[str, str]] = ()
    """One per stage, or none at all."""
    models: Sequence[str] = ()
    """One exported directory per stage, in place of `model` for all."""
    host: str = LOOPBACK
    """Of all stages, where `hosts` is empty."""
    hosts: Sequence[str] = ()
    """The machine of each stage, as `hosts.parse_hosts` gives them."""
    stages: tuple[StagePlan, ...] = field(init=False)
    _places: Sequence[RingPlace] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._check_counts()
        self._check_ports()
        places = ring_places(self.hosts or [self.host] * self.total, self.base_port)
        self._check_api_port(places)
        object.__setattr__(self, "_places", places)
        object.__setattr__(self, "stages", tuple(self._stage(index) for index in range(self.total)))

    @property
    def return_port(self) -> int:
        return self.base_port + self.total

    def _check_counts(self) -> None:
        if self.total < 2:
            raise ConfigError(f"a pipeline needs at least 2 stages, not {self.total}")
        per_stage = {
            "layer ranges": self.ranges,
            "environments": self.environments,
            "models": self.models,
            "hosts": self.hosts,
        }
        for name, given in per_stage.items():
            if given and len(given) != self.total:
                raise ConfigError(f"{len(given)} {name} for {self.total} stages: give one per stage, or none")
        if self.hosts:
            check_hosts(self.hosts)

    def _check_ports(self) -> None:
        if not 1 <= self.base_port <= 65535 - self.total:
            raise ConfigError(
                f"base port {self.base_port}: {self.total} stages need the ports up to {self.return_port}, "
                "and all must lie within 1..65535"
            )
        if not 1 <= self.api.port <= 65535:
            raise ConfigError(f"API port {self.api.port}: must lie within 1..65535")

    def _check_api_port(self, places: Sequence[RingPlace]) -> None:
        """Stage 0's machine has the API port and those of every stage that runs there."""
        if not self.hosts and self.base_port <= self.api.port <= self.return_port:
            raise ConfigError(
                f"API port {self.api.port} lies within the ring's ports {self.base_port}-{self.return_port}"
            )
        for index, place in enumerate(places):
            if place.host == places[0].host and place.port == self.api.port:
                raise ConfigError(
                    f"API port {self.api.port} is also where stage {index} binds on {place.host}: choose another"
                )

    def _stage(self, index: int) -> StagePlan:
        place = self._places[index]
        return StagePlan(
            index=index,
            total=self.total,
            model=self.models[index] if self.models else self.model,
            bind_port=place.port,
            previous=place.previous,
            host=place.host,
            api=self.api if index == 0 else None,
            layers=self.ranges[index] if self.ranges else None,
            arguments=self.arguments,
            environment=self.environments[index] if self.environments else {},
        )
