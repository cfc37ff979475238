"""A stage warms up by itself: vLLM's warm-up of Model Runner V2 runs whole steps, and the others may be serving."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed: `make test` installs it")

from zmqpp.vllm.group import PipelineGroup

pytestmark = pytest.mark.vllm


class Deaf:
    """A link that must not be used."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} of the link")


def test_nothing_is_sent_and_the_buffers_are_received() -> None:
    group = PipelineGroup(Deaf(), 1, 3, torch.device("cpu"), 1.0)  # type: ignore[arg-type]
    buffers = {"hidden_states": torch.zeros(8, 4)}
    group.expect(buffers)
    with group.warming_up():
        received, handles, after = group.irecv_tensor_dict()
        assert received["hidden_states"] is buffers["hidden_states"]
        assert handles == after == []
        for handle in group.isend_tensor_dict({"hidden_states": torch.ones(3, 4)})[1:]:
            handle.wait()
    with pytest.raises(AssertionError, match="irecv_dict of the link"):
        group.irecv_tensor_dict()
