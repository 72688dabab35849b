from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopart.errors import InfeasibleError
from autopart.planning import CheckError, check, plan
from autopart.planning.costing.codecs import ACCELERATOR, PROCESSOR, codecs_of, sent
from autopart.schema.codec import wire_bytes
from autopart.schema.device import Cluster
from autopart.schema.job import Compress, Job
from autopart.schema.problem import Candidate
from tests.planning.problems import best_by_brute_force, candidate, chain, cluster, device, link, problems

Problem = tuple[Candidate, Cluster, Job]


def with_rows(chosen: Candidate) -> Candidate:
    """Every value has a row for every sample, as codecs want it."""
    graph = chosen.graph
    values = tuple(replace(value, shape=(graph.batch_size, value.bytes // 4)) for value in graph.values)
    return replace(chosen, graph=replace(graph, values=values))


@settings(deadline=None, max_examples=12)
@given(problem=problems(max_layers=5), compress=st.sampled_from(["auto", "fp16", "int8"]))
def test_the_plan_is_the_best_of_all_with_codecs(problem: Problem, compress: Compress) -> None:
    chosen, devices, job = problem
    chosen, job = with_rows(chosen), replace(job, compress=compress, schedule=None, stages=None)
    best = best_by_brute_force(chosen, devices, job)
    if best is None:
        with pytest.raises(InfeasibleError):
            plan((chosen,), devices, job)
        return
    found = plan((chosen,), devices, job)
    assert found.proof.bound_seconds <= best.objective_seconds * (1 + 1e-9)
    assert found.proof.objective_seconds <= best.objective_seconds * (1 + 2e-3) or found.proof.outcome == "feasible"
    assert {each.codec for each in found.transfers} <= {"none", "fp16", "int8"}
    if compress == "auto" and job.mode == "infer":
        plain = plan((chosen,), devices, replace(job, compress="none"))
        assert found.proof.bound_seconds <= plain.proof.objective_seconds * (1 + 1e-9)


def slow_link(compress: Compress) -> Problem:
    chosen = with_rows(candidate(chain(4, value_bytes=400_000), {"fast": [0.1] * 4}, 4))
    job = Job(batch=4, compress=compress, stages=2)
    return chosen, cluster(device("a"), device("b"), links=(link(bandwidth=1e6),)), job


def test_a_slow_link_is_relieved_and_a_fast_one_left_alone() -> None:
    plain, fast = plan(*_one(slow_link("none"))), plan(*_one(slow_link("auto")))
    assert {each.codec for each in fast.transfers} == {"int8"}
    assert fast.transfers[0].bytes == wire_bytes("int8", (1, 100_000), 4) < 400_000 / 3
    assert fast.prediction.step_seconds < plain.prediction.step_seconds / 1.2
    chosen, devices, job = slow_link("auto")
    quick = replace(devices, links=(link(bandwidth=1e12),))
    assert {each.codec for each in plan((chosen,), quick, job).transfers} == {"none"}


def _one(problem: Problem) -> tuple[tuple[Candidate, ...], Cluster, Job]:
    return (problem[0],), *problem[1:]


def test_no_codec_unless_it_is_allowed() -> None:
    assert {each.codec for each in plan(*_one(slow_link("none"))).transfers} == {"none"}
    assert {each.codec for each in plan(*_one(slow_link("bf16"))).transfers} == {"bf16"}


def test_values_that_a_codec_is_not_meant_for_travel_as_they_are() -> None:
    graph = with_rows(candidate(chain(2, value_bytes=400_000), {"fast": [0.1] * 2}, 1)).graph
    codecs = codecs_of(Job(batch=1, compress="int8"), cluster(device("a")))
    value, slow = graph.values[1], link(bandwidth=1e6)
    assert sent(value, graph, slow, codecs).codec.name == "int8"
    for other in (replace(value, dtype="int64"), replace(value, shape=(7, 1000)), replace(value, shape=(1, 8))):
        way = sent(other, graph, slow, codecs)
        assert way.codec.name == "none" and way.seconds == slow.seconds(value.bytes)


def test_processors_encode_more_slowly() -> None:
    job, here = Job(batch=1, compress="auto"), replace(device("a"), backend="cpu")
    assert codecs_of(job, cluster(device("a"))) == tuple(c for c in ACCELERATOR if c.name in ("none", "fp16", "int8"))
    assert codecs_of(job, cluster(device("b"), here)) == tuple(
        c for c in PROCESSOR if c.name in ("none", "fp16", "int8")
    )
    assert all(math.isfinite(codec.bytes_per_second) for codec in PROCESSOR if codec.name != "none")


def test_the_checker_reads_codecs_again() -> None:
    chosen, devices, job = slow_link("auto")
    made = plan((chosen,), devices, job)
    first = made.transfers[0]
    with pytest.raises(CheckError, match="must not travel by topk"):
        check(replace(made, transfers=(replace(first, codec="topk"), *made.transfers[1:])), chosen)
    with pytest.raises(CheckError, match="bytes"):
        check(replace(made, transfers=(replace(first, bytes=first.bytes - 1), *made.transfers[1:])), chosen)
    with pytest.raises(CheckError, match="not by int8"):
        check(replace(plan(*_one(slow_link("none"))), job=replace(job, compress="int8")), chosen)
