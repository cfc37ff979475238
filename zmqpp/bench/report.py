"""What is kept of a run? Machine, settings, every round's figures, and the table made from them, as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zmqpp.bench.facts import zmqpp_settings
from zmqpp.bench.medians import Row, rows_of
from zmqpp.bench.overlapped import OverlapRow
from zmqpp.bench.peers import Peer
from zmqpp.bench.runner import Findings, Plan


def report(
    question: str,
    facts: dict[str, Any],
    plan: Plan,
    peers: dict[str, Peer],
    findings: Findings,
    rows: Sequence[Row | OverlapRow] | None = None,
) -> dict[str, Any]:
    """`rows`: the table; None = round trips and streams."""
    return {
        "question": question,
        "machine": facts,
        "settings": {**plan.as_json(), "environment": zmqpp_settings()},
        "transports": {
            name: {
                "title": peers[name].title,
                "available": name not in findings.missing,
                "why": findings.missing.get(name, ""),
                "remark": findings.remarks.get(name, ""),
            }
            for name in plan.transports
        },
        "checked": {"dicts": findings.checked_dicts, "bytes": findings.checked_bytes},
        "wall_s": round(findings.wall_s, 1),
        "rounds": [turn.as_json() for turn in findings.turns],
        "table": [row.as_json() for row in (rows_of(findings.turns) if rows is None else rows)],
    }


def save(contents: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(contents, indent=1) + "\n")
