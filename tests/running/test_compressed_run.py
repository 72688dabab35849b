from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.running.compressed_ranks import CASES, Case

Found = list[dict[str, dict[str, float]]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What both ranks of all cases found; one launch for all of them."""
    directory = tmp_path_factory.mktemp("compressed")
    command = [sys.executable, "-m", "tests.running.compressed_ranks", str(directory)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], timeout=300, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads((directory / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_ranks_do_what_one_process_does_with_the_same_codec(found: Found, case: Case) -> None:
    ranks = [rank[case.name] for rank in found]
    for each in ranks:
        assert not isinstance(each, str), each
        assert each["error"] <= 1e-6
    sent, plain = (sum(each[name] for each in ranks) for name in ("sent", "plain"))
    assert (sent, plain) == (ranks[0]["sent alone"], ranks[0]["plain alone"])
    codec = case.planned if case.compress is None else case.compress
    assert plain / sent >= {"none": 1.0, "fp16": 1.99, "bf16": 1.99, "int8": 3.5, "topk": 9.0}[codec]
