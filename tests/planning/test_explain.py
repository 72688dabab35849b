from __future__ import annotations

import pytest
from hypothesis import given, settings

from autopart.errors import InfeasibleError
from autopart.planning import explain, plan
from autopart.schema.device import Cluster
from autopart.schema.job import Job
from autopart.schema.problem import Candidate
from tests.planning.problems import problems


@settings(max_examples=30, deadline=None)
@given(problems())
def test_the_terms_add_up(problem: tuple[Candidate, Cluster, Job]) -> None:
    chosen, devices, job = problem
    try:
        result = plan((chosen,), devices, job)
    except InfeasibleError:
        return
    found = explain(result)
    assert found.objective_seconds == pytest.approx(result.proof.objective_seconds)
    assert found.stages[found.bottleneck].slack_seconds == 0
    assert all(stage.slack_seconds >= 0 and stage.free_bytes >= 0 for stage in found.stages)
    assert sum(stage.num_layers for stage in found.stages) == result.model.num_layers
    assert sum(cut.num_tensors for cut in found.cuts) == len(result.transfers)
    assert [cut.before_layer for cut in found.cuts] == [stage.layers[0] for stage in result.stages[1:]]
    received = sum(stage.receive_seconds for stage in found.stages)
    assert received == pytest.approx(sum(cut.forward_seconds + cut.backward_seconds for cut in found.cuts))
