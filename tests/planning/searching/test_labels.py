from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autopart.planning.searching.arcs import build_instance
from autopart.planning.searching.instance import Instance
from autopart.planning.searching.labels import exact_sum
from autopart.planning.searching.options import schedules
from autopart.schema.device import Cluster
from autopart.schema.job import Job
from autopart.schema.problem import Candidate
from tests.planning.problems import problems, wide_problems

Problem = tuple[Candidate, Cluster, Job]


def paths(instance: Instance, boundary: int = 0, before: int | None = None) -> Iterator[tuple[int, ...]]:
    """Every chain of arcs from a node to the end."""
    if boundary == instance.end:
        yield ()
        return
    arcs, known = instance.arcs, instance.num_classes if before is None else before
    for arc in np.flatnonzero((arcs.first == boundary) & (arcs.before == known)).tolist():
        for rest in paths(instance, int(arcs.last[arc]), int(arcs.after[arc])):
            yield (arc, *rest)


def keeps_rows(instance: Instance, path: tuple[int, ...]) -> bool:
    arcs, chosen = instance.arcs, list(path)
    used = np.bincount(arcs.group[chosen], arcs.width[chosen], instance.num_groups)
    held = [arcs.most_in_flight[arc] >= min(instance.num_microbatches, len(path) - at) for at, arc in enumerate(path)]
    wanted = instance.num_stages in (None, len(path)) and len(path) <= instance.most_stages
    return bool((used <= instance.counts).all()) and all(held) and wanted


def least_by_brute_force(instance: Instance) -> float:
    return min((instance.arcs.sum_along(path) for path in paths(instance) if keeps_rows(instance, path)),
               default=math.inf)


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
        expected = least_by_brute_force(instance)
        found = exact_sum(instance, instance.arcs, math.inf, 10**7)
        assert found.total == pytest.approx(expected, rel=1e-6)
        if found.path:
            assert keeps_rows(instance, found.path)
            assert found.total <= instance.arcs.sum_along(found.path)
            assert instance.arcs.sum_along(found.path) == pytest.approx(expected, rel=1e-6)
            assert not exact_sum(instance, instance.arcs, expected * (1 - 1e-6), 10**7).path
            assert exact_sum(instance, instance.arcs, expected * (1 + 1e-6), 10**7).path
            assert math.isnan(exact_sum(instance, instance.arcs, math.inf, 0).total)
