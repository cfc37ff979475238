"""A status as Prometheus text, read back by Prometheus's own parser."""

from __future__ import annotations

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from zmqpp.watch.prometheus import render
from zmqpp.watch.status import (
    Histogram,
    Layers,
    LinkCounters,
    Memory,
    PipelineStatus,
    Spent,
    StageStatus,
)


def pipeline() -> PipelineStatus:
    first = StageStatus(
        0,
        "ready",
        host="a",
        layers=Layers(0, 5, 8),
        parameters=77,
        weight_bytes=1000,
        memory=Memory(resident_bytes=5),
        link=LinkCounters(lane="shm", bytes_sent=640, dicts_sent=4, send_p50_us=250.0),
        steps=4,
        tokens=9,
        queue=1,
        spent=Spent(compute_s=1.5, wait_s=0.5, send_s=0.25, idle_s=8.0),
        step_seconds={"compute": Histogram([0.01, 0.1], [1, 2, 1], sum=0.7)},
        batch_requests=Histogram([1, 8], [3, 1, 0], sum=6.0),
    )
    second = StageStatus(1, "lost", host='b"\\\n', link=LinkCounters(bytes_received=640))
    return PipelineStatus(
        "restarting",
        [first, second],
        total_stages=2,
        in_flight=2,
        tokens=30,
        bubble=0.25,
        recoveries=1,
        restarts=3,
    )


def families(status: PipelineStatus) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(render(status))}


def values(family: Metric, *labels: str) -> dict[tuple[str, ...], float]:
    return {
        tuple(sample.labels.get(label, "") for label in labels): sample.value for sample in family.samples
    }


def test_metrics_read_back_as_what_the_status_said() -> None:
    seen = families(pipeline())
    assert values(seen["zmqpp_stage_up"], "stage") == {("0",): 1, ("1",): 0}
    assert values(seen["zmqpp_link_sent_bytes"], "stage", "lane") == {("0", "shm"): 640, ("1", ""): 0}
    assert values(seen["zmqpp_pipeline_bubble_ratio"]) == {(): 0.25}
    assert values(seen["zmqpp_pipeline_generated_tokens"]) == {(): 30}
    assert values(seen["zmqpp_stage_layers"], "stage") == {("0",): 5, ("1",): 0}
    state = values(seen["zmqpp_pipeline_state"], "state")
    assert [name for (name,), value in state.items() if value] == ["restarting"]
    spent = values(seen["zmqpp_stage_spent_seconds"], "stage", "kind")
    assert [spent["0", kind] for kind in ("compute", "wait", "send", "idle")] == [1.5, 0.5, 0.25, 8.0]
    latency = values(seen["zmqpp_link_latency_seconds"], "stage", "direction", "quantile")
    assert latency["0", "send", "0.5"] == 0.00025


def test_histograms_count_upwards_to_their_total() -> None:
    samples = families(pipeline())["zmqpp_stage_step_compute_seconds"].samples
    buckets = {sample.labels["le"]: sample.value for sample in samples if sample.name.endswith("_bucket")}
    assert buckets == {"0.01": 1, "0.1": 3, "+Inf": 4}
    rest = {sample.name.rpartition("_")[2]: sample.value for sample in samples if "le" not in sample.labels}
    assert rest == {"count": 4, "sum": 0.7}


def test_hostile_names_stay_inside_their_labels() -> None:
    assert ("1", 'b"\\\n') in values(families(pipeline())["zmqpp_stage_up"], "stage", "host")


def test_every_metric_keeps_the_conventions() -> None:
    for name, family in families(pipeline()).items():
        assert name.startswith(("zmqpp_pipeline_", "zmqpp_stage_", "zmqpp_link_")), name
        assert family.documentation.endswith("."), name
        if family.type == "counter":
            assert all(sample.name.endswith(("_total", "_created")) for sample in family.samples), name
        keys = [(sample.name, *sorted(sample.labels.items())) for sample in family.samples]
        assert len(keys) == len(set(keys)), name


def test_pipeline_that_has_no_stage_yet_is_valid_text() -> None:
    assert values(families(PipelineStatus("starting", []))["zmqpp_pipeline_up"]) == {(): 0}


def test_two_renderings_know_nothing_of_each_other() -> None:
    render(pipeline())
    assert "zmqpp_stage_up{" not in render(PipelineStatus("starting", []))
