from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from autopart.planning import CheckError, check, plan
from autopart.schema.job import Job
from autopart.schema.plan import Plan
from autopart.schema.problem import Candidate
from tests.planning.problems import candidate, chain, cluster, device, link
from tests.test_stagedtypes import half_chain


@pytest.fixture(params=["infer", "train"])
def planned(request: pytest.FixtureRequest) -> tuple[Plan, Candidate]:
    train = request.param == "train"
    graph = chain(8, skips=((0, 6, 500),), tied=(0, 7), training=train, saved_bytes=300, legal_cuts=(1, 2, 3, 4, 5, 6))
    chosen = candidate(graph, {"fast": [1e-3] * 8, "slow": [2e-3] * 8}, 8)
    devices = cluster(
        device("a"), device("b", kind="slow", memory_bytes=10**9), device("c", kind="slow", speed=0.1),
        links=(link(latency_seconds=1e-6, bandwidth=1e8),),
    )
    job = Job(batch=8, stages=2, mode="train" if train else "infer", optimizer="adamw" if train else "none")
    return plan((chosen,), devices, job), chosen


def stage_with(result: Plan, index: int, **changes: Any) -> Plan:
    stages = list(result.stages)
    stages[index] = replace(stages[index], **changes)
    return replace(result, stages=tuple(stages))


def move_a_layer(result: Plan) -> Plan:
    first, second = result.stages
    shorter = replace(first, layers=first.layers[:-1])
    longer = replace(second, layers=(first.layers[-1], *second.layers))
    return replace(result, stages=(shorter, longer))


def swap_two_layers(result: Plan) -> Plan:
    layers = result.stages[0].layers
    return stage_with(result, 0, layers=(layers[1], layers[0], *layers[2:]))


def swap_devices(result: Plan) -> Plan:
    first, second = result.stages
    swapped = replace(first, devices=second.devices), replace(second, devices=first.devices)
    return replace(result, stages=swapped)


def change_a_byte(result: Plan) -> Plan:
    transfer = replace(result.transfers[0], bytes=result.transfers[0].bytes + 1)
    return replace(result, transfers=(transfer, *result.transfers[1:]))


def forget_a_transfer(result: Plan) -> Plan:
    return replace(result, transfers=result.transfers[1:])


def hide_memory(result: Plan) -> Plan:
    memory = replace(result.stages[0].memory, workspace=0)
    return stage_with(result, 0, memory=memory, peak_bytes=memory.total)


def invent_capacity(result: Plan) -> Plan:
    return stage_with(result, 0, capacity_bytes=result.stages[0].capacity_bytes + 1)


def shrink_the_cap(result: Plan) -> Plan:
    small = tuple(replace(d, memory_bytes=100) for d in result.cluster.devices)
    changed = replace(result, cluster=replace(result.cluster, devices=small))
    return stage_with(stage_with(changed, 0, capacity_bytes=100), 1, capacity_bytes=100)


def faster_stage(result: Plan) -> Plan:
    return stage_with(result, 0, forward_seconds=result.stages[0].forward_seconds * 0.999)


def faster_step(result: Plan) -> Plan:
    return replace(result, prediction=replace(result.prediction, step_seconds=result.prediction.step_seconds * 0.999))


def busier(result: Plan) -> Plan:
    return stage_with(result, 0, utilisation=0.123)


def bound_above_objective(result: Plan) -> Plan:
    return replace(result, proof=replace(result.proof, bound_seconds=result.proof.objective_seconds * 1.1))


def more_microbatches(result: Plan) -> Plan:
    return replace(result, schedule=replace(result.schedule, num_microbatches=4))


def another_model(result: Plan) -> Plan:
    return replace(result, model=replace(result.model, fingerprint="g"))


def another_link(result: Plan) -> Plan:
    return replace(result, cluster=replace(result.cluster, links=(link(bandwidth=1e6),)))


TAMPERINGS: list[Callable[[Plan], Plan]] = [
    move_a_layer, swap_two_layers, swap_devices, change_a_byte, forget_a_transfer, hide_memory, invent_capacity,
    shrink_the_cap, faster_stage, faster_step, busier, bound_above_objective, more_microbatches, another_model,
    another_link,
]


def test_an_untouched_plan_passes(planned: tuple[Plan, Candidate]) -> None:
    check(*planned)


@pytest.mark.parametrize("tamper", TAMPERINGS)
def test_a_tampered_plan_does_not(planned: tuple[Plan, Candidate], tamper: Callable[[Plan], Plan]) -> None:
    result, chosen = planned
    with pytest.raises(CheckError):
        check(tamper(result), chosen)


def test_an_illegal_cut_is_found(planned: tuple[Plan, Candidate]) -> None:
    result, chosen = planned
    cut = len(result.stages[0].layers)
    legal = tuple(k for k in chosen.graph.legal_cuts if k != cut)
    with pytest.raises(CheckError, match="not legal"):
        check(result, replace(chosen, graph=replace(chosen.graph, legal_cuts=legal)))


def test_a_wrong_type_of_a_stage_is_caught() -> None:
    graph = half_chain(training=True)
    made = candidate(graph, {"fast": [1e-3] * 2, "slow": [2e-3] * 2}, 4)
    rows = tuple(replace(row, dtype="float32" if row.kind == "slow" else "") for row in made.profile.kinds)
    made = replace(made, profile=replace(made.profile, kinds=rows))
    job = Job(batch=4, stages=2, mode="train", optimizer="sgd", stage_dtype="auto")
    result = plan((made,), cluster(device("a"), device("b", kind="slow")), job)
    check(result, made)
    index = next(stage.index for stage in result.stages if stage.devices == ("b",))
    assert [stage.dtype for stage in result.stages].count("float32") == 1 and result.stages[index].dtype == "float32"
    assert "stage-dtype" in {warning.code for warning in result.warnings}
    for wrong in ("", "float16"):
        with pytest.raises(CheckError, match=f"computes in '{wrong}', not in 'float32'"):
            check(stage_with(result, index, dtype=wrong), made)
    with pytest.raises(CheckError, match="computes in 'float32', not in ''"):
        check(replace(result, job=replace(job, stage_dtype="keep")), made)
    kept = replace(made, profile=replace(made.profile, kinds=tuple(replace(row, dtype="") for row in rows)))
    keeps = plan((kept,), result.cluster, replace(job, stage_dtype="keep"))
    peaks = [next(s for s in each.stages if s.devices == ("b",)).memory.parameters for each in (result, keeps)]
    assert peaks[0] == 5 * peaks[1]  # the weights, a copy of each in float32, and the copy's gradient
