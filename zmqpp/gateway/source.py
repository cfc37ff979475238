"""What the launcher knows of its pipeline, and how it joins with what stage 0 says."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import msgspec

from zmqpp.watch.status import Event, PipelineStatus, StageStatus

__all__ = ["Source", "merged", "unready"]

_EVENTS = 100
_SAME_S = 10.0
"""The launcher looks at stage 0's health after the engine has said that it is ready."""
_SAME = {
    "lost": ("lost", "restarting"),
    "refused": ("refused",),
    "recovered": ("recovered", "restarted"),
    "ready": ("ready", "recovered", "restarted"),
}
"""The engine's kind of an event, and the launcher's."""


class Source(Protocol):
    """The launcher's word. Thread: `status` is called from the gateway's, often, and must never block."""

    def status(self) -> PipelineStatus:
        """States, pids, logs, restarts and events; what only stage 0 measures keeps its default."""
        ...

    @property
    def lost_from_outside(self) -> bool:
        """What is away was killed or cut off. Where it failed by itself, what it was asked may be to blame."""
        ...


def merged(ours: PipelineStatus, theirs: PipelineStatus | None) -> PipelineStatus:
    """One status of both: stage 0's for what it measures, the launcher's for processes and for what is not ready.

    Args:
        ours: the launcher's.
        theirs: stage 0's; None when it does not answer.
    """
    if theirs is None:
        return ours
    word = ours if ours.state != "ready" else theirs
    known = {stage.stage: stage for stage in ours.stages}
    measured = {stage.stage: stage for stage in theirs.stages}
    return msgspec.structs.replace(
        theirs,
        state=word.state,
        since=word.since,
        reason=word.reason,
        model=theirs.model or ours.model,
        total_stages=theirs.total_stages or ours.total_stages,
        # The engine tells the launcher what it loses, and counts from its own start.
        restarts=ours.restarts,
        recoveries=ours.recoveries,
        losses=ours.losses,
        replacements=ours.replacements,
        draining=ours.draining,
        stages=[
            _stage(known.get(index), measured.get(index)) for index in sorted(known.keys() | measured.keys())
        ],
        events=_joined(ours.events, theirs.events),
    )


def unready(status: PipelineStatus) -> list[StageStatus]:
    """The stages that are not ready; a stage nobody has heard of counts."""
    known = {stage.stage: stage for stage in status.stages}
    expected = range(max(status.total_stages, len(known)))
    stages = [known.get(index) or StageStatus(index, reason="never seen") for index in expected]
    return [stage for stage in stages if stage.state != "ready"]


def _stage(ours: StageStatus | None, theirs: StageStatus | None) -> StageStatus:
    if ours is None or theirs is None:
        stage = theirs or ours
        assert stage is not None  # its index came from one of the two
        return stage
    word = ours if ours.state != "ready" else theirs
    return msgspec.structs.replace(
        theirs,
        state=word.state,
        since=word.since,
        reason=word.reason,
        pid=theirs.pid or ours.pid,
        host=theirs.host or ours.host,
        layers=theirs.layers or ours.layers,
        log=ours.log or theirs.log,
    )


def _joined(ours: Iterable[Event], theirs: Iterable[Event]) -> list[Event]:
    """By time; what both saw, once, in the words of whoever knows more: the launcher, but for how long it took."""
    known = list(ours)
    for event in theirs:
        same = next((one for one in known if _is_same(one, event)), None)
        if same is None:
            known.append(event)
        elif event.kind == same.kind == "recovered":
            known[known.index(same)] = event
    return sorted(known, key=lambda event: event.at)[-_EVENTS:]


def _is_same(ours: Event, theirs: Event) -> bool:
    """To the engine a stage that is replaced as asked for is lost, and recovered; a new engine knows of none before."""
    if abs(ours.at - theirs.at) > _SAME_S:
        return False
    if theirs.kind in ("lost", "refused") and ours.stage != theirs.stage:
        return False
    return ours.kind in _SAME.get(theirs.kind, ())
