"""`zmqpp bench`: what cannot be measured is one line; the link's benchmark comes with the package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.command import assert_mistake, zmqpp
from tests.cli.endpoint import endpoint
from zmqpp.pipeline.ports import free_port


def test_bench_alone_shows_what_there_is_to_measure() -> None:
    done = zmqpp("bench")
    assert done.returncode == 0
    assert "zmqpp bench serve http" in done.stdout and "zmqpp bench link --quick" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("serve ftp://localhost", "'ftp://localhost' is no address of a pipeline"),
        ("serve --num-prompts 0", "--num-prompts 0: must be at least 1"),
        ("serve --concurrency 0", "--concurrency 0: must be at least 1"),
        ("serve --input-len x", "invalid int value: 'x'"),
        ("serve --base-url http://x", "--base-url follows from the plan: give the URL"),
        ("serve http://x http://y", "unexpected 'http://y'"),
        ("dance", "invalid choice: 'dance'"),
    ],
)
def test_mistake_is_one_line_and_exit_code_2(words: str, said: str) -> None:
    assert_mistake(zmqpp("bench", *words.split()), said)


def test_an_endpoint_that_is_not_there_is_one_line() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    assert_mistake(
        zmqpp("bench", "serve", "--num-prompts", "3", url), "is the pipeline running there?", code=1
    )


def test_a_model_or_tokenizer_that_is_not_there_is_named_before_anything_is_sent() -> None:
    with endpoint("/no/such/folder") as server:
        refused = zmqpp("bench", "serve", server.url, "--model", "other")
        assert_mistake(refused, f"{server.url} does not serve other; it serves model")
        assert_mistake(
            zmqpp("bench", "serve", server.url), "/no/such/folder is not on this machine: give --tokenizer"
        )
        assert server.prompts == []


def test_the_link_is_measured_as_in_the_repository(tmp_path: Path) -> None:
    done = zmqpp(
        *("bench", "link", "--quick", "--rounds", "1", "--sizes", "1x4096"),
        *("--transports", "zmqpp-shm", "memcpy", "--json", str(tmp_path / "link.json")),
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "link.json").read_text())
    assert {row["transport"] for row in report["table"]} == {"zmqpp-shm", "memcpy"}
    assert "all equal" in done.stdout
