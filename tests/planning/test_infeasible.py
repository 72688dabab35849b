from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from autopart.errors import InfeasibleError
from autopart.planning import plan
from autopart.schema.device import Cluster
from autopart.schema.job import Job, ScheduleName
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
    assert "no single change" in message


def test_where_every_device_is_too_small_a_change_of_the_job_is_suggested_and_fits() -> None:
    chosen = weights(4, train=True)
    devices = cluster(device("a", memory_bytes=450 * MB), device("b", memory_bytes=450 * MB))
    job = Job(batch=4, mode="train", optimizer="adamw", stages=2, schedule="1f1b")
    message = message_of((chosen,), devices, job)
    assert re.search(r"x on each\) would do; it fits with --optimizer sgd$", message)
    assert len(plan((chosen,), devices, replace(job, optimizer="sgd")).stages) == 2


def in_float32(made: Candidate) -> Candidate:
    """As --stage-dtype auto would have it on a kind without units for bfloat16, in training."""
    weights = tuple(replace(weight, dtype="bfloat16") for weight in made.graph.weights)
    kinds = tuple(replace(row, dtype="float32") for row in made.profile.kinds)
    return replace(
        made, graph=replace(made.graph, weights=weights), profile=replace(made.profile, kinds=kinds)
    )


@pytest.mark.parametrize("train", [False, True])
def test_keeping_types_is_suggested_where_float32_takes_too_much_and_fits(train: bool) -> None:
    chosen = in_float32(weights(4, train=train))
    chosen = replace(chosen, graph=replace(chosen.graph, weights=tuple(
        replace(each, num_elements=each.bytes // 2) for each in chosen.graph.weights
    )))  # fmt: skip
    devices = cluster(device("a", memory_bytes=1000 * MB if train else 450 * MB))
    job = Job(batch=4, mode="train" if train else "infer", optimizer="sgd" if train else "none", stage_dtype="auto")
    assert "it fits with --stage-dtype keep" in message_of((chosen,), devices, job)
    kept = replace(chosen, profile=replace(
        chosen.profile, kinds=tuple(replace(row, dtype="") for row in chosen.profile.kinds)
    ))  # fmt: skip
    assert plan((kept,), devices, replace(job, stage_dtype="keep")).stages
    small = cluster(device("a", memory_bytes=100 * MB))
    assert "stage-dtype" not in message_of((chosen,), small, job)


def looped_chain(num_microbatches: int) -> Candidate:
    graph = chain(4, weight_bytes=50 * MB, saved_bytes=20 * MB, training=True, batch_size=16 // num_microbatches)
    return candidate(graph, {"fast": [1e-3] * 4}, num_microbatches)


@pytest.mark.parametrize(("schedule", "memory", "counts", "helps", "words"), [
    ("looped-bfs", 700, (16,), "--schedule 1f1b", {"schedule": "1f1b"}),
    ("looped-bfs", 700, (4, 16), "--microbatches 4", {"microbatches": 4}),
    ("interleaved", 500, (16,), "--optimizer sgd", {"optimizer": "sgd"}),
    ("zero-bubble", 500, (16,), "--optimizer sgd", {"optimizer": "sgd"}),
])  # fmt: skip
def test_for_looped_schedules_a_change_is_suggested_and_fits(
    schedule: ScheduleName, memory: int, counts: tuple[int, ...], helps: str, words: dict[str, Any]
) -> None:
    chosen = tuple(map(looped_chain, counts))
    devices = cluster(*(device(name, memory_bytes=memory * MB) for name in "ab"))
    job = Job(batch=16, mode="train", optimizer="adamw", schedule=schedule, microbatches=16)
    message = message_of(chosen, devices, job)
    assert re.search(rf"no placement tried for --schedule {schedule} fits; the closest: [ab] is short by", message)
    assert message.endswith(f"it fits with {helps}")
    assert plan(chosen, devices, replace(job, **words)).stages


def test_for_looped_schedules_that_no_change_helps_is_said() -> None:
    chosen = replace(looped_chain(4), graph=replace(looped_chain(4).graph, legal_cuts=(2,)))
    devices = cluster(*(device(name, memory_bytes=50 * MB) for name in "ab"))
    job = Job(batch=16, mode="train", optimizer="sgd", schedule="interleaved")
    assert "no single change of the job" in message_of((chosen,), devices, job)
