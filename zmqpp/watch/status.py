"""`/pipeline/status`: the state of a whole pipeline as one JSON object. docs/status.md explains every field.

Times (`at`, `since`, `seen_at`) are unix seconds of the host that answers; durations are seconds; sizes bytes.
Counters count from the start of the stage's process. Fields are added in later releases, never renamed.
"""

from __future__ import annotations

import msgspec

__all__ = [
    "STATES",
    "STATUS_VERSION",
    "Event",
    "Histogram",
    "LastStep",
    "Layers",
    "LinkCounters",
    "Memory",
    "PipelineStatus",
    "Recent",
    "ReplicaStatus",
    "Spent",
    "StageStatus",
]

STATUS_VERSION = 1

STATES = ("starting", "waiting", "loading", "loaded", "ready", "lost", "restarting", "failed", "stopped")
"""Of a stage. A pipeline is `starting`, `ready`, `recovering` (requests wait for a lost stage), `restarting`, `failed`
or `stopped`; several replicas together also `degraded` (some of them take requests)."""


class Layers(msgspec.Struct, frozen=True):
    """Layers `start` .. `end - 1` of `total`."""

    start: int
    end: int
    total: int


class Memory(msgspec.Struct):
    """What a stage's process holds; `device_bytes` is 0 on CPU."""

    resident_bytes: int = 0
    device_bytes: int = 0
    kv_cache_bytes: int = 0


class Spent(msgspec.Struct):
    """Where a stage's time went since it became ready: the four add up to that time."""

    compute_s: float = 0.0
    wait_s: float = 0.0
    """For the activations of a step that it was already told of."""
    send_s: float = 0.0
    """Handing activations over, and waiting for room to do so."""
    idle_s: float = 0.0
    """No step to run."""


class Histogram(msgspec.Struct):
    """`counts[i]` durations were <= `bounds[i]` seconds and above the bound before; the last one, above all."""

    bounds: list[float]
    counts: list[int]
    sum: float = 0.0


class LastStep(msgspec.Struct):
    """The step a stage finished last."""

    step: int
    at: float
    tokens: int
    requests: int
    compute_s: float
    wait_s: float
    send_s: float


class LinkCounters(msgspec.Struct):
    """Of the link to the next stage (sent) and from the one before (received). See `Link.stats`."""

    lane: str | None = None
    """How tensors go to the next stage: "shm", "tcp", "ipc"; None on the last stage, and until it is agreed."""
    lane_reason: str = ""
    bytes_sent: int = 0
    bytes_received: int = 0
    messages_sent: int = 0
    messages_received: int = 0
    dicts_sent: int = 0
    dicts_received: int = 0
    held_bytes: int = 0
    refused: int = 0
    """Peers that were not let in: with a wrong key or none, or where one is already."""
    send_p50_us: float = 0.0
    send_p99_us: float = 0.0
    receive_p50_us: float = 0.0
    receive_p99_us: float = 0.0


class Recent(msgspec.Struct):
    """Rates over the last `window_s` seconds; the four shares add up to 1."""

    window_s: float = 0.0
    tokens_per_s: float = 0.0
    steps_per_s: float = 0.0
    bytes_sent_per_s: float = 0.0
    bytes_received_per_s: float = 0.0
    compute: float = 0.0
    wait: float = 0.0
    send: float = 0.0
    idle: float = 1.0
    step_s: float = 0.0
    """Mean computing time of a step."""
    hop_s: float = 0.0
    """Median time of the activations on their way from the stage before (since start; 0 on stage 0)."""


class StageStatus(msgspec.Struct):
    """One stage; what is not known yet keeps its default."""

    stage: int
    """Its number in its pipeline."""
    state: str = "starting"
    since: float = 0.0
    reason: str = ""
    host: str = ""
    pid: int = 0
    device: str = ""
    bound: str = ""
    """Where the next stage connects."""
    connect: str = ""
    """Where the stage before binds; on stage 0, the last stage's return port."""
    zmqpp_version: str = ""
    vllm_version: str = ""
    layers: Layers | None = None
    parameters: int = 0
    weight_bytes: int = 0
    memory: Memory = msgspec.field(default_factory=Memory)
    link: LinkCounters = msgspec.field(default_factory=LinkCounters)
    steps: int = 0
    tokens: int = 0
    """Scheduled tokens that went through: prompt tokens and generated ones."""
    queue: int = 0
    """Steps that were sent to the ring and not finished by this stage when it reported last."""
    spent: Spent = msgspec.field(default_factory=Spent)
    step_seconds: dict[str, Histogram] = msgspec.field(default_factory=dict)
    """"compute", "wait" and "send" of single steps."""
    batch_requests: Histogram | None = None
    """Requests in a step; its "seconds" are requests."""
    last_step: LastStep | None = None
    recent: Recent = msgspec.field(default_factory=Recent)
    seen_at: float = 0.0
    """When it reported last; idle stages report every few seconds."""
    log: str = ""
    """Its log file, where a launcher keeps one."""
    replica: int = 0
    """Of which replica it is."""


class Event(msgspec.Struct):
    """Something a person wants to know.

    kind: "ready", "lost", "restarting", "recovered", "restarted" (as asked for), "refused" (a peer), "draining",
    "resumed", "failed" or "stopped".
    """

    at: float
    kind: str
    text: str
    stage: int | None = None
    replica: int = 0


class ReplicaStatus(msgspec.Struct):
    """One of several pipelines that serve the same model behind one entry."""

    replica: int
    state: str
    since: float = 0.0
    reason: str = ""
    requests: int = 0
    """That it has now, and those that wait to come in."""
    draining: bool = False
    session: str = ""
    in_flight: int = 0
    steps: int = 0
    tokens: int = 0
    tokens_per_s: float = 0.0
    bubble: float = 0.0


class PipelineStatus(msgspec.Struct):
    """The whole pipeline."""

    state: str
    stages: list[StageStatus]
    version: int = STATUS_VERSION
    since: float = 0.0
    reason: str = ""
    at: float = 0.0
    model: str = ""
    total_stages: int = 0
    session: str = ""
    in_flight: int = 0
    """Steps on the ring now."""
    steps: int = 0
    tokens: int = 0
    """Tokens generated."""
    busy_s: float = 0.0
    """For how long there was a step on the ring, since the pipeline became ready."""
    tokens_per_s: float = 0.0
    bubble: float = 0.0
    """Share of stage time not spent computing while steps were in flight, over the last window; 0 when none were."""
    bubble_total: float = 0.0
    """The same since the pipeline became ready."""
    draining: bool = False
    """New requests are refused, and those that run go on."""
    losses: int = 0
    """Stages that were lost."""
    restarts: int = 0
    recoveries: int = 0
    replacements: int = 0
    """Stages that were replaced as someone asked for."""
    events: list[Event] = msgspec.field(default_factory=list)
    """Oldest first, the last hundred."""
    replicas: list[ReplicaStatus] = msgspec.field(default_factory=list)
    """Where there are several; what is above then joins them."""
