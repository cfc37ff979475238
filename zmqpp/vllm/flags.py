"""The flag group that `vllm serve --help` shows."""

from __future__ import annotations

import argparse

GROUP = "PipelineStages"
DESCRIPTION = (
    "Pipeline stages as independent `vllm serve` processes, linked by ZeroMQ. Every stage takes "
    "--pipeline-stage-mode external with its index, the number of stages and its own port; stages 1 and up add "
    "the address of the stage before them and --external-pp-worker, stage 0 the last stage's return address. "
    "On several hosts: the same forward port BASE on each, return port BASE + number of stages. On one host: "
    "stage I binds BASE + I."
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add our flags to vLLM's parser, once."""
    if any("--pipeline-stage-mode" in action.option_strings for action in parser._actions):
        return
    add = parser.add_argument_group(title=GROUP, description=DESCRIPTION).add_argument
    add(
        "--pipeline-stage-mode",
        choices=["internal", "external"],
        default=None,
        help="internal (default): plain vLLM. external: this process is one stage of a pipeline over ZeroMQ.",
    )
    add("--pipeline-stage-idx", type=int, metavar="I", help="This stage's index, 0 <= I < N.")
    add(
        "--pipeline-total-stages",
        type=int,
        metavar="N",
        help="Number of stages, at least 2; the same on every stage.",
    )
    add(
        "--pipeline-layer-range",
        metavar="A-B",
        help="Layers A..B-1 of the model (half-open). Default: `_pipeline_info` in the model's config.json, "
        "else vLLM's even split.",
    )
    add(
        "--pipeline-local-bind-port",
        metavar="[HOST:]PORT",
        help="Where this stage binds for the next one; on the last stage, the return port that stage 0 connects to. "
        "Without HOST: 127.0.0.1. `*:PORT` binds every interface.",
    )
    add(
        "--pipeline-prev-stage-service-addr",
        metavar="IP:PORT",
        help="Stages 1 and up: where the stage before binds. A name is resolved again at every reconnect.",
    )
    add("--pipeline-prev-stage-addr", metavar="IP:PORT", help="Stage 0: the last stage's return port.")
    add(
        "--external-pp-worker",
        action="store_true",
        default=False,
        help="Stages 1 and up: no HTTP server; required there, refused on stage 0.",
    )
    add(
        "--pipeline-curve-dir",
        metavar="DIR",
        help="Folder of the pipeline's keys, made by `zmqpp keygen` and copied to every machine: links are encrypted, "
        "and let in only who has them too. Default: ZMQPP_CURVE_DIR, else none.",
    )
    add(
        "--pipeline-require-auth",
        action="store_true",
        default=None,
        help="Without keys bind nothing but loopback addresses.",
    )
    add(
        "--pipeline-peer-timeout",
        dest="pipeline_peer_timeout_s",
        type=float,
        metavar="S",
        help="A neighbour that hangs or is cut off is given up after so many seconds of silence; the same on every "
        "stage. Default: ZMQPP_PEER_TIMEOUT_S, else 5. One whose process dies is missed at once.",
    )
    add(
        "--pipeline-compression",
        metavar="FORM",
        help="For slow links: send hidden states as fp8 or int8, in about half of the bytes of bfloat16; answers may "
        "differ. Default: ZMQPP_COMPRESSION, else none.",
    )
    add(
        "--pipeline-next-stage-addr",
        metavar="IP:PORT",
        help="Deprecated alias of --pipeline-prev-stage-service-addr.",
    )
    add(
        "--pipeline-local-listen-port", metavar="PORT", help="Deprecated alias of --pipeline-local-bind-port."
    )
