"""The `zmqpp` command. Each subcommand has its own file with `add_to(subparsers)` and `run(arguments)`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from zmqpp.cli import (
    bench,
    check,
    demo,
    doctor,
    drain,
    export,
    keygen,
    passing,
    restart,
    serve,
    stage,
    status,
    trace,
    validate,
)
from zmqpp.errors import ConfigError, ZmqppError
from zmqpp.pipeline.signals import StopRequested
from zmqpp.version import __version__

__all__ = ["main"]

# In the order of a first use, which is that of --help.
_COMMANDS = (
    demo,
    validate,
    export,
    check,
    serve,
    status,
    restart,
    drain,
    trace,
    bench,
    stage,
    keygen,
    doctor,
)
# Exit codes: 1 the pipeline failed, 2 the user's mistake, 128+N stopped by signal N, as shells have it.
_FAILED, _USAGE = 1, 2


class OneLineParser(argparse.ArgumentParser):
    """A mistake costs one line, not a page of usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(_USAGE, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit code, never raises on a foreseeable mistake."""
    parser = OneLineParser(prog="zmqpp", description="Pipeline parallelism for vLLM over ZeroMQ.")
    parser.add_argument("--version", action="version", version=f"zmqpp {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add_to(subparsers)
    try:
        parsed = passing.parse(parser, sys.argv[1:] if arguments is None else arguments)
        return int(parsed.run(parsed))
    except ConfigError as error:
        return _say(error, _USAGE)
    except ZmqppError as error:
        return _say(error, _FAILED)
    except StopRequested as stop:
        return _say(stop, 128 + stop.signum)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # Whoever read our output has gone; the interpreter would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        # A full disk, a folder that may not be written: nothing that zmqpp could do better.
        where = f"{error.filename}: " if error.filename else ""
        return _say(f"{where}{error.strerror or error}", _FAILED)


def _say(error: object, code: int) -> int:
    print(f"zmqpp: {error}", file=sys.stderr)
    return code
