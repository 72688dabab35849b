from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, assume, given, settings

from autopart.planning import check, plan
from autopart.planning.searching.arcs import build_instance
from autopart.planning.searching.options import evaluate, layout_of, schedules
from autopart.schema.device import Cluster
from autopart.schema.job import Job
from autopart.schema.problem import Candidate
from tests.planning.problems import candidate, chain, cluster, device
from tests.planning.searching.test_updates import paths_of
from tests.planning.varied import every_option, objective_along, varied_problems

Problem = tuple[Candidate, Cluster, Job]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(varied_problems(max_devices=4, tied=False))
def test_a_path_takes_the_first_devices_of_its_groups_and_costs_what_its_layout_does(
    problem: Problem,
) -> None:
    """Devices are given in path order, each once; what a path costs and holds is what they really do."""
    chosen, devices, job = problem
    instance = build_instance(chosen, devices, job, schedules(job)[0])
    paths = list(itertools.islice(paths_of(instance, instance.arcs), 200))
    assume(paths)
    for path in paths:
        layout = layout_of(instance, path, instance.schedule, devices)
        assert layout is not None
        left = [[each.name for each in group.devices] for group in instance.groups]
        for index, arc in enumerate(path):
            free, width = left[int(instance.arcs.group[arc])], int(instance.arcs.width[arc])
            assert layout.devices_of(index) == tuple(free.pop(0) for _ in range(width))
        option = evaluate(chosen, devices, job, layout)
        assert not option.misfit
        assert objective_along(instance, path) == pytest.approx(option.objective_seconds, rel=1e-9)


def unlike_caps() -> Problem:
    """Four devices of a kind and node: two hold two layers of the six, one holds one, one holds three; with wishes."""
    graph = chain(6, weight_bytes=1000, value_bytes=0, peak_bytes=0)
    chosen = candidate(graph, {"fast": [1e-3, 2e-3, 3e-3, 3e-3, 2e-3, 1e-3]}, 4)
    caps = {"a": 2100, "b": 1100, "c": 3100, "d": 2100}
    return chosen, cluster(*(device(name, memory_bytes=cap) for name, cap in caps.items())), Job(batch=4)


@pytest.mark.parametrize("words", [{}, {"pins": (("l5", "b"),)}, {"forbidden": (("l0", "c"), ("l0", "d"))}])
def test_devices_of_a_kind_with_unlike_caps_in_any_order(words: dict[str, tuple[tuple[str, str], ...]]) -> None:
    chosen, devices, job = unlike_caps()
    job = replace(job, **words)  # type: ignore[arg-type]  # words of a job
    best = min(option.objective_seconds for option in every_option((chosen, devices, job)))
    for order in list(itertools.permutations(devices.devices))[::4]:
        found = plan((chosen,), replace(devices, devices=order), job)
        check(found, chosen)
        assert found.proof.objective_seconds == pytest.approx(best)
        assert found.proof.outcome == "proven"
