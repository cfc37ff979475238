"""What to start: one `vllm serve` command per stage of a pipeline on one host. Pure; starts nothing.

    port BASE+0: stage 0 -> stage 1    ...    port BASE+N-2: stage N-2 -> stage N-1
    port BASE+N: stage N-1 -> stage 0 (the return path)

On one host each stage needs a forward port of its own; across hosts all may bind BASE.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from zmqpp.errors import ConfigError
from zmqpp.layers import LayerRange

__all__ = ["ApiEndpoint", "PipelinePlan", "StagePlan"]


@dataclass(frozen=True)
class ApiEndpoint:
    """Where stage 0 serves the OpenAI API, and under which model name."""

    host: str
    port: int
    model_name: str

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

    def command(self) -> list[str]:
        """The documented `vllm serve` command line, run by this very Python."""
        return [
            *[sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", self.model],
            *["--pipeline-stage-mode", "external"],
            *["--pipeline-stage-idx", str(self.index)],
            *["--pipeline-total-stages", str(self.total)],
            *["--pipeline-local-bind-port", str(self.bind_port)],
            *self._place_flags(),
            *(["--pipeline-layer-range", str(self.layers)] if self.layers else []),
            *["--tensor-parallel-size", "1"],
            *self.arguments,
        ]

    def _place_flags(self) -> list[str]:
        if self.api is None:
            return ["--pipeline-prev-stage-service-addr", self.previous, "--external-pp-worker"]
        return [
            *["--pipeline-prev-stage-addr", self.previous],
            *["--host", self.api.host, "--port", str(self.api.port)],
            *["--served-model-name", self.api.model_name],
        ]


@dataclass(frozen=True)
class PipelinePlan:
    """A whole pipeline on this host.

    Raises:
        ConfigError: fewer than 2 stages; ranges, environments or models that are not `total` in number; bad ports.
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
    host: str = "127.0.0.1"
    stages: tuple[StagePlan, ...] = field(init=False)

    def __post_init__(self) -> None:
        if self.total < 2:
            raise ConfigError(f"a pipeline needs at least 2 stages, not {self.total}")
        per_stage = {"layer ranges": self.ranges, "environments": self.environments, "models": self.models}
        for name, given in per_stage.items():
            if given and len(given) != self.total:
                raise ConfigError(f"{len(given)} {name} for {self.total} stages: give one per stage, or none")
        if not 1 <= self.base_port <= 65535 - self.total:
            raise ConfigError(
                f"base port {self.base_port}: {self.total} stages need the ports up to {self.return_port}, "
                "and all must lie within 1..65535"
            )
        if self.base_port <= self.api.port <= self.return_port:
            raise ConfigError(
                f"API port {self.api.port} lies within the ring's ports {self.base_port}-{self.return_port}"
            )
        object.__setattr__(self, "stages", tuple(self._stage(index) for index in range(self.total)))

    @property
    def return_port(self) -> int:
        return self.base_port + self.total

    def _stage(self, index: int) -> StagePlan:
        last = index == self.total - 1
        return StagePlan(
            index=index,
            total=self.total,
            model=self.models[index] if self.models else self.model,
            bind_port=self.return_port if last else self.base_port + index,
            previous=f"{self.host}:{self.return_port if index == 0 else self.base_port + index - 1}",
            api=self.api if index == 0 else None,
            layers=self.ranges[index] if self.ranges else None,
            arguments=self.arguments,
            environment=self.environments[index] if self.environments else {},
        )
