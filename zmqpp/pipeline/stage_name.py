"""What a stage is called: `1`; with replicas `1.0`, stage 0 of replica 1; as an order also `1.all`. Pure."""

from __future__ import annotations

from zmqpp.errors import ConfigError

__all__ = ["MOST", "one_of_replica", "read_stage"]

MOST = 1024
"""Above any number of a stage, or of a replica."""


def read_stage(text: str) -> int | str:
    """A stage's number, or its name where there are replicas, as it goes into an order.

    Raises:
        ConfigError: it is neither.
    """
    replica, dot, stage = text.partition(".")
    if not dot and _is_number(text):
        return int(text)
    if dot and _is_number(replica) and (stage == "all" or _is_number(stage)):
        return f"{int(replica)}.{stage if stage == 'all' else int(stage)}"
    raise ConfigError(
        f"--stage {text}: give the number of a stage, several, or all; with replicas 1.0 for stage 0 of replica 1, "
        "1.all for all of its stages"
    )


def one_of_replica(name: str) -> tuple[int, int | None]:
    """Replica and stage of a name with a dot that `read_stage` gave; None = all stages."""
    replica, _, stage = name.partition(".")
    return int(replica), None if stage == "all" else int(stage)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 4 and int(text) < MOST
