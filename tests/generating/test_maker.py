"""Plans of several numbers of groups, from hand-made times."""

from __future__ import annotations

from typing import Any

import pytest

from autopart.advising import Case
from autopart.generating.maker import Maker
from autopart.schema.job import Job
from autopart.schema.plan import Plan
from tests.planning.problems import candidate, chain, cluster, device


def a_case(count: int) -> Case:
    rounds = 8
    graph = chain(7)
    made = candidate(graph, {"fast": (1.0,) * 7, "slow": (2.0,) * 7}, count * rounds)
    job = Job(batch=count * rounds, microbatches=count * rounds, rounds=rounds, cache_tokens=8, cache_sequences=count)
    return Case(candidates=(made,), job=job)


@pytest.mark.parametrize("words", [{}, {"microbatches": 2}])
def test_there_are_no_more_stages_than_groups_unless_they_are_asked_for(words: dict[str, Any]) -> None:
    """Two fast devices take two groups; the slow one would be a third stage, which two groups cannot keep busy."""
    maker = Maker.__new__(Maker)
    maker._cluster = cluster(device("a"), device("b"), device("c", kind="slow"))
    maker._words, maker._progress = words, lambda *_: None
    case = a_case(2)
    assert len(maker._planned(case).stages) == 3
    plan: Plan = maker._unhindered(case, 2)
    assert len(plan.stages) == (3 if words else 2)
    assert plan.job == case.job
