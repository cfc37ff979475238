"""`zmqpp serve`: a whole pipeline on this machine behind one HTTP address, kept running."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zmqpp.cli.passing import take_positional
from zmqpp.errors import ConfigError
from zmqpp.extras import require
from zmqpp.pipeline.devices import DEVICES

if TYPE_CHECKING:
    from zmqpp.pipeline.plan import PipelinePlan

__all__ = ["add_to", "run"]

_EXAMPLE = """\
examples:
  zmqpp serve /models/Llama-3-8B --num-stages 4 --gpu-ids 0,1,2,3
  zmqpp serve --pipeline-dir /models/Llama-3-8B-in-4 --port 8080
  zmqpp serve /models/Llama-3-8B --ranges 0-18 18-32 -- --max-model-len 4096 --dtype bfloat16
  zmqpp serve /models/Llama-3-8B --num-stages 3 --balance compute         fewer layers where the head is
  zmqpp serve /models/Llama-3-8B --num-stages 2 --data-parallel-size 4    four replicas, on eight GPUs

Then, on the same machine:
  curl http://127.0.0.1:8080/v1/completions -H 'Content-Type: application/json' \\
      -d '{"model": "/models/Llama-3-8B", "prompt": "San Francisco is a", "max_tokens": 50}'
  zmqpp status                   or http://127.0.0.1:8080/pipeline in a browser

Options that zmqpp does not know, and all after `--`, go to every `vllm serve`.
exit codes: 0 ended by `zmqpp drain --stop`, 1 the pipeline failed, 2 a mistake in the options, 130 and 143 stopped by
Ctrl-C or SIGTERM.
"""


def add_to(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser(
        "serve",
        help="serve a model as a pipeline on this machine",
        description="Start all stages of a pipeline on this machine, with one HTTP entry; keep them running.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="zmqpp serve (MODEL | --pipeline-dir DIR) [options] [-- VLLM OPTIONS]",
        allow_abbrev=False,
    )
    _add_model(parser.add_argument)
    _add_places(parser.add_argument)
    _add_running(parser.add_argument)
    parser.set_defaults(run=run, takes_vllm_flags=True)


def _add_model(add: Any) -> None:
    add("--pipeline-dir", metavar="DIR", help="made by `zmqpp export`, in place of MODEL")
    add(
        "--num-stages",
        type=int,
        metavar="N",
        help="default: one a GPU, at least 2; or as many as ranges or split say",
    )
    add(
        "--data-parallel-size",
        "-dp",
        type=int,
        default=1,
        metavar="R",
        help="pipelines of so many stages behind this entry, each with all of the model (default: %(default)s)",
    )
    add("--ranges", nargs="+", metavar="A-B", help="layers of each stage, half-open: --ranges 0-3 3-8")
    add(
        "--balance",
        choices=("memory", "compute"),
        help="choose the ranges whose largest stage is smallest: the last one, which has the head, gets fewer layers",
    )
    add("--name", help="what requests call the model (default: MODEL as given, and its last part)")


def _add_places(add: Any) -> None:
    add("--host", default="127.0.0.1", help="where the HTTP entry listens (default: %(default)s)")
    add("--port", type=int, default=8080, help="of the HTTP entry (default: %(default)s)")
    add(
        "--api-port",
        type=int,
        default=8000,
        metavar="PORT",
        help="of stage 0's own API (default: %(default)s)",
    )
    add(
        "--base-port",
        type=int,
        default=15550,
        metavar="PORT",
        help="first of the ring's (default: %(default)s)",
    )
    add("--gpu-ids", metavar="0,1,...", help="GPUs that stages take in turn (default: all)")
    add("--device", choices=DEVICES, default="auto", help="default: %(default)s")


def _add_running(add: Any) -> None:
    add(
        "--log-dir",
        type=Path,
        default=Path("logs"),
        metavar="DIR",
        help="one log a stage (default: %(default)s)",
    )
    add(
        "--timeout",
        type=float,
        default=1800.0,
        metavar="S",
        help="until all are ready (default: %(default)g)",
    )
    add(
        "--max-restarts",
        type=int,
        default=5,
        metavar="N",
        help="replace a stage that is lost, at most N times in a row; 0: end (default: %(default)s)",
    )
    add(
        "--drain-timeout",
        type=float,
        default=0.0,
        metavar="S",
        help="after SIGTERM or Ctrl-C let running requests finish for so long (default: %(default)g)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal or `zmqpp drain --stop` ends it, or the pipeline fails for good."""
    require("httpx", "prometheus_client", "rich", "starlette", "uvicorn")
    from zmqpp.cli.serve_plan import serve_plans
    from zmqpp.gateway.server import check_address

    if arguments.timeout <= 0 or arguments.max_restarts < 0 or arguments.drain_timeout < 0:
        raise ConfigError("--timeout must be above 0 seconds, --max-restarts and --drain-timeout at least 0")
    model, flags = take_positional(arguments.passed)
    plans = serve_plans(arguments, model, flags)
    check_address(arguments.host, arguments.port)
    if len(plans) > 1:
        _serve_replicas(plans, arguments)
    else:
        _serve_one(plans[0], arguments)
    return 0


