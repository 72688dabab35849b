"""What is said of idle devices, and what would help them."""

from __future__ import annotations

import re

import pytest

from autopart.planning import plan
from autopart.schema.job import Job
from autopart.schema.plan import Plan, PlanWarning
from autopart.schema.problem import Candidate
from tests.planning.problems import candidate, chain, cluster, device, link


def made(num: int, *, train: bool = False, value_bytes: int = 1000) -> Candidate:
    graph = chain(8, value_bytes=value_bytes, training=train)
    return candidate(graph, {"fast": [1e-3] * 8}, num)


def planned(num: int, *, train: bool = False, bandwidth: float = 1e9, value_bytes: int = 1000, **words: object) -> Plan:
    job = Job(batch=num, mode="train" if train else "infer", microbatches=num, stages=4, **words)  # type: ignore[arg-type]
    devices = cluster(*(device(f"d{k}") for k in range(4)), links=(link(bandwidth=bandwidth),))
    return plan((made(num, train=train, value_bytes=value_bytes),), devices, job)


def warning(result: Plan, code: str) -> PlanWarning:
    return next(each for each in result.warnings if each.code == code)


def test_more_micro_batches_are_told_with_the_gain_that_they_have() -> None:
    found = planned(4)
    said = warning(found, "low-utilisation")
    gain = re.search(r"--batch 16 in 16 micro-batches of the same size: \+(\d+)% samples/s", said.suggestion)
    assert gain is not None
    more = planned(16)
    factor = more.prediction.throughput_per_second / found.prediction.throughput_per_second
    assert float(gain[1]) == pytest.approx(100 * (factor - 1), abs=1)
    assert warning(found, "bubble").suggestion == "what helps against low-utilisation helps here"


def test_links_are_named_where_they_are_what_is_waited_for() -> None:
    said = warning(planned(64, bandwidth=1e5, value_bytes=400), "low-utilisation").suggestion
    assert said.startswith("links that take no time, the most that faster ones or --compress can give: +")
    assert said.endswith("(simulated)")


def test_zero_bubble_is_offered_in_training_only() -> None:
    assert "--schedule zero-bubble: +" in warning(planned(4, train=True), "low-utilisation").suggestion
    assert "zero-bubble" not in warning(planned(4), "low-utilisation").suggestion


def test_one_micro_batch_is_one() -> None:
    assert warning(planned(1), "few-microbatches").message == "1 micro-batch cannot keep 4 stages busy"


def test_one_request_goes_through_one_device_at_a_time_without_a_warning() -> None:
    result = planned(1, objective="latency")
    assert {"bubble", "low-utilisation", "few-microbatches"}.isdisjoint(each.code for each in result.warnings)


def test_a_searched_schedule_is_not_said_to_want_more_time() -> None:
    job = Job(batch=4, mode="train", microbatches=4, schedule="interleaved")
    result = plan((made(4, train=True),), cluster(device("a"), device("b")), job)
    said = warning(result, "gap-not-reached")
    assert said.message.startswith("placements for --schedule interleaved are searched, not proven")
    assert "--time-limit" not in said.suggestion
