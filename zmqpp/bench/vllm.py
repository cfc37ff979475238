"""How fast does a model answer: in one vLLM process, over vLLM's own pipeline, over zmqpp? Same cores, in turns."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from zmqpp.bench import table
from zmqpp.bench.facts import machine_facts
from zmqpp.bench.report import save
from zmqpp.bench.serving.figures import Figures, Round, medians
from zmqpp.bench.serving.load import Answer, ask, prompts
from zmqpp.bench.serving.model import generate
from zmqpp.bench.serving.servers import SETUPS, serve
from zmqpp.errors import ConfigError, ZmqppError

NAME = "vllm"
_FLAGS = ("--max-model-len", "1024", "--max-num-seqs", "32", "--kv-cache-memory-bytes", str(256 << 20))
_SAME = ("--no-enable-prefix-caching",)  # each round asks the same: it shall be computed each time
_REQUESTS = 2
"""For each one at a time."""
_WARM, _WARM_TOKENS = 4, 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--json", type=Path, metavar="FILE", help="write machine and all figures")
    add(
        "--setups",
        nargs="+",
        choices=SETUPS,
        default=list(SETUPS),
        metavar="NAME",
        help=f"of {', '.join(SETUPS)}",
    )
    add(
        "--at-once",
        type=int,
        nargs="+",
        default=[1, 4, 16],
        metavar="N",
        help="requests in flight (default: 1 4 16)",
    )
    add("--rounds", type=int, default=2, help="of turns (default: %(default)s)")
    add("--input-len", type=int, default=32, metavar="N", help="tokens of a prompt (default: %(default)s)")
    add("--output-len", type=int, default=64, metavar="N", help="tokens of an answer (default: %(default)s)")
    add("--model", type=Path, help="instead of the generated one, of which answers are compared, too")
    add("--dtype", default="float32", help="(default: %(default)s, where a run repeats itself)")
    add("--enforce-eager", action="store_true", help="do not compile")


def run(arguments: argparse.Namespace) -> int:
    if min(arguments.rounds, arguments.input_len, arguments.output_len - 1, *arguments.at_once) < 1:
        raise ConfigError("--rounds, --input-len and --at-once must be at least 1, --output-len at least 2")
    contents: dict[str, Any] = {"question": __doc__, "machine": machine_facts()}
    with tempfile.TemporaryDirectory(prefix="zmqpp-bench-") as folder:
        model = arguments.model or generate(Path(folder) / "model")
        found = Findings(arguments, model, Path(folder))
        for index in range(arguments.rounds):
            for name in arguments.setups:
                found.add_turn(index, name)
    contents |= {
        "settings": {key: str(value) for key, value in vars(arguments).items() if key != "run"},
        "ready_s": found.ready_s,
        "missing": found.missing,
        "rounds": [each.as_json() for each in found.rounds],
    }
    console = table.console()
    for at_once in arguments.at_once:
        console.print(_table([each for each in found.rounds if each.at_once == at_once], at_once))
    for name, seconds in found.ready_s.items():
        console.print(f"{SETUPS[name].title}: ready after {', '.join(f'{s:.0f}' for s in seconds)} s")
    for name, why in found.missing.items():
        console.print(f"{SETUPS[name].title}: not measured: {why}", soft_wrap=True)
    if arguments.json:
        save(contents, arguments.json)
    return int(bool(found.missing))


class Findings:
    """All of a run. One server lives at a time: an idle one would take memory, and vLLM's workers poll."""

    def __init__(self, arguments: argparse.Namespace, model: Path, folder: Path) -> None:
        self._arguments, self._model, self._folder = arguments, model, folder
        self._expected: dict[int, list[Answer]] = {}
        self.rounds: list[Round] = []
        self.ready_s: dict[str, list[float]] = {}
        """Of each start; the first one may have had to compile."""
        self.missing: dict[str, str] = {}

    def add_turn(self, index: int, name: str) -> None:
        """Start one server, and ask it all there is to ask."""
        if name in self.missing:
            return
        wanted = self._arguments
        eager = ("--enforce-eager",) if wanted.enforce_eager else ()
        flags = (*_FLAGS, *_SAME, "--dtype", wanted.dtype, *eager)
        _say(f"round {index + 1}: {SETUPS[name].title}: starting")
        try:
            with serve(SETUPS[name], self._model, flags, self._folder / name) as (url, ready_s):
                self.ready_s.setdefault(name, []).append(ready_s)
                ask(url, prompts(_WARM, wanted.input_len, seed=1), _WARM_TOKENS, _WARM)
                for at_once in wanted.at_once:
                    self._ask(index, name, url, at_once)
        except ZmqppError as error:
            self.missing[name] = str(error)
            _say(f"round {index + 1}: {SETUPS[name].title}: {error}")

    def _ask(self, index: int, name: str, url: str, at_once: int) -> None:
        asked = prompts(_REQUESTS * at_once, self._arguments.input_len, seed=at_once)
        answers = ask(url, asked, self._arguments.output_len, at_once)
        first = self._expected.setdefault(at_once, answers)
        same = sum(one.text == other.text for one, other in zip(first, answers, strict=True))
        self.rounds.append(Round(index, name, at_once, Figures.of(answers), len(answers), same))
        _say(f"    {at_once} at once: {self.rounds[-1].figures.tokens_per_s:.1f} tokens/s")


def _table(rounds: Sequence[Round], at_once: int) -> Table:
    title = f"{at_once} request{'s' * (at_once > 1)} at a time"
    shown = Table(title=title, title_justify="left")
    shown.add_column("served by", no_wrap=True)
    for heading in ("tokens/s", "x -pp 2", "first p50", "p99 ms", "next p50", "p99 ms", "same"):
        shown.add_column(heading, justify="right", no_wrap=True)
    by_setup = {name: [each for each in rounds if each.setup == name] for name in SETUPS}
    peers = [each.figures.tokens_per_s for each in by_setup["vllm"]]
    for name, own in by_setup.items():
        if not own:
            continue
        found = medians(own)
        # Of each round's own, so that a machine that drifts is fair to all.
        ratios = [each.figures.tokens_per_s / peer for each, peer in zip(own, peers, strict=False)]
        shown.add_row(
            SETUPS[name].title,
            f"{found.tokens_per_s:.1f}",
            f"{statistics.median(ratios):.2f}" if ratios else "",
            *(
                f"{ms:.1f} ms"
                for ms in (found.first_p50_ms, found.first_p99_ms, found.gap_p50_ms, found.gap_p99_ms)
            ),
            f"{sum(each.same for each in own)} of {sum(each.answers for each in own)}",
            style="bold cyan" if SETUPS[name].lane else None,
        )
    return shown


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)
