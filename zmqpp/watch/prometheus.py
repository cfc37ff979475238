"""A pipeline's status as Prometheus text. docs/status.md has the table of metrics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE
from prometheus_client.registry import Collector

from zmqpp.watch.stage_metrics import (
    LINK_COUNTERS,
    LINK_GAUGES,
    SPENT,
    STAGE_COUNTERS,
    STAGE_GAUGES,
    STEP_SECONDS,
    PerStage,
)
from zmqpp.watch.status import Histogram, PipelineStatus, StageStatus

__all__ = ["CONTENT_TYPE", "render"]

_STATES_OF_PIPELINE = ("starting", "ready", "recovering", "restarting", "failed", "stopped")


def render(status: PipelineStatus) -> str:
    """The metrics of one status, Prometheus text format 0.0.4.

    A stage that is not ready keeps the counters it reported last; `zmqpp_stage_up` says whether they move.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Metrics(status))
    return generate_latest(registry).decode()


class _Metrics(Collector):
    """All metric families of one status. Made for one rendering; holds no state of its own."""

    def __init__(self, status: PipelineStatus) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        yield from self._pipeline()
        yield from self._stages(STAGE_GAUGES, GaugeMetricFamily, lanes=False)
        yield from self._stages(STAGE_COUNTERS, CounterMetricFamily, lanes=False)
        yield self._identity()
        yield self._spent()
        yield from self._step_seconds()
        yield self._batch_requests()
        yield from self._stages(LINK_GAUGES, GaugeMetricFamily, lanes=True)
        yield from self._stages(LINK_COUNTERS, CounterMetricFamily, lanes=True)
        yield self._link_latency()

    def _pipeline(self) -> Iterator[Metric]:
        status = self._status
        gauges = (
            ("up", "1 when the whole pipeline takes requests, 0 otherwise.", status.state == "ready"),
            ("draining", "1 while new requests are refused and those that run go on.", status.draining),
            ("state_timestamp_seconds", "Unix time since when the pipeline is in its state.", status.since),
            ("stages", "Stages the pipeline has when it is complete.", status.total_stages),
            ("in_flight_steps", "Steps on the ring now.", status.in_flight),
            ("tokens_per_second", "Tokens generated per second, over the last window.", status.tokens_per_s),
            (
                "bubble_ratio",
                "Share of stage time not spent computing while steps were in flight, over the last window.",
                status.bubble,
            ),
            ("bubble_since_ready_ratio", "The same since the pipeline became ready.", status.bubble_total),
        )
        for name, text, value in gauges:
            yield GaugeMetricFamily(f"zmqpp_pipeline_{name}", text, float(value))
        counters = (
            ("steps", "Steps the pipeline has finished.", status.steps),
            ("generated_tokens", "Tokens the pipeline has generated.", status.tokens),
            ("lost_stages", "Stages that were lost.", status.losses),
            ("replaced_stages", "Stages that were replaced as someone asked for.", status.replacements),
            ("restarts", "Stages, or whole pipelines, that were started again.", status.restarts),
            ("recoveries", "Times the pipeline went on after it had lost a stage.", status.recoveries),
        )
        for name, text, value in counters:
            yield CounterMetricFamily(f"zmqpp_pipeline_{name}", text, float(value))
        states = GaugeMetricFamily(
            "zmqpp_pipeline_state", "1 for the state the pipeline is in, 0 for the others.", labels=["state"]
        )
        for state in dict.fromkeys((*_STATES_OF_PIPELINE, status.state)):
            states.add_metric([state], float(state == status.state))
        yield states

    def _stages(
        self,
        wanted: Iterable[PerStage],
        family: type[GaugeMetricFamily] | type[CounterMetricFamily],
        *,
        lanes: bool,
    ) -> Iterator[Metric]:
        labels = ["stage", "host", "lane"] if lanes else ["stage", "host"]
        for one in wanted:
            metric = family(one.name, one.text, labels=labels)
            for stage in self._status.stages:
                metric.add_metric(_labels(stage, lanes), float(one.value(stage)))
            yield metric

    def _identity(self) -> Metric:
        names = ["stage", "host", "pid", "device", "layers", "lane", "zmqpp_version", "vllm_version"]
        metric = GaugeMetricFamily(
            "zmqpp_stage_info", "What the stage is: always 1, the labels say it.", labels=names
        )
        for stage in self._status.stages:
            layers = f"{stage.layers.start}-{stage.layers.end}" if stage.layers else ""
            versions = [stage.zmqpp_version, stage.vllm_version]
            identity = [str(stage.stage), stage.host, str(stage.pid), stage.device, layers]
            metric.add_metric([*identity, stage.link.lane or "", *versions], 1.0)
        return metric

    def _spent(self) -> Metric:
        metric = CounterMetricFamily(
            "zmqpp_stage_spent_seconds",
            "Where the stage's time went since it became ready: compute, wait, send or idle.",
            labels=["stage", "host", "kind"],
        )
        for stage in self._status.stages:
            for kind, value in SPENT:
                metric.add_metric([*_labels(stage, False), kind], value(stage))
        return metric

    def _step_seconds(self) -> Iterator[Metric]:
        for kind, text in STEP_SECONDS.items():
            metric = HistogramMetricFamily(f"zmqpp_stage_step_{kind}_seconds", text, labels=["stage", "host"])
            for stage in self._status.stages:
                if measured := stage.step_seconds.get(kind):
                    metric.add_metric(_labels(stage, False), _buckets(measured), measured.sum)
            yield metric

    def _batch_requests(self) -> Metric:
        metric = HistogramMetricFamily(
            "zmqpp_stage_batch_requests", "Requests in one step.", labels=["stage", "host"]
        )
        for stage in self._status.stages:
            if measured := stage.batch_requests:
                metric.add_metric(_labels(stage, False), _buckets(measured), measured.sum)
        return metric

    def _link_latency(self) -> Metric:
        metric = GaugeMetricFamily(
            "zmqpp_link_latency_seconds",
            "Time of a set of activations: handing it to the link (send), and on its way here (receive).",
            labels=["stage", "host", "lane", "direction", "quantile"],
        )
        for stage in self._status.stages:
            link = stage.link
            for direction, quantile, micros in (
                ("send", "0.5", link.send_p50_us),
                ("send", "0.99", link.send_p99_us),
                ("receive", "0.5", link.receive_p50_us),
                ("receive", "0.99", link.receive_p99_us),
            ):
                metric.add_metric([*_labels(stage, True), direction, quantile], micros / 1e6)
        return metric


def _labels(stage: StageStatus, lane: bool) -> list[str]:
    return [str(stage.stage), stage.host, *([stage.link.lane or ""] if lane else [])]


def _buckets(measured: Histogram) -> list[tuple[str, float]]:
    """Prometheus counts each bucket with all below it, up to the one without a bound."""
    total, buckets = 0, []
    bounds = [*map(repr, map(float, measured.bounds)), "+Inf"]
    for bound, count in zip(bounds, measured.counts, strict=True):
        total += count
        buckets.append((bound, float(total)))
    return buckets
