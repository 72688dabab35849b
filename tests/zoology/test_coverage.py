"""The coverage page: short reasons, and every specimen on it once."""

from __future__ import annotations

import pytest

from tests.zoology.coverage import markdown, short
from tests.zoology.result import Check, Result

KEY = "torch 2.14.1, transformers 5.23.0; code 0123456789ab"


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("RuntimeError: in /home/someone/lib/python3.11/site-packages/torch/nn/a.py, line 3",
         "RuntimeError: in torch/nn/a.py, line 3"),
        ("no such file: /srv/data/model.py", "no such file: model.py"),
        ("see https://pytorch.org/docs/notes.html for more", "see https://pytorch.org/docs/notes.html for more"),
        ("<transformers.cache_utils.DynamicCache object at 0x7f00aa> is no tensor", "DynamicCache is no tensor"),
        ("<class 'transformers.models.bert.Bert'> has no vocabulary", "Bert has no vocabulary"),
        ("It cannot be traced. It is one layer then.", "It cannot be traced"),
        ("verification: the gradient of a.0.bias differs from the unsplit model's (4 of 8 do)",
         "verification: a gradient differs from the unsplit model's"),
        ("one | two", "one \\| two"),
    ],
)  # fmt: skip
def test_reasons_are_short(reason: str, expected: str) -> None:
    assert short(reason) == expected


def test_long_reasons_are_cut_between_words() -> None:
    found = short("word " * 100)
    assert found.endswith("word …") and len(found) <= 150


def test_page_counts_and_names_everything_once() -> None:
    names = {"hf:a/A": "equal", "hf:b/B": "refused", "hf:c/C": "not built"}
    page = markdown([_result(name, verdict) for name, verdict in names.items()], [], num_open=2)
    assert "1 of 2 are split" in page
    assert "2 specimens have not been examined yet" in page
    folded = page.partition("<details>")[2]
    assert "a/A" in folded and "b/B" not in folded and "c/C" not in folded
    assert "| refused (train) | it does not go | 1 | b/B |" in page
    assert "| not built | it does not go | 1 | c/C |" in page


def test_equal_causes_share_a_row() -> None:
    page = markdown([_result("timm:a/one", "refused"), _result("timm:b/two", "refused")], [], num_open=0)
    assert "| refused (train) | it does not go | 2 | a/one, b/two |" in page


def _result(name: str, verdict: str) -> Result:
    checks = () if verdict == "not built" else (Check(mode="train", num_stages=2, verdict=verdict),)
    return Result(name=name, key=KEY, verdict=verdict, reason="it does not go", checks=checks)