def _serve_one(plan: PipelinePlan, arguments: argparse.Namespace) -> None:
    from zmqpp.cli.serve_screen import ServeScreen
    from zmqpp.gateway.app import build_app
    from zmqpp.gateway.entrance import Entrance
    from zmqpp.gateway.server import GatewayServer
    from zmqpp.pipeline.launcher import Launcher
    from zmqpp.pipeline.order_server import OrderServer
    from zmqpp.pipeline.orders import Orders
    from zmqpp.pipeline.supervisor import Supervisor

    with (
        ServeScreen([plan]) as screen,
        Launcher(plan, arguments.log_dir, on_interrupt=screen.say_stopping) as launcher,
    ):
        entrance, orders = Entrance(), Orders()
        supervisor = Supervisor(
            launcher,
            max_restarts=arguments.max_restarts,
            timeout_s=arguments.timeout,
            on_poll=lambda: screen.show(launcher.states),
            on_event=screen.tell,
            entrance=entrance,
            orders=orders,
            drain_s=arguments.drain_timeout,
        )
        app = build_app(plan.api.url, supervisor, entrance)
        with (
            GatewayServer(app, arguments.host, arguments.port) as gateway,
            OrderServer(arguments.log_dir, orders, entrance),
        ):
            screen.open(gateway.url, arguments.log_dir)
            supervisor.run()


def _serve_replicas(plans: Sequence[PipelinePlan], arguments: argparse.Namespace) -> None:
    from zmqpp.cli.serve_screen import ServeScreen
    from zmqpp.gateway.app import build_replicated_app
    from zmqpp.gateway.entrance import Entrance
    from zmqpp.gateway.replica import Replica
    from zmqpp.gateway.server import GatewayServer
    from zmqpp.gateway.upstream import Upstream
    from zmqpp.pipeline.order_server import OrderServer
    from zmqpp.pipeline.replica import Care
    from zmqpp.pipeline.replica_orders import JointEntrance, ReplicaOrders
    from zmqpp.pipeline.replicas import Replicas

    entrances = [Entrance() for _ in plans]
    with ServeScreen(plans) as screen:
        care = Care(
            max_restarts=arguments.max_restarts,
            timeout_s=arguments.timeout,
            drain_s=arguments.drain_timeout,
            on_poll=lambda replica, states: screen.show(states, replica),
            on_event=screen.tell,
        )
        with Replicas(plans, arguments.log_dir, care, entrances, screen.say_stopping) as replicas:
            app = build_replicated_app(
                [
                    Replica(
                        number, Upstream(plan.api.url), replicas.all[number].supervisor, entrances[number]
                    )
                    for number, plan in enumerate(plans)
                ]
            )
            orders = ReplicaOrders([replica.orders for replica in replicas.all])
            with (
                GatewayServer(app, arguments.host, arguments.port) as gateway,
                OrderServer(arguments.log_dir, orders, JointEntrance(entrances)),
            ):
                screen.open(gateway.url, arguments.log_dir)
                replicas.run()
