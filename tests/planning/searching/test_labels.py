from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autopart.planning.searching.arcs import build_instance
from autopart.planning.searching.labels import exact_sum
from autopart.planning.searching.options import schedules
from autopart.schema.device import Cluster
from autopart.schema.job import Job
from autopart.schema.problem import Candidate
from tests.planning.problems import problems, wide_problems
from tests.planning.searching.test_updates import cost_of, paths_of

Problem = tuple[Candidate, Cluster, Job]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(problem=st.one_of(wide_problems(), problems(max_layers=5, training=True)), slower=st.sampled_from([1, 30]))
def test_the_least_sum_is_that_of_brute_force(problem: Problem, slower: int) -> None:
    """``slower``: optimizers so long that the last to end is any stage's."""
    chosen, devices, job = problem
    kinds = tuple(
        replace(kind, optimizer_seconds=tuple(slower * each for each in kind.optimizer_seconds))
        for kind in chosen.profile.kinds
    )
    chosen = replace(chosen, profile=replace(chosen.profile, kinds=kinds))
    for schedule in schedules(job):
        instance = build_instance(chosen, devices, job, schedule)
        if not len(instance.arcs):
            continue
        paths = set(paths_of(instance, instance.arcs))
        expected = min((cost_of(instance.arcs, path) for path in paths), default=math.inf)
        found = exact_sum(instance, instance.arcs, math.inf, 10**7)
        assert found.total == pytest.approx(expected, rel=1e-6)
        if found.path:
            assert found.path in paths
            assert found.total <= instance.arcs.sum_along(found.path)
            assert instance.arcs.sum_along(found.path) == pytest.approx(expected, rel=1e-6)
            assert not exact_sum(instance, instance.arcs, expected * (1 - 1e-6), 10**7).path
            assert exact_sum(instance, instance.arcs, expected * (1 + 1e-6), 10**7).path
            assert math.isnan(exact_sum(instance, instance.arcs, math.inf, 0).total)
