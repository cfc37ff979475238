"""What a stage that comes back is told: adapters that are there, and none that have gone; whether it is to sleep."""

from __future__ import annotations

from dataclasses import dataclass

from zmqpp.vllm.init_log import Call, with_lasting_call

BROUGHT_UP: list[Call] = [("zmqpp.load", (), {}), ("initialize_from_config", ([],), {})]


@dataclass
class Adapter:
    lora_int_id: int
    lora_path: str = ""


def added(number: int, path: str = "") -> Call:
    return ("add_lora", (Adapter(number, path),), {})


def after(*calls: Call, adapters: int = 4) -> list[Call]:
    """What was called besides what brought the stages up."""
    log = list(BROUGHT_UP)
    for call in calls:
        log = with_lasting_call(log, call, adapters)
    assert log[: len(BROUGHT_UP)] == BROUGHT_UP
    return log[len(BROUGHT_UP) :]


def test_an_adapter_that_was_removed_leaves_no_trace() -> None:
    calls: list[Call] = []
    for number in range(100):
        calls += [added(number), ("pin_lora", (number,), {})]
        calls += [("remove_lora", (), {"lora_id": number})] if number != 7 else []
    assert after(*calls) == [added(7), ("pin_lora", (7,), {})]


def test_adapters_that_a_stage_has_let_go_are_not_loaded_again() -> None:
    """vLLM's server never removes one that it unloads: stages make room for others."""
    assert after(*(added(number) for number in range(100))) == [added(number) for number in range(96, 100)]
    pin: Call = ("pin_lora", (0,), {})
    assert after(added(0), pin, *map(added, range(1, 9))) == [added(0), pin, *map(added, range(6, 9))]


def test_an_adapter_that_was_loaded_anew_is_loaded_once() -> None:
    pin: Call = ("pin_lora", (1,), {})
    assert after(added(1, "old"), pin, added(2), added(1, "new")) == [added(2), added(1, "new"), pin]


def test_whoever_comes_back_while_the_others_sleep_is_put_to_sleep() -> None:
    sleep: Call = ("sleep", (), {"level": 1})
    weights: Call = ("wake_up", (), {"tags": ["weights"]})
    cache: Call = ("wake_up", (), {"tags": ["kv_cache"]})
    assert after(sleep) == [sleep]
    assert after(sleep, weights) == [sleep, weights]
    assert after(sleep, weights, cache) == []
    assert after(added(1), sleep, ("wake_up", (), {"tags": None})) == [added(1)]


def test_a_cache_that_was_discarded_is_for_who_comes_back_until_it_is_there_again() -> None:
    discard: Call = ("discard", (("kv_cache",),), {})
    cache: Call = ("wake_up", (), {"tags": ["kv_cache"]})
    assert after(discard) == [discard]
    assert after(*(discard, cache) * 9) == []
