"""Finding, in a stage's log, the one line that says why it died."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["clear_line"]

_TAIL_BYTES = 64 * 1024
_MAX_LINE = 400
# vLLM's own prefixes: "(EngineCore pid=12) ERROR 11-21 05:40:03 [core.py:1100] ".
_PREFIX = re.compile(r"^(\([^)]*pid=\d+\)\s*)?([A-Z]+ \d\d-\d\d \d\d:\d\d:\d\d (\[[^\]]*\]\s?)+)?")
_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_EXCEPTION = re.compile(r"^[\w.]*(Error|Exception|Interrupt|Failure|Timeout|Exit)\b(: .+)?$")
_USAGE = re.compile(r"^[\w./ -]*: error: .+$")
# How zmqpp itself ends: one line, made for people.
_OURS = re.compile(r"^zmqpp: (?!warning)(error: )?")
# True, but the effect of something said earlier in the same log.
_CONSEQUENCE = (
    "Engine core initialization failed",
    "Engine process failed to start",
    "EngineCore encountered",
)


def clear_line(path: Path) -> str:
    """Our own last word in it, else the last exception or usage error, else the last line; never empty."""
    lines = [_bare(line) for line in _tail(path).splitlines()]
    lines = [line for line in lines if line.strip()]
    ours = [_OURS.sub("", line) for line in lines if _OURS.match(line)]
    telling = [line for line in lines if _EXCEPTION.match(line) or _USAGE.match(line)]
    causes = [line for line in telling if not any(words in line for words in _CONSEQUENCE)]
    chosen = ours or causes or telling or lines
    return chosen[-1][:_MAX_LINE].strip() if chosen else "nothing in its log"


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def _bare(line: str) -> str:
    return _PREFIX.sub("", _COLOUR.sub("", line.rstrip()), count=1)
