"""What a stage that comes back is told: adapters that are there, and none that have gone."""

from __future__ import annotations

from dataclasses import dataclass

from zmqpp.vllm.init_log import Call, with_adapter_call


@dataclass
class Adapter:
    lora_int_id: int


def test_an_adapter_that_was_removed_leaves_no_trace() -> None:
    log: list[Call] = [("zmqpp.load", (), {}), ("initialize_from_config", ([],), {})]
    brought_up = list(log)
    for number in range(1000):
        log = with_adapter_call(log, ("add_lora", (Adapter(number),), {}))
        log = with_adapter_call(log, ("pin_lora", (number,), {}))
        if number != 7:
            log = with_adapter_call(log, ("remove_lora", (), {"lora_id": number}))
    assert log == [*brought_up, ("add_lora", (Adapter(7),), {}), ("pin_lora", (7,), {})]
