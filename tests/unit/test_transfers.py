"""What would go past the ring of stages is refused by its name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from zmqpp.errors import UnsupportedError

pytest.importorskip("vllm", reason="vLLM is not installed: `make test` installs it", exc_type=ImportError)
pytestmark = pytest.mark.vllm
NOTHING: dict[str, Any] = {
    "kv_transfer_config": None,
    "ec_transfer_config": None,
    "weight_transfer_config": None,
    "aux_output_config": SimpleNamespace(enabled=False),
}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kv_transfer_config": object()}, "connectors are not supported"),
        ({"ec_transfer_config": object()}, "connectors are not supported"),
        ({"weight_transfer_config": object()}, "--weight-transfer-config is not supported"),
        (
            {"aux_output_config": SimpleNamespace(enabled=True)},
            "--enable-return-routed-experts is not supported",
        ),
    ],
)
def test_what_goes_past_the_ring_is_refused(given: dict[str, Any], said: str) -> None:
    from zmqpp.vllm.engine_config import check_transfers

    check_transfers(SimpleNamespace(**NOTHING))
    with pytest.raises(UnsupportedError, match=said):
        check_transfers(SimpleNamespace(**{**NOTHING, **given}))
