"""One stage as the launcher sees it, in the words of the status."""

from __future__ import annotations

from zmqpp.pipeline.state import StageState
from zmqpp.watch.status import Layers, LinkCounters, StageStatus

__all__ = ["stage_status"]


def stage_status(state: StageState, pid: int, log: str) -> StageStatus:
    """What only stage 0 measures keeps its default."""
    start, end, total = state.start_layer, state.end_layer, state.total_layers
    layers = (
        Layers(start, end, total) if start is not None and end is not None and total is not None else None
    )
    return StageStatus(
        stage=state.index,
        state=state.phase,
        since=state.since_s,
        reason=state.reason
        or state.progress
        or (f"waiting for {state.waiting_for}" if state.waiting_for else ""),
        pid=pid,
        layers=layers,
        parameters=state.parameters or 0,
        weight_bytes=state.size_bytes or 0,
        link=LinkCounters(lane=state.lane.partition(" ")[0] or None),
        log=log,
    )
