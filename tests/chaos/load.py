"""Clients that never stop asking, whole and in streams, and now and then hang up."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import httpx

from tests.integration.cases import CASES
from tests.integration.serving import NAME, essence

PATIENCE_S = 300.0
_AGAIN_S = 0.2
_ENOUGH = 50
"""So much trouble is no news any more."""


class Load:
    """So many clients, until `stop`.

    Args:
        expected: what each case is answered when nothing happens.
        cut: whether stage 0 was down at any moment since the given one (time.monotonic()): its clients see that.
    """

    def __init__(
        self, url: str, expected: Mapping[str, Any], clients: int, seed: int, cut: Callable[[float], bool]
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.trouble: list[str] = []
        """Each lost or wrong request, in words."""
        self.seconds: list[float] = []
        self._url, self._expected, self._cut = url, expected, cut
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._ask, args=(random.Random(f"{seed} {i}"),), name=f"client {i}")
            for i in range(clients)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    @property
    def has_stopped(self) -> bool:
        """There was too much trouble."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """Returns when every client has its last answer."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)
            if thread.is_alive():
                self._say("lost", f"{thread.name} still waits for its answer")

    def _ask(self, dice: random.Random) -> None:
        with httpx.Client(base_url=self._url, timeout=PATIENCE_S) as client:
            while not self._stopping.is_set():
                name = dice.choice(list(CASES))
                started = time.monotonic()
                try:
                    self._ask_once(client, dice, name)
                    with self._lock:
                        self.seconds.append(time.monotonic() - started)
                except (httpx.HTTPError, ConnectionError, ValueError) as error:
                    if self._cut(started):
                        self._count("cut off with stage 0")
                    else:
                        waited = time.monotonic() - started
                        self._say("lost", f"{name} after {waited:.1f} s: {type(error).__name__}: {error}")
                    time.sleep(_AGAIN_S)

    def _ask_once(self, client: httpx.Client, dice: random.Random, name: str) -> None:
        body = {"model": NAME, **CASES[name]}
        way = dice.choices(("whole", "stream", "hang up"), (6, 4, 1))[0]
        if "prompt_logprobs" in body:  # vLLM gives them in whole answers only.
            way = "whole"
        if way == "whole":
            response = client.post("/v1/completions", json=body)
            if response.status_code != 200:
                raise httpx.HTTPError(f"HTTP {response.status_code}: {response.text[:300]}")
            self._judge(name, way, essence(response.json()), self._expected[name])
            return
        leave_after = dice.randrange(1, 12) if way == "hang up" else None
        got = _read_stream(client, body, leave_after)
        if way == "hang up":
            self._count("hung up")
        else:
            wanted = [
                {key: choice[key] for key in ("text", "finish_reason")} for choice in self._expected[name]
            ]
            self._judge(name, way, got, wanted)

    def _judge(self, name: str, way: str, got: Any, wanted: Any) -> None:
        if got == wanted:
            self._count(way)
        else:
            self._say("wrong", f"{name} ({way}): got {got}, expected {wanted}")

    def _count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    def _say(self, what: str, text: str) -> None:
        with self._lock:
            self.counts[what] += 1
            self.trouble.append(f"{what}: {text}")
            if len(self.trouble) >= _ENOUGH:
                self._stopping.set()
        print(f"chaos: {what}: {text}", flush=True)


def _read_stream(
    client: httpx.Client, body: Mapping[str, Any], leave_after: int | None
) -> list[dict[str, Any]]:
    """Text and end of each choice; hangs up after so many events."""
    choices: dict[int, dict[str, Any]] = {}
    whole = False
    with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
        if response.status_code != 200:
            response.read()
            raise httpx.HTTPError(f"HTTP {response.status_code}: {response.text[:300]}")
        for count, line in enumerate(line for line in response.iter_lines() if line.startswith("data: ")):
            if count == leave_after:
                return []
            if line == "data: [DONE]":
                whole = True
                break
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                raise httpx.HTTPError(f"in the stream: {event['error']}")
            for part in event["choices"]:
                choice = choices.setdefault(part["index"], {"text": "", "finish_reason": None})
                choice["text"] += part["text"]
                choice["finish_reason"] = part["finish_reason"] or choice["finish_reason"]
    if not whole and leave_after is None:
        raise httpx.HTTPError("the stream ended in its middle")
    return [choices[index] for index in sorted(choices)]
