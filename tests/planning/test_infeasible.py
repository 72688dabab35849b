from __future__ import annotations

import re
from dataclasses import replace

import pytest

from autopart.errors import InfeasibleError
from autopart.planning import plan
from autopart.schema.device import Cluster
from autopart.schema.job import Job
from autopart.schema.problem import Candidate
from tests.planning.problems import candidate, chain, cluster, device

MB = 10**6


def message_of(candidates: tuple[Candidate, ...], devices: Cluster, job: Job) -> str:
    with pytest.raises(InfeasibleError) as caught:
        plan(candidates, devices, job)
    message = str(caught.value)
    assert "\n" not in message
    return message


def weights(num_microbatches: int = 4, *, weight_bytes: int = 100 * MB, train: bool = False, value_bytes: int = 1000,
            saved_bytes: int = 0, batch: int = 4) -> Candidate:
    graph = chain(4, weight_bytes=weight_bytes, value_bytes=value_bytes, saved_bytes=saved_bytes, training=train,
                  batch_size=batch // num_microbatches, peak_bytes=1000)
    return candidate(graph, {"fast": [1e-3] * 4}, num_microbatches)


def test_the_shortage_of_a_single_device_is_exact() -> None:
    message = message_of((weights(),), cluster(device("a", memory_bytes=350 * MB)), Job(batch=4))
    assert "a is short by 50" in message
    assert "one more fast" in message


def test_one_more_device_is_suggested_and_fits() -> None:
    devices = cluster(device("a", memory_bytes=250 * MB))
    message = message_of((weights(),), devices, Job(batch=4))
    assert "it fits with one more fast" in message
    more = replace(devices, devices=(*devices.devices, device("b", memory_bytes=250 * MB)))
    assert len(plan((weights(),), more, Job(batch=4)).stages) == 2


def test_as_many_more_devices_as_it_takes_are_suggested() -> None:
    devices = cluster(device("a", memory_bytes=110 * MB))  # a layer each
    assert "it fits with 3 more fast" in message_of((weights(),), devices, Job(batch=4))
    more = (device(name, memory_bytes=110 * MB) for name in "bcd")
    assert len(plan((weights(),), cluster(*devices.devices, *more), Job(batch=4)).stages) == 4


def test_a_cap_is_suggested_to_be_raised_to_what_fits() -> None:
    capped = device("a", memory_bytes=350 * MB, memory_origin="cap given by the user")
    devices = cluster(replace(capped, uncapped_bytes=16_000 * MB))
    message = message_of((weights(),), devices, Job(batch=4))
    found = re.search(r"--max-memory a=(\d+)MiB", message)
    assert found is not None
    raised = cluster(device("a", memory_bytes=int(found[1]) * 2**20))
    assert len(plan((weights(),), raised, Job(batch=4)).stages) == 1


def test_another_micro_batch_count_is_suggested_and_fits() -> None:
    whole = weights(1, value_bytes=40 * MB, saved_bytes=0, weight_bytes=0)
    half = replace(weights(4, value_bytes=10 * MB, weight_bytes=0))
    whole = replace(whole, graph=replace(whole.graph, layers=tuple(
        replace(layer, peak_bytes=400 * MB) for layer in whole.graph.layers)))
    devices = cluster(device("a", memory_bytes=300 * MB))
    message = message_of((whole, half), devices, Job(batch=4, microbatches=1))
    assert "it fits with --microbatches 4" in message
    assert plan((whole, half), devices, Job(batch=4, microbatches=4)).schedule.num_microbatches == 4


def test_another_schedule_is_suggested_and_fits() -> None:
    chosen = weights(4, train=True, weight_bytes=1000, saved_bytes=100 * MB)
    devices = cluster(device("a", memory_bytes=450 * MB), device("b", memory_bytes=450 * MB))
    job = Job(batch=4, mode="train", schedule="gpipe", optimizer="sgd")
    assert "it fits with --schedule 1f1b" in message_of((chosen,), devices, job)
    assert plan((chosen,), devices, replace(job, schedule="1f1b")).schedule.name == "1f1b"


def test_another_optimizer_is_suggested_and_fits() -> None:
    chosen = weights(4, train=True)
    devices = cluster(device("a", memory_bytes=1000 * MB))
    job = Job(batch=4, mode="train", optimizer="adamw")
    assert "it fits with --optimizer sgd" in message_of((chosen,), devices, job)
    assert plan((chosen,), devices, replace(job, optimizer="sgd")).stages


def test_fewer_stages_are_suggested_and_fit() -> None:
    chosen = weights()
    devices = cluster(device("a", memory_bytes=450 * MB), device("b", memory_bytes=50 * MB))
    job = Job(batch=4, stages=2)
    assert "it fits without --stages" in message_of((chosen,), devices, job)
    assert len(plan((chosen,), devices, replace(job, stages=None)).stages) == 1


def test_where_every_device_is_too_small_the_factor_is_named() -> None:
    devices = cluster(device("a", memory_bytes=50 * MB), device("b", memory_bytes=50 * MB))
    message = message_of((weights(),), devices, Job(batch=4, stages=2))
    assert re.search(r"\d\.\d\dx on each\) would do", message)


def test_stages_that_nothing_links_exist_with_no_memory() -> None:
    devices = Cluster(devices=(device("a"), device("b")))
    assert "no plan exists whatever the memory" in message_of((weights(),), devices, Job(batch=4, stages=2))


def test_a_baseline_that_does_not_fit_says_what_does() -> None:
    devices = cluster(device("a", memory_bytes=350 * MB), device("b", memory_bytes=150 * MB))
    message = message_of((weights(),), devices, Job(batch=4, method="even"))
    assert "method 'even' does not fit: b is short by" in message
    assert "--method optimal" in message


def test_recomputing_is_suggested_and_fits() -> None:
    chosen = weights(2, weight_bytes=1000, train=True, saved_bytes=100 * MB, value_bytes=1000)
    devices = cluster(device("a", memory_bytes=300 * MB))
    job = Job(batch=4, mode="train", optimizer="sgd", microbatches=2)
    assert "it fits with --recompute auto" in message_of((chosen,), devices, job)
    assert all(stage.recompute for stage in plan((chosen,), devices, replace(job, recompute="auto")).stages)
