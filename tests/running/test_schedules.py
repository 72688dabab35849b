from __future__ import annotations

from typing import Any

import pytest

from tests.running.forked import figures, launch
from tests.running.schedule_ranks import CASES, Case

TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """What all ranks of all cases found; one launch for all of them."""
    return launch("tests.running.schedule_ranks", tmp_path_factory.mktemp("schedules"), tuple(CASES))


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for cases in CASES.values() for case in cases], ids=lambda case: case.name)
def test_gradients_are_those_of_one_process(found: dict[int, list[dict[str, Any]]], case: Case) -> None:
    assert max(figures(found, case.name)) <= TOLERANCE
