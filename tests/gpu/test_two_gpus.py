"""Two GPUs: processes that number them differently, a current device that is not the link's."""

from __future__ import annotations

import os

import pytest
import torch

from tests.conformance.echo import ring_of_two
from tests.gpu.device import require
from tests.gpu.other_numbers import both_ways
from tests.lanes import Lane

require(cpu_will_do=False)
pytestmark = pytest.mark.gpu

if torch.cuda.device_count() < 2 or "CUDA_VISIBLE_DEVICES" in os.environ:
    pytest.skip("these need two GPUs, and CUDA_VISIBLE_DEVICES not set", allow_module_level=True)


@pytest.mark.parametrize("theirs", ["cuda:0", "cuda:1"])
def test_peer_numbers_two_gpus_the_other_way_round(lane: Lane, theirs: str) -> None:
    both_ways(lane, "1,0", torch.device(theirs))


def test_peer_sees_one_gpu_that_is_our_second(lane: Lane) -> None:
    both_ways(lane, "1", torch.device("cuda:0"))


@pytest.mark.parametrize("current", [0, 1])
@pytest.mark.parametrize("of_link", ["cuda:0", "cuda:1"])
@pytest.mark.parametrize("of_tensors", ["cuda:0", "cuda:1"])
def test_the_current_device_may_be_any_and_stays(
    lane: Lane, current: int, of_link: str, of_tensors: str
) -> None:
    device, sent = torch.device(of_link), {"x": torch.randn(1_000_000, device=of_tensors)}
    before = torch.cuda.current_device()
    torch.cuda.set_device(current)
    try:
        with ring_of_two(lane, "processes", lane.config(), (device, device)) as link:
            for _ in range(5):
                ticket = link.isend_dict(sent)
                assert torch.cuda.current_device() == current
                got = link.recv_dict()["x"]
                ticket.wait()
                assert torch.cuda.current_device() == current
                assert got.device == device and torch.equal(got.cpu(), sent["x"].cpu())
        assert torch.cuda.current_device() == current
    finally:
        torch.cuda.set_device(before)
