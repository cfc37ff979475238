"""The metrics that each stage, and each stage's link, has one value of: name, what it means, where it comes from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from zmqpp.watch.status import StageStatus

__all__ = [
    "LINK_COUNTERS",
    "LINK_GAUGES",
    "SPENT",
    "STAGE_COUNTERS",
    "STAGE_GAUGES",
    "STEP_SECONDS",
    "PerStage",
]


@dataclass(frozen=True)
class PerStage:
    name: str
    text: str
    value: Callable[[StageStatus], float]


STAGE_GAUGES = (
    PerStage(
        "zmqpp_stage_up", "1 when the stage is ready for steps, 0 otherwise.", lambda s: s.state == "ready"
    ),
    PerStage(
        "zmqpp_stage_state_timestamp_seconds",
        "Unix time since when the stage is in its state.",
        lambda s: s.since,
    ),
    PerStage(
        "zmqpp_stage_last_report_timestamp_seconds",
        "Unix time of the last report of the stage.",
        lambda s: s.seen_at,
    ),
    PerStage(
        "zmqpp_stage_queue_steps",
        "Steps that were sent to the ring and not finished by the stage.",
        lambda s: s.queue,
    ),
    PerStage(
        "zmqpp_stage_resident_memory_bytes",
        "Main memory of the stage's process.",
        lambda s: s.memory.resident_bytes,
    ),
    PerStage(
        "zmqpp_stage_device_memory_bytes",
        "Accelerator memory of the stage's process; 0 on CPU.",
        lambda s: s.memory.device_bytes,
    ),
    PerStage(
        "zmqpp_stage_kv_cache_bytes",
        "Size of the stage's share of the KV cache.",
        lambda s: s.memory.kv_cache_bytes,
    ),
    PerStage(
        "zmqpp_stage_weight_bytes", "Size of the weights the stage has loaded.", lambda s: s.weight_bytes
    ),
    PerStage("zmqpp_stage_parameters", "Parameters of the model on the stage.", lambda s: s.parameters),
    PerStage(
        "zmqpp_stage_layers",
        "Layers of the model on the stage.",
        lambda s: s.layers.end - s.layers.start if s.layers else 0,
    ),
)
STAGE_COUNTERS = (
    PerStage("zmqpp_stage_steps", "Steps the stage has finished.", lambda s: s.steps),
    PerStage(
        "zmqpp_stage_scheduled_tokens",
        "Prompt and generated tokens that went through the stage.",
        lambda s: s.tokens,
    ),
)
LINK_GAUGES = (
    PerStage(
        "zmqpp_link_held_bytes",
        "Memory of the link that tensors on their way, or in use, hold.",
        lambda s: s.link.held_bytes,
    ),
    PerStage(
        "zmqpp_link_hop_seconds",
        "Median time of the activations on their way from the stage before.",
        lambda s: s.recent.hop_s,
    ),
)
LINK_COUNTERS = (
    PerStage("zmqpp_link_sent_bytes", "Bytes sent to the next stage.", lambda s: s.link.bytes_sent),
    PerStage(
        "zmqpp_link_received_bytes", "Bytes received from the stage before.", lambda s: s.link.bytes_received
    ),
    PerStage("zmqpp_link_sent_messages", "Messages sent to the next stage.", lambda s: s.link.messages_sent),
    PerStage(
        "zmqpp_link_received_messages",
        "Messages received from the stage before.",
        lambda s: s.link.messages_received,
    ),
    PerStage(
        "zmqpp_link_sent_dicts", "Sets of activations sent to the next stage.", lambda s: s.link.dicts_sent
    ),
    PerStage(
        "zmqpp_link_received_dicts",
        "Sets of activations received from the stage before.",
        lambda s: s.link.dicts_received,
    ),
    PerStage(
        "zmqpp_link_refused_peers",
        "Peers that were not let in: with a wrong key or none, or where one is already.",
        lambda s: s.link.refused,
    ),
)
SPENT: tuple[tuple[str, Callable[[StageStatus], float]], ...] = (
    ("compute", lambda s: s.spent.compute_s),
    ("wait", lambda s: s.spent.wait_s),
    ("send", lambda s: s.spent.send_s),
    ("idle", lambda s: s.spent.idle_s),
)
STEP_SECONDS = {
    "compute": "Time the stage computed for one step.",
    "wait": "Time the stage waited for the activations of one step.",
    "send": "Time the stage took to hand the activations of one step over.",
}
