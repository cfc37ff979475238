"""Two processes that are not alike: one without a GPU, one that calls it by another name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conformance.echo import ring_of_two
from tests.gpu.device import DEVICE, LANES, brought, moved, require
from tests.gpu.other_numbers import both_ways
from tests.lanes import Lane
from tests.links import assert_same

require()
pytestmark = pytest.mark.gpu

CPU = torch.device("cpu")
HOST_LANES = [name for name in LANES if name != "cuda_ipc"]
"""Between a process with a GPU and one without."""
SIZES = (1, 4096, 100_000, 3_000_000)


def dict_of(size: int) -> dict[str, Any]:
    return {
        "hidden": torch.randn(size, 2).to(torch.bfloat16),
        "ids": torch.arange(size).view(1, -1),
        "turned": torch.randn(3, size).t(),
        "step": size,
    }


# ---- CPU and GPU -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*HOST_LANES, "auto"])
@pytest.mark.parametrize("devices", [(DEVICE, CPU), (CPU, DEVICE), (DEVICE, None)], ids=str)
def test_dicts_go_from_one_kind_to_the_other_and_back(
    name: str, devices: tuple[torch.device, torch.device | None], tmp_path: Path
) -> None:
    lane = Lane(name, tmp_path)
    with ring_of_two(lane, "processes", lane.config(), devices) as link:
        for size in SIZES:
            sent = dict_of(size)
            link.send_dict(moved(sent, devices[0]))
            assert_same(brought(link.recv_dict(), wherever=True), sent)


def test_cuda_ipc_is_not_chosen_with_a_peer_without_a_gpu(tmp_path: Path) -> None:
    lane = Lane("auto", tmp_path)
    with ring_of_two(lane, "processes", lane.config(), (DEVICE, None)) as link:
        link.send_dict(moved(dict_of(10)))
        assert_same(brought(link.recv_dict(), wherever=True)["step"], 10)
        assert link.stats()["lane"] != "cuda_ipc"


# ---- numbers of devices ----------------------------------------------------------------------------------


def test_peer_sees_its_gpu_by_name_and_we_by_number(lane: Lane) -> None:
    visible = "0"
    if DEVICE.type == "cuda":
        visible = f"GPU-{torch.cuda.get_device_properties(DEVICE).uuid}"
    both_ways(lane, visible, DEVICE if DEVICE.type == "cpu" else torch.device("cuda:0"))
