from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.running.schedule_ranks import CASES, Case

TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, float | str]]]:
    """What all ranks of all cases found; one launch for all of them."""
    directory = tmp_path_factory.mktemp("schedules")
    command = [sys.executable, "-m", "tests.running.schedule_ranks", str(directory)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], timeout=580, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {
        world: [json.loads((directory / f"{world}.{rank}.json").read_text()) for rank in range(world)]
        for world in CASES
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "case"), [(world, case) for world, cases in CASES.items() for case in cases],
    ids=lambda value: value.name if isinstance(value, Case) else str(value),
)
def test_gradients_are_those_of_one_process(
    found: dict[int, list[dict[str, float | str]]], world: int, case: Case
) -> None:
    for rank in found[world]:
        error = rank[case.name]
        assert isinstance(error, float), error
        assert error <= TOLERANCE
