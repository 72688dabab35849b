from __future__ import annotations

from typing import Any

import pytest

from tests.running.compressed_ranks import CASES, Case
from tests.running.forked import figures, launch

Found = dict[int, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What both ranks of all cases found; one launch for all of them."""
    return launch("tests.running.compressed_ranks", tmp_path_factory.mktemp("compressed"), (2,))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_ranks_do_what_one_process_does_with_the_same_codec(found: Found, case: Case) -> None:
    ranks = figures(found, case.name)
    assert max(each["error"] for each in ranks) <= 1e-6
    sent, plain = (sum(each[name] for each in ranks) for name in ("sent", "plain"))
    assert (sent, plain) == (ranks[0]["sent alone"], ranks[0]["plain alone"])
    codec = case.planned if case.compress is None else case.compress
    shares = {"none": 1.0, "fp16": 1.99, "bf16": 1.99, "int8": 3.5, "topk": 9.0}
    assert plain / sent >= shares[codec] / (2 if case.dtypes and codec != "none" else 1)
