"""How long does a dict take over a throttled link as it is, and packed? Two processes, each on a network of its own.

`python -m zmqpp.bench.slow_link near|far …` is one of the two; `measure` starts both.
"""

from __future__ import annotations

import json
import logging
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import torch

from zmqpp.bench.channel import PeerFailed
from zmqpp.bench.packing import there_and_back
from zmqpp.bench.payload import NAMES, Mismatch, Size, Tensors, check_same
from zmqpp.bench.throttle import throttled
from zmqpp.config import TransportConfig
from zmqpp.transport import Link

FORMS = ("none", "fp8", "int8")
_PORT = 15550
_LIMIT_S = 600.0


@dataclass(frozen=True)
class Crossing:
    """One size in one form over one cable."""

    mbit: int
    size: str
    dict_bytes: int
    form: str
    ms: float
    """From the call that sends a dict until a small answer to it is there; median."""
    mb_per_s: float
    """Of original data, many dicts one after another."""
    dicts: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def measure(rates: Sequence[int], sizes: Sequence[Size], rounds: int, turn_s: float = 2.0) -> list[Crossing]:
    """Each size in each form in turns, for about twice `turn_s`.

    Raises:
        Unavailable: no networks can be made here. Mismatch: wrong bytes. PeerFailed: one of the two ended.
    """
    made: list[Crossing] = []
    for mbit in rates:
        with throttled(mbit) as cable:
            words = [str(mbit), str(rounds), str(turn_s), *map(str, sizes)]
            processes = [
                cable.start(
                    index,
                    [sys.executable, "-m", __spec__.name, role, cable.address(0), cable.address(1), *words],
                )
                for index, role in enumerate(("near", "far"))
            ]
            made += [Crossing(**each) for each in json.loads(_output_of(processes))]
    return made


def _output_of(processes: list[subprocess.Popen[str]]) -> str:
    near, far = processes
    try:
        printed, _ = near.communicate(timeout=_LIMIT_S)
        if near.returncode == 3:
            raise Mismatch(printed.strip())
        if near.returncode:
            raise PeerFailed(f"the sending process ended with exit code {near.returncode}")
        return printed
    finally:
        for process in (near, far):
            process.kill()
            process.communicate()


def _link(role: str, near: str, far: str, index: int, form: str) -> Link:
    own, other = (near, far) if role == "near" else (far, near)
    config = TransportConfig(lane="tcp", compression=form)
    port = _PORT + index
    return Link(bind=f"{own}:{port}", connect=f"{other}:{port}", config=config, name=role)


def _near(
    near: str, far: str, mbit: int, rounds: int, turn_s: float, sizes: list[Size]
) -> list[dict[str, Any]]:
    links = {form: _link("near", near, far, index, form) for index, form in enumerate(FORMS)}
    found: dict[tuple[Size, str], list[tuple[float, float, int]]] = {}
    for link in links.values():
        link.wait_peers(60)
    for _ in range(rounds):
        for size in sizes:
            for form, link in links.items():
                found.setdefault((size, form), []).append(_turn(link, size, form, turn_s))
    for link in links.values():
        link.send_dict({"end": True})
        link.close(5)
    return [
        Crossing(
            *(mbit, str(size), size.dict_bytes, form),
            ms=statistics.median(ms for ms, _, _ in turns),
            mb_per_s=statistics.median(rate for _, rate, _ in turns),
            dicts=sum(count for _, _, count in turns),
        ).as_json()
        for (size, form), turns in found.items()
    ]


def _turn(link: Link, size: Size, form: str, turn_s: float) -> tuple[float, float, int]:
    """(median ms of a dict and its answer, MB/s of a stream, dicts)."""
    tensors: Tensors = {name: torch.randn(size.rows, size.columns).bfloat16() for name in NAMES}
    _trip(link, tensors, form)
    times: list[float] = []
    until = time.monotonic() + turn_s
    while time.monotonic() < until or len(times) < 3:
        started = time.perf_counter()
        _ask(link, tensors)
        times.append(time.perf_counter() - started)
    count = max(3, min(2000, int(turn_s / statistics.median(times))))
    started = time.perf_counter()
    for _ in range(count - 1):
        link.send_dict(tensors)
    _ask(link, tensors)
    return (
        statistics.median(times) * 1e3,
        count * size.dict_bytes / 1e6 / (time.perf_counter() - started),
        count,
    )


def _trip(link: Link, tensors: Tensors, form: str) -> None:
    """There and back whole: is it what it should be? What comes back was packed no second time."""
    link.send_dict({**tensors, "whole": True})
    got = link.recv_dict()
    wanted = tensors if form == "none" else {name: there_and_back(x, form) for name, x in tensors.items()}
    check_same({name: got[name].view(wanted[name].shape) for name in NAMES}, wanted, form)


def _ask(link: Link, tensors: Tensors) -> None:
    link.send_dict({**tensors, "whole": False})
    link.recv_dict()


def _far(near: str, far: str) -> None:
    links = [_link("far", near, far, index, "none") for index in range(len(FORMS))]
    with ThreadPoolExecutor(
        len(links)
    ) as pool:  # whoever waits for a dict reads it: one thread for each link
        for answering in [pool.submit(_answer, link) for link in links]:
            answering.result()


def _answer(link: Link) -> None:
    while "end" not in (got := link.recv_dict(timeout_s=_LIMIT_S)):
        if "whole" in got:
            link.send_dict({name: got[name] for name in NAMES} if got["whole"] else {"got": True})


def main(words: list[str]) -> int:
    role, near, far, mbit, rounds, turn_s, *sizes = words
    torch.set_num_threads(1)
    logging.getLogger("zmqpp").setLevel(logging.ERROR)  # nobody else reaches these networks: no keys
    if role == "far":
        _far(near, far)
        return 0
    try:
        print(
            json.dumps(
                _near(near, far, int(mbit), int(rounds), float(turn_s), [Size.parse(size) for size in sizes])
            )
        )
    except Mismatch as error:
        print(error)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
