from __future__ import annotations

import dataclasses
import time
from typing import Any

import pytest

from autopart.errors import RunError
from autopart.running.launching.summary import summarize
from autopart.running.layertimes import with_layer_seconds
from autopart.running.mesh import check_groups
from autopart.schema.job import ScheduleName
from autopart.schema.plan import Plan
from autopart.tracing import trace
from tests.running.forked import figures, launch
from tests.running.group_ranks import CASES, SHARE, Case, make_group_plan
from tests.running.groupmodels import MODELS, tokens_of
from tests.running.launching.test_summary import result

TOLERANCE = 1e-12
"""of float64; in float32 the same sums in another order differ by some 1e-7 to 1e-6"""
FP16_TOLERANCE = 2e-3

Found = dict[int, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What all ranks of all cases found; one launch for all of them."""
    return launch("tests.running.group_ranks", tmp_path_factory.mktemp("groups"), tuple(CASES))


ALL = [case for cases in CASES.values() for case in cases]


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in ALL if case.training], ids=lambda case: case.name)
def test_losses_gradients_and_weights_are_those_of_one_process(found: Found, case: Case) -> None:
    ranks = figures(found, case.name)
    assert sum(float(rank["num_losses"]) for rank in ranks) == 2, "one process has the losses of both steps"
    for rank in ranks:
        assert rank["num_gradients"]
        assert float(rank["losses"]) <= TOLERANCE
        assert float(rank["gradients"]) <= (TOLERANCE if case.codec == "none" else FP16_TOLERANCE)
        assert float(rank["weights"]) <= (TOLERANCE if case.codec == "none" else FP16_TOLERANCE)
    if case.codec != "none":
        assert max(float(rank["gradients"]) for rank in ranks) > TOLERANCE, "they did travel in fewer bits"


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in ALL if not case.training], ids=lambda case: case.name)
def test_the_output_is_the_models_on_one_process(found: Found, case: Case) -> None:
    outputs = [rank["output"] for rank in figures(found, case.name) if "output" in rank]
    assert len(outputs) == 1
    assert float(outputs[0]) <= TOLERANCE


@pytest.mark.slow
def test_devices_that_share_layers_hold_parts_of_them(found: Found) -> None:
    cases = [Case((group,), "1f1b", "blocks", "adamw") for group in ((1, 2), (2, 1))]
    shared, replicated = (figures(found, case.name) for case in cases)
    model = MODELS["blocks"]()
    num_all = sum(weight.numel() for weight in model.parameters())
    num_whole = sum(
        weight.numel() for name, weight in model.named_parameters() if weight.dim() == 1 and not name.startswith("up")
    )
    assert sum(float(rank["num_elements"]) for rank in shared) == num_all + num_whole
    assert [rank["num_elements"] for rank in replicated] == [num_all] * 2


@pytest.mark.slow
def test_what_stays_whole_is_said(found: Found) -> None:
    notes = [rank["notes"] for rank in figures(found, Case(((1, 2),), "1f1b", "odd").name)]
    assert notes == [
        "Stage 0: 512 B of its weights cannot be sharded (mix); each of the 2 devices that share it has "
        "them and computes them whole."
    ] * 2


def group_plan(groups: tuple[tuple[int, int], ...], schedule: ScheduleName) -> Plan:
    program = trace(MODELS["blocks"](), (tokens_of(SHARE, 0),), training=True)
    return make_group_plan(program, Case(groups, schedule, "blocks"))


def test_replicas_with_zero_bubble_are_refused() -> None:
    with pytest.raises(RunError, match=r"^2 replicas with the zero-bubble schedule give wrong gradients .*--schedule"):
        check_groups(group_plan(((2, 1), (2, 1)), "zero-bubble"), training=True)
    check_groups(group_plan(((1, 2), (1, 2)), "zero-bubble"), training=True)


def test_replicas_that_cannot_share_the_samples_are_refused() -> None:
    plan = group_plan(((2, 1), (1, 1)), "1f1b")
    plan = dataclasses.replace(plan, job=dataclasses.replace(plan.job, batch=plan.job.batch // 4 * 3))
    with pytest.raises(RunError, match=r"^the 2 replicas of stage 0 cannot share the 3 samples of a micro-batch"):
        check_groups(plan, training=True)


def test_a_stage_of_two_devices_is_measured_as_the_first_ran_it_with_the_most_memory() -> None:
    plan = group_plan(((1, 2), (1, 1)), "1f1b")
    results = [
        dataclasses.replace(result(rank, (4.0, 4.0), 1.0), peak_bytes=peak_bytes)
        for rank, peak_bytes in enumerate((10, 20, 30))
    ]
    results[2] = dataclasses.replace(results[2], losses=(0.5, 0.25))
    found = summarize(plan, results, None, "it was not asked for")
    assert [(stage.device, stage.peak_bytes) for stage in found.stages] == [("cpu:0", 20), ("cpu:2", 30)]
    assert found.losses == (0.5, 0.25)


def test_layers_of_a_stage_of_two_devices_are_not_timed_one_by_one() -> None:
    program = trace(MODELS["blocks"](), (tokens_of(SHARE, 0),), training=True)
    plan = make_group_plan(program, Case(((1, 2),), "1f1b", "blocks"))
    found = with_layer_seconds(
        result(1, (4.0,), 1.0), program, plan, weight=program.weight, device=program.device, clock=time.perf_counter
    )
    assert found.layer_seconds == () and "several devices run it" in found.notes[-1]
