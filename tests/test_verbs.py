"""The commands without the command line: parts that the tests of the command line do not reach."""

from __future__ import annotations

import pytest
from torch import nn

from autopart.errors import MismatchError
from autopart.verbs import MOST_DEMOTIONS, demoted


def _model() -> nn.Module:
    block = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    return nn.Sequential(block, nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("opaque", "blamed", "expected"),
    [
        ((), "0.1.0", ("0.1.0",)),
        (("1",), "0.1.0@2", ("1", "0.1.0")),  # a module's third call
        (("0.1.0",), "0.1.0", ("0.1",)),  # runs as written already: what it is handed is wrong
        (("0.1.0", "0.1"), "0.1.0", ("0",)),
        (("0",), "0", ("",)),
        (("0.0", "1"), "0", ("1", "0")),  # parts of what is opaque need not be named
        ((), "", ("",)),
        ((), "no.such", ("",)),
        (tuple(str(each) for each in range(MOST_DEMOTIONS)), "0.1", ("",)),
    ],
)
def test_what_is_blamed_twice_grows_outwards(
    opaque: tuple[str, ...], blamed: str, expected: tuple[str, ...]
) -> None:
    assert demoted(_model(), opaque, MismatchError("differs", layer=blamed)) == expected
