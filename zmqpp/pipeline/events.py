"""What a stage process tells the launcher that started it: JSON lines in one shared file.

The launcher names the file in `ZMQPP_EVENTS`; without it `emit` does nothing. One line is one
`write` to a file opened with O_APPEND, so the lines of several processes never mix (POSIX write(2)).
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

EVENTS_VARIABLE = "ZMQPP_EVENTS"
NEWS = ("refused", "missed", "whole")
"""What is no phase of a stage: it refused a peer; the engine has lost it; the engine has them all again."""
TRIAL_VARIABLE = "ZMQPP_ON_TRIAL"
"""Set for a stage that replaces another one: until it is ready, its failure is told to the launcher alone."""


def emit(stage: int, event: str, **fields: Any) -> None:
    """Append one event; a full disk or a vanished folder never disturbs the stage itself."""
    path = os.environ.get(EVENTS_VARIABLE)
    if not path:
        return
    line = json.dumps({"t": time.time(), "stage": stage, "event": event, **fields}) + "\n"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    except OSError:
        return
    try:
        os.write(fd, line.encode())
    except OSError:
        pass
    finally:
        os.close(fd)


def read_events(path: str, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The whole lines written since `offset`, and the offset to go on from."""
    try:
        with Path(path).open("rb") as file:
            file.seek(offset)
            text = file.read()
    except FileNotFoundError:
        return [], offset
    whole = text[: text.rfind(b"\n") + 1]
    return [event for line in whole.splitlines() if (event := _parsed(line))], offset + len(whole)


def _parsed(line: bytes) -> dict[str, Any]:
    """Nothing for a line that a full disk has cut."""
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}
