from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.distributed as dist

from autopart.errors import RunError
from autopart.running.dealing import Form, check_dealing, gradient_factor, scaled
from autopart.schema.graph import Graph
from autopart.schema.plan import Plan
from autopart.tracing import trace
from tests.running.group_ranks import SHARE, Case, make_group_plan
from tests.running.groupmodels import MODELS, tokens_of

GROUPS = ((2, 1), (1, 1))


def graphs_and_plan() -> tuple[dict[int, Graph], Plan]:
    programs = {size: trace(MODELS["blocks"](), (tokens_of(size, 0),), training=True) for size in (SHARE, 2 * SHARE)}
    plan = make_group_plan(programs[SHARE], Case(GROUPS, "1f1b", "blocks"))
    return {size: program.graph for size, program in programs.items()}, plan


GRAPHS, PLAN = graphs_and_plan()


@pytest.fixture
def gathered(monkeypatch: pytest.MonkeyPatch) -> dict[int, Graph]:
    """What the three processes of the plan tell each other; changed by who wants another model."""
    graphs = dict(GRAPHS)

    def gather(found: list[Any], own: tuple[int, tuple[tuple[Form, ...], ...]]) -> None:
        for index, size in enumerate((SHARE, SHARE, 2 * SHARE)):
            last = len(PLAN.stages[0].layers)
            ends = (last, len(graphs[size].layers))
            found[index] = size, tuple(
                tuple((value.shape, value.differentiable) for value in graphs[size].crossing(end)) for end in ends
            )
        assert own in found

    monkeypatch.setattr(dist, "all_gather_object", gather)
    monkeypatch.setattr(dist, "get_world_size", lambda: 3)
    return graphs


def test_what_is_batched_by_its_first_dimension_is_dealt(gathered: dict[int, Graph]) -> None:
    check_dealing(PLAN, gathered[SHARE], 1, "fp16")
    check_dealing(PLAN, gathered[2 * SHARE], 2, None)


def test_codes_that_cannot_be_sliced_are_refused(gathered: dict[int, Graph]) -> None:
    with pytest.raises(RunError, match=r"^stages 0 and 1 differ in replicas, so int8.*--compress fp16"):
        check_dealing(PLAN, gathered[SHARE], 0, "int8")


def test_samples_in_another_dimension_are_refused(gathered: dict[int, Graph]) -> None:
    for size, graph in GRAPHS.items():
        turned = tuple(dataclasses.replace(value, shape=value.shape[::-1]) for value in graph.values)
        gathered[size] = dataclasses.replace(graph, values=turned)
    with pytest.raises(RunError, match=r"from stage 0 to 1, which differ in replicas \(2 and 4 samples each\)"):
        check_dealing(PLAN, gathered[SHARE], 0, None)


def test_a_trace_of_another_size_is_refused() -> None:
    with pytest.raises(RunError, match=r"traced at 2 samples, process 2 gets 4 of every micro-batch"):
        check_dealing(PLAN, GRAPHS[SHARE], 2, None)


def test_gradients_are_scaled_to_the_other_sides_mean() -> None:
    assert [gradient_factor(PLAN, stage) for stage in range(2)] == [1.0, 2.0]
    value = torch.ones(3, requires_grad=True)
    torch.autograd.backward(scaled(value, 2.0).sum())
    assert value.grad is not None and value.grad.tolist() == [2.0] * 3
    assert scaled(value, 1.0) is value
