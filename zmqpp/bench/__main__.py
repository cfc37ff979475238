"""Which benchmark shall run?

python -m zmqpp.bench link        zmqpp's lanes beside everything else that moves tensors between processes
python -m zmqpp.bench link --device cuda    the same for tensors of a GPU
python -m zmqpp.bench overlap     what computing and transfers cost one another
python -m zmqpp.bench checksum    what checksums cost
python -m zmqpp.bench curve       what encryption costs
python -m zmqpp.bench compression what fp8 and int8 cost, and gain over a slow link; --tokens: what they change
python -m zmqpp.bench vllm        how fast a model answers: one process, vLLM's own pipeline, zmqpp

`zmqpp bench link` and `zmqpp bench overlap` are two of them.
"""

from __future__ import annotations

import argparse
import sys

import torch

from zmqpp.bench import checksum, compression, curve, link, overlap, plot, vllm
from zmqpp.bench.channel import PeerFailed
from zmqpp.bench.payload import Mismatch
from zmqpp.errors import ConfigError


def main() -> int:
    parser = argparse.ArgumentParser(prog="zmqpp bench", description="Measure zmqpp.")
    commands = parser.add_subparsers(dest="command", required=True)
    for module in (link, overlap, checksum, curve, compression, vllm, plot):
        one = commands.add_parser(module.NAME, help=module.__doc__, description=module.__doc__)
        module.add_arguments(one)
        one.set_defaults(run=module.run)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    try:
        return int(arguments.run(arguments))
    except ConfigError as error:
        print(f"zmqpp bench: {arguments.command}: {error}", file=sys.stderr)
        return 2
    except (Mismatch, PeerFailed) as error:
        print(f"zmqpp bench: {arguments.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
