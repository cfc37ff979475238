"""Lanes, and processes to play the peer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fault import peer
from tests.lanes import LANES, Lane

if "shm" not in LANES:
    collect_ignore_glob = ["test_shared_*.py"]  # they join when the lane does


@pytest.fixture(scope="session", autouse=True)
def _fork_server() -> None:
    """Started before the first test looks around: it lives as long as the run."""
    peer.start_fork_server()


@pytest.fixture(params=LANES)
def lane(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lane]:
    """Each lane of this build; its folder's path is short enough for a Unix socket."""
    yield Lane(request.param, Path(tmp_path_factory.mktemp("k")))
