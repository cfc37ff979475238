"""What several replicas say, as one: statuses, metrics, health, traces."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from zmqpp.gateway.replica import Health
from zmqpp.watch.status import Event, PipelineStatus, ReplicaStatus, StageStatus

__all__ = ["joined_health", "joined_metrics", "joined_status", "joined_trace"]

_EVENTS = 100
_WORST = ("starting", "restarting", "recovering", "failed", "stopped")
"""Which word stands for several that take no requests."""
_SAMPLE = re.compile(rb"([a-zA-Z_:][\w:]*)(\{(.*)\})?(\s.*)", re.DOTALL)
_PIDS = 10_000
"""From one replica's processes in a trace to the next one's."""


def joined_status(statuses: Sequence[PipelineStatus], outstanding: Sequence[int]) -> PipelineStatus:
    """Counts are sums, times and shares means; `replicas` has each, and stages and events say whose they are.

    Args:
        outstanding: requests of each now.
    """
    ready = [status for status in statuses if status.state == "ready"]
    busy_s = sum(status.busy_s for status in statuses)
    busy = [status for status in statuses if status.in_flight or status.tokens_per_s]
    return PipelineStatus(
        state=_state(statuses),
        since=max(status.since for status in statuses),
        reason="; ".join(f"replica {n}: {one.reason}" for n, one in enumerate(statuses) if one.reason),
        at=max(status.at for status in statuses),
        model=next((status.model for status in statuses if status.model), ""),
        total_stages=sum(status.total_stages for status in statuses),
        stages=[_of(stage, number) for number, status in enumerate(statuses) for stage in status.stages],
        session=",".join(status.session for status in statuses if status.session),
        in_flight=sum(status.in_flight for status in statuses),
        steps=sum(status.steps for status in statuses),
        tokens=sum(status.tokens for status in statuses),
        busy_s=busy_s / len(statuses),
        tokens_per_s=sum(status.tokens_per_s for status in statuses),
        bubble=sum(status.bubble for status in busy) / max(1, len(busy)),
        bubble_total=sum(one.bubble_total * one.busy_s for one in statuses) / busy_s if busy_s else 0.0,
        draining=all(status.draining for status in statuses),
        losses=sum(status.losses for status in statuses),
        restarts=sum(status.restarts for status in statuses),
        recoveries=sum(status.recoveries for status in statuses),
        replacements=sum(status.replacements for status in statuses),
        events=_events(statuses),
        replicas=[_replica(n, one, outstanding[n]) for n, one in enumerate(statuses)],
        version=(ready or statuses)[0].version,
    )


def _state(statuses: Sequence[PipelineStatus]) -> str:
    states = {status.state for status in statuses}
    if len(states) == 1:
        return states.pop()
    if "ready" in states:
        return "degraded"
    return next((word for word in _WORST if word in states), statuses[0].state)


def _of(stage: StageStatus, replica: int) -> StageStatus:
    return msgspec.structs.replace(stage, replica=replica)


def _events(statuses: Sequence[PipelineStatus]) -> list[Event]:
    found = [
        msgspec.structs.replace(event, replica=number, text=f"replica {number}: {event.text}")
        for number, status in enumerate(statuses)
        for event in status.events
    ]
    return sorted(found, key=lambda event: event.at)[-_EVENTS:]


def _replica(number: int, status: PipelineStatus, outstanding: int) -> ReplicaStatus:
    same = {name: getattr(status, name) for name in ReplicaStatus.__struct_fields__[2:] if name != "requests"}
    return ReplicaStatus(number, status.state, requests=outstanding, **same)


def joined_health(each: Sequence[Health]) -> Health:
    """200 as long as one takes requests: `ok` when all do, else `degraded`, with those that do not."""
    bad = [(number, one.body) for number, one in enumerate(each) if not one.is_ok]
    if not bad:
        return each[0]
    words = {body["status"] for _, body in bad}
    reason = "; ".join(f"replica {number}: {body['reason']}" for number, body in bad)
    stages = [{**stage, "replica": number} for number, body in bad for stage in body["stages"]]
    replicas = [{"replica": number, "status": body["status"], "state": body["state"]} for number, body in bad]
    said = {"reason": reason, "stages": stages, "replicas": replicas}
    if len(bad) < len(each):
        return Health(200, {"status": "degraded", "state": "degraded", **said})
    word = words.pop() if len(words) == 1 else "unavailable"
    return Health(503, {"status": word, "state": bad[0][1]["state"], **said})


def joined_metrics(pages: Sequence[bytes]) -> bytes:
    """Pages in Prometheus' text format as one: each sample gets its page's number as the label `replica`.

    All samples of a metric follow one another, after its HELP and TYPE, as the format asks for.
    """
    families: dict[bytes, list[bytes]] = {}
    for number, page in enumerate(pages):
        name = b""
        for line in page.splitlines():
            if line.startswith((b"# HELP ", b"# TYPE ")):
                name = line.split(b" ", 3)[2]
                told = families.setdefault(name, [])
                if not any(one.startswith(line[: line.index(name) + len(name)] + b" ") for one in told[:2]):
                    told.append(line)
            elif line.strip() and not line.startswith(b"#"):
                families.setdefault(name, []).append(_labelled(line, number))
    return b"".join(line + b"\n" for lines in families.values() for line in lines)


def _labelled(line: bytes, replica: int) -> bytes:
    match = _SAMPLE.fullmatch(line)
    if match is None:
        return line
    name, _, labels, rest = match.groups()
    own = b'replica="%d"' % replica
    return name + b"{" + (own + b"," + labels if labels else own) + b"}" + rest


def joined_trace(traces: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Chrome traces that began together as one: processes and stages are named by replica."""
    events: list[dict[str, Any]] = []
    for number, trace in enumerate(traces):
        for event in trace["traceEvents"]:
            moved = {**event, "pid": event["pid"] + number * _PIDS}
            if event.get("ph") == "M":
                moved["args"] = {"name": f"replica {number}, {event['args']['name']}"}
            if "id" in event:
                moved["id"] = f"{number}.{event['id']}"
            events.append(moved)
    others = [trace["otherData"] for trace in traces]
    return {
        **traces[0],
        "traceEvents": events,
        "otherData": {
            "seconds": max(other["seconds"] for other in others),
            "steps": sum(other["steps"] for other in others),
            "clocks": _named(others, "clocks"),
            "stages": _named(others, "stages"),
        },
    }


def _named(others: Sequence[dict[str, Any]], what: str) -> list[dict[str, Any]]:
    return [
        {**one, "stage": f"{number}.{one['stage']}"}
        for number, other in enumerate(others)
        for one in other[what]
    ]
