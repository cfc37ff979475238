"""Flags that zmqpp does not know are vLLM's: found on the command line, and checked before they are handed on.

A command that takes them says so by `parser.set_defaults(takes_vllm_flags=True)`, and finds in
`arguments.passed` all words it does not know, then all that follow `--`.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence

from zmqpp.config import COMPRESSIONS
from zmqpp.errors import ConfigError

__all__ = ["check_flags", "check_keys", "parse", "take_positional", "without_ours"]

_OURS = ("--pipeline-", "--external-pp-worker")
_KEYS, _REQUIRE, _PATIENCE = "--pipeline-curve-dir", "--pipeline-require-auth", "--pipeline-peer-timeout"
_COMPRESSION = "--pipeline-compression"
_USERS = (_KEYS, _REQUIRE, _PATIENCE, _COMPRESSION)
"""Ours too, but the same on every stage, and the user's to say."""


def parse(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """As `parser.parse_args`, but with what is vLLM's in `passed`."""
    own, dashes, after = _split(words)
    parsed, unknown = parser.parse_known_args(own)
    parsed.passed = [*unknown, *after]
    if (parsed.passed or dashes) and not getattr(parsed, "takes_vllm_flags", False):
        parser.error(f"unrecognized arguments: {' '.join(parsed.passed) or '--'}")
    return parsed


def take_positional(passed: Sequence[str]) -> tuple[str | None, list[str]]:
    """The first word, if it is no flag, and the rest.

    argparse cannot tell an optional positional argument from the value of a flag that it does not know.
    """
    if passed and not passed[0].startswith("-"):
        return passed[0], list(passed[1:])
    return None, list(passed)


def check_flags(flags: Sequence[str], taken: Mapping[str, str]) -> tuple[str, ...]:
    """The flags to give to every `vllm serve`.

    Args:
        taken: flag of vLLM's that zmqpp sets itself -> what to do in its place.
    Raises:
        ConfigError: one of those, one that makes up the pipeline, or a word that belongs to no flag; or a form of
            compression that there is not.
    """
    if flags and not flags[0].startswith("-"):
        raise ConfigError(f"unexpected {flags[0]!r}; what is handed on to vLLM starts with a flag")
    flags = [_dashed(word) for word in flags]
    for word in flags:
        name = word.partition("=")[0]
        if name.startswith(_OURS) and name not in _USERS:
            raise ConfigError(f"{name} follows from the plan: leave it out")
        if name in taken:
            raise ConfigError(f"{name} follows from the plan: {taken[name]}")
    for form in _values(flags, _COMPRESSION):
        if form not in COMPRESSIONS:
            raise ConfigError(f"{_COMPRESSION} {form!r}: give one of {', '.join(COMPRESSIONS)}")
    return tuple(flags)


def check_keys(flags: Sequence[str]) -> None:
    """The keys that these flags, or the environment, name can be used on this machine.

    Raises:
        ConfigError: why not.
    """
    from zmqpp.keys import read_keys

    folder = os.environ.get("ZMQPP_CURVE_DIR", "").strip()
    for folder in _values(flags, _KEYS):
        if not folder or folder.startswith("--"):
            raise ConfigError(f"{_KEYS} needs the folder that `zmqpp keygen` made")
    if folder:
        read_keys(folder)


def without_ours(flags: Sequence[str]) -> tuple[str, ...]:
    """What a vLLM that is no stage takes of them."""
    kept: list[str] = []
    value_follows = False
    for word in flags:
        name, equals, _ = word.partition("=")
        if not value_follows and name not in _USERS:
            kept.append(word)
        value_follows = not value_follows and name in _USERS and name != _REQUIRE and not equals
    return tuple(kept)


def _values(flags: Sequence[str], name: str) -> Iterator[str]:
    """What is given to a flag, each time; empty where nothing is."""
    for word, following in zip(flags, [*flags[1:], ""], strict=False):
        flag, equals, value = word.partition("=")
        if flag == name:
            yield value if equals else following


def _dashed(word: str) -> str:
    """vLLM takes `--a_b` for `--a-b`; one spelling is enough to look for."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else word


def _split(words: Sequence[str]) -> tuple[list[str], bool, list[str]]:
    """Before and after the first `--`, and whether there is one."""
    if "--" not in words:
        return list(words), False, []
    at = list(words).index("--")
    return list(words[:at]), True, list(words[at + 1 :])
